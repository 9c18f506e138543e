"""The feature-based way of tagging: the encoder stays as it is, and a BiLSTM reads its layers.

Paper, section 5.3: the last four layers joined are "used as input to a randomly initialized
two-layer 768-dimensional BiLSTM before the classification layer". Here each direction has H units;
the paper does not say whether 768 counts one or both.
Legend: B batch, S sequence, H hidden, F joined layers (H each), C tags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf.config import BertConfig, TaskConfig
from bert_tf.encoder import BertEncoder, NamedLayer, OutputLayer
from bert_tf.layouts import Layout, PaddedLayout

LSTM_LAYERS = 2  # paper, section 5.3


class LSTM(NamedLayer):
    """One direction (Hochreiter and Schmidhuber 1997, with forget gates); padding is skipped.

    What the inputs add to the gates is one product ahead of the loop, and the recurrent kernel is
    read there: inside, each step would cast it anew and keep that for the gradient.
    """

    def __init__(self, inputs: int, units: int, name: str, go_backwards: bool = False) -> None:
        super().__init__(name=name)
        self.units, self.go_backwards = units, go_backwards
        # Gates in the order of Keras: input, forget, cell, output.
        self.kernel = self.add_weight(
            f"{name}/kernel", shape=[inputs, 4 * units], initializer="glorot_uniform"
        )
        self.recurrent_kernel = self.add_weight(
            f"{name}/recurrent_kernel", shape=[units, 4 * units], initializer="orthogonal"
        )
        self.bias = self.add_weight(f"{name}/bias", shape=[4 * units], initializer=forget_nothing)

    def call(self, x: tf.Tensor, is_real: tf.Tensor) -> tf.Tensor:
        """[B, S, inputs] and bool [B, S] to [B, S, units], the last position first if backwards."""
        inputs = kernels.product(x, self.kernel) + self.bias  # [B, S, 4 units]
        recurrent_kernel = tf.convert_to_tensor(self.recurrent_kernel)
        zeros = tf.zeros_like(inputs[:, 0, : self.units])  # [B, units]

        def step(inputs: tf.Tensor, states: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
            state, cell = states
            gates = inputs + tf.matmul(state, recurrent_kernel)  # [B, 4 units]
            enter, keep, new, leave = tf.split(gates, 4, axis=-1)
            cell = tf.sigmoid(keep) * cell + tf.sigmoid(enter) * tf.tanh(new)
            state = tf.sigmoid(leave) * tf.tanh(cell)
            return state, [state, cell]

        _, states, _ = keras.backend.rnn(
            step, inputs, [zeros, zeros], go_backwards=self.go_backwards, mask=is_real
        )
        return states


def forget_nothing(shape: list[int], dtype: tf.DType) -> tf.Tensor:
    """The bias at the start: 1 for the forget gate (Jozefowicz et al. 2015), else 0."""
    units = shape[0] // 4
    return tf.concat([tf.zeros(units, dtype), tf.ones(units, dtype), tf.zeros(2 * units, dtype)], 0)


class BidirectionalLSTM(keras.layers.Layer):
    """Two LSTMs, one of which reads from the end."""

    def __init__(self, inputs: int, units: int, name: str) -> None:
        super().__init__(name=name)
        self.forward = LSTM(inputs, units, f"{name}/forward")
        self.backward = LSTM(inputs, units, f"{name}/backward", go_backwards=True)

    def call(self, x: tf.Tensor, is_real: tf.Tensor) -> tf.Tensor:
        """[B, S, inputs] and bool [B, S] to [B, S, 2 units]."""
        reversed_states = self.backward(x, is_real)  # from the end to the start
        return tf.concat([self.forward(x, is_real), tf.reverse(reversed_states, [1])], -1)


class FeatureHead(keras.layers.Layer):
    """A two-layer BiLSTM, dropout and a linear map of every position."""

    def __init__(self, num_tags: int, config: BertConfig, task: TaskConfig) -> None:
        super().__init__(name="feature_head")
        hidden, self.rate = config.hidden_size, task.dropout
        widths = [task.feature_layers * hidden] + [2 * hidden] * (LSTM_LAYERS - 1)
        self.lstms = [
            BidirectionalLSTM(width, hidden, f"tagger/lstm_{index}")
            for index, width in enumerate(widths)
        ]
        wider = dataclasses.replace(config, hidden_size=2 * hidden)
        self.output_layer = OutputLayer(num_tags, wider, prefix="tagger/")

    def call(
        self, features: tf.Tensor, is_real: tf.Tensor, seed: tf.Tensor | None = None
    ) -> tf.Tensor:
        """[B, S, F] and bool [B, S] to logits float32 [B, S, C]; `seed` turns dropout on."""
        for lstm in self.lstms:
            features = lstm(features, is_real)  # [B, S, 2 H]
        shape = tf.shape(features)
        rows = tf.reshape(features, [-1, features.shape[-1]])  # [B * S, 2 H]
        logits = self.output_layer(kernels.dropout(rows, self.rate, seed))  # [B * S, C]
        return tf.reshape(logits, [shape[0], shape[1], logits.shape[-1]])


class FeatureTagger(keras.layers.Layer):
    """Encoder without dropout or gradient, and the head that reads its last layers."""

    def __init__(
        self,
        config: BertConfig,
        num_tags: int,
        task: TaskConfig,
        layout: type[Layout] = PaddedLayout,
    ) -> None:
        super().__init__(name="bert_feature_tagger")
        self.num_layers = task.feature_layers
        self.encoder = BertEncoder(config, layout)
        self.encoder.pooler.trainable = False
        self.head = FeatureHead(num_tags, config, task)

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, S] to logits float32 [B, S, C]."""
        is_real = features["mask"] > 0
        return self.head(self.read(features), is_real, seed if training else None)

    def read(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """The last layers, joined from the lowest to the highest: [B, S, F]."""
        output = self.encoder(features["token_ids"], features["segment_ids"], features["mask"])
        return tf.stop_gradient(tf.concat(output.layers[-self.num_layers :], axis=-1))


def check_features(task: TaskConfig, frozen: str, config: BertConfig) -> None:
    """Raises ValueError where the features cannot be read or the encoder would move."""
    if not 0 <= task.feature_layers <= config.num_hidden_layers:
        raise ValueError(
            f"config.task.feature_layers={task.feature_layers} must be from 0 (none) to "
            f"{config.num_hidden_layers}, the layers of this encoder."
        )
    if task.feature_layers and frozen != "bert/":
        raise ValueError(
            f"config.task.feature_layers={task.feature_layers} reads an encoder that does not "
            f'learn, but config.optimizer.frozen is {frozen!r}: set it to "bert/".'
        )
