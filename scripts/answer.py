"""Asks an exported SavedModel: sentences in, answers out, as a server would.

    python scripts/answer.py --saved_model=runs/film_reviews/export "A joy from start to finish."

This process needs tensorflow and tensorflow_text alone, and nothing of bert_tf.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import tensorflow as tf
import tensorflow_text  # noqa: F401 - brings the tokenizer's ops


def main() -> None:
    """Answers the sentences on the command line."""
    parser = argparse.ArgumentParser(description="Asks an exported SavedModel.")
    parser.add_argument("--saved_model", required=True, help="export folder; the newest version")
    parser.add_argument("sentences", nargs="+")
    arguments = parser.parse_args()
    versions = [name for name in os.listdir(arguments.saved_model) if name.isdigit()]
    newest = os.path.join(arguments.saved_model, max(versions, key=int))
    model = tf.saved_model.load(newest)
    outputs = model.signatures["serving_default"](text=tf.constant(arguments.sentences))
    labels, probabilities = outputs["label"].numpy(), outputs["probabilities"].numpy()
    for sentence, label, row in zip(arguments.sentences, labels, probabilities, strict=True):
        print(f"  {label.decode():>10}  {row.max():.3f}  {sentence}")


if __name__ == "__main__":
    main()
