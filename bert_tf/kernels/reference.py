"""The numerics of BERT as the paper states them: read this module next to the paper.

Statistics, softmax and losses are computed in float32 whatever the dtype of the inputs.
Legend: B batch, S sequence (T as keys), R rows (tokens, flattened), H hidden, N heads, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

# Added to the scores of masked positions, as in the original release; exp(-10000) is 0 in float32.
MASKED_SCORE = -10000.0


def linear(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Returns `x @ kernel + bias`: rows [R, in], kernel [in, out], bias [out] to [R, out]."""
    return tf.nn.bias_add(tf.matmul(x, kernel), bias)


def gelu(x: tf.Tensor) -> tf.Tensor:
    """Exact GELU, `x * Phi(x)` (Hendrycks and Gimpel 2016), as in Hugging Face's BERT."""
    return tf.nn.gelu(x, approximate=False)


def gelu_approximate(x: tf.Tensor) -> tf.Tensor:
    """The tanh form of GELU, as in the original release at its last commit."""
    return tf.nn.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "gelu_approximate": gelu_approximate,
    "relu": tf.nn.relu,
    "tanh": tf.tanh,
}


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
        seed: int32 [2]; the same seed drops the same units. None drops nothing (inference).
    """
    if seed is None or rate == 0.0:
        return x
    kept = tf.random.stateless_uniform(tf.shape(x), seed) >= rate
    return tf.where(kept, x * tf.cast(1.0 / (1.0 - rate), x.dtype), tf.zeros((), x.dtype))


def attention(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    bias: tf.Tensor,
    rate: float,
    seed: tf.Tensor | None,
) -> tf.Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, section 3.2.1).

    Args:
        query: [B, N, S, D].
        key: [B, N, T, D].
        value: [B, N, T, D].
        bias: float32, broadcasts to [B, N, S, T]; 0 where attention is allowed.
        rate: dropout of the probabilities.
        seed: of that dropout; None in inference.

    Returns:
        The attended values [B, N, S, D].
    """
    scale = tf.constant(query.shape[-1] ** -0.5, query.dtype)
    scores = tf.matmul(query * scale, key, transpose_b=True)  # [B, N, S, T]
    probs = softmax_in(tf.cast(scores, tf.float32) + bias, value.dtype)  # [B, N, S, T]
    return tf.matmul(dropout(probs, rate, seed), value)


def softmax_in(scores: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """The softmax of float32 `scores` over the last axis, in another dtype.

    In half precision the gradient reads these values, not the float32 ones, which are then never
    kept: of all that a step keeps they would be the most.
    """
    if dtype == scores.dtype:
        return tf.nn.softmax(scores)

    @tf.custom_gradient
    def forward(scores: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        narrow = tf.cast(tf.nn.softmax(scores), dtype)

        def backward(gradient: tf.Tensor) -> tf.Tensor:
            probs, gradient = tf.cast(narrow, tf.float32), tf.cast(gradient, tf.float32)
            return probs * (gradient - tf.reduce_sum(probs * gradient, axis=-1, keepdims=True))

        return narrow, backward

    return forward(scores)


def softmax_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Negative log-likelihood in float32: logits [..., C], int labels [...] to [...]."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, tf.cast(logits, tf.float32))


def recomputed(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, seeds: tf.Tensor
) -> tf.Tensor:
    """`function(x, seeds)`, whose activations the backward pass computes again.

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
                y = function(later, seeds + tf.cast(zero, seeds.dtype))
            return tape.gradient(y, (later, list(variables)), output_gradients=gradient)

        return function(x, seeds), backward

    return forward(x)
