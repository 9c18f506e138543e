"""Compiles a recipe for a TPU on a machine without one: does it fit, and what is in its way?

    python scripts/tpu_preflight.py --config=configs/sst2_bert_base.py --topology=v5e:1x1 \
        --bert_config=configs/shapes/bert_base.json

The recipe's own train step and evaluation step go through the real TPU compiler, which is installed
once into a cache folder of its own (4 GB; Linux, Python 3.10 to 3.12). Nothing runs, and neither
data nor weights are read: where the recipe's checkpoint is not here, --bert_config says its shape.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterator

from absl import flags, logging

from bert_tf import command_line
from bert_tf.checkpoints import read_checkpoint, with_dropout
from bert_tf.config import BertConfig, RunConfig, write_json
from bert_tf.preflight import environment
from bert_tf.preflight.report import Answer, Request, shown

CONFIG = command_line.define_config_flag()
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "TYPE:SHAPE, such as v5e:2x2 or v4:2x2x1.")
GLOBAL_BATCH_SIZE = flags.DEFINE_integer(
    "global_batch_size", None, "Instead of the recipe's.", lower_bound=1
)
BERT_CONFIG = flags.DEFINE_string(
    "bert_config", None, "Shape of the encoder, where its checkpoint is not here."
)
CLASSES = flags.DEFINE_integer(
    "classes", 3, "Labels or choices, where the recipe leaves them to the data.", lower_bound=2
)
ALL_WIDTHS = flags.DEFINE_bool(
    "all_widths", False, "Compile for every width of batches, not the largest alone."
)
EVALUATION = flags.DEFINE_bool("evaluation", True, "Compile the evaluation step, too.")
LARGEST_BATCH = flags.DEFINE_bool("largest_batch", False, "Find the largest batch that fits.")
CACHE = flags.DEFINE_string("cache", None, "Folder for the compiler; default ~/.cache/bert_tf.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
flags.mark_flag_as_required("config")

NO_SHAPE = (
    "To compile without it, give the shape of the encoder: "
    "--bert_config=configs/shapes/bert_base.json."
)
ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(unused_argv: list[str]) -> None:
    """Asks the compiler as the flags say; raises ValueError where something does not fit."""
    run = command_line.resolve(CONFIG.value)
    if GLOBAL_BATCH_SIZE.value:
        train = dataclasses.replace(run.train, global_batch_size=GLOBAL_BATCH_SIZE.value)
        run = dataclasses.replace(run, train=train)
    request = Request(
        run=run.to_dict(),
        config=dataclasses.asdict(encoder_shape(run)),
        topology=TOPOLOGY.value,
        classes=CLASSES.value,
        all_widths=ALL_WIDTHS.value,
        evaluate=EVALUATION.value,
        largest_batch=LARGEST_BATCH.value,
    )
    answers = []
    for answer in ask(request):
        print(shown(answer), flush=True)
        answers.append(answer)
    if OUTPUT.value:
        write_json(OUTPUT.value, {"answers": [dataclasses.asdict(answer) for answer in answers]})
    bad = [answer for answer in answers if answer.problems or not answer.fits]
    if bad and not LARGEST_BATCH.value:
        raise ValueError(f"{len(bad)} of {len(answers)} programs will not run on {TOPOLOGY.value}.")


def encoder_shape(run: RunConfig) -> BertConfig:
    """The shape of the recipe's encoder; raises ValueError where nothing says it."""
    path = BERT_CONFIG.value or run.model.bert_config
    try:
        config = (
            BertConfig.from_file(path)
            if path
            else read_checkpoint(run.model.init_checkpoint).config
        )
    except ValueError as error:
        raise ValueError(f"{error} {NO_SHAPE}") from None
    if config is None:
        raise ValueError(f"{run.model.init_checkpoint} has no bert_config.json. {NO_SHAPE}")
    config = with_dropout(config, run.model)
    layers = run.model.num_layers or config.num_hidden_layers
    return dataclasses.replace(config, num_hidden_layers=layers)


def ask(request: Request) -> Iterator[Answer]:
    """Runs the compiler in its own environment; raises ValueError as it does."""
    cache = CACHE.value or environment.default_cache()
    if not environment.is_made(cache):
        logging.info("Making the TPU compiler's environment in %s (some minutes).", cache)
    python = environment.make(cache)
    variables = {**os.environ, **environment.VARIABLES, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryFile("w+") as question:
        json.dump(dataclasses.asdict(request), question)
        question.seek(0)
        child = subprocess.Popen(
            [str(python), "-m", "bert_tf.preflight"],
            env=variables,
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        with child:
            for line in child.stdout or ():
                values = json.loads(line)
                if "error" in values:
                    raise ValueError(values["error"])
                yield Answer(**values)
        if child.returncode:
            log.seek(0)
            reason = log.read().strip().splitlines() or ["it said nothing"]
            raise ValueError(
                f"the TPU compiler stopped with code {child.returncode} ({reason[-1]}). If it was "
                "killed, it needs more memory: 6 GB for BERT-base."
            )


if __name__ == "__main__":
    command_line.run_script(main)
