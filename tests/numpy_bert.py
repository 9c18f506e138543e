"""BERT in NumPy and float64, line by line from the papers, to hold the TensorFlow code against.

Weights come as a dict by the original release's names. Nothing here is shared with `bert_tf`.
Legend: B batch, S sequence (T as keys), H hidden, N heads, D head size, P masked positions,
V vocabulary, C classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import scipy.special

Array = np.ndarray
Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers of a `bert_config.json` that the forward pass needs."""

    layers: int
    heads: int
    activation: str
    epsilon: float = 1e-12


def gelu(x: Array) -> Array:
    return x * 0.5 * (1.0 + scipy.special.erf(x / np.sqrt(2.0)))


def gelu_approximate(x: Array) -> Array:
    return x * 0.5 * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_approximate": gelu_approximate,
    "relu": relu,
    "tanh": np.tanh,
}


def softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def layer_norm(x: Array, gamma: Array, beta: Array, epsilon: float) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta


def attention(query: Array, key: Array, value: Array, mask: Array) -> Array:
    """Query [B, N, S, D], key and value [B, N, T, D], mask [B, T]: [B, N, S, D]."""
    scores = np.einsum("bnsd,bntd->bnst", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)  # [B, N, S, T]
    return np.einsum("bnst,bntd->bnsd", softmax(scores), value)


def dense(x: Array, weights: Weights, name: str) -> Array:
    return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]


def norm(x: Array, weights: Weights, name: str, shape: Shape) -> Array:
    name = f"{name}/LayerNorm"
    return layer_norm(x, weights[f"{name}/gamma"], weights[f"{name}/beta"], shape.epsilon)


def embed(weights: Weights, shape: Shape, token_ids: Array, segment_ids: Array) -> Array:
    """Ids [B, S] to [B, S, H]."""
    name = "bert/embeddings"
    words = weights[f"{name}/word_embeddings"][token_ids]
    segments = weights[f"{name}/token_type_embeddings"][segment_ids]
    positions = weights[f"{name}/position_embeddings"][: token_ids.shape[1]]
    return norm(words + segments + positions, weights, name, shape)


def block(x: Array, weights: Weights, name: str, shape: Shape, mask: Array) -> Array:
    """One layer, [B, S, H] to [B, S, H]."""
    batch, length, hidden = x.shape

    def heads(kind: str) -> Array:
        rows = dense(x, weights, f"{name}/attention/self/{kind}")
        grid = rows.reshape(batch, length, shape.heads, hidden // shape.heads)
        return grid.transpose(0, 2, 1, 3)  # [B, N, S, D]

    attended = attention(heads("query"), heads("key"), heads("value"), mask)
    attended = attended.transpose(0, 2, 1, 3).reshape(batch, length, hidden)
    attended = dense(attended, weights, f"{name}/attention/output/dense")
    x = norm(x + attended, weights, f"{name}/attention/output", shape)
    inner = ACTIVATIONS[shape.activation](dense(x, weights, f"{name}/intermediate/dense"))
    return norm(x + dense(inner, weights, f"{name}/output/dense"), weights, f"{name}/output", shape)


def encode(
    weights: Weights, shape: Shape, token_ids: Array, segment_ids: Array, mask: Array
) -> tuple[list[Array], Array]:
    """The embeddings and the output of every layer, L + 1 times [B, S, H], and pooled [B, H]."""
    outputs = [embed(weights, shape, token_ids, segment_ids)]
    for index in range(shape.layers):
        outputs.append(block(outputs[-1], weights, f"bert/encoder/layer_{index}", shape, mask))
    return outputs, np.tanh(dense(outputs[-1][:, 0], weights, "bert/pooler/dense"))


def masked_lm_logits(weights: Weights, shape: Shape, sequence: Array, positions: Array) -> Array:
    """Sequence [B, S, H] and positions [B, P] to [B, P, V]."""
    name = "cls/predictions"
    x = np.take_along_axis(sequence, positions[:, :, None], axis=1)  # [B, P, H]
    x = ACTIVATIONS[shape.activation](dense(x, weights, f"{name}/transform/dense"))
    x = norm(x, weights, f"{name}/transform", shape)
    return x @ weights["bert/embeddings/word_embeddings"].T + weights[f"{name}/output_bias"]


def output_logits(weights: Weights, prefix: str, vectors: Array) -> Array:
    """Vectors [B, H] to [B, C] with `output_weights` and `output_bias` behind the prefix."""
    return vectors @ weights[f"{prefix}output_weights"].T + weights[f"{prefix}output_bias"]


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Float32 weights that hide nothing: no bias is 0, no LayerNorm is the identity."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes.items():
        centre = 1.0 if name.endswith("gamma") else 0.0
        weights[name] = (centre + 0.2 * rng.normal(size=shape)).astype(np.float32)
    return weights
