"""Adds words to the vocabulary of a checkpoint, or positions beyond its table, or both.

    python scripts/extend_checkpoint.py --input=uncased_L-12_H-768_A-12 --output=medical \
        --words=words.txt
    python scripts/extend_checkpoint.py --input=runs/pretrained --output=long --positions=1024

`words.txt` has one word a line. New words fill [unused] lines first; their rows begin as the mean
of their old pieces' rows. New positions repeat the table. Vocabulary, configuration and weights are
written together; train on (configs/pretrain_continue.py) before use.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile

import tensorflow as tf
from absl import flags

from bert_tf import checkpoints, command_line, conversion, extension
from bert_tf.config import BertConfig

INPUT = flags.DEFINE_string("input", None, "Checkpoint to read; gs:// works.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder to write; new or empty.", required=True)
WORDS = flags.DEFINE_string("words", None, "UTF-8 file with one word a line.")
POSITIONS = flags.DEFINE_integer("positions", None, "Length of the new position table.")
FORMAT = flags.DEFINE_enum(
    "format", "tf1", ["tf1", "hf"], "tf1: as the original release; hf: Hugging Face."
)
BERT_CONFIG = flags.DEFINE_string("bert_config", None, "bert_config.json, where input has none.")
VOCAB_FILE = flags.DEFINE_string("vocab_file", None, "vocab.txt, where input has none.")
LOWER_CASE = flags.DEFINE_bool("lower_case", None, "Casing of the model, where input has none.")

WRITERS = {"tf1": conversion.write_tf1, "hf": conversion.write_hugging_face}


def read_words(path: str) -> list[str]:
    """The lines of a file that are not empty; raises ValueError where it cannot be read."""
    try:
        with tf.io.gfile.GFile(path) as file:
            return [line.strip() for line in file.read().split("\n") if line.strip()]
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        raise ValueError(f"--words={path} cannot be read as UTF-8 ({error}).") from None


def read_input() -> checkpoints.Checkpoint:
    """The checkpoint, completed by the flags where something was not found beside it."""
    found = checkpoints.read_checkpoint(INPUT.value)
    config = found.config
    if config is None and BERT_CONFIG.value:
        config = BertConfig.from_file(BERT_CONFIG.value)
    return dataclasses.replace(
        found,
        config=config,
        vocab_file=found.vocab_file or VOCAB_FILE.value,
        lower_case=LOWER_CASE.value if found.lower_case is None else found.lower_case,
    )


def main(unused_argv: list[str]) -> None:
    """Reads, extends and writes."""
    if not WORDS.value and POSITIONS.value is None:
        raise ValueError("there is nothing to add; give --words=FILE, --positions=N or both.")
    checkpoint = read_input()
    if POSITIONS.value is not None:
        checkpoint = extension.with_positions(checkpoint, POSITIONS.value)
    with tempfile.TemporaryDirectory() as folder:
        if WORDS.value:
            vocab_file = os.path.join(folder, checkpoints.VOCAB_FILE)
            checkpoint = extension.with_words(checkpoint, read_words(WORDS.value), vocab_file)
        WRITERS[FORMAT.value](OUTPUT.value, checkpoint)


if __name__ == "__main__":
    command_line.run_script(main)
