"""The reference numerics against NumPy in float64."""

from __future__ import annotations

import numpy as np
import numpy_bert
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from bert_tf import kernels


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def test_linear() -> None:
    x, kernel, bias = normal(5, 7), normal(7, 3, seed=1), normal(3, seed=2)
    expected = x.astype(np.float64) @ kernel + bias
    np.testing.assert_allclose(
        kernels.linear(tf.constant(x), kernel, bias), expected, rtol=0, atol=1e-6
    )
    grid = kernels.linear(tf.constant(x)[tf.newaxis], kernel, bias)  # [1, 5, 3]
    np.testing.assert_allclose(grid[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(numpy_bert.ACTIVATIONS))
def test_activations(name: str) -> None:
    assert set(kernels.ACTIVATIONS) == set(numpy_bert.ACTIVATIONS)
    x = np.linspace(-12.0, 12.0, 4001, dtype=np.float32)
    expected = numpy_bert.ACTIVATIONS[name](x.astype(np.float64))
    np.testing.assert_allclose(kernels.ACTIVATIONS[name](x), expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(kernels.ACTIVATIONS))
def test_activations_in_training(name: str) -> None:
    x = tf.constant(np.linspace(-12.0, 12.0, 4001, dtype=np.float32))
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        expected = kernels.activation(name)(x)
        actual = kernels.activation(name, training=True)(x)
    np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-6)
    # Far below 0 both forms of the derivative are differences of almost equal numbers.
    gradient = tape.gradient(actual, x)
    np.testing.assert_allclose(gradient, tape.gradient(expected, x), rtol=2e-6, atol=5e-6)


def test_the_two_gelus_differ() -> None:
    x = np.linspace(-4.0, 4.0, 801, dtype=np.float32)
    difference = np.abs(kernels.gelu(x) - kernels.gelu_approximate(x)).max()
    assert 4e-4 < difference < 5e-4  # Hendrycks and Gimpel's approximation is this good


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_layer_norm(offset: float) -> None:
    x, gamma, beta = normal(6, 64) + np.float32(offset), normal(64, seed=1), normal(64, seed=2)
    expected = numpy_bert.layer_norm(x.astype(np.float64), gamma, beta, 1e-12)
    actual = kernels.layer_norm(tf.constant(x), gamma, beta, 1e-12)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * (1 + offset))


def test_layer_norm_uses_its_epsilon() -> None:
    x = normal(4, 32, scale=1e-6)  # variance 1e-12: the epsilon halves it
    ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
    for epsilon in (1e-12, 1e-5):
        expected = numpy_bert.layer_norm(x.astype(np.float64), ones, zeros, epsilon)
        actual = kernels.layer_norm(tf.constant(x), ones, zeros, epsilon)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_layer_norm_of_a_constant_row_is_beta() -> None:
    beta = normal(8)
    actual = kernels.layer_norm(tf.fill([2, 8], 3.0), normal(8, seed=1), beta, 1e-12)
    np.testing.assert_array_equal(actual, np.stack([beta, beta]))


def test_layer_norm_survives_the_graph_optimizer() -> None:
    """Frozen graphs are where TensorFlow 2.20 swaps in an op with an epsilon of its own."""
    gamma, beta = tf.Variable(normal(64, seed=1)), tf.Variable(normal(64, seed=2))
    x = normal(16, 64, scale=0.05)  # variance 0.0025, so that an epsilon of 1e-3 would show
    function = tf.function(lambda rows: kernels.layer_norm(rows, gamma, beta, 1e-12))
    concrete = function.get_concrete_function(tf.TensorSpec([None, 64], tf.float32))
    frozen = convert_variables_to_constants_v2(concrete)
    expected = numpy_bert.layer_norm(x.astype(np.float64), gamma.numpy(), beta.numpy(), 1e-12)
    np.testing.assert_allclose(concrete(tf.constant(x)), expected, rtol=0, atol=5e-6)
    np.testing.assert_allclose(frozen(tf.constant(x))[0], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_layer_norm_of_half_precision_keeps_float32_statistics(dtype: tf.DType) -> None:
    x = tf.cast(normal(4, 512, scale=300.0), dtype)  # squares and sums overflow float16
    ones, zeros = np.ones(512, np.float32), np.zeros(512, np.float32)
    actual = kernels.layer_norm(x, ones, zeros, 1e-12)
    expected = numpy_bert.layer_norm(tf.cast(x, tf.float64).numpy(), ones, zeros, 1e-12)
    assert actual.dtype == dtype
    # Half a unit in the last place: the one rounding is that of the result.
    half_ulp = 2.0**-11 if dtype == tf.float16 else 2.0**-8
    np.testing.assert_allclose(
        tf.cast(actual, tf.float64), expected, rtol=1.01 * half_ulp, atol=1e-6
    )


def test_attention() -> None:
    query, key, value = (normal(2, 3, 5, 4, seed=seed) for seed in range(3))
    mask = np.array([[1, 1, 1, 1, 0], [1, 0, 1, 0, 0]])
    bias = ((1 - mask) * kernels.MASKED_SCORE).astype(np.float32)[:, None, None, :]
    actual = kernels.attention(query, key, value, bias)
    inputs = (array.astype(np.float64) for array in (query, key, value))
    np.testing.assert_allclose(actual, numpy_bert.attention(*inputs, mask), rtol=0, atol=1e-6)


def test_masked_keys_have_no_influence_at_all() -> None:
    query, key, value = (normal(1, 2, 4, 8, seed=seed) for seed in range(3))
    bias = tf.constant([0.0, 0.0, 0.0, kernels.MASKED_SCORE])
    before = kernels.attention(query, key, value, bias)
    key[:, :, 3], value[:, :, 3] = 50.0, 1e6
    after = kernels.attention(query, key, value, bias)
    np.testing.assert_array_equal(before, after)


def test_attention_softmax_is_float32_in_half_precision() -> None:
    def drop(probs: tf.Tensor) -> tf.Tensor:
        return kernels.dropout(probs, 0.1, tf.constant([1, 2]))

    graph = tf.function(
        lambda x: kernels.attention(x, x, x, tf.zeros([1, 1, 1, 4]), drop)
    ).get_concrete_function(tf.TensorSpec([2, 3, 4, 8], tf.bfloat16))
    types = {op.type: op.outputs[0].dtype for op in graph.graph.get_operations() if op.outputs}
    assert types["Exp"] == tf.float32
    assert types["BatchMatMulV2"] == tf.bfloat16
    assert graph.outputs[0].dtype == tf.bfloat16


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16, tf.float16])
def test_softmax_and_its_gradient(dtype: tf.DType) -> None:
    # In half precision numbers are rounded twice: what is kept, and what is returned.
    scores, gradient = tf.cast(normal(2, 3, 5, 7, scale=4.0), dtype), tf.cast(normal(7), dtype)
    bias = np.array([0.0] * 6 + [kernels.MASKED_SCORE], np.float32)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        probs = kernels.softmax(scores, tf.constant(bias))
    actual = tape.gradient(probs, scores, tf.broadcast_to(gradient, probs.shape))
    assert probs.dtype == actual.dtype == dtype
    wide, arriving = (tf.cast(x, tf.float64).numpy() for x in (scores, gradient))
    expected = np.exp(numpy_bert.log_softmax(wide + bias))
    tolerance = {tf.float32: 1e-5, tf.bfloat16: 8e-3, tf.float16: 1e-3}[dtype]
    np.testing.assert_allclose(tf.cast(probs, tf.float64), expected, rtol=tolerance, atol=1e-6)
    expected *= arriving - (expected * arriving).sum(-1, keepdims=True)
    scale = np.abs(expected).max()  # a difference of larger numbers
    np.testing.assert_allclose(
        tf.cast(actual, tf.float64), expected, rtol=tolerance, atol=tolerance * scale
    )
    assert not probs.numpy()[..., -1].any()


def test_random_bits_are_a_hash_of_place_and_seed() -> None:
    def mix(x: int, key: int) -> int:
        x = (x ^ (x >> 17)) * 0xED5AD4BB % 2**32 ^ key
        x = (x ^ (x >> 11)) * 0xAC4C1B51 % 2**32
        x = (x ^ (x >> 15)) * 0x31848BAB % 2**32
        return x ^ (x >> 14)

    first, second = 7, 2**32 - 2
    first = mix((mix(first, second) + second) % 2**32, second)
    second = mix(first ^ 0x9E3779B9, first)
    expected = np.array([mix(place ^ first, second) for place in range(60)]).reshape(3, 4, 5)
    like, seed = tf.zeros([3, 4, 5]), tf.constant([7, -2])
    np.testing.assert_array_equal(kernels.random_bits(like, seed), expected)
    unknown = [tf.TensorSpec([None, 4, None]), tf.TensorSpec([2], tf.int32)]
    for settings in ({"input_signature": unknown}, {"jit_compile": True}):
        traced = tf.function(kernels.random_bits, **settings)
        np.testing.assert_array_equal(traced(like, seed), expected)


def test_random_bits_are_random() -> None:
    # Each of the 32 bits is set half of the time, alone and beside its neighbours in place and
    # seed: a tensor, the next row, the next column, the seeds of the next step and layer.
    def bits(first: int, second: int) -> np.ndarray:
        whole = kernels.random_bits(tf.zeros([256, 1024]), tf.constant([first, second])).numpy()
        return np.unpackbits(whole[..., None].view(np.uint8), axis=-1).astype(bool)  # [.., .., 32]

    own = bits(0, 1)
    neighbours = (
        np.roll(own, 1, axis=0),
        np.roll(own, 1, axis=1),
        bits(1, 1),
        bits(0, 2),
        bits(1, 0),
    )
    for values in (own, *(own ^ other for other in neighbours)):
        deviations = (values.mean(axis=(0, 1)) - 0.5) / (0.5 / np.sqrt(256 * 1024))
        assert np.abs(deviations).max() < 5  # standard deviations, of 6 x 32 numbers


def test_dropout_share_and_mean() -> None:
    rate, size = 0.1, 200_000
    dropped = kernels.dropout(tf.ones([size]), rate, tf.constant([3, 4])).numpy()
    share = (dropped == 0.0).mean()
    # Six standard deviations of a binomial share.
    assert abs(share - rate) < 6 * np.sqrt(rate * (1 - rate) / size)
    np.testing.assert_allclose(dropped[dropped != 0.0], 1 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() - 1.0) < 6 * np.sqrt(rate / (1 - rate) / size)


def test_dropout_seeds() -> None:
    x = tf.constant(normal(100, 10))
    first = kernels.dropout(x, 0.5, tf.constant([1, 2])).numpy()
    np.testing.assert_array_equal(first, kernels.dropout(x, 0.5, tf.constant([1, 2])))
    other = kernels.dropout(x, 0.5, tf.constant([1, 3])).numpy()
    # Independent masks of rate 0.5 agree on half of the units.
    assert 0.4 < ((first == 0) == (other == 0)).mean() < 0.6


@pytest.mark.parametrize(("rate", "seed"), [(0.5, None), (0.0, [1, 2])])
def test_dropout_off(rate: float, seed: list[int] | None) -> None:
    x = tf.constant(normal(4))
    assert kernels.dropout(x, rate, seed) is x


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16])
def test_dropout_keeps_the_dtype(dtype: tf.DType) -> None:
    dropped = kernels.dropout(tf.ones([1000], dtype), 0.25, tf.constant([1, 2]))
    assert dropped.dtype == dtype
    assert set(np.unique(tf.cast(dropped, tf.float32))) == {
        0.0,
        tf.cast(tf.cast(1 / 0.75, dtype), tf.float32).numpy(),
    }


def test_dropout_gradient_is_its_own_mask() -> None:
    x = tf.constant(normal(50))
    with tf.GradientTape() as tape:
        tape.watch(x)
        dropped = kernels.dropout(x, 0.5, tf.constant([1, 2]))
    expected = np.where(dropped.numpy() != 0, 2.0, 0.0)
    np.testing.assert_array_equal(tape.gradient(dropped, x), expected)


def test_softmax_cross_entropy() -> None:
    logits, labels = normal(3, 4, 10, scale=5.0), np.arange(12).reshape(3, 4) % 10
    expected = -np.take_along_axis(
        numpy_bert.log_softmax(logits.astype(np.float64)), labels[..., None], axis=-1
    )[..., 0]
    actual = kernels.softmax_cross_entropy(tf.constant(logits), tf.constant(labels))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-6)


def test_softmax_cross_entropy_is_float32() -> None:
    logits = tf.constant([[8.0, 0.0], [0.0, 8.0]], tf.bfloat16)
    losses = kernels.softmax_cross_entropy(logits, tf.constant([1, 1]))
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, [8.00033541, 3.35406373e-4], rtol=1e-4)
