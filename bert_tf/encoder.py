"""The BERT encoder (Devlin et al. 2018, section 3): embeddings, L transformer blocks, pooler.

Every layer carries the name that the original release gave it, so that its weights are found in any
checkpoint by name. The blocks work on rows [R, H]; see `layouts`.
Legend: B batch, S sequence, R rows, Q rows that are asked for (R, or B where [CLS] alone is),
H hidden, N heads, D head size, F feed-forward, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf.config import BertConfig
from bert_tf.embedding import Embedder, EmbeddingConfig
from bert_tf.layouts import Layout, PaddedLayout


class EncoderOutput(NamedTuple):
    """What the encoder knows of a batch. What a caller does not use costs nothing in a graph."""

    sequence: tf.Tensor  # [B, S, H] output of the last layer
    pooled: tf.Tensor  # [B, H] tanh of a linear map of the [CLS] position
    layers: tuple[tf.Tensor, ...]  # L x [B, S, H] output of every layer, the lowest first
    embeddings: tf.Tensor  # [B, S, H] input of the first layer


class NamedLayer(keras.layers.Layer):
    """A layer whose weights have exactly the given names, whatever it is built inside of."""

    def add_weight(self, name: str, **kwargs: Any) -> tf.Variable:
        with tf.name_scope(""):  # the root; Keras builds layers within the names of their models
            return super().add_weight(name=name, **kwargs)


class Linear(NamedLayer):
    """`x @ kernel + bias` on rows [R, in]."""

    def __init__(self, inputs: int, outputs: int, config: BertConfig, name: str) -> None:
        super().__init__(name=name)
        self.kernel = self.add_weight(
            name=f"{name}/kernel", shape=[inputs, outputs], initializer=truncated_normal(config)
        )
        self.bias = self.add_weight(name=f"{name}/bias", shape=[outputs], initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return kernels.linear(x, self.kernel, self.bias)


class OutputLayer(NamedLayer):
    """Logits from vectors [B, H]; float32 weights `output_weights` [C, H] and `output_bias`."""

    def __init__(self, num_outputs: int, config: BertConfig, prefix: str = "") -> None:
        super().__init__(name=prefix + "output", dtype="float32")
        self.output_weights = self.add_weight(
            name=prefix + "output_weights",
            shape=[num_outputs, config.hidden_size],
            initializer=truncated_normal(config),
        )
        self.output_bias = self.add_weight(
            name=prefix + "output_bias", shape=[num_outputs], initializer="zeros"
        )

    def call(self, vectors: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(vectors, self.output_weights, transpose_b=True)
        return tf.nn.bias_add(logits, self.output_bias)


class LayerNorm(NamedLayer):
    """Layer normalisation; its weights and statistics are float32 under every dtype policy."""

    def __init__(self, config: BertConfig, name: str) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self.epsilon = config.layer_norm_eps
        shape = [config.hidden_size]
        self.gamma = self.add_weight(name=f"{name}/gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name=f"{name}/beta", shape=shape, initializer="zeros")

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return kernels.layer_norm(x, self.gamma, self.beta, self.epsilon)

    def arguments(self, seed: tf.Tensor | None) -> dict[str, tf.Tensor | None]:
        """What `norm_dropout` and `dropout_add_norm` take beside rows; `seed`: of that dropout."""
        return {"gamma": self.gamma, "beta": self.beta, "seed": seed}


def norm_dropout(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, seed: tf.Tensor | None, config: BertConfig
) -> tf.Tensor:
    """What stands behind the embeddings: dropout(LayerNorm(x)), rows [R, H]."""
    normed = kernels.layer_norm(x, gamma, beta, config.layer_norm_eps)
    return kernels.dropout(normed, config.hidden_dropout_prob, seed)


def dropout_add_norm(
    x: tf.Tensor,
    residual: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    seed: tf.Tensor | None,
    config: BertConfig,
) -> tf.Tensor:
    """What stands behind both parts of a block: LayerNorm(residual + dropout(x)), rows [R, H]."""
    total = residual + kernels.dropout(x, config.hidden_dropout_prob, seed)
    return kernels.layer_norm(total, gamma, beta, config.layer_norm_eps)


class Embeddings(NamedLayer):
    """Sum of word, position and segment embeddings, normalised (paper, figure 2)."""

    def __init__(self, config: BertConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        self.word_embeddings = self.table("word_embeddings", config.vocab_size)
        self.token_type_embeddings = self.table("token_type_embeddings", config.type_vocab_size)
        self.position_embeddings = self.table("position_embeddings", config.max_position_embeddings)
        self.norm = LayerNorm(config, name=f"{name}/LayerNorm")

    def table(self, kind: str, rows: int) -> tf.Variable:
        """A trainable table [rows, H]."""
        return self.add_weight(
            name=f"{self.name}/{kind}",
            shape=[rows, self.config.hidden_size],
            initializer=truncated_normal(self.config),
        )

    def call(
        self, token_ids: tf.Tensor, segment_ids: tf.Tensor, layout: Layout, seed: tf.Tensor | None
    ) -> tf.Tensor:
        words = tf.gather(self.word_embeddings, token_ids)  # [R, H]
        # A matrix product with a one-hot vector, as in the original release: there are only two
        # segments, and the gradient of a gather would scatter every row into two.
        one_hot = tf.one_hot(segment_ids, self.config.type_vocab_size, dtype=words.dtype)
        segments = kernels.product(one_hot, self.token_type_embeddings)  # [R, H]
        positions = layout.position_rows(self.position_embeddings)  # [R, H]
        x = words + segments + positions
        return layout.row_wise(norm_dropout, [x], self.norm.arguments(seed), config=self.config)


class SelfAttention(keras.layers.Layer):
    """Multi-head self-attention without its output projection (paper of the Transformer, 3.2.2)."""

    def __init__(self, config: BertConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        size = config.hidden_size
        self.query = Linear(size, size, config, name=f"{name}/query")
        self.key = Linear(size, size, config, name=f"{name}/key")
        self.value = Linear(size, size, config, name=f"{name}/value")

    def call(
        self,
        asking: tf.Tensor,
        asking_layout: Layout,
        x: tf.Tensor,
        layout: Layout,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        """What the rows `asking` [Q, H] gather from the rows `x` [R, H]: [B, N, S or 1, D]."""
        num_heads = self.config.num_attention_heads
        query = asking_layout.split_heads(asking, self.query, num_heads)  # [B, N, S or 1, D]
        key = layout.split_heads(x, self.key, num_heads)  # [B, N, S, D]
        value = layout.split_heads(x, self.value, num_heads)
        rate = self.config.attention_probs_dropout_prob
        drop = functools.partial(layout.dropout, rate=rate, seed=seed)
        return kernels.attention(query, key, value, layout.attention_bias, drop)


class TransformerBlock(keras.layers.Layer):
    """Attention and feed-forward, each with dropout, residual and a LayerNorm behind it."""

    def __init__(self, config: BertConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config
        hidden, inner = config.hidden_size, config.intermediate_size
        self.attention = SelfAttention(config, name=f"{name}/attention/self")
        self.attention_output = Linear(hidden, hidden, config, f"{name}/attention/output/dense")
        self.attention_norm = LayerNorm(config, name=f"{name}/attention/output/LayerNorm")
        self.intermediate = Linear(hidden, inner, config, name=f"{name}/intermediate/dense")
        self.output_dense = Linear(inner, hidden, config, name=f"{name}/output/dense")
        self.output_norm = LayerNorm(config, name=f"{name}/output/LayerNorm")

    def call(
        self, x: tf.Tensor, layout: Layout, seeds: tf.Tensor | None, cls_only: bool = False
    ) -> tf.Tensor:
        """Rows [R, H] to rows [R, H], or to those of the first positions alone: [B, H]."""
        asking, asking_layout = x, layout
        if cls_only:
            asking = layout.first_rows(x)  # [B, H]
            asking_layout = PaddedLayout(tf.ones_like(asking[:, :1], tf.int32))
        first, second, third = (None,) * 3 if seeds is None else tf.unstack(seeds, num=3)
        heads = self.attention(asking, asking_layout, x, layout, first)  # [B, N, S or 1, D]
        attended = asking_layout.merge_heads(heads, self.attention_output)  # [Q, H]
        asking = self.add_and_norm(attended, asking, self.attention_norm, asking_layout, second)
        activation = kernels.activation(self.config.hidden_act, training=seeds is not None)
        inner = asking_layout.row_wise(activation, [self.intermediate(asking)], {})  # [Q, F]
        outer = self.output_dense(inner)  # [Q, H]
        return self.add_and_norm(outer, asking, self.output_norm, asking_layout, third)

    def add_and_norm(
        self,
        x: tf.Tensor,
        residual: tf.Tensor,
        norm: LayerNorm,
        layout: Layout,
        seed: tf.Tensor | None,
    ) -> tf.Tensor:
        """`dropout_add_norm` with the weights of `norm`: [Q, H]."""
        rows, others = [x, residual], norm.arguments(seed)
        return layout.row_wise(dropout_add_norm, rows, others, config=self.config)


class BertEncoder(keras.layers.Layer):
    """Token ids in, contextual vectors out.

    Attributes:
        config: the shape of the encoder.
        tokenizer: set by `bert_tf.load` where a vocabulary was found, else None.
    """

    def __init__(
        self,
        config: BertConfig,
        layout: type[Layout] = PaddedLayout,
        recompute: bool = False,
        name: str = "bert",
    ) -> None:
        """Makes an encoder with fresh weights.

        Args:
            config: its shape.
            layout: `PaddedLayout` (static shapes), `UnpaddedLayout` (rows of real tokens only), or
                `PackedLayout` (several sequences in a row).
            recompute: recompute activations in the backward pass instead of keeping them.
            name: first part of the names of all weights.
        """
        super().__init__(name=name)
        self.supports_masking = True  # `mask` is an argument like any other, not Keras's own
        self.config = config
        self.tokenizer: tf.Module | None = None
        self.embedder: Embedder | None = None
        self.layout = layout
        self.recompute = recompute
        self.embeddings = Embeddings(config, name=f"{name}/embeddings")
        self.blocks = [
            TransformerBlock(config, name=f"{name}/encoder/layer_{index}")
            for index in range(config.num_hidden_layers)
        ]
        self.pooler = Linear(
            config.hidden_size, config.hidden_size, config, name=f"{name}/pooler/dense"
        )

    def call(
        self,
        token_ids: tf.Tensor,
        segment_ids: tf.Tensor | None = None,
        mask: tf.Tensor | None = None,
        training: bool = False,
        seed: tf.Tensor | None = None,
        cls_only: bool = False,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
            token_ids: any int type, [B, S].
            segment_ids: int [B, S], 0 or 1; None is all 0.
            mask: int or bool [B, S], 1 for real tokens (for `PackedLayout`: the number of their
                sequence in the row), 0 for padding; None is all 1.
            training: whether dropout is applied.
            seed: int32 [2] of that dropout, for a step that can be repeated; None draws one.
            cls_only: compute the last layer at the first position alone, for heads that read
                `pooled` and no more: `sequence` is then [B, 1, H]. Saves 5/6 of that layer.

        Raises:
            ValueError: S is beyond the position table.
        """
        token_ids = tf.cast(token_ids, tf.int32)
        check_length(token_ids, self.config)
        segment_ids = tf.zeros_like(token_ids) if segment_ids is None else segment_ids
        mask = tf.ones_like(token_ids) if mask is None else mask
        layout = self.layout(tf.cast(mask, tf.int32), training)
        seeds = self.dropout_seeds(seed) if training else None  # [L, 3, 2] and [2]

        x = self.embeddings(
            layout.to_rows(token_ids),
            layout.to_rows(tf.cast(segment_ids, tf.int32)),
            layout,
            None if seeds is None else seeds[-1],
        )
        grids = [layout.to_grid(x)]  # L + 1 times [B, S, H]
        for index, block in enumerate(self.blocks):
            at_cls = cls_only and block is self.blocks[-1]
            run = functools.partial(block.__call__, layout=layout, cls_only=at_cls)
            if seeds is None:
                x = run(x, seeds=None)  # [R, H], or [B, H] at [CLS]
            else:
                run = functools.partial(kernels.recomputed, run) if self.recompute else run
                x = run(x, seeds=seeds[3 * index : 3 * index + 3])
            grids.append(x[:, tf.newaxis] if at_cls else layout.to_grid(x))
        embeddings, *layers = grids
        sequence = layers[-1] if layers else embeddings
        return EncoderOutput(sequence, self.pool(sequence[:, 0]), tuple(layers), embeddings)

    def pool(self, vectors: tf.Tensor) -> tf.Tensor:
        """What heads of whole sequences read: [CLS] vectors of the last layer to [B, H] each."""
        return tf.tanh(self.pooler(vectors))

    def embed(self, texts: Sequence[str | bytes], **settings: Any) -> np.ndarray | list[np.ndarray]:
        """Vectors float32 [N, H] of texts, mean-pooled and of length 1.

        Args:
            texts: N of them, of any length.
            settings: fields of `embedding.EmbeddingConfig`, such as `pooling="cls"`.

        Raises:
            ValueError: the encoder has no tokenizer, or a setting does not fit it.
        """
        config = EmbeddingConfig(**settings)
        if self.embedder is None or self.embedder.config != config:
            self.embedder = Embedder(self, config)
        return self.embedder(texts)

    def compute_mask(self, *unused: object) -> None:
        """Keras asks for the mask of the outputs: there is none."""

    def dropout_seeds(self, seed: tf.Tensor | None) -> tf.Tensor:
        """A key for each dropout: uint32 [3 L + 1, 2]."""
        if seed is None:
            seed = tf.random.uniform([2], maxval=tf.int32.max, dtype=tf.int32)
        return kernels.dropout_keys(tf.random.split(seed, num=3 * len(self.blocks) + 1))


def truncated_normal(config: BertConfig) -> keras.initializers.Initializer:
    """The original release's initializer: normal, cut at two standard deviations."""
    return keras.initializers.TruncatedNormal(stddev=config.initializer_range)


def check_length(token_ids: tf.Tensor, config: BertConfig) -> None:
    """Raises ValueError where sequences are longer than the position table (if known by now)."""
    length = token_ids.shape[1]
    if length is not None and length > config.max_position_embeddings:
        raise ValueError(
            f"sequence length {length} exceeds the position table of this model "
            f"(max_position_embeddings={config.max_position_embeddings}); shorten the sequences "
            "or load a model with a longer table."
        )


def variables_by_name(layer: tf.Module) -> dict[str, tf.Variable]:
    """Every weight under its original name, for example `bert/pooler/dense/kernel`."""
    return {variable.name.split(":")[0]: variable for variable in layer.trainable_variables}
