"""What all scripts share: the recipe flag, plain log lines, and errors without a stack trace."""

from __future__ import annotations

import dataclasses
import difflib
import logging as python_logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

import tensorflow as tf
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from bert_tf import run_folder
from bert_tf.config import PartConfig, RunConfig
from bert_tf.distribution import Preempted, WorkerLost
from bert_tf.training import NonFiniteLoss

EXIT_USER_ERROR = 1
EXIT_NON_FINITE = 2
EXIT_PREEMPTED = 143  # 128 + SIGTERM: schedulers start such a job again
EXIT_WORKER_LOST = 75  # "temporary failure": so they should with this one, all its workers together


def recipe(run: RunConfig) -> ConfigDict:
    """A `RunConfig` as recipes return it: typed and locked, so that flags can override fields."""
    return ConfigDict(dataclasses.asdict(run), type_safe=True).lock()


def define_config_flag() -> flags.FlagHolder:
    """`--config=configs/NAME.py`, and overrides such as `--config.optimizer.learning_rate=3e-5`."""
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
        except WorkerLost as error:
            leave(f"error: {error}", EXIT_WORKER_LOST)

    app.run(guarded, flags_parser=parse_flags)


def parse_flags(arguments: list[str]) -> list[str]:
    """Parses flags as absl does; a mistake in them ends in one paragraph as well."""
    try:
        for place, argument in enumerate(arguments[1:], start=1):
            name, is_whole, value = argument.lstrip("-").partition("=")
            if name == "config" and argument.startswith("-"):
                check_recipe(value if is_whole else "".join(arguments[place + 1 : place + 2]))
            elif name.startswith("config."):
                check_field(name)
        return flags.FLAGS(arguments)
    except KeyError as error:
        name = str(error.args[0]).strip("'")
        leave(f"error: config.tasks.{name} is no task of the recipe.", EXIT_USER_ERROR)
    except (flags.Error, ValueError) as error:
        leave(f"error: {error}", EXIT_USER_ERROR)


def check_recipe(path: str) -> None:
    """Raises ValueError where the recipe is no file."""
    if not os.path.isfile(path.partition(":")[0]):
        raise ValueError(
            f"--config={path} is not a file; name a recipe, such as those in configs/."
        )


def check_field(path: str) -> None:
    """Raises ValueError where a run has no such field: ml_collections ends in a stack trace."""
    known = [f"config.{field}" for field in run_folder.flatten(RunConfig().to_dict())]
    parts = path.split(".")
    if parts[1] == "tasks" and len(parts) > 3:  # config.tasks.NAME.FIELD; recipes know the names
        of_part = run_folder.flatten(dataclasses.asdict(PartConfig()))
        known = [f"config.tasks.{parts[2]}.{field}" for field in of_part]
    if path in known:
        return
    near = difflib.get_close_matches(path, known, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    section = ".".join(parts[:2])
    fields = [field for field in known if field.startswith(f"{section}.")]
    valid = fields or [f"config.{name}.*" for name in RunConfig().to_dict()]
    raise ValueError(f"{path} is no field of a run.{hint} Valid: {', '.join(valid)}.")


def leave(message: str, code: int) -> NoReturn:
    """Prints the message on standard error, as one paragraph, and exits."""
    if os.environ.get("BERT_TF_TRACEBACK"):
        raise  # inside the except clause of a caller
    lines = (line.strip() for line in message.splitlines())
    print(" ".join(line for line in lines if line), file=sys.stderr, flush=True)
    sys.exit(code)


def log_plainly() -> None:
    """Time and message on standard error, without the noise of absl's default prefix."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    tf.get_logger().setLevel("ERROR")
