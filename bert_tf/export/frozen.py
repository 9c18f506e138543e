"""SavedModels with weights of 16 or 8 bits, in the form that TensorFlow computes fastest on CPU.

The formulas are those of `encoder.TransformerBlock`, written for TensorFlow's graph optimizer,
which makes one oneDNN operation of each line of `FrozenBlock`:

- weights do not change, so oneDNN lays them out for its own use, once;
- query, key and value are one product;
- LayerNorm has the one form whose epsilon the optimizer keeps (see `layer_norm`).

`bfloat16` is for CPUs that compute in it (AMX, AVX512-BF16); others emulate it, slowly. With `int8`
(AVX512-VNNI, AMX) the products with weights are of 8-bit integers, and all else is float32; since
their scale follows from all rows of a request (see `Int8Product`), an answer may move a little
with the texts beside it. There is no such form for float32: constants are slower than variables
there, because oneDNN lays them out anew for every request.

Legend: B batch, S sequence, R rows (real tokens), Q rows that are asked for (R, or B where [CLS]
alone is), H hidden, N heads, D head size, F feed-forward.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_library

from bert_tf import kernels
from bert_tf.encoder import BertEncoder, LayerNorm, Linear, TransformerBlock
from bert_tf.export import saved_model
from bert_tf.layouts import UnpaddedLayout, heads_of_rows, rows_of_heads
from bert_tf.restore import OpenedRun

DTYPES = ("bfloat16", "int8")
INT8_LARGEST = 127
EVERY_COLUMN = slice(None)
TINY = 1e-30  # no division by zero
# What oneDNN's 8-bit product can do behind the product, by our names of it.
INT8_ACTIVATIONS = {
    "gelu": "GeluExact",
    "gelu_approximate": "GeluApproximate",
    "relu": "Relu",
    "tanh": "Tanh",
}


class Float32Layout(UnpaddedLayout):
    """Rows of any dtype, grids of float32, as all that reads the encoder wants them."""

    def to_grid(self, rows: tf.Tensor) -> tf.Tensor:
        return super().to_grid(tf.cast(rows, tf.float32))


def export_frozen(opened: OpenedRun, folder: str, dtype: str) -> str:
    """As `saved_model.export_saved_model`, with the encoder's blocks in `dtype`, of `DTYPES`."""
    model = saved_model.float32_model(opened, Float32Layout)
    freeze(model, dtype)
    return saved_model.write(opened, model, folder)


def freeze(model: tf.Module, dtype: str) -> None:
    """Replaces the blocks of all encoders in a model by frozen ones, shared where they were shared.

    Args:
        model: built with `Float32Layout`, with its weights. Those of its blocks are no trainable
            variables of it any more.
        dtype: one of `DTYPES`, of the blocks; all else stays as it is.
    """
    frozen: dict[int, FrozenBlock] = {}
    for encoder in [part for part in model.submodules if isinstance(part, BertEncoder)]:
        before = encoder.embeddings.norm
        for block in encoder.blocks:
            if id(block) not in frozen:
                frozen[id(block)] = FrozenBlock(block, Norm.of(before), dtype)
            before = block.output_norm
        encoder.blocks = [frozen[id(block)] for block in encoder.blocks]


class FrozenBlock(tf.Module):
    """A transformer block as a function that all signatures of an export share."""

    def __init__(self, block: TransformerBlock, before: Norm, dtype: str) -> None:
        """`before` is the LayerNorm that the rows of the block come from."""
        super().__init__()
        self.config = block.config
        self.dtype = dtype
        product = Int8Product if dtype == "int8" else ConstantProduct
        attention = block.attention
        self.query_key_value = product(
            Weights.of(attention.query, attention.key, attention.value, before=before)
        )
        self.attention_output = product(Weights.of(block.attention_output))
        self.attention_norm = Norm.of(block.attention_norm)
        self.intermediate = product(Weights.of(block.intermediate, before=self.attention_norm))
        self.output_dense = product(Weights.of(block.output_dense))
        self.output_norm = Norm.of(block.output_norm)
        # One trace for every batch, as the signatures of an export have unknown shapes.
        self.compute_all = tf.function(self.rows, autograph=False, reduce_retracing=True)
        self.compute_first = tf.function(self.first_rows, autograph=False, reduce_retracing=True)

    def __call__(
        self, x: tf.Tensor, layout: Float32Layout, seeds: None, cls_only: bool = False
    ) -> tf.Tensor:
        """As `TransformerBlock.call`, without dropout."""
        del seeds
        x = tf.cast(x, tf.bfloat16 if self.dtype == "bfloat16" else tf.float32)
        bias = tf.cast(layout.attention_bias, x.dtype)
        num_heads = self.config.num_attention_heads
        if cls_only:
            asking, index = layout.first_rows(x), layout.index_of_heads(num_heads, count=2)
            return tf.cast(self.compute_first(asking, x, index, bias), tf.float32)
        index = layout.index_of_heads(num_heads, count=3)
        return self.compute_all(x, index, layout.index_of_rows(num_heads), bias)

    def rows(
        self, x: tf.Tensor, index_of_heads: tf.Tensor, index_of_rows: tf.Tensor, bias: tf.Tensor
    ) -> tf.Tensor:
        """Rows [R, H] to rows [R, H]; indices [3, B, N, S] and [R, N]."""
        projected = self.query_key_value(x)  # [R, 3 H]
        heads = heads_of_rows(projected, index_of_heads, self.config.head_size)
        query, key, value = tf.unstack(heads, num=3)
        attended = attention(query, key, value, bias)  # [B, N, S, D]
        return self.behind_attention(x, rows_of_heads(attended, index_of_rows))

    def first_rows(
        self, asking: tf.Tensor, x: tf.Tensor, index_of_heads: tf.Tensor, bias: tf.Tensor
    ) -> tf.Tensor:
        """Rows [R, H] to those of the first positions [B, H], which ask; index [2, B, N, S]."""
        num_heads, size = self.config.num_attention_heads, self.config.head_size
        hidden = self.config.hidden_size
        query = self.query_key_value(asking, columns=slice(None, hidden))  # [B, H]
        query = tf.reshape(query, [-1, num_heads, 1, size])  # [B, N, 1, D]
        key_value = self.query_key_value(x, columns=slice(hidden, None))  # [R, 2 H]
        key, value = tf.unstack(heads_of_rows(key_value, index_of_heads, size), num=2)
        attended = attention(query, key, value, bias)  # [B, N, 1, D]
        return self.behind_attention(asking, tf.reshape(attended, [-1, self.config.hidden_size]))

    def behind_attention(self, asking: tf.Tensor, attended: tf.Tensor) -> tf.Tensor:
        """The rest of the block: [Q, H] each to [Q, H]."""
        attended = self.attention_output(attended)  # [Q, H]
        asking = layer_norm(tf.add_n([attended, asking]), self.attention_norm)  # [Q, H]
        inner = self.intermediate(asking, self.config.hidden_act)  # [Q, F]
        outer = self.output_dense(inner)  # [Q, H]
        # add_n, not +: the graph optimizer joins it with the product before it.
        return layer_norm(tf.add_n([outer, asking]), self.output_norm)


class Norm(NamedTuple):
    """The weights of a LayerNorm."""

    gamma: np.ndarray  # [H]
    beta: np.ndarray  # [H]
    epsilon: float

    @classmethod
    def of(cls, layer: LayerNorm) -> Norm:
        """Those of a layer."""
        return cls(layer.gamma.numpy(), layer.beta.numpy(), layer.epsilon)


class Weights(NamedTuple):
    """The weights of one product, or of several that are computed as one."""

    kernel: np.ndarray  # [in, out]
    bias: np.ndarray  # [out]
    before: Norm | None  # the LayerNorm that makes what the kernel is multiplied with, if one does

    @classmethod
    def of(cls, *layers: Linear, before: Norm | None = None) -> Weights:
        """Those of layers that read the same rows, side by side."""
        kernel = np.concatenate([layer.kernel.numpy() for layer in layers], axis=1)
        return cls(kernel, np.concatenate([layer.bias.numpy() for layer in layers]), before)


def attention(query: tf.Tensor, key: tf.Tensor, value: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """As `kernels.attention`, but softmax keeps the dtype: oneDNN sums in float32 inside."""
    scale = tf.constant(query.shape[-1] ** -0.5, query.dtype)
    scores = tf.matmul(query * scale, key, transpose_b=True) + bias  # [B, N, S, T]
    return tf.matmul(tf.nn.softmax(scores), value)  # [B, N, S, D]


def layer_norm(x: tf.Tensor, norm: Norm) -> tf.Tensor:
    """As `kernels.layer_norm`, as a batch norm of one example with R channels.

    Of all ways to write it down this is the one that the graph optimizer replaces by oneDNN's layer
    norm and keeps the epsilon of, if the number of rows is unknown while it looks.
    """
    size = x.shape[-1]
    count = tf.shape(x)[0]
    empty = tf.constant([], tf.float32)
    normalized, *_ = tf.raw_ops.FusedBatchNormV3(
        x=tf.reshape(x, tf.stack([1, count, size, 1])),
        scale=tf.fill([count], 1.0),
        offset=tf.fill([count], 0.0),
        mean=empty,
        variance=empty,
        epsilon=norm.epsilon,
        data_format="NCHW",
        is_training=True,
    )
    rows = tf.reshape(normalized, tf.stack([count, size]))  # [Q, H]
    return rows * tf.constant(norm.gamma, x.dtype) + tf.constant(norm.beta, x.dtype)


class ConstantProduct(tf.Module):
    """`activation(x @ kernel + bias)` in the dtype of `x`: rows [Q, in] to [Q, out]."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = weights

    def __call__(
        self, x: tf.Tensor, activation: str = "", columns: slice = EVERY_COLUMN
    ) -> tf.Tensor:
        """With these columns of the kernel alone."""
        kernel, bias = self.weights.kernel[:, columns], self.weights.bias[columns]
        outputs = kernels.linear(x, tf.constant(kernel, x.dtype), tf.constant(bias, x.dtype))
        return kernels.ACTIVATIONS[activation](outputs) if activation else outputs


class Int8Product(tf.Module):
    """The same with 8-bit factors: float32 [Q, in] to float32 [Q, out].

    Each column of the kernel has a scale of its own, but oneDNN wants one scale for all of `x`, and
    a few large values would leave small ones with too few steps. So:

    - behind a LayerNorm, whose large values are always in the same channels, `x` is divided by the
      size of each channel, and the rows of the kernel multiplied with it (Xiao et al. 2022,
      "SmoothQuant"; the sizes come from the LayerNorm's weights, so no text is needed);
    - elsewhere rows of `x` are divided by their own largest value, and the outputs multiplied.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        kernel, self.bias, before = weights
        self.sizes = None if before is None else channel_sizes(before)  # [in]
        if self.sizes is not None:
            kernel = kernel * self.sizes[:, np.newaxis]
        self.scales = np.maximum(np.abs(kernel).max(axis=0), TINY)  # [out]
        integers = np.rint(kernel * (INT8_LARGEST / self.scales)).astype(tf.qint8.as_numpy_dtype)
        # A variable, because TensorFlow copies the constants of a graph a dozen times to load it.
        self.kernel = tf.Variable(integers, trainable=False, name="int8_kernel")

    def __call__(
        self, x: tf.Tensor, activation: str = "", columns: slice = EVERY_COLUMN
    ) -> tf.Tensor:
        """With these columns of the kernel alone."""
        kernel = self.kernel if columns == EVERY_COLUMN else self.kernel[:, columns]
        scales, bias = self.scales[columns], self.bias[columns]
        if self.sizes is not None:
            x = x / tf.constant(self.sizes)
            largest = tf.maximum(tf.reduce_max(x), -tf.reduce_min(x))  # -inf if x is empty
            limit = tf.maximum(largest, TINY)
            return int8_matmul(x, limit, kernel, scales, bias, activation)
        high, low = (reduce(x, axis=-1, keepdims=True) for reduce in (tf.reduce_max, tf.reduce_min))
        limits = tf.maximum(tf.maximum(high, -low), TINY)  # [Q, 1]
        outputs = int8_matmul(x / limits, tf.constant(1.0), kernel, scales, np.zeros_like(bias))
        outputs = outputs * limits + bias
        return kernels.ACTIVATIONS[activation](outputs) if activation else outputs


def channel_sizes(norm: Norm) -> np.ndarray:
    """How large the outputs of a LayerNorm get, channel by channel: float32 [H]."""
    sizes = np.abs(norm.beta) + 3.0 * np.abs(norm.gamma)  # three standard deviations
    return np.maximum(sizes, 1e-3 * sizes.max() + TINY).astype(np.float32)


def int8_matmul(
    x: tf.Tensor,
    limit: tf.Tensor,
    kernel: tf.Tensor,
    scales: np.ndarray,
    bias: np.ndarray,
    activation: str = "",
) -> tf.Tensor:
    """`activation(x @ kernel + bias)` as one oneDNN operation.

    Args:
        x: float32 [Q, in], from -limit to limit.
        limit: float32, a scalar.
        kernel: qint8 [in, out], from -127 to 127, which stand for -scales to scales. oneDNN keeps
            the first that it sees, laid out in its own way.
        scales: float32 [out].
        bias: float32 [out].
        activation: a key of `INT8_ACTIVATIONS`, or none.

    Returns:
        float32 [Q, out].
    """
    quantized, low, high = tf.raw_ops.QuantizeV2(
        input=x,
        min_range=-limit,
        max_range=limit,
        T=tf.qint8,
        mode="SCALED",
        round_mode="HALF_TO_EVEN",
        ensure_minimum_range=TINY,
    )
    fused = ["BiasAdd", *([INT8_ACTIVATIONS[activation]] if activation else []), "Dequantize"]
    # TensorFlow has this operation, and no Python function for it.
    _, _, operation, _ = op_def_library._apply_op_helper(
        "_QuantizedMatMul",
        name="int8_matmul",
        device_inputs=[quantized, tf.convert_to_tensor(kernel), tf.constant(bias)],
        host_inputs=[low, high, tf.constant(-scales), tf.constant(scales)],
        Tdevice_outputs=[tf.float32],
        Thost_outputs=[],
        T1=tf.qint8,
        T2=tf.qint8,
        Tbias=tf.float32,
        U=tf.float32,
        Tout=tf.float32,
        transpose_a=False,
        transpose_b=False,
        is_weight_const=True,
        is_bias_const=True,
        fused_ops=[name.encode() for name in fused],
        input_quant_mode="SCALED",
        output_quant_mode="SCALED",
        leakyrelu_alpha=0.2,  # there is no default, and nothing reads it
    )
    return tf.ensure_shape(operation.outputs[0], [None, len(bias)])
