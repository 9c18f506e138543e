"""Examples of several texts that are read apart from each other: choices, pairs of a dual encoder.

Legend: E examples, K texts of an example, R tokens of all texts, B batch, S sequence.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bert_tf.data.batches import NOT_AN_EXAMPLE, Examples, tokenize
from bert_tf.data.text import TextExamples
from bert_tf.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextGroups(Examples):
    """Examples of K texts: text k of example e is row K e + k of the flat arrays.

    Batches have `token_ids`, `segment_ids` and `mask` int32 [B, K, S], S as wide as the longest
    text. Targets are of examples, [E, ...].
    """

    texts_each: int  # K

    def __len__(self) -> int:
        """Number of examples, E."""
        return (len(self.row_splits) - 1) // self.texts_each

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of the longest text of each example; int64 [E]."""
        return np.diff(self.row_splits).reshape(-1, self.texts_each).max(axis=1, initial=0)

    def sequences(self, rows: tf.Tensor) -> tf.Tensor:
        """Examples [B] to the rows of their texts, int64 [B, K]."""
        texts = tf.range(self.texts_each, dtype=rows.dtype)  # [K]
        rows = rows[:, tf.newaxis]  # [B, 1]
        return tf.where(rows == NOT_AN_EXAMPLE, rows, rows * self.texts_each + texts)


def tokenize_groups(
    tokenizer: Tokenizer,
    columns: Sequence[Sequence[bytes]],
    max_seq_length: int,
    targets: dict[str, np.ndarray],
) -> TextGroups:
    """Tokenizes K columns of E texts each, every text by itself, to `max_seq_length` at most.

    Beside the targets given there are `text_ids` int32 [E, K], equal where texts are equal for the
    model.
    """
    texts = [text for group in zip(*columns, strict=True) for text in group]
    rows = TextExamples(texts, None, None, None, "", [])
    tokens = tokenize(tokenizer, rows, max_seq_length, {})
    text_ids = equal_rows(tokens).reshape(-1, len(columns))  # [E, K]
    return TextGroups(
        tokens.token_ids,
        tokens.segment_ids,
        tokens.row_splits,
        targets | {"text_ids": text_ids},
        len(columns),
    )


def equal_rows(examples: Examples) -> np.ndarray:
    """A number for each row, int32 [E]: the same where the token ids are the same."""
    numbers: dict[bytes, int] = {}
    places = itertools.pairwise(examples.row_splits.tolist())
    rows = (examples.token_ids[start:end].tobytes() for start, end in places)
    return np.array([numbers.setdefault(row, len(numbers)) for row in rows], np.int32)
