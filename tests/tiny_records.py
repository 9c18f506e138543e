"""Tiny pre-training records with the original release's features, for the tests."""

from __future__ import annotations

import pathlib

import numpy as np
import tensorflow as tf

from bert_tf.data.pretraining import RecordShape

LENGTH, PREDICTIONS, VOCABULARY = 16, 4, 120
CLS, SEP, MASK = 2, 3, 4  # ids in tests/goldens/hf/tiny_pretraining/vocab.txt

Arrays = dict[str, np.ndarray]


def tiny_records(count: int, seed: int = 0) -> Arrays:
    """Arrays of `count` records, [E, ...]: two segments, some short, 0 to 4 masked positions.

    A masked word is always the successor of its left neighbour, so that there is something to
    learn, and the second segment follows where it has the same first word.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(7, LENGTH + 1, count)
    names = ("input_ids", "input_mask", "segment_ids")
    records = {name: np.zeros([count, LENGTH], np.int64) for name in names}
    for name in ("masked_lm_positions", "masked_lm_ids"):
        records[name] = np.zeros([count, PREDICTIONS], np.int64)
    records["masked_lm_weights"] = np.zeros([count, PREDICTIONS], np.float32)
    records["next_sentence_labels"] = random.integers(0, 2, [count, 1])
    for row, length in enumerate(lengths):
        ids = 5 + random.integers(0, 40, length)
        middle = length // 2
        ids[[0, middle, -1]] = CLS, SEP, SEP
        ids[middle + 1] = 60 + records["next_sentence_labels"][row, 0]
        places = np.sort(random.permutation([1, 2, middle + 2, length - 2])[: row % 5])
        places = places[(ids[places] != SEP) & (places != middle + 1)]
        places = np.unique(places)
        answers = ids[places - 1] + 1
        records["input_ids"][row, :length] = ids
        records["input_ids"][row, places] = MASK
        records["input_mask"][row, :length] = 1
        records["segment_ids"][row, middle + 1 : length] = 1
        records["masked_lm_positions"][row, : len(places)] = places
        records["masked_lm_ids"][row, : len(places)] = answers
        records["masked_lm_weights"][row, : len(places)] = 1.0
    return records


def write_records(path: pathlib.Path, records: Arrays) -> None:
    """Writes them as the original release does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for row in range(len(records["input_ids"])):
            features = {name: feature(values[row]) for name, values in records.items()}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())


def feature(values: np.ndarray) -> tf.train.Feature:
    """Floats or whole numbers."""
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def read_instances(path: str) -> Arrays:
    """All records of a file by their original names, parsed as training parses them."""
    records = list(tf.data.TFRecordDataset(path))
    first = tf.train.Example.FromString(records[0].numpy()).features.feature
    length, predictions = (
        len(first[name].int64_list.value) for name in ("input_ids", "masked_lm_ids")
    )
    shape = RecordShape(length, predictions, next_sentence="next_sentence_labels" in first)
    parsed = tf.io.parse_example(tf.stack(records), shape.features())
    if shape.next_sentence:
        parsed["next_sentence_labels"] = parsed["next_sentence_labels"][:, 0]
    return {name: values.numpy() for name, values in parsed.items()}
