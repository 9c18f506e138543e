"""Rows and grid: the encoder works on rows `[R, H]`, and only attention needs `[B, N, S, D]`.

A layout is made from the mask of a batch and maps between the two. `PaddedLayout` keeps every
position, so that both maps are reshapes of static shape (TPU); `UnpaddedLayout` keeps rows of real
tokens only, so that no matrix product is spent on padding (CPU, GPU).
Legend: B batch, S sequence, R rows, H hidden, N heads, D head size.
"""

from __future__ import annotations

from typing import Protocol

import tensorflow as tf

from bert_tf.kernels.reference import MASKED_SCORE


class Layout(Protocol):
    """What the encoder asks of a layout."""

    attention_bias: tf.Tensor  # float32 [B, 1, 1, S]

    def __init__(self, mask: tf.Tensor) -> None:
        """`mask` is int32 [B, S], 1 = real token."""

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        """[B, S, ...] to [R, ...]."""

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        """[R, ...] to [B, S, ...]."""

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        """The row of `table` [positions, H] that belongs to each row: [R, H]."""


class PaddedLayout:
    """R = B x S: every position is a row."""

    def __init__(self, mask: tf.Tensor) -> None:
        self.batch, self.length = grid_shape(mask)
        self.attention_bias = attention_bias(mask)  # [B, 1, 1, S]

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        return tf.reshape(grid, [self.batch * self.length, *grid.shape[2:]])

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rows, [self.batch, self.length, *rows.shape[1:]])

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return tf.tile(table[: self.length], [self.batch, 1])


class UnpaddedLayout:
    """R = number of real tokens; positions outside the mask are 0 in every grid."""

    def __init__(self, mask: tf.Tensor) -> None:
        self.shape = tf.shape(mask)
        self.places = tf.where(mask > 0)  # int64 [R, 2]: example, position
        self.attention_bias = attention_bias(mask)  # [B, 1, 1, S]

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        return tf.gather_nd(grid, self.places)

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([self.shape, tf.shape(rows)[1:]], axis=0)
        grid = tf.scatter_nd(self.places, rows, tf.cast(shape, tf.int64))
        return tf.ensure_shape(grid, [None, None, *rows.shape[1:]])

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, self.places[:, 1])


def grid_shape(mask: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Batch size and length of a mask [B, S]: static numbers where they are known."""
    dynamic = tf.shape(mask)
    return tuple(dynamic[axis] if size is None else size for axis, size in enumerate(mask.shape))


def attention_bias(mask: tf.Tensor) -> tf.Tensor:
    """0 for real tokens and `MASKED_SCORE` for padding: int [B, S] to float32 [B, 1, 1, S]."""
    return (1.0 - tf.cast(mask, tf.float32))[:, tf.newaxis, tf.newaxis, :] * MASKED_SCORE


def split_heads(layout: Layout, rows: tf.Tensor, num_heads: int) -> tf.Tensor:
    """[R, N * D] to [B, N, S, D]."""
    rows = tf.reshape(rows, [-1, num_heads, rows.shape[-1] // num_heads])  # [R, N, D]
    return tf.transpose(layout.to_grid(rows), [0, 2, 1, 3])


def merge_heads(layout: Layout, heads: tf.Tensor) -> tf.Tensor:
    """[B, N, S, D] to [R, N * D]."""
    rows = layout.to_rows(tf.transpose(heads, [0, 2, 1, 3]))  # [R, N, D]
    return tf.reshape(rows, [-1, rows.shape[1] * rows.shape[2]])
