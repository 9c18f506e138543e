"""Small numerics with one meaning and, in time, several implementations proved equal."""

from bert_tf.kernels.reference import (
    ACTIVATIONS,
    MASKED_SCORE,
    activation,
    attention,
    attention_bias,
    dropout,
    gelu,
    gelu_approximate,
    layer_norm,
    linear,
    product,
    random_bits,
    recomputed,
    softmax,
    softmax_cross_entropy,
)

__all__ = [
    "ACTIVATIONS",
    "MASKED_SCORE",
    "activation",
    "attention",
    "attention_bias",
    "dropout",
    "gelu",
    "gelu_approximate",
    "layer_norm",
    "linear",
    "product",
    "random_bits",
    "recomputed",
    "softmax",
    "softmax_cross_entropy",
]
