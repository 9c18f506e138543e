"""Measures how fast the package's parts are on this machine.

    python scripts/benchmark.py --vocab_file=vocab.txt --text='books/*.txt'

The tokenizer, in pieces for each second of CPU time on one core, in batches of 1,024 paragraphs:
the text as it is, its rows of pure ASCII (which skip the table of code points), and the same rows
with an accent behind each (which do not). Medians of several rounds over the whole text, the three
taken in turn; one round before them is not counted.
"""

from __future__ import annotations

import os
import statistics
import time

import tensorflow as tf
from absl import flags, logging

from bert_tf import Tokenizer, command_line
from bert_tf.data.files import find_files

VOCAB_FILE = flags.DEFINE_string("vocab_file", None, "One piece a line.", required=True)
TEXT = flags.DEFINE_string(
    "text", None, "Files of prose, as patterns with commas between them.", required=True
)
LOWER_CASE = flags.DEFINE_bool("lower_case", True, "As the vocabulary was made.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of which the median is told.", lower_bound=1)
BATCH = 1024


def paragraphs(pattern: str) -> list[str]:
    """The paragraphs of all files, each on one line."""
    found = []
    for path in find_files(pattern, "--text"):
        with tf.io.gfile.GFile(path, "rb") as file:
            text = file.read().decode(errors="replace").replace("\r\n", "\n")
        found += [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return found


def main(unused_argv: list[str]) -> None:
    """Measures and prints a table."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    logging.info("Load of the machine before: %.2f.", os.getloadavg()[0])
    tokenizer = Tokenizer(VOCAB_FILE.value, LOWER_CASE.value)
    token_ids = tf.function(lambda text: tokenizer(text).flat_values)  # type: ignore[union-attr]
    lines = paragraphs(TEXT.value)
    ascii_lines = [line for line in lines if line.isascii()]
    kinds = {
        "text as it is": lines,
        "rows of pure ASCII": ascii_lines,
        "the same with an accent": [f"{line} é" for line in ascii_lines],
    }
    speeds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(ROUNDS.value + 1):
        for kind, rows in kinds.items():
            batches = [tf.constant(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
            started = time.process_time()
            pieces = sum(token_ids(batch).shape[0] for batch in batches)
            if number:
                speeds[kind].append(pieces / (time.process_time() - started) / 1e6)
    for kind, measured in speeds.items():
        print(
            f"{kind:25}{statistics.median(measured):7.2f} million pieces/s "
            f"({min(measured):.2f} to {max(measured):.2f}), {len(kinds[kind]):,} rows"
        )


if __name__ == "__main__":
    command_line.run_script(main)
