"""Tokenized examples in memory, and the tf.data pipeline that cuts planned batches out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from bert_tf.data.plans import (
    NOT_AN_EXAMPLE,
    Batch,
    TrainingPlan,
    by_width,
    epoch_plan,
    evaluation_plan,
    steps_per_epoch,
    training_plan,
    widths_for,
)
from bert_tf.data.text import TextExamples

__all__ = [
    "NOT_AN_EXAMPLE",
    "Batch",
    "Examples",
    "TrainingPlan",
    "by_width",
    "dataset",
    "epoch_plan",
    "evaluation_plan",
    "steps_per_epoch",
    "tokenize",
    "training_plan",
    "widths_for",
]

LINES_PER_CHUNK = 1024  # tokenized by one call: hides its cost, and leaves work for every core


class Tokenizer(Protocol):
    """What this file needs of `bert_tf.tokenization.Tokenizer`."""

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Maps strings [E] to ragged int32 WordPiece ids [E, (S)], without special tokens."""

    def pack(self, a: tf.RaggedTensor, b: tf.RaggedTensor | None, max_seq_length: int) -> Any:  # noqa: ANN401 - a named tuple of ragged tensors
        """Returns ragged `.token_ids` and `.segment_ids` [E, (S)] of `[CLS] a [SEP] b [SEP]`."""


# AutoGraph rewrites Python control flow on tensors, of which there is none here; it would take most
# of the time to the first batch.
without_autograph = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class Examples:
    """Tokenized examples, one after the other without padding: E examples, R tokens in all."""

    token_ids: np.ndarray  # int32 [R]
    segment_ids: np.ndarray  # int32 [R]
    row_splits: np.ndarray  # int64 [E + 1]; example e is token_ids[row_splits[e]:row_splits[e + 1]]
    targets: dict[str, np.ndarray]  # each [E, ...]; empty for text without labels

    def __post_init__(self) -> None:
        """Raises ValueError where the arrays do not belong together."""
        tokens = {len(self.token_ids), len(self.segment_ids), int(self.row_splits[-1])}
        if len(tokens) > 1:
            raise ValueError(f"token_ids, segment_ids and row_splits end at {sorted(tokens)}.")
        for name, values in self.targets.items():
            if len(values) != len(self):
                raise ValueError(f"Target {name!r} has {len(values)} rows, not {len(self)}.")

    def __len__(self) -> int:
        """Number of examples, E."""
        return len(self.row_splits) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example, special tokens included; int64 [E]."""
        return np.diff(self.row_splits)


def tokenize(
    tokenizer: Tokenizer,
    texts: TextExamples,
    max_seq_length: int,
    targets: dict[str, np.ndarray],
) -> Examples:
    """Tokenizes all texts, in chunks on all cores, into rows of at most `max_seq_length` tokens."""

    @without_autograph
    def tokenize_chunk(*segments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pieces = [tokenizer(segment) for segment in segments]
        packed = tokenizer.pack(pieces[0], pieces[1] if len(pieces) > 1 else None, max_seq_length)
        lengths = packed.token_ids.row_lengths()
        return packed.token_ids.flat_values, packed.segment_ids.flat_values, lengths

    segments = [texts.text_a] if texts.text_b is None else [texts.text_a, texts.text_b]
    with tf.device("CPU:0"):
        lines = tf.data.Dataset.from_tensor_slices(tuple(tf.constant(lines) for lines in segments))
    chunks = lines.batch(LINES_PER_CHUNK).map(
        tokenize_chunk, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    parts = zip(*chunks.as_numpy_iterator(), strict=True)
    token_ids, segment_ids, lengths = (np.concatenate(part) for part in parts)
    row_splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Examples(token_ids.astype(np.int32), segment_ids.astype(np.int32), row_splits, targets)


def dataset(examples: Examples, batches: Sequence[Batch], static: bool) -> tf.data.Dataset:
    """Cuts the planned batches out of the examples, in the order of the plan.

    Each element is a dict: `token_ids`, `segment_ids` and `mask` int32 [B, S] (0 on padding),
    `weight` float32 [B] (0 on rows that are no example), `example` int64 [B] (row number or
    NOT_AN_EXAMPLE) and every target [B, ...] (zeros on rows that are no example). S is the width of
    the batch.

    Args:
        examples: what to cut from.
        batches: which rows; all batches of one size, B. `training_plan(...)[step:]` resumes.
        static: True puts S into the element spec (TPU). All batches must then have one width: see
            `by_width`.

    Raises:
        ValueError: no batches, different sizes, or different widths where `static`.
    """
    batches = list(batches)
    widths = np.array([batch.width for batch in batches], np.int32)
    sizes = {len(batch.rows) for batch in batches}
    if len(sizes) != 1:
        raise ValueError(f"Batches must all have one size, not {sorted(sizes) or 'none at all'}.")
    if static and len(np.unique(widths)) > 1:
        raise ValueError(
            f"A data set of static shape cannot have the widths {np.unique(widths).tolist()}; make "
            "one for each width with by_width(batches), or plan with a single width."
        )
    # The pipeline runs on the host: none of it may take the accelerator's memory.
    with tf.device("CPU:0"):
        rows = tf.constant(np.stack([batch.rows for batch in batches]))
        plan = tf.data.Dataset.from_tensor_slices((rows, tf.constant(widths)))
        store = {
            "token_ids": tf.constant(examples.token_ids),
            "segment_ids": tf.constant(examples.segment_ids),
            "row_splits": tf.constant(examples.row_splits),
        }
        targets = {name: tf.constant(values) for name, values in examples.targets.items()}

    @without_autograph
    def cut_batch(rows: tf.Tensor, width: tf.Tensor) -> dict[str, tf.Tensor]:
        batch = gather_tokens(store, rows, int(widths[0]) if static else width)
        return batch | gather_targets(targets, rows)

    options = tf.data.Options()
    options.deterministic = True
    # Every worker can make every global batch, so each makes all of them and keeps its share of the
    # rows (DATA). There are no files to share out (FILE); with OFF all would train on equal rows.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    cut_batches = plan.map(cut_batch, num_parallel_calls=tf.data.AUTOTUNE)
    return cut_batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def gather_tokens(
    store: dict[str, tf.Tensor], rows: tf.Tensor, width: int | tf.Tensor
) -> dict[str, tf.Tensor]:
    """Gathers rows [B] out of the flat arrays of `Examples` and pads them to `width`, S."""
    is_example = rows != NOT_AN_EXAMPLE  # [B]
    present = tf.maximum(rows, 0)  # [B]; padding reads example 0, which has length 0 below
    start = tf.gather(store["row_splits"], present)  # [B]
    length = tf.gather(store["row_splits"], present + 1) - start  # [B]
    length = tf.where(is_example, length, 0)  # [B]
    position = tf.cast(tf.range(width), tf.int64)  # [S]
    mask = position < length[:, tf.newaxis]  # [B, S]
    token = tf.where(mask, start[:, tf.newaxis] + position, 0)  # [B, S]; into the flat arrays
    return {
        "token_ids": tf.where(mask, tf.gather(store["token_ids"], token), 0),
        "segment_ids": tf.where(mask, tf.gather(store["segment_ids"], token), 0),
        "mask": tf.cast(mask, tf.int32),
        "weight": tf.cast(is_example, tf.float32),
        "example": rows,
    }


def gather_targets(targets: dict[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Gathers the targets of rows [B]; zeros where a row is no example."""
    gathered = {}
    for name, values in targets.items():
        keep = tf.reshape(rows != NOT_AN_EXAMPLE, [-1] + [1] * (values.shape.rank - 1))  # [B, 1..]
        of_rows = tf.gather(values, tf.maximum(rows, 0))  # [B, ...]
        gathered[name] = tf.where(keep, of_rows, tf.zeros([], values.dtype))
    return gathered
