"""A tiny encoder with strong weights and a padded batch for it, shared by the encoder's tests."""

from __future__ import annotations

import numpy as np
import numpy_bert
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.encoder import BertEncoder, EncoderOutput, variables_by_name
from bert_tf.layouts import Layout, PaddedLayout

LENGTHS = (12, 7, 1)
MASK = (np.arange(12) < np.array(LENGTHS)[:, None]).astype(np.int32)  # [3, 12]
TOKEN_IDS = np.random.default_rng(0).integers(1, 60, size=MASK.shape).astype(np.int32)
SEGMENT_IDS = (np.arange(12) >= np.array([[5], [3], [12]])).astype(np.int32)
SEED = tf.constant([3, 4])


def make_config(dropout: float = 0.0, activation: str = "gelu", layers: int = 2) -> BertConfig:
    return BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=32,
        hidden_act=activation,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=20,
    )


def make_encoder(
    config: BertConfig, layout: type[Layout] = PaddedLayout, recompute: bool = False
) -> BertEncoder:
    """An encoder with the same strong weights each time."""
    encoder = BertEncoder(config, layout=layout, recompute=recompute)
    for name, weight in weights_of(encoder).items():
        variables_by_name(encoder)[name].assign(weight)
    return encoder


def weights_of(encoder: BertEncoder) -> numpy_bert.Weights:
    variables = variables_by_name(encoder)
    return numpy_bert.random_weights({name: tuple(v.shape) for name, v in variables.items()})


def encode(encoder: BertEncoder, **kwargs: object) -> EncoderOutput:
    return encoder(TOKEN_IDS, SEGMENT_IDS, MASK, **kwargs)


def assert_close(actual: object, expected: object, tolerance: float) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance)


def loss_of(output: EncoderOutput) -> tf.Tensor:
    """A scalar that every weight moves, from real positions only."""
    real = tf.cast(MASK[..., None], tf.float32)
    factor = tf.reshape(tf.range(16.0) / 16.0, [16])  # the sum alone would be constant after a norm
    rows = tf.cast(output.sequence, tf.float32) ** 2 * factor * real
    return tf.reduce_sum(rows) + tf.reduce_sum(tf.cast(output.pooled, tf.float32) ** 2)


def gradients(encoder: BertEncoder, **kwargs: object) -> dict[str, tf.Tensor]:
    variables = variables_by_name(encoder)
    with tf.GradientTape() as tape:
        loss = loss_of(encode(encoder, **kwargs))
    values = tape.gradient(loss, list(variables.values()))
    return {name: tf.convert_to_tensor(v) for name, v in zip(variables, values, strict=True)}


def operations(graph: tf.Graph, kind: str) -> list[tf.Operation]:
    return [op for op in graph.get_operations() if op.type == kind]
