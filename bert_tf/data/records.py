"""Pre-training instances as TFRecords, with the features of the original release.

`data/pretraining.py` reads them.

`tf.train.Example` is a protocol buffer, and making one in Python costs more than everything else
about an instance. So the bytes of thousands are laid out at once as a matrix: each number gets as
many columns as the longest one needs, and what a row does not need is left out at the end.

Legend: E instances, S sequence length, P masked positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bert_tf.data.instances import Instances

# Field numbers of tensorflow/core/example/{example,feature}.proto; all are length-delimited.
EXAMPLE_FEATURES = MAP_ENTRY = MAP_KEY = LIST_VALUES = 1
MAP_VALUE = FLOAT_LIST = 2
INT64_LIST = 3
LENGTH_DELIMITED = 2


class Message(NamedTuple):
    """Bytes of E messages, in blocks of columns; a row has those bytes that `keep` says."""

    values: list[np.ndarray]  # uint8 [E, any]
    keep: list[np.ndarray]  # bool, the same shapes
    lengths: np.ndarray  # int64 [E]: bytes of each message

    def __add__(self, other: Message) -> Message:  # type: ignore[override]
        """One after the other, row by row."""
        return Message(
            self.values + other.values, self.keep + other.keep, self.lengths + other.lengths
        )


def varints(numbers: np.ndarray) -> Message:
    """Non-negative integers [E, N]: seven bits a byte, the lowest first; the top bit: goes on."""
    num_bytes = max(1, -(-int(numbers.max()).bit_length() // 7))
    if num_bytes == 1:
        return fixed(numbers.astype(np.uint8))
    rest = numbers[:, :, None] >> (7 * np.arange(num_bytes + 1, dtype=numbers.dtype))
    keep = rest[:, :, :-1] > 0
    keep[:, :, 0] = True
    values = (rest[:, :, :-1] & 0x7F).astype(np.uint8) | ((rest[:, :, 1:] > 0) << 7).astype(
        np.uint8
    )
    keep = keep.reshape(len(numbers), -1)
    return Message([values.reshape(keep.shape)], [keep], keep.sum(axis=1))


def constant(content: bytes, num_rows: int) -> Message:
    """The same bytes in each row."""
    return fixed(np.broadcast_to(np.frombuffer(content, np.uint8), (num_rows, len(content))))


def fixed(content: np.ndarray) -> Message:
    """Rows of bytes [E, N], all of which stay."""
    num_rows, num_bytes = content.shape
    return Message([content], [np.ones(content.shape, bool)], np.full(num_rows, num_bytes))


def field(number: int, content: Message) -> Message:
    """A length-delimited field."""
    tag = constant(bytes([number << 3 | LENGTH_DELIMITED]), len(content.lengths))
    return tag + varints(content.lengths[:, None]) + content


def feature(name: str, values: np.ndarray) -> Message:
    """An entry of the map of features: its name, and its values [E, any]."""
    if values.dtype == np.float32:
        kind, numbers = FLOAT_LIST, fixed(values.astype("<f4").view(np.uint8))
    else:
        kind, numbers = INT64_LIST, varints(values)
    key = field(MAP_KEY, constant(name.encode(), len(values)))
    return field(MAP_ENTRY, key + field(MAP_VALUE, field(kind, field(LIST_VALUES, numbers))))


def serialize(instances: Instances) -> Iterator[bytes]:
    """Serialized `tf.train.Example`s, features in alphabetical order.

    Args:
        instances: E of them; memory is about 30 bytes for each of E x S positions.
    """
    rows = len(instances.input_ids)
    features = constant(b"", rows)
    for name, values in sorted(instances._asdict().items()):
        if values is not None:
            features += feature(name, values.reshape(rows, -1))
    whole = field(EXAMPLE_FEATURES, features)
    keep = np.concatenate(whole.keep, axis=1)
    content = np.concatenate(whole.values, axis=1)[keep].tobytes()
    end = 0
    for length in whole.lengths.tolist():
        start, end = end, end + length
        yield content[start:end]
