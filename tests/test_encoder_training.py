"""The encoder in training: dtypes, dropout, recomputation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tiny_encoder import (
    MASK,
    SEED,
    TOKEN_IDS,
    assert_close,
    encode,
    gradients,
    loss_of,
    make_config,
    make_encoder,
    operations,
)

from bert_tf import kernels
from bert_tf.encoder import BertEncoder
from bert_tf.layouts import Layout, PaddedLayout, UnpaddedLayout

LAYOUTS = pytest.mark.parametrize("layout", [PaddedLayout, UnpaddedLayout])
POLICIES = ["mixed_bfloat16", "mixed_float16"]


@pytest.fixture(params=POLICIES)
def half(request: pytest.FixtureRequest) -> Iterator[tf.DType]:
    """Mixed precision for one test; the half-precision type."""
    keras.mixed_precision.set_global_policy(request.param)
    yield tf.as_dtype(request.param.removeprefix("mixed_"))
    keras.mixed_precision.set_global_policy("float32")


# --- dtypes --------------------------------------------------------------------------------------


@LAYOUTS
def test_mixed_precision_is_close_to_float32(layout: type[Layout], half: tf.DType) -> None:
    encoder = make_encoder(make_config(), layout)
    keras.mixed_precision.set_global_policy("float32")
    exact = encode(make_encoder(make_config(), layout))
    output = encode(encoder)
    assert output.sequence.dtype == output.pooled.dtype == half
    assert all(variable.dtype == tf.float32 for variable in encoder.variables)
    real = MASK > 0
    close = tf.cast(output.sequence, tf.float32).numpy()[real]
    difference = np.abs(close - exact.sequence.numpy()[real]).max()
    assert 1e-5 < difference < (3.2e-2 if half == tf.bfloat16 else 4e-3)


@pytest.mark.parametrize(("layout", "recompute"), [(PaddedLayout, True), (UnpaddedLayout, False)])
def test_mixed_precision_gradients(layout: type[Layout], recompute: bool, half: tf.DType) -> None:
    encoder = make_encoder(make_config(dropout=0.1, layers=1), layout, recompute)

    def step() -> dict[str, tf.Tensor]:
        return gradients(encoder, training=True, seed=SEED)

    # One type in eager mode and one in a graph, which recomputes in another way.
    values = step() if half == tf.float16 else tf.function(step)()
    assert len(values) == 3 + 2 + 16 + 2
    for name, gradient in values.items():
        assert gradient.dtype == tf.float32
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0, name


def test_float32_where_it_matters(half: tf.DType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products are in half precision; softmax and layer-norm statistics are not."""
    seen = []

    def spy(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
        seen.append((x.dtype, gamma.dtype, beta.dtype))
        return layer_norm(x, gamma, beta, epsilon)

    layer_norm = kernels.layer_norm
    monkeypatch.setattr(kernels, "layer_norm", spy)
    encoder = make_encoder(make_config(dropout=0.1))
    call = tf.function(lambda: encode(encoder, training=True, seed=SEED))
    graph = call.get_concrete_function().graph
    assert seen == [(half, tf.float32, tf.float32)] * 5  # embeddings and two in each layer
    for kind, count in {"Exp": 2, "Rsqrt": 5, "Mean": 10, "SquaredDifference": 0}.items():
        found = operations(graph, kind)
        assert [op.outputs[0].dtype for op in found] == [tf.float32] * count, kind
    products = operations(graph, "MatMul") + operations(graph, "BatchMatMulV2")
    assert len(products) == 1 + 2 * (6 + 2) + 1  # segments, layers, pooler
    assert {op.outputs[0].dtype for op in products} == {half}


# --- dropout -------------------------------------------------------------------------------------


@LAYOUTS
def test_dropout_seeds(layout: type[Layout]) -> None:
    encoder = make_encoder(make_config(dropout=0.1), layout)
    first = encode(encoder, training=True, seed=SEED).sequence
    assert_close(first, encode(encoder, training=True, seed=SEED).sequence, 0.0)
    for other in (tf.constant([3, 5]), tf.constant([4, 4])):
        assert np.abs(first - encode(encoder, training=True, seed=other).sequence).max() > 0.1
    drawn = [encode(encoder, training=True).sequence for _ in range(2)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1


@LAYOUTS
def test_no_dropout_in_inference(layout: type[Layout]) -> None:
    dropping = make_encoder(make_config(dropout=0.5), layout)
    expected = encode(make_encoder(make_config(dropout=0.0), layout)).sequence
    for output in (encode(dropping), encode(dropping, training=False, seed=SEED)):
        assert_close(output.sequence, expected, 0.0)


def test_share_of_dropped_embeddings() -> None:
    config = dataclasses.replace(make_config(dropout=0.2, layers=0), hidden_size=64)
    encoder = BertEncoder(config)
    ids = np.tile(TOKEN_IDS, [20, 1])
    kept, dropped = encoder(ids).embeddings, encoder(ids, training=True, seed=SEED).embeddings
    zero = dropped.numpy() == 0.0
    assert abs(zero.mean() - 0.2) < 6 * math.sqrt(0.2 * 0.8 / zero.size)
    assert_close(dropped.numpy()[~zero], kept.numpy()[~zero] / 0.8, 1e-5)


def test_every_dropout_has_its_own_seed() -> None:
    encoder = BertEncoder(make_config(dropout=0.1))
    seeds = encoder.dropout_seeds(SEED).numpy()
    assert len({tuple(seed) for seed in seeds}) == 3 * 2 + 1
    call = tf.function(lambda: encode(encoder, training=True, seed=SEED))
    unpacked = operations(call.get_concrete_function().graph, "Unpack")
    keys = {op.inputs[0].name for op in unpacked if op.inputs[0].shape == [2]}  # one a dropout
    assert len(keys) == 3 * 2 + 1


# --- recomputation -------------------------------------------------------------------------------


@LAYOUTS
def test_recomputation_changes_no_gradient(layout: type[Layout]) -> None:
    keep = gradients(make_encoder(make_config(0.1), layout), training=True, seed=SEED)
    encoder = make_encoder(make_config(0.1), layout, recompute=True)
    recompute = tf.function(lambda: gradients(encoder, training=True, seed=SEED))()
    assert set(keep) == set(recompute)
    for name, gradient in keep.items():
        # Units dropped in one pass and not in the other would move gradients by their own size.
        scale = max(1.0, np.abs(gradient).max())
        np.testing.assert_allclose(
            recompute[name], gradient, rtol=0, atol=1e-6 * scale, err_msg=name
        )


def test_recomputation_runs_the_layers_twice_and_keeps_nothing_of_them() -> None:
    kept, keeping = kept_elements(make_encoder(make_config(0.1)))
    recomputed, recomputing = kept_elements(make_encoder(make_config(0.1), recompute=True))
    rows = MASK.size * 16  # numbers in one tensor [R, H]
    assert kept > 2 * 20 * rows  # of two layers
    assert recomputed < rows
    for kind in ("Softmax", "Erf", "Erfc", "BatchMatMulV2"):
        # A layer has two products in attention; each has two more in its gradient.
        extra = len(operations(keeping, kind)) // (3 if kind == "BatchMatMulV2" else 1)
        assert len(operations(recomputing, kind)) == len(operations(keeping, kind)) + extra


def kept_elements(encoder: BertEncoder) -> tuple[int, tf.Graph]:
    """Numbers made inside the layers in the forward pass and read by the backward pass."""

    @tf.function
    def step() -> list[tf.Tensor]:
        variables = encoder.trainable_variables
        with tf.GradientTape() as tape:
            loss = tf.identity(loss_of(encode(encoder, training=True, seed=SEED)), name="loss")
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, variables)]

    graph = step.get_concrete_function().graph
    made = graph.get_operations()  # in the order of their making
    end = next(index for index, op in enumerate(made) if op.name == "loss")
    forward = {op.name for op in made[:end] if "/layer_" in op.name}
    kept = {
        tensor.name: tensor.shape.num_elements()
        for op in made[end:]
        for tensor in op.inputs
        if tensor.op.name in forward and tensor.op.type != "ReadVariableOp"
    }
    return sum(kept.values()), graph
