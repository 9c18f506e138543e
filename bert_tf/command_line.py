"""What all scripts share: the recipe flag, plain log lines, and errors without a stack trace."""

from __future__ import annotations

import dataclasses
import logging as python_logging
import os
import sys
from collections.abc import Callable

import tensorflow as tf
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bert_tf.config import RunConfig
from bert_tf.training import NonFiniteLoss, Preempted

EXIT_USER_ERROR = 1
EXIT_NON_FINITE = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM: schedulers start such a job again


def recipe(run: RunConfig) -> ConfigDict:
    """A `RunConfig` as recipes return it: typed and locked, so that flags can override fields."""
    return ConfigDict(dataclasses.asdict(run), type_safe=True).lock()


def define_config_flag() -> flags.FlagHolder:
    """`--config=configs/NAME.py`, with overrides such as `--config.optimizer.learning_rate=3e-5`."""
    return config_flags.DEFINE_config_file(
        "config", None, "Recipe: a Python file with get_config(); see configs/.", lock_config=True
    )


def resolve(config: ConfigDict) -> RunConfig:
    """The frozen, checked configuration of a recipe with its overrides."""
    return RunConfig.from_dict(config.to_dict())


def run_script(main: Callable[[list[str]], None]) -> None:
    """Runs `main` under absl; a user's mistake ends in one paragraph, not in a stack trace."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            sys.exit(f"error: unexpected argument {argv[1]!r}; flags are written --name=value.")
        log_plainly()
        try:
            main(argv)
        except ValueError as error:
            logging.debug("", exc_info=error)
            leave(f"error: {error}", EXIT_USER_ERROR)
        except NonFiniteLoss as error:
            leave(f"error: {error}", EXIT_NON_FINITE)
        except Preempted as error:
            leave(str(error), EXIT_PREEMPTED)

    app.run(guarded)


def leave(message: str, code: int) -> None:
    """Prints the message on standard error and exits."""
    if os.environ.get("BERT_TF_TRACEBACK"):
        raise  # noqa: PLE0704 - inside the except clause of run_script
    print(message, file=sys.stderr, flush=True)
    sys.exit(code)


def log_plainly() -> None:
    """Time and message on standard error, without the noise of absl's default prefix."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    tf.get_logger().setLevel("ERROR")
