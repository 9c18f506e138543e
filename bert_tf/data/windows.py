"""Long texts as overlapping windows of pieces, each piece decided by one of them.

All windows of a long text are equally wide: the last one ends with the text. A piece is decided in
the window whose middle is nearest, which is the one with the most context on its poorer side (of
equal ones the first, as in the original release's run_squad.py). So every window decides for a
stretch of its own. Data and served models cut by this one function.

Legend: N texts, M windows of all texts.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from bert_tf.config import DataConfig

SPECIAL_PIECES = 2  # [CLS] and [SEP] around every window


class Windows(NamedTuple):
    """Windows in the order of their texts; pieces are numbered through all texts."""

    row: tf.Tensor  # int64 [M], the text
    start: tf.Tensor  # int64 [M], first piece
    size: tf.Tensor  # int64 [M], pieces
    decides_from: tf.Tensor  # int64 [M], first piece that it decides; up to that of the next one

    def deciding(self, pieces: tf.Tensor) -> tf.Tensor:
        """The window that decides each piece: int64 [...] to int64 [...]."""
        return tf.searchsorted(self.decides_from, pieces, side="right", out_type=tf.int64) - 1


def cut_windows(row_splits: tf.Tensor, width: int, stride: int) -> Windows:
    """Cuts texts into windows.

    Args:
        row_splits: int64 [N + 1], where the pieces of each text begin and end.
        width: pieces of a window at most, without special ones.
        stride: pieces from one window to the next, from 1 to `width`.

    Returns:
        At least one window for each text, empty where the text is.
    """
    lengths = row_splits[1:] - row_splits[:-1]  # [N]
    beyond = tf.maximum(lengths - width, 0)  # [N], where the last window starts
    counts = 1 + (beyond + stride - 1) // stride  # [N]
    row = tf.repeat(tf.range(tf.size(counts, tf.int64)), counts)  # [M]
    number = tf.range(tf.size(row, tf.int64)) - tf.gather(tf.cumsum(counts, exclusive=True), row)
    last = tf.gather(beyond, row)  # [M]
    start = tf.minimum(number * stride, last)
    before = tf.minimum((number - 1) * stride, last)  # where the window before starts
    decides_from = tf.where(number > 0, (before + start + width - 1) // 2 + 1, 0)
    base = tf.gather(row_splits, row)
    size = tf.minimum(tf.gather(lengths, row), width)
    return Windows(row, base + start, size, base + decides_from)


def window_shape(data: DataConfig) -> tuple[int, int]:
    """Pieces of a window and from one to the next; raises ValueError where they do not fit."""
    width = data.max_seq_length - SPECIAL_PIECES
    if width < 1:
        raise ValueError(
            f"config.data.max_seq_length={data.max_seq_length} leaves no room for text beside "
            "[CLS] and [SEP]; 128 is usual."
        )
    stride = data.window_stride or max(width // 2, 1)
    if not 1 <= stride <= width:
        raise ValueError(
            f"config.data.window_stride={data.window_stride} must be from 1 to {width} (the pieces "
            "of a window), or 0 for half a window; else pieces would be skipped."
        )
    return width, stride
