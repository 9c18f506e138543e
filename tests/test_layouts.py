"""All layouts: what they map where, with static and with unknown shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import kernels
from bert_tf.config import BertConfig
from bert_tf.encoder import Linear
from bert_tf.kernels import MASKED_SCORE, attention_bias
from bert_tf.layouts import (
    GridLayout,
    Layout,
    PaddedLayout,
    UnpaddedLayout,
    in_one_pass,
    programs,
)

MASK = np.array([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]], np.int32)
LAYOUTS = pytest.mark.parametrize("layout_class", [PaddedLayout, GridLayout, UnpaddedLayout])


def grid(*shape: int) -> tf.Tensor:
    """Different numbers everywhere, none of them 0."""
    return tf.reshape(tf.range(1, 1 + np.prod(shape), dtype=tf.float32), shape)


def identity() -> Linear:
    """A projection that changes nothing, on 6 hidden units."""
    projection = Linear(6, 6, BertConfig(10), "identity")
    projection.kernel.assign(tf.eye(6))
    return projection


def test_padded_rows_are_all_positions_in_order() -> None:
    layout = PaddedLayout(tf.constant(MASK))
    values = grid(3, 4, 5)
    rows = layout.to_rows(values)
    np.testing.assert_array_equal(rows, values.numpy().reshape(12, 5))
    np.testing.assert_array_equal(layout.to_grid(rows), values)


def test_unpadded_rows_are_the_real_tokens_in_order() -> None:
    layout = UnpaddedLayout(tf.constant(MASK))
    values = grid(3, 4, 5)
    rows = layout.to_rows(values)
    np.testing.assert_array_equal(rows, values.numpy()[MASK > 0])
    np.testing.assert_array_equal(layout.to_grid(rows), values * MASK[..., None])


def test_unpadded_takes_masks_with_holes() -> None:
    mask = np.array([[0, 1, 0, 1]], np.int32)
    layout = UnpaddedLayout(tf.constant(mask))
    rows = layout.position_rows(grid(10, 2))
    np.testing.assert_array_equal(rows, grid(10, 2).numpy()[[1, 3]])
    np.testing.assert_array_equal(layout.to_grid(rows)[0, ::2], np.zeros([2, 2]))


@LAYOUTS
def test_ids_become_rows(layout_class: type[Layout]) -> None:
    ids = tf.constant(np.arange(12).reshape(3, 4))
    rows = layout_class(tf.constant(MASK)).to_rows(ids)
    expected = [0, 1, 2, 4, 8, 9, 10, 11] if layout_class is UnpaddedLayout else np.arange(12)
    np.testing.assert_array_equal(tf.reshape(rows, [-1]), expected)
    assert rows.shape.rank == (2 if layout_class is GridLayout else 1)


@LAYOUTS
def test_position_rows(layout_class: type[Layout]) -> None:
    layout = layout_class(tf.constant(MASK))
    table = grid(10, 2)
    positions = layout.to_rows(tf.constant(np.tile(np.arange(4), [3, 1])))
    expected = table.numpy()[positions]
    np.testing.assert_array_equal(layout.position_rows(table) + tf.zeros(expected.shape), expected)


def test_attention_bias() -> None:
    bias = attention_bias(tf.constant(MASK))
    assert bias.dtype == tf.float32
    np.testing.assert_array_equal(bias[:, 0, 0, :], np.where(MASK > 0, 0.0, MASKED_SCORE))


@LAYOUTS
def test_heads_are_slices_of_the_hidden_axis(layout_class: type[Layout]) -> None:
    layout = layout_class(tf.constant(MASK))
    values = grid(3, 4, 6) * MASK[..., None]  # [B, S, N * D]
    rows = layout.to_rows(values)
    heads = layout.split_heads(rows, identity(), 2)
    assert heads.shape == [3, 2, 4, 3]  # [B, N, S, D]
    for head, expected in enumerate((values[..., :3], values[..., 3:])):
        np.testing.assert_array_equal(heads[:, head][MASK > 0], expected[MASK > 0])
    np.testing.assert_array_equal(layout.merge_heads(heads, identity()), rows)


def test_projections_are_the_same_in_every_layout() -> None:
    query, output = (Linear(6, 6, BertConfig(10), name) for name in ("query", "output"))
    for projection in (query, output):
        projection.bias.assign(tf.range(6.0) - 3.0)
    found = []
    for layout_class in (PaddedLayout, GridLayout, UnpaddedLayout):
        layout = layout_class(tf.ones([3, 4], tf.int32))
        heads = layout.split_heads(layout.to_rows(grid(3, 4, 6)), query, 2)
        found.append((heads, layout.merge_heads(heads, output)))
    for heads, rows in found[1:]:
        np.testing.assert_allclose(heads, found[0][0], rtol=1e-5, atol=1e-5)
        rows = tf.reshape(rows, [12, 6])  # GridLayout's stay in the grid
        np.testing.assert_allclose(rows, found[0][1], rtol=1e-5, atol=1e-5)


@LAYOUTS
def test_gradients_pass_both_ways(layout_class: type[Layout]) -> None:
    layout = layout_class(tf.constant(MASK))
    values, factor = grid(3, 4, 2), grid(3, 4, 2) + 100.0
    with tf.GradientTape() as tape:
        tape.watch(values)
        total = tf.reduce_sum(layout.to_grid(layout.to_rows(values)) * factor)
    seen = MASK[..., None] if layout_class is UnpaddedLayout else 1
    np.testing.assert_array_equal(tape.gradient(total, values), factor * seen)


def traced(layout_class: type[Layout], shape: list[int | None]) -> tf.types.experimental.Callable:
    """Grid -> rows -> heads -> rows -> grid for a mask of this shape."""

    projection = identity()

    @tf.function(
        input_signature=[
            tf.TensorSpec(shape, tf.int32),
            tf.TensorSpec([*shape, 6], tf.float32),
        ]
    )
    def there_and_back(mask: tf.Tensor, values: tf.Tensor) -> tuple[tf.Tensor, ...]:
        layout = layout_class(mask)
        rows = layout.to_rows(values)
        heads = layout.split_heads(rows, projection, 2)
        merged = layout.merge_heads(heads, projection)
        positions = layout.position_rows(tf.ones([10, 6]))
        return rows, heads, merged, layout.to_grid(merged), positions, layout.attention_bias

    return there_and_back


@pytest.mark.parametrize("layout_class", [PaddedLayout, GridLayout])
def test_static_shapes_stay_static(layout_class: type[Layout]) -> None:
    concrete = traced(layout_class, [3, 4]).get_concrete_function()
    shapes = [tensor.shape.as_list() for tensor in concrete.outputs]
    in_grid = layout_class is GridLayout
    rows, positions = ([3, 4, 6], [4, 6]) if in_grid else ([12, 6], [12, 6])
    assert shapes == [rows, [3, 2, 4, 3], rows, [3, 4, 6], positions, [3, 1, 1, 4]]
    # And no shape is put together at run time.
    assert "Pack" not in {op.type for op in concrete.graph.get_operations()}


@pytest.mark.parametrize("shape", [[None, None], [3, None], [None, 4]])
@LAYOUTS
def test_unknown_shapes(layout_class: type[Layout], shape: list[int | None]) -> None:
    function = traced(layout_class, shape)
    values = grid(3, 4, 6)
    _, heads, _, back, _, _ = function(MASK, values)
    seen = MASK[..., None] if layout_class is UnpaddedLayout else 1
    np.testing.assert_array_equal(back, values * seen)
    assert heads.shape == [3, 2, 4, 3]
    concrete = function.get_concrete_function()
    # The sizes that matrix products need are known even so.
    known = [tensor.shape.as_list()[-1] for tensor in concrete.outputs[:5]]
    assert known == [6, 3, 6, 6, 6]


def joined(
    x: tf.Tensor, residual: tf.Tensor, gamma: tf.Tensor, seed: tf.Tensor, rate: float
) -> tf.Tensor:
    """Row-wise, with everything that a block has between two products."""
    x = kernels.gelu_in_training(kernels.dropout(x, rate, seed))
    return kernels.layer_norm(x + residual, gamma, tf.zeros_like(gamma), 1e-12)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 2e-6), (tf.bfloat16, 2e-2)])
def test_compiled_rows_have_the_values_and_gradients_of_the_function(
    count: int, dtype: tf.DType, tolerance: float
) -> None:
    random = tf.random.Generator.from_seed(1)
    x, residual, arriving = (tf.cast(random.normal([count, 24]), dtype) for _ in range(3))
    gamma, seed = tf.Variable(random.normal([24])), tf.constant([5, 6])

    def with_gradients(function: Callable[..., tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, residual])
            y = function(joined, [x, residual], {"gamma": gamma, "seed": seed}, rate=0.3)
        return [y, *tape.gradient(y, [x, residual, gamma], output_gradients=arriving)]

    actual = with_gradients(UnpaddedLayout(tf.ones([1, 1], tf.int32), training=True).row_wise)
    expected = with_gradients(PaddedLayout(tf.ones([1, 1], tf.int32)).row_wise)
    for got, wanted in zip(actual, expected, strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape == wanted.shape
        scale = tf.reduce_max(tf.abs(tf.cast(wanted, tf.float32))).numpy()
        np.testing.assert_allclose(
            tf.cast(got, tf.float32), tf.cast(wanted, tf.float32), rtol=0, atol=tolerance * scale
        )


def test_rows_are_compiled_for_a_few_sizes_alone() -> None:
    def compiled_size(x: tf.Tensor) -> tf.Tensor:
        return x + tf.cast(tf.shape(x)[0], tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None, 3])])
    def step(x: tf.Tensor) -> tf.Tensor:
        return in_one_pass(compiled_size, [x], {})

    for count, size in {1: 64, 5: 64, 64: 64, 65: 96, 96: 96, 97: 128, 129: 192}.items():
        np.testing.assert_array_equal(step(tf.zeros([count, 3])), np.full([count, 3], size))
    # Traced once for all of them; XLA then compiles it for each size.
    assert programs(compiled_size, (), ())[0].experimental_get_tracing_count() == 1


@LAYOUTS
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_is_that_of_the_kernel(layout_class: type[Layout], rate: float) -> None:
    layout = layout_class(tf.constant(MASK), training=True)
    x, seed = grid(3, 2, 4, 4), tf.constant([1, 2])
    np.testing.assert_array_equal(layout.dropout(x, rate, seed), kernels.dropout(x, rate, seed))
    assert layout.dropout(x, rate, None) is x
