"""The heads of pre-training: masked language model and next sentence.

Logits are float32 under every dtype policy. Names are the original release's.
Legend: B batch, S sequence, P masked positions, H hidden, V vocabulary.
"""

from __future__ import annotations

import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf.config import BertConfig
from bert_tf.encoder import LayerNorm, Linear, NamedLayer, OutputLayer


class NextSentenceHead(keras.layers.Layer):
    """Does B follow A? Logits [B, 2]; class 0 is "it does" (original release)."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(name="cls/seq_relationship")
        self.output_layer = OutputLayer(2, config, prefix="cls/seq_relationship/")

    def call(self, pooled: tf.Tensor) -> tf.Tensor:
        """Pooled [B, H] to logits float32 [B, 2]."""
        return self.output_layer(pooled)


class MaskedLMHead(NamedLayer):
    """Predicts the words at masked positions (paper, section 3.1, task 1).

    The positions are gathered before the product with the vocabulary: 20 of 128 positions are
    needed, and that product would otherwise cost a quarter of the whole forward pass.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(name="cls/predictions")
        name = "cls/predictions/transform"
        self.activation = kernels.ACTIVATIONS[config.hidden_act]
        self.transform = Linear(
            config.hidden_size, config.hidden_size, config, name=f"{name}/dense"
        )
        self.norm = LayerNorm(config, name=f"{name}/LayerNorm")
        self.output_bias = self.add_weight(
            name="cls/predictions/output_bias", shape=[config.vocab_size], initializer="zeros"
        )

    def call(
        self, sequence: tf.Tensor, positions: tf.Tensor, word_embeddings: tf.Tensor
    ) -> tf.Tensor:
        """Logits of the vocabulary at the given positions.

        Args:
            sequence: [B, S, H], the encoder's last layer.
            positions: int [B, P] into S.
            word_embeddings: [V, H], tied to the encoder's table.

        Returns:
            float32 [B, P, V].
        """
        gathered = tf.gather(sequence, positions, batch_dims=1)  # [B, P, H]
        rows = tf.reshape(gathered, [-1, sequence.shape[-1]])  # [B * P, H]
        rows = self.norm(self.activation(self.transform(rows)))  # [B * P, H]
        table = tf.cast(word_embeddings, rows.dtype)
        logits = tf.cast(tf.matmul(rows, table, transpose_b=True), tf.float32)  # [B * P, V]
        logits = logits + tf.cast(self.output_bias, tf.float32)
        shape = tf.concat([tf.shape(positions), [logits.shape[-1]]], axis=0)
        return tf.reshape(logits, shape)


def masked_lm_loss(logits: tf.Tensor, token_ids: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Mean over the masked positions: logits [B, P, V], ids and weights [B, P] to a scalar."""
    losses = kernels.softmax_cross_entropy(logits, token_ids)  # [B, P]
    # 1e-5 as in the original release: a batch without masked positions has loss 0.
    return tf.reduce_sum(losses * weights) / (tf.reduce_sum(weights) + 1e-5)
