"""Rows and grid: the encoder works on rows [R, H]; only attention needs the grid [B, N, S, D].

A layout is made from the mask of a batch and maps between the two: with every position
(`PaddedLayout`, whose maps are reshapes; `GridLayout`, its form for XLA), with several sequences in
a row (`PackedLayout`), or with real tokens only, so that nothing is spent on padding
(`UnpaddedLayout`, on CPU).
Legend: B batch, S sequence, R rows, H hidden, N heads, D head size; H = N x D.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from bert_tf import kernels

# Numbers of rows that programs are compiled for: 64, 96, 128, 192, 256, ... Each that occurs takes
# about 0.1 s a program, once; at most a third of what a program computes is filling.
SIZES = [(2 + half) << octave for octave in range(5, 30) for half in range(2)]


class Projection(Protocol):
    """A layer that computes `x @ kernel + bias`, such as `encoder.Linear`."""

    kernel: tf.Variable  # [in, out]
    bias: tf.Variable  # [out]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Rows [R, in] to [R, out]."""


class Layout(Protocol):
    """What the encoder asks of a layout."""

    attention_bias: tf.Tensor  # float32 [B, 1, 1 or S, S]

    def __init__(self, mask: tf.Tensor, training: bool = False) -> None:
        """`mask` is int32 [B, S], 0 = padding, 1 = real token; more is for `PackedLayout`.

        `training` makes gradients fast; they are there without.
        """

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        """[B, S, ...] to [R, ...]."""

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        """[R, ...] to [B, S, ...]."""

    def first_rows(self, rows: tf.Tensor) -> tf.Tensor:
        """Those of the first position of each sequence: [R, H] to [B, H]."""

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        """The row of `table` [positions, H] that belongs to each row: [R, H]."""

    def split_heads(self, rows: tf.Tensor, projection: Projection, num_heads: int) -> tf.Tensor:
        """A projection of rows [R, H], head by head: [B, N, S, D], padding being anything."""

    def merge_heads(self, heads: tf.Tensor, projection: Projection) -> tf.Tensor:
        """A projection of all heads [B, N, S, D] side by side, in rows: [R, H]."""

    def row_wise(
        self, function: Callable[..., tf.Tensor], rows: Sequence, others: Mapping, **settings: Any
    ) -> tf.Tensor:
        """`function(*rows, **others, **settings)`, as fast as may be; see `in_one_pass`."""

    def dropout(self, x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
        """`kernels.dropout` of any shape, as fast as may be."""


def uncompiled(
    function: Callable[..., tf.Tensor], rows: Sequence, others: Mapping, **settings: Any
) -> tf.Tensor:
    """`function(*rows, **others, **settings)`, operation by operation."""
    return function(*rows, **others, **settings)


class PaddedLayout:
    """R = B x S: every position is a row."""

    row_wise = staticmethod(uncompiled)

    def __init__(self, mask: tf.Tensor, training: bool = False) -> None:
        del training  # nothing is to be gained
        self.batch, self.length = grid_shape(mask)
        self.attention_bias = kernels.attention_bias(mask)  # [B, 1, 1, S]

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        return tf.reshape(grid, [self.batch * self.length, *grid.shape[2:]])

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.reshape(rows, [self.batch, self.length, *rows.shape[1:]])

    def first_rows(self, rows: tf.Tensor) -> tf.Tensor:
        return self.to_grid(rows)[:, 0]

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return tf.tile(table[: self.length], [self.batch, 1])

    def split_heads(self, rows: tf.Tensor, projection: Projection, num_heads: int) -> tf.Tensor:
        rows = projection(rows)  # [R, N * D]
        heads = self.to_grid(tf.reshape(rows, [-1, num_heads, rows.shape[-1] // num_heads]))
        return tf.transpose(heads, [0, 2, 1, 3])

    def merge_heads(self, heads: tf.Tensor, projection: Projection) -> tf.Tensor:
        rows = self.to_rows(tf.transpose(heads, [0, 2, 1, 3]))  # [R, N, D]
        return projection(tf.reshape(rows, [-1, rows.shape[1] * rows.shape[2]]))

    def dropout(self, x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
        return kernels.dropout(x, rate, seed)


class GridLayout(PaddedLayout):
    """As `PaddedLayout`, for XLA: rows stay in the grid, [B, S, ...] instead of [R, ...].

    Its compiler lays out each axis as it likes; B and S in one, or N and D, would be copied often.
    """

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        return grid

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        return rows

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return table[: self.length]  # [S, H]

    def split_heads(self, rows: tf.Tensor, projection: Projection, num_heads: int) -> tf.Tensor:
        kernel = tf.reshape(projection.kernel, [rows.shape[-1], num_heads, -1])  # [H, N, D]
        bias = tf.reshape(projection.bias, [num_heads, -1])
        heads = tf.einsum("bsh,hnd->bsnd", rows, kernel) + bias
        return tf.transpose(heads, [0, 2, 1, 3])

    def merge_heads(self, heads: tf.Tensor, projection: Projection) -> tf.Tensor:
        heads = tf.transpose(heads, [0, 2, 1, 3])  # [B, S, N, D]
        kernel = tf.reshape(projection.kernel, [*heads.shape[2:], -1])  # [N, D, H]
        return tf.einsum("bsnd,ndh->bsh", heads, kernel) + projection.bias


class PackedLayout(GridLayout):
    """As `GridLayout`, but the mask numbers the sequences that share a row: 1, 2, and so on.

    A token sees its own sequence alone, and positions begin again with each sequence (Krell et al.
    2021, "Efficient sequence packing without cross-contamination").
    """

    def __init__(self, mask: tf.Tensor, training: bool = False) -> None:
        super().__init__(mask, training)
        related = tf.cast(mask[:, :, tf.newaxis] == mask[:, tf.newaxis, :], tf.int32)  # [B, S, S]
        self.attention_bias = kernels.attention_bias(related)[:, 0]  # [B, 1, S, S]
        up_to_here = tf.linalg.band_part(related, -1, 0)  # [B, S, S]
        self.positions = tf.reduce_sum(up_to_here, axis=2) - 1  # [B, S]

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, self.positions)  # [B, S, H]


class UnpaddedLayout:
    """R = number of real tokens; positions outside the mask are 0 in every grid.

    A text without any token is read as if its first position were one: there must be rows.
    Heads are gathered straight from the rows, and back, without a transposition.
    """

    def __init__(self, mask: tf.Tensor, training: bool = False) -> None:
        # Exported graphs have no operation of a gradient.
        self.differentiated = tf.custom_gradient if training else without_gradient
        self.row_wise = in_one_pass if training else uncompiled
        length = tf.shape(mask)[1]
        is_first = tf.cast(tf.range(length) == 0, mask.dtype)  # [S]
        is_empty = ~tf.reduce_any(mask > 0, axis=1, keepdims=True)  # [B, 1]
        mask = tf.where(is_empty, is_first, mask)  # [B, S]
        self.is_token = mask > 0
        self.attention_bias = kernels.attention_bias(mask)  # [B, 1, 1, S]
        self.places = tf.where(self.is_token)  # int64 [R, 2]: example, position
        numbers = tf.cumsum(tf.cast(tf.reshape(self.is_token, [-1]), tf.int32)) - 1  # [B * S]
        # Padding gets the row before it; attention masks it.
        self.row_of_place = tf.reshape(tf.maximum(numbers, 0), tf.shape(mask))  # [B, S]
        # By the number of heads, made once and not in every block.
        self.index_of_heads = functools.cache(functools.partial(index_of_heads, self.row_of_place))
        self.index_of_rows = functools.cache(functools.partial(index_of_rows, self.places, length))

    def to_rows(self, grid: tf.Tensor) -> tf.Tensor:
        return tf.gather_nd(grid, self.places)

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([tf.shape(self.is_token), tf.shape(rows)[1:]], axis=0)
        grid = tf.scatter_nd(self.places, rows, tf.cast(shape, tf.int64))
        return tf.ensure_shape(grid, [None, None, *rows.shape[1:]])

    def first_rows(self, rows: tf.Tensor) -> tf.Tensor:
        first = tf.gather(rows, self.row_of_place[:, 0])
        return tf.where(self.is_token[:, :1], first, tf.zeros((), rows.dtype))

    def position_rows(self, table: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, self.places[:, 1])

    def split_heads(self, rows: tf.Tensor, projection: Projection, num_heads: int) -> tf.Tensor:
        @self.differentiated
        def split(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def backward(gradient: tf.Tensor) -> tf.Tensor:
                # Padding has 0: nobody listens to it.
                return rows_of_heads(gradient, self.index_of_rows(num_heads))

            size = rows.shape[-1] // num_heads
            return heads_of_rows(rows, self.index_of_heads(num_heads), size), backward

        return split(projection(rows))

    def merge_heads(self, heads: tf.Tensor, projection: Projection) -> tf.Tensor:
        _, num_heads, _, size = heads.shape

        @self.differentiated
        def merge(heads: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            def backward(gradient: tf.Tensor) -> tf.Tensor:
                gradient = heads_of_rows(gradient, self.index_of_heads(num_heads), size)
                is_token = tf.cast(self.is_token, gradient.dtype)
                return gradient * is_token[:, tf.newaxis, :, tf.newaxis]  # by [B, 1, S, 1]

            return rows_of_heads(heads, self.index_of_rows(num_heads)), backward

        return projection(merge(heads))

    def dropout(self, x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
        if seed is None or rate == 0.0:
            return x
        # Unit by unit: one program for all lengths, not one for each.
        units = tf.reshape(x, [-1])
        dropped = self.row_wise(kernels.dropout, [units], {"seed": seed}, rate=rate)
        return tf.reshape(dropped, tf.shape(x))


def without_gradient(function: Callable) -> Callable:
    """The values of a function in the form that `tf.custom_gradient` takes."""
    return lambda x: function(x)[0]


def index_of_heads(row_of_place: tf.Tensor, num_heads: int, count: int = 1) -> tf.Tensor:
    """Where rows [R, count * H] have the heads of each place: int32 [B, N, S] or [count, B, N, S].

    `row_of_place`: int32 [B, S], of any padding.
    """
    head = np.arange(count * num_heads, dtype=np.int32).reshape(count, 1, num_heads, 1)
    index = count * num_heads * row_of_place[:, tf.newaxis, :] + head  # [count, B, N, S]
    return index if count > 1 else index[0]


def heads_of_rows(rows: tf.Tensor, index: tf.Tensor, size: int) -> tf.Tensor:
    """Rows [R, count * H] to [B, N, S, D] or [count, B, N, S, D], as the index is; `size`: D."""
    return tf.gather(tf.reshape(rows, [-1, size]), index)


def index_of_rows(places: tf.Tensor, length: tf.Tensor, num_heads: int) -> tf.Tensor:
    """Where [B, N, S, D] has the heads of each row: int64 [R, N].

    `places`: int64 [R, 2], example and position of each row; `length`: S.
    """
    example, position = places[:, :1], places[:, 1:]  # [R, 1]
    head = np.arange(num_heads)  # [N]
    return (example * num_heads + head) * tf.cast(length, tf.int64) + position


def rows_of_heads(heads: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """[B, N, S, D] to rows [R, N * D]."""
    rows = tf.gather(tf.reshape(heads, [-1, heads.shape[3]]), index)  # [R, N, D]
    return tf.reshape(rows, [-1, heads.shape[1] * heads.shape[3]])


def in_one_pass(
    function: Callable[..., tf.Tensor],
    rows: Sequence[tf.Tensor],
    others: Mapping[str, tf.Tensor | tf.Variable],
    **settings: Any,
) -> tf.Tensor:
    """`function(*rows, **others, **settings)`, and its gradient, compiled by XLA.

    On CPU TensorFlow runs one operation after the other, and each reads and writes all rows. XLA
    joins them, but its matrix products are slow and it wants to know every shape. So only what lies
    between two products is compiled, for numbers of rows rounded up to `SIZES`. The backward pass
    computes the forward one again within its own: only `rows` are kept for it.

    Args:
        function: one of a module, or cached. A row of its output depends on the same row of `rows`
            and on `others`; a row of 0 gives no NaN.
        rows: floats [R, ...], for any R.
        others: what belongs to all rows, such as weights and seeds.
        settings: hashable Python values; each set of them makes programs of its own.

    Returns:
        [R, ...].
    """
    forward, backward = programs(function, tuple(others), tuple(settings.items()))

    @tf.custom_gradient
    def island(*values: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        count = tf.shape(values[0])[0]
        sizes = tf.constant(SIZES)
        filling = tf.gather(sizes, tf.searchsorted(sizes, count[tf.newaxis])[0]) - count

        def filled(x: tf.Tensor) -> tf.Tensor:
            zeros = tf.zeros(tf.concat([[filling], tf.shape(x)[1:]], axis=0), x.dtype)
            return tf.concat([x, zeros], axis=0)  # a copy of memory; `tf.pad` is slower

        inputs = [filled(x) for x in values[: len(rows)]] + list(values[len(rows) :])

        def gradients(gradient: tf.Tensor) -> list[tf.Tensor | None]:
            found = iter(backward(inputs, filled(gradient)))
            own = [next(found)[:count] for _ in rows]
            return own + [next(found) if x.dtype.is_floating else None for x in values[len(own) :]]

        return forward(inputs)[:count], gradients

    return island(*(tf.convert_to_tensor(x) for x in (*rows, *others.values())))


@functools.cache  # once for all layers, and for several runs in a process
def programs(
    function: Callable[..., tf.Tensor],
    names: tuple[str, ...],
    settings: tuple[tuple[str, Any], ...],
) -> tuple[Callable, Callable]:
    """A function of a list of tensors, the last of them by `names`, and that of its gradients."""

    def plain(inputs: list[tf.Tensor]) -> tf.Tensor:
        first = len(inputs) - len(names)
        others = dict(zip(names, inputs[first:], strict=True))
        return function(*inputs[:first], **others, **dict(settings))

    def gradients(inputs: list[tf.Tensor], gradient: tf.Tensor) -> list[tf.Tensor]:
        floats = [x for x in inputs if x.dtype.is_floating]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floats)
            output = plain(inputs)
        return tape.gradient(output, floats, output_gradients=gradient)

    program = functools.partial(tf.function, jit_compile=True, autograph=False)
    return program(plain), program(gradients)


def grid_shape(mask: tf.Tensor) -> tuple[int | tf.Tensor, int | tf.Tensor]:
    """Batch size and length of a mask [B, S]: static numbers where they are known."""
    dynamic = tf.shape(mask)
    return tuple(dynamic[axis] if size is None else size for axis, size in enumerate(mask.shape))
