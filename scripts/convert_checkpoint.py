"""Converts weights between the original TF1 release, Hugging Face folders and runs.

    python scripts/convert_checkpoint.py --input=uncased_L-12_H-768_A-12 --output=bert --format=hf
    python scripts/convert_checkpoint.py --input=runs/sst2 --output=sst2-tf1 --format=tf1

The input may be a TF1 checkpoint (prefix or folder), a Hugging Face folder with safetensors or a
run folder. All heads go along; there and back again gives the same bits. Optimizer slots are left.
"""

from __future__ import annotations

import dataclasses

from absl import flags, logging

from bert_tf import checkpoints, command_line, conversion
from bert_tf.checkpoints import Checkpoint
from bert_tf.config import BertConfig

INPUT = flags.DEFINE_string("input", None, "Checkpoint to read; gs:// works.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.", required=True)
FORMAT = flags.DEFINE_enum(
    "format", None, ["tf1", "hf"], "tf1: as the original release; hf: Hugging Face.", required=True
)
BERT_CONFIG = flags.DEFINE_string("bert_config", None, "bert_config.json, where input has none.")
VOCAB_FILE = flags.DEFINE_string("vocab_file", None, "vocab.txt, where input has none.")
LOWER_CASE = flags.DEFINE_enum(
    "lower_case", None, ["true", "false"], "Casing of the model, where input does not tell."
)

WRITERS = {"tf1": conversion.write_tf1, "hf": conversion.write_hugging_face}


def completed(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with what flags say; raises ValueError where they contradict what is in it."""
    changes: dict[str, object] = {}
    if BERT_CONFIG.value:
        changes["config"] = BertConfig.from_file(BERT_CONFIG.value)
    if VOCAB_FILE.value:
        changes["vocab_file"] = VOCAB_FILE.value
    if LOWER_CASE.value:
        lower_case = LOWER_CASE.value == "true"
        if checkpoint.lower_case not in (None, lower_case):
            raise ValueError(
                f"--lower_case={LOWER_CASE.value}, but {checkpoint.source} was trained with "
                f"lower_case={str(checkpoint.lower_case).lower()}; leave the flag out."
            )
        changes["lower_case"] = lower_case
    return dataclasses.replace(checkpoint, **changes)  # type: ignore[arg-type]


def main(unused_argv: list[str]) -> None:
    """Reads, converts and writes."""
    checkpoint = completed(checkpoints.read_checkpoint(INPUT.value))
    WRITERS[FORMAT.value](OUTPUT.value, checkpoint)
    size = sum(weight.size for weight in checkpoint.weights.values())
    logging.info(
        "Wrote %s: %d weights, %s parameters, from %s.",
        OUTPUT.value,
        len(checkpoint.weights),
        f"{size:,}",
        checkpoint.source,
    )
    for value, missing in (
        (checkpoint.vocab_file, "vocabulary (--vocab_file)"),
        (checkpoint.lower_case, "casing (--lower_case)"),
    ):
        if value is None:
            logging.warning("%s has no %s: whoever reads it must know.", OUTPUT.value, missing)


if __name__ == "__main__":
    command_line.run_script(main)
