"""Records byte by byte as protocol buffers write them, and read back."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.data.instances import Instances
from bert_tf.data.records import serialize, varints
from tests.tiny_records import read_instances

PREDICTIONS = 7


def make_instances(rows: int = 50, width: int = 300, vocab_size: int = 120_000) -> Instances:
    """Ids of one, two and three bytes, positions of one and two."""
    generator = np.random.default_rng(1)
    size = (rows, width)
    ids = generator.integers(0, vocab_size, size) >> generator.integers(0, 17, size)
    real = generator.integers(0, PREDICTIONS + 1, (rows, 1)) > np.arange(PREDICTIONS)
    return Instances(
        input_ids=ids.astype(np.int32),
        input_mask=np.arange(width) < generator.integers(5, width + 1, (rows, 1)),
        segment_ids=np.arange(width) > generator.integers(5, width, (rows, 1)),
        masked_lm_positions=generator.integers(0, width, real.shape).astype(np.int32) * real,
        masked_lm_ids=generator.integers(0, vocab_size, real.shape).astype(np.int32) * real,
        masked_lm_weights=real.astype(np.float32),
        next_sentence_labels=generator.integers(0, 2, rows).astype(bool),
    )


def example(instances: Instances, row: int) -> tf.train.Example:
    """As the original release makes it."""
    features = {}
    for name, values in instances._asdict().items():
        if name == "masked_lm_weights":
            content = {"float_list": tf.train.FloatList(value=values[row])}
        else:
            content = {"int64_list": tf.train.Int64List(value=np.ravel(values[row]).astype(int))}
        features[name] = tf.train.Feature(**content)
    return tf.train.Example(features=tf.train.Features(feature=features))


def write(path: pathlib.Path, records: list[bytes]) -> str:
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return str(path)


@pytest.mark.parametrize(("width", "vocab_size"), [(300, 120_000), (64, 100), (17, 30_522)])
def test_bytes_are_those_of_protocol_buffers(width: int, vocab_size: int) -> None:
    instances = make_instances(width=width, vocab_size=vocab_size)
    records = list(serialize(instances))
    assert len(records) == 50
    for row, record in enumerate(records):
        assert record == example(instances, row).SerializeToString(deterministic=True)


def test_varints_at_the_edges_of_bytes() -> None:
    numbers = np.array([[0, 127, 128, 16_383], [16_384, 2_097_151, 2_097_152, 2**31 - 1]], np.int32)
    message = varints(numbers)
    expected = [
        "00 7f 8001 ff7f",
        "808001 ffff7f 80808001 ffffffff07",
    ]
    for row in range(2):
        content = message.values[0][row][message.keep[0][row]].tobytes()
        assert content == bytes.fromhex(expected[row])
        assert message.lengths[row] == len(content)


def test_a_file_is_read_back(tmp_path: pathlib.Path) -> None:
    instances = make_instances()
    features = read_instances(write(tmp_path / "a.tfrecord", list(serialize(instances))))
    assert set(features) == set(instances._fields)
    for name, values in instances._asdict().items():
        np.testing.assert_array_equal(features[name], values)
