"""Asks a classifier that was exported to LiteRT, as a device would: sentences in, labels out.

    python scripts/answer_litert.py --export=runs/sst2/litert "A joy from start to finish."
    python scripts/answer_litert.py --export=runs/sst2/litert --model=model_float32.tflite \
        --input=data/glue/SST-2/dev.tsv         # the accuracy on a file that has labels

This process needs ai-edge-litert, tokenizers and numpy alone, and nothing of TensorFlow or bert_tf.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

try:
    from ai_edge_litert.interpreter import Interpreter
    from tokenizers import BertWordPieceTokenizer
except ImportError as error:
    raise SystemExit(f"{error}: pip install ai-edge-litert tokenizers") from None

Model = Callable[..., dict[str, np.ndarray]]


def main() -> None:
    """Answers the sentences on the command line, or measures a file."""
    parser = argparse.ArgumentParser(description="Asks a classifier that was exported to LiteRT.")
    parser.add_argument("--export", required=True, help="export folder")
    parser.add_argument("--model", default="model_int8.tflite", help="which of its files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--input", help="TSV with a header and no quoting, as GLUE has them")
    parser.add_argument("--columns", default="sentence", help="its text; of pairs: first,second")
    parser.add_argument("--label", default="label", help="its column of labels")
    parser.add_argument("sentences", nargs="*")
    arguments = parser.parse_args()
    card = read_json(arguments.export, "model_card.json")
    if card["task"]["name"] != "classification" or not card["labels"]:
        parser.error(f"{arguments.export} does not choose among labels, which is all this can show")
    path = os.path.join(arguments.export, arguments.model)
    model = Interpreter(path, num_threads=arguments.threads).get_signature_runner("ids")
    tokenizer = open_tokenizer(arguments.export, card["max_seq_length"])
    if arguments.input:
        names = (*arguments.columns.split(","), arguments.label)
        try:
            *texts, labels = read_columns(arguments.input, names)
            expected = as_numbers(labels, card["labels"])
        except ValueError as error:
            parser.error(f"{arguments.input}: {error}")
        accuracy, seconds = measure(model, tokenizer, texts, expected)
        print(
            f"{path} ({os.path.getsize(path) / 1e6:.1f} MB): {100 * accuracy:.2f}% of "
            f"{len(labels)} labels, {1000 * seconds / len(labels):.1f} ms each"
        )
    if arguments.sentences:
        answers = probabilities(model, tokenizer, [(text,) for text in arguments.sentences])
        for sentence, row in zip(arguments.sentences, answers, strict=True):
            print(f"  {card['labels'][row.argmax()]:>10}  {row.max():.3f}  {sentence}")


def read_json(folder: str, name: str) -> dict[str, Any]:
    """A file of the export."""
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        return json.load(file)


def open_tokenizer(folder: str, max_seq_length: int) -> BertWordPieceTokenizer:
    """The tokenizer of the run; it cuts as the run did, and pads a batch to its longest text."""
    casing = read_json(folder, "tokenizer_config.json")
    tokenizer = BertWordPieceTokenizer(
        os.path.join(folder, "vocab.txt"),
        lowercase=casing["do_lower_case"],
        strip_accents=casing["strip_accents"],
    )
    tokenizer.enable_truncation(max_seq_length)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"))
    return tokenizer


def probabilities(
    model: Model, tokenizer: BertWordPieceTokenizer, batch: Sequence[tuple[str, ...]]
) -> np.ndarray:
    """The probabilities of all labels, float32 [N, C], for N texts or pairs of texts."""
    encodings = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in batch])
    columns = {
        "token_ids": [encoding.ids for encoding in encodings],
        "segment_ids": [encoding.type_ids for encoding in encodings],
        "mask": [encoding.attention_mask for encoding in encodings],
    }
    inputs = {name: np.array(rows, np.int32) for name, rows in columns.items()}  # [N, S]
    return model(**inputs)["probabilities"]


def measure(
    model: Model,
    tokenizer: BertWordPieceTokenizer,
    texts: Sequence[Sequence[str]],
    expected: np.ndarray,
) -> tuple[float, float]:
    """Accuracy and seconds for one or two columns of N texts and the numbers of N labels."""
    began = time.perf_counter()
    # One at a time, as on a device: nothing is spent on padding.
    rows = [probabilities(model, tokenizer, [text])[0] for text in zip(*texts, strict=True)]
    seconds = time.perf_counter() - began
    return float(np.mean(np.argmax(rows, axis=-1) == expected)), seconds


def as_numbers(labels: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Places of labels among the names [N]; raises ValueError for one that is not there."""
    unknown = set(labels) - set(names)
    if unknown:
        raise ValueError(f"has the label {min(unknown)!r}, but the model {', '.join(names)}")
    return np.array([names.index(label) for label in labels])


def read_columns(path: str, names: Sequence[str]) -> list[list[str]]:
    """Columns of a file by their names; raises ValueError where there is no such column."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or not rows[0].keys() >= set(names):
        raise ValueError(f"needs the columns {', '.join(names)}; see --columns and --label")
    return [[row[name] for row in rows] for name in names]


if __name__ == "__main__":
    main()
