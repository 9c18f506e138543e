"""Small numerics with one meaning and, in time, several implementations proved equal."""

from bert_tf.kernels.reference import (
    ACTIVATIONS,
    MASKED_SCORE,
    attention,
    dropout,
    gelu,
    gelu_approximate,
    layer_norm,
    linear,
    random_bits,
    recomputed,
    softmax,
    softmax_cross_entropy,
)

__all__ = [
    "ACTIVATIONS",
    "MASKED_SCORE",
    "attention",
    "dropout",
    "gelu",
    "gelu_approximate",
    "layer_norm",
    "linear",
    "random_bits",
    "recomputed",
    "softmax",
    "softmax_cross_entropy",
]
