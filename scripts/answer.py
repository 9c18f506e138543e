"""Asks an exported SavedModel: sentences in, answers out, as a server would.

    python scripts/answer.py --saved_model=runs/film_reviews/export "A joy from start to finish."
    python scripts/answer.py --saved_model=runs/sst2/export_int8 --input=data/glue/SST-2/dev.tsv

This process needs tensorflow and tensorflow_text alone, and nothing of bert_tf.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tensorflow_text  # noqa: F401 - brings the tokenizer's ops

BATCH_SIZE = 32  # of a file; as its lines come


def main() -> None:
    """Answers the sentences on the command line, or measures a file."""
    parser = argparse.ArgumentParser(description="Asks an exported SavedModel.")
    parser.add_argument("--saved_model", required=True, help="export folder; the newest version")
    parser.add_argument("--input", help="TSV with a header, without quoting, as GLUE has them")
    parser.add_argument("--columns", default="sentence,label", help="its text and its label")
    parser.add_argument("sentences", nargs="*")
    arguments = parser.parse_args()
    versions = [name for name in os.listdir(arguments.saved_model) if name.isdigit()]
    newest = os.path.join(arguments.saved_model, max(versions, key=int))
    signature = tf.saved_model.load(newest).signatures["serving_default"]
    if arguments.input:
        with open(arguments.input, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        names = arguments.columns.split(",")
        if not rows or not rows[0].keys() >= set(names):
            parser.error(f"{arguments.input} needs the columns {arguments.columns}; see --columns")
        texts, labels = ([row[name] for row in rows] for name in names)
        print(measure(signature, texts, labels))
    if arguments.sentences:
        outputs = signature(text=tf.constant(arguments.sentences))
        answers = zip(outputs["label"].numpy(), outputs["probabilities"].numpy(), strict=True)
        for sentence, (label, row) in zip(arguments.sentences, answers, strict=True):
            print(f"  {label.decode():>10}  {row.max():.3f}  {sentence}")


def measure(signature: Any, texts: list[str], labels: list[str]) -> str:  # noqa: ANN401
    """The share of right answers, and the time that they took, in one line."""
    answers: list[str] = []
    signature(text=tf.constant(texts[:BATCH_SIZE]))  # sets up what the first request waits for
    began, began_processor = time.perf_counter(), time.process_time()
    for first in range(0, len(texts), BATCH_SIZE):
        outputs = signature(text=tf.constant(texts[first : first + BATCH_SIZE]))
        answers += [label.decode() for label in outputs["label"].numpy()]
    seconds, processor = time.perf_counter() - began, time.process_time() - began_processor
    right = sum(answer == label for answer, label in zip(answers, labels, strict=True))
    return (
        f"{100 * right / len(labels):.2f}% of {len(labels)} labels; {len(labels) / seconds:.1f} "
        f"texts/s, {len(labels) / processor:.1f} for each second of processor time"
    )


if __name__ == "__main__":
    main()
