"""The numerics of BERT as the paper states them: read this module next to the paper.

Statistics, softmax and losses are computed in float32 whatever the dtype of the inputs.
Legend: B batch, S sequence (T as keys), R rows (tokens, flattened), H hidden, N heads, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

# Added to the scores of masked positions, as in the original release; exp(-10000) is 0 in float32.
MASKED_SCORE = -10000.0


def linear(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns `x @ kernel + bias`: rows [R, in], kernel [in, out], bias [out] to [R, out]."""
    return tf.nn.bias_add(product(x, kernel), bias)


def product(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Returns `x @ kernel`: [R, in] or [B, S, in] and [in, out] to [R, out] or [B, S, out]."""
    return tf.matmul(x, kernel) if x.shape.rank == 2 else tf.einsum("bsi,io->bso", x, kernel)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Exact GELU, `x * Phi(x)` (Hendrycks and Gimpel 2016), as in Hugging Face's BERT."""
    return tf.nn.gelu(x, approximate=False)


def gelu_approximate(x: tf.Tensor) -> tf.Tensor:
    """The tanh form of GELU, as in the original release at its last commit."""
    # The graph optimizer sorts factors by name, and joins the GELU with the product before it only
    # where that comes first. All names inside of a layer begin with "bert/" or "BiasAdd".
    with tf.name_scope("gelu"):
        return tf.nn.gelu(x, approximate=True)


@tf.custom_gradient
def gelu_in_training(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """As `gelu`, with its derivative written out: on CPU half of the passes over memory.

    Computed in float32: in half precision each pass takes a CPU twice as long. What the backward
    pass needs is kept in the dtype of `x`.
    """
    wide = tf.cast(x, tf.float32)
    share = 0.5 * tf.math.erfc(wide * -math.sqrt(0.5))  # Phi(x)
    kept = tf.cast(share, x.dtype)

    def backward(gradient: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(x, tf.float32)
        density = tf.exp(-0.5 * tf.square(wide)) * math.sqrt(0.5 / math.pi)
        derivative = tf.cast(kept, tf.float32) + wide * density
        return tf.cast(tf.cast(gradient, tf.float32) * derivative, x.dtype)

    return tf.cast(wide * share, x.dtype), backward


@tf.custom_gradient
def gelu_approximate_in_training(
    x: tf.Tensor,
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """As `gelu_approximate`, with its derivative written out."""
    slope = math.sqrt(2.0 / math.pi)
    wide = tf.cast(x, tf.float32)
    tanh = tf.tanh(wide * (slope + (0.044715 * slope) * tf.square(wide)))
    kept = tf.cast(tanh, x.dtype)

    def backward(gradient: tf.Tensor) -> tf.Tensor:
        wide, tanh = tf.cast(x, tf.float32), tf.cast(kept, tf.float32)
        inner = wide * (slope + (3.0 * 0.044715 * slope) * tf.square(wide))
        derivative = 0.5 * (1.0 + tanh) * (1.0 + inner * (1.0 - tanh))
        return tf.cast(tf.cast(gradient, tf.float32) * derivative, x.dtype)

    return tf.cast(wide * (0.5 + 0.5 * tanh), x.dtype), backward


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "gelu_approximate": gelu_approximate,
    "relu": tf.nn.relu,
    "tanh": tf.tanh,
}
IN_TRAINING = {"gelu": gelu_in_training, "gelu_approximate": gelu_approximate_in_training}


def activation(name: str, training: bool = False) -> Callable[[tf.Tensor], tf.Tensor]:
    """One of `ACTIVATIONS`, in the form that suits training or inference.

    In inference the graph optimizer joins it with the product before it.
    """
    return IN_TRAINING.get(name, ACTIVATIONS[name]) if training else ACTIVATIONS[name]


def layer_norm(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Layer normalisation over the last axis (Ba et al. 2016); keeps the dtype of `x` [R, H]."""
    # Written out, not tf.nn.moments + batch_normalization: the graph optimizer replaces that pair
    # by a fused op with epsilon 1e-3, whatever epsilon was asked for.
    wide = tf.cast(x, tf.float32)
    centred = wide - tf.reduce_mean(wide, axis=-1, keepdims=True)  # [R, H]
    variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)  # [R, 1]
    return tf.cast(centred * tf.math.rsqrt(variance + epsilon) * gamma + beta, x.dtype)


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None) -> tf.Tensor:
    """Zeroes a share `rate` of `x` and scales the rest by 1 / (1 - rate).

    Args:
        x: any shape.
        rate: in [0, 1).
        seed: int32 [2], or one of `dropout_keys`; the same seed drops the same units. None drops
            nothing (inference).
    """
    if seed is None or rate == 0.0:
        return x

    kept = random_bits(x, seed) >= tf.constant(round(rate * 2**32), tf.uint32)
    # A factor of 0, not `tf.where`, which on CPU takes three times as long in bfloat16.
    return x * (tf.cast(kept, x.dtype) * tf.cast(1.0 / (1.0 - rate), x.dtype))


def random_bits(like: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """32 random bits for each unit of a tensor, uint32: a hash of its place and the seed.

    Not TensorFlow's generators: to XLA these are sums and products, which it joins with what reads
    them, so that no random number is ever in memory.

    Args:
        like: any shape, of less than 2**32 units.
        seed: int32 [2], or one of `dropout_keys`.
    """
    first, second = tf.unstack(dropout_keys(seed) if seed.dtype == tf.int32 else seed)
    sizes = tf.unstack(tf.shape(like)) if None in like.shape else list(like.shape)
    place = tf.zeros((), tf.uint32)
    for size in sizes:  # in row-major order
        along = tf.cast(tf.range(size), tf.uint32)
        place = tf.expand_dims(place * tf.cast(size, tf.uint32), -1) + along
    return mix(place ^ first, second)


def dropout_keys(seeds: tf.Tensor) -> tf.Tensor:
    """Seeds int32 [..., 2] to uint32 [..., 2], where those that differ in one bit differ in all.

    For many at once: one by one in each dropout, they would be a sixth of a training step's graph.
    """
    first, second = tf.unstack(tf.bitcast(seeds, tf.uint32), axis=-1)
    first = mix(mix(first, second) + second, second)
    return tf.stack([first, mix(first ^ tf.constant(0x9E3779B9, tf.uint32), first)], axis=-1)


def mix(x: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """A hash of uint32 numbers: Wellons' `triple32` (2018), with a key behind its first round."""

    def fold(x: tf.Tensor, shift: int) -> tf.Tensor:
        return x ^ tf.bitwise.right_shift(x, tf.constant(shift, tf.uint32))

    x = fold(x, 17) * tf.constant(0xED5AD4BB, tf.uint32)
    x = fold(x ^ key, 11) * tf.constant(0xAC4C1B51, tf.uint32)
    x = fold(x, 15) * tf.constant(0x31848BAB, tf.uint32)
    return fold(x, 14)


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    bias: tf.Tensor,
    drop: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: [B, N, S, D].
        key: [B, N, T, D].
        value: [B, N, T, D].
        bias: float32, broadcasts to [B, N, S, T]; 0 where attention is allowed.
        drop: dropout of the probabilities [B, N, S, T]; None in inference.

    Returns:
        The attended values [B, N, S, D].
    """
    scale = tf.constant(query.shape[-1] ** -0.5, query.dtype)
    scores = tf.matmul(query * scale, key, transpose_b=True)  # [B, N, S, T]
    probs = softmax(scores, bias)
    return tf.matmul(probs if drop is None else drop(probs), value)


def attention_bias(mask: tf.Tensor) -> tf.Tensor:
    """0 for real tokens and `MASKED_SCORE` for padding: int [B, S] to float32 [B, 1, 1, S]."""
    bias = (1.0 - tf.cast(mask, tf.float32)) * MASKED_SCORE  # [B, S]
    # Not `tf.newaxis`: LiteRT's converter takes that for known sizes alone.
    return tf.expand_dims(tf.expand_dims(bias, 1), 1)


def softmax(scores: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """The softmax of `scores + bias` over the last axis, computed in float32.

    In half precision a step keeps the powers in it, and one float32 number a row: in float32 they
    would be the most of all that it keeps. Written for XLA on TPU, which computes and sums up the
    powers in one operation with the product that the scores come from.

    Args:
        scores: [B, N, S, T].
        bias: float32, broadcasts to that.

    Returns:
        [B, N, S, T] in the dtype of `scores`.
    """
    if scores.dtype == tf.float32:
        return tf.nn.softmax(scores + bias)

    @tf.custom_gradient
    def forward(scores: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        wide = tf.cast(scores, tf.float32) + bias
        powers = tf.exp(wide - tf.reduce_max(wide, axis=-1, keepdims=True))
        powers = tf.cast(powers, scores.dtype)
        total = tf.reduce_sum(tf.cast(powers, tf.float32), axis=-1, keepdims=True)  # [B, N, S, 1]
        probs = tf.cast(powers, tf.float32) / total

        def backward(gradient: tf.Tensor) -> tf.Tensor:
            gradient = tf.cast(gradient, tf.float32)
            probs = tf.cast(powers, tf.float32) / total  # again: only `powers` are kept
            mean = tf.reduce_sum(probs * gradient, axis=-1, keepdims=True)  # [B, N, S, 1]
            return tf.cast(probs * (gradient - mean), scores.dtype)

        return tf.cast(probs, scores.dtype), backward

    return forward(scores)


def softmax_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood in float32: logits [..., C], int labels [...] to [...]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))


def recomputed(function: Callable[..., tf.Tensor], x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """`function(x, seeds=seeds)`, whose activations the backward pass computes again.

    Not `tf.recompute_grad`: XLA sees through what it ties the second pass to the gradient with,
    finds the same operations twice, and keeps all activations of the first one. Here 0 times the
    gradient does it, which is no 0 to XLA (it might be infinite). The seeds are tied, too, or the
    random numbers would be kept.
    """

    @tf.custom_gradient
    def forward(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def backward(
            gradient: tf.Tensor, variables: Sequence[tf.Variable]
        ) -> tuple[tf.Tensor, list[tf.Tensor]]:
            zero = 0.0 * tf.reduce_sum(tf.reshape(gradient, [-1])[:1])
            with tf.GradientTape() as tape:
                later = x + tf.cast(zero, x.dtype)
                tape.watch(later)
                y = function(later, seeds=seeds + tf.cast(zero, seeds.dtype))
            return tape.gradient(y, (later, list(variables)), output_gradients=gradient)

        return function(x, seeds=seeds), backward

    return forward(x)
