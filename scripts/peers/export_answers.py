"""What a run answers to lines of text, for check_export.py to compare exported folders with.

    python scripts/peers/export_answers.py --workdir runs/sst2 --input sentences.txt \
        --output answers.npz

Runs in bert_tf's environment. A line is a text, or two with a tab between them. The answers are
those of the signature `ids` of a SavedModel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import tensorflow as tf

from bert_tf import restore
from bert_tf.export.saved_model import float32_model
from bert_tf.tasks import answers_of, serving

BATCH_SIZE = 64


def main() -> None:
    """Writes one file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True, help="folder of a run")
    parser.add_argument("--input", type=Path, required=True, help="UTF-8 file")
    parser.add_argument("--output", type=Path, required=True, help="NAME.npz")
    flags = parser.parse_args()
    opened = restore.open_run(flags.workdir)
    lines = [line.split("\t") for line in flags.input.read_text("utf-8").splitlines()]
    columns = list(zip(*lines, strict=True))  # one or two
    tokenizer = opened.task.tokenizer
    pieces = [tokenizer(tf.constant(column)) for column in columns]
    second = pieces[1] if len(pieces) > 1 else None
    packed = tokenizer.pack(pieces[0], second, opened.run.data.max_seq_length)
    rows = serving.padded(packed, tokenizer.pad_id)  # [N, S]
    signatures = answers_of(opened.task, "be exported").signatures(float32_model(opened))
    parts = [
        signatures[serving.IDS_SIGNATURE](
            **{name: grid[first : first + BATCH_SIZE] for name, grid in rows.items()}
        )
        for first in range(0, len(lines), BATCH_SIZE)
    ]
    outputs = {name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}
    numbers = {name: value for name, value in outputs.items() if value.dtype == tf.float32}
    arrays = {name: value.numpy() for name, value in (rows | numbers).items()}
    np.savez_compressed(flags.output, texts=np.array(lines), **arrays)
    print(f"{len(lines)} texts, {', '.join(numbers)}")


if __name__ == "__main__":
    main()
