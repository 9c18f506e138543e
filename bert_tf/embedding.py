"""Texts to vectors: sentence embeddings, and features for other models (paper, section 5.3).

Legend: N texts, B texts of a batch, S sequence, H hidden, F numbers of a vector (H for each layer).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

POOLINGS = ("cls", "mean", "max", "none")
# Texts that are tokenized, and sorted by length, together; what is held in memory ends there.
WINDOW_TEXTS = 8192
WINDOW_CHARACTERS = 1 << 24
WINDOW_NUMBERS = 1 << 26  # of vectors at once: 256 MiB
LENGTH_MULTIPLE = 8  # of the width of a batch: fewer shapes, and vector units like it
SMALLEST_NORM = 1e-12  # as torch.nn.functional.normalize


class Encoder(Protocol):
    """What this file needs of `bert_tf.encoder.BertEncoder`."""

    config: Any
    tokenizer: Any

    def __call__(self, token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor) -> Any:  # noqa: ANN401 - an EncoderOutput
        """`.layers` are L times [B, S, H]."""


@dataclasses.dataclass(frozen=True)
class EmbeddingConfig:
    """What a text becomes."""

    # "cls": the first position; "mean", "max": over all pieces, [CLS] and [SEP] included, as
    # sentence-transformers does; "none": a vector for each piece.
    pooling: str = "mean"
    layers: tuple[int, ...] = (-1,)  # -1 is the last; the vectors of several are joined
    normalize: bool = True  # to length 1
    max_seq_length: int = 0  # longer texts are cut; 0: at the end of the position table
    batch_positions: int = 8192  # of a batch, padding included

    def check(self, encoder: Encoder) -> None:
        """Raises ValueError where the encoder cannot do this."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling={self.pooling!r} must be one of {', '.join(POOLINGS)}.")
        count = encoder.config.num_hidden_layers
        for layer in self.layers or (count,):
            if not -count <= layer < count:
                raise ValueError(
                    f"layers={list(self.layers)}: this encoder has the layers {-count} to "
                    f"{count - 1} (-1 is the last)."
                )
        positions = encoder.config.max_position_embeddings
        if self.max_seq_length and not 3 <= self.max_seq_length <= positions:
            raise ValueError(
                f"max_seq_length={self.max_seq_length} must be from 3 ([CLS], a piece and [SEP]) "
                f"to {positions}, the position table of this encoder."
            )
        if encoder.tokenizer is None:
            raise ValueError(
                "This encoder has no tokenizer: put vocab.txt beside its checkpoint, or set "
                "encoder.tokenizer = bert_tf.Tokenizer(...)."
            )


class Embedder:
    """Turns texts into vectors, many at a time.

    A window of texts is sorted by length and cut into batches, so that little of a batch is
    padding; the vectors come in the order of the texts.
    """

    def __init__(self, encoder: Encoder, config: EmbeddingConfig) -> None:
        """Raises ValueError where the encoder cannot do what `config` asks."""
        config.check(encoder)
        self.encoder = encoder
        self.config = config
        self.max_seq_length = config.max_seq_length or encoder.config.max_position_embeddings
        grid = tf.TensorSpec([None, None], tf.int32)
        self.embed_grid = tf.function(self._embed_grid, [grid, grid], autograph=False)

    def _embed_grid(self, token_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Ids and mask [B, S] to vectors float32 [B, F], or [B, S, F] without pooling."""
        output = self.encoder(token_ids, tf.zeros_like(token_ids), mask)
        grids = [tf.cast(output.layers[layer], tf.float32) for layer in self.config.layers]
        vectors = pool(tf.concat(grids, axis=-1), mask, self.config.pooling)
        return normalized(vectors) if self.config.normalize else vectors

    @property
    def size(self) -> int:
        """Numbers of a vector, F."""
        return self.encoder.config.hidden_size * len(self.config.layers)

    def __call__(self, texts: Sequence[str | bytes]) -> np.ndarray | list[np.ndarray]:
        """Vectors float32 [N, F] of all texts; without pooling a list of [pieces, F]."""
        if isinstance(texts, str | bytes):
            raise ValueError("A list of texts is needed, not a single one: embed([text]).")
        vectors = list(self.stream(texts))
        if self.config.pooling == "none":
            return vectors
        return np.stack(vectors) if vectors else np.zeros((0, self.size), np.float32)

    def stream(
        self, texts: Iterable[str | bytes], report: Callable[[int], object] = lambda count: None
    ) -> Iterator[np.ndarray]:
        """The vector [F], or vectors [pieces, F], of each text, in their order.

        However many and however long the texts are, memory holds one window of them. `report` is
        told of each batch how many texts it had.
        """
        tokenizer = self.encoder.tokenizer
        for window in windows(texts):
            pieces = tokenizer(tf.constant(window, tf.string))
            packed = tokenizer.pack(pieces, max_seq_length=self.max_seq_length).token_ids
            for first, end in self.parts(packed.row_lengths().numpy()):
                yield from self.embed_rows(packed[first:end], report)

    def parts(self, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
        """Cuts texts of these lengths [N] where their vectors have more than `WINDOW_NUMBERS`."""
        vectors_each = lengths if self.config.pooling == "none" else np.ones_like(lengths)
        parts = np.cumsum(vectors_each) * self.size // WINDOW_NUMBERS  # [N]
        return itertools.pairwise([0, *(np.flatnonzero(np.diff(parts)) + 1), len(lengths)])

    def embed_rows(
        self, packed: tf.RaggedTensor, report: Callable[[int], object]
    ) -> list[np.ndarray]:
        """The vectors of token ids int32 [N, (pieces)]."""
        tokenizer = self.encoder.tokenizer
        lengths = packed.row_lengths().numpy()
        order = np.argsort(-lengths, kind="stable")  # what does not fit into memory fails at once
        vectors: list[np.ndarray] = [np.zeros(0)] * len(lengths)
        for rows in self.batches(lengths, order):
            width = -(-int(lengths[rows[0]]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            width = min(width, self.max_seq_length)
            chosen = tf.gather(packed, rows)
            token_ids = chosen.to_tensor(tokenizer.pad_id, [len(rows), width])
            mask = tf.ones_like(chosen).to_tensor(0, [len(rows), width])
            for row, vector in zip(rows, self.embed_grid(token_ids, mask).numpy(), strict=True):
                is_grid = self.config.pooling == "none"
                vectors[row] = vector[: lengths[row]] if is_grid else vector
            report(len(rows))
        return vectors

    def batches(self, lengths: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
        """Cuts `order` [N] into rows of batches with `batch_positions` at most."""
        start = 0
        while start < len(order):
            count = max(1, self.config.batch_positions // int(lengths[order[start]]))
            yield order[start : start + count]
            start += count


def windows(texts: Iterable[str | bytes]) -> Iterator[list[str | bytes]]:
    """A few thousand texts at a time; fewer where they are long."""
    window: list[str | bytes] = []
    characters = 0
    for text in texts:
        window.append(text)
        characters += len(text)
        if len(window) == WINDOW_TEXTS or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def pool(vectors: tf.Tensor, mask: tf.Tensor, pooling: str) -> tf.Tensor:
    """Vectors [B, S, F] and mask int [B, S] to one vector for each text, [B, F].

    "none" gives them back as they are. A row that is all padding has a vector of zeros in place of
    a mean or a maximum.
    """
    if pooling == "none":
        return vectors
    if pooling == "cls":
        return vectors[:, 0]
    real = tf.expand_dims(mask, -1) > 0  # [B, S, 1]
    if pooling == "max":
        highest = tf.reduce_max(tf.where(real, vectors, vectors.dtype.min), axis=1)
        return tf.where(tf.reduce_any(real, axis=1), highest, 0.0)
    sums = tf.reduce_sum(tf.where(real, vectors, 0.0), axis=1)
    return sums / tf.cast(tf.maximum(tf.math.count_nonzero(mask, 1, keepdims=True), 1), sums.dtype)


def normalized(vectors: tf.Tensor) -> tf.Tensor:
    """Vectors [..., F] of length 1; those of length 0 stay, and their gradient is finite."""
    return tf.math.l2_normalize(vectors, axis=-1, epsilon=SMALLEST_NORM**2)
