"""From texts to batches: tokenized examples, the plan of batches, and the tf.data pipeline.

The plan says which rows make batch number s, and how wide it is. It is a pure function of
(lengths, seed, s): a run that stops and starts again at step s sees exactly the batches that it
would have seen, with nothing to save but s. Rows of one batch have similar lengths, so that little
of a batch is padding.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import tensorflow as tf

from bert_tf.config import RunConfig, TrainConfig
from bert_tf.data.service import from_service
from bert_tf.data.text import TextExamples
from bert_tf.distribution import Accelerator
from bert_tf.tokenization import Tokenizer, in_chunks, traced

# ----------------------------------------------------------------------------------------- the plan

WIDTH_MULTIPLE = 8  # vector units and tensor cores want it, and it keeps different shapes few
NOT_AN_EXAMPLE = -1  # row number of the padding in a smaller batch; such rows have weight 0


class Batch(NamedTuple):
    """One batch of the plan."""

    width: int  # tokens to which every row is padded
    rows: np.ndarray  # int64 [B]; NOT_AN_EXAMPLE at the end of the smaller batch of an epoch


def widths_for(max_seq_length: int, static: bool) -> tuple[int, ...]:
    """Widths that batches may have, ascending; the last is `max_seq_length` itself.

    Args:
        max_seq_length: tokens of the longest row.
        static: True where each width is a program of its own that takes minutes to compile (TPU):
            a quarter, a half and the whole. False gives every multiple of 8.
    """
    step = max_seq_length // 4 if static else WIDTH_MULTIPLE
    candidates = (step, 2 * step) if static else range(step, max_seq_length, step)
    widths = {-(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE for width in candidates}
    return (*sorted(width for width in widths if 0 < width < max_seq_length), max_seq_length)


def steps_per_epoch(num_examples: int, global_batch_size: int) -> int:
    """Batches that show every example once; one of them may be smaller."""
    return -(-num_examples // global_batch_size)


def count_steps(train: TrainConfig, num_examples: int) -> int:
    """Steps of a whole run."""
    per_epoch = steps_per_epoch(num_examples, train.global_batch_size)
    return train.steps or max(round(train.epochs * per_epoch), 1)


def epoch_plan(
    lengths: np.ndarray,
    global_batch_size: int,
    widths: Sequence[int],
    seed: int,
    epoch: int,
    window: int,
) -> list[Batch]:
    """Every example once, in a random order that puts rows of similar length together.

    The examples are shuffled, the rows of each `window` successive batches are sorted by length and
    cut into batches, and the batches are shuffled; `window=1` is plain shuffling. The remainder,
    one smaller batch, is taken off before the sorting. Its rows weigh more (the loss is a mean over
    the batch), so they should be a random sample and not always the longest ones.

    Args:
        lengths: tokens of each example, [E].
        global_batch_size: rows of a batch over all replicas, B.
        widths: allowed widths, ascending.
        seed: of the run.
        epoch: from 0.
        window: batches that are sorted together.

    Raises:
        ValueError: no examples, a size below 1, a negative seed, or a row wider than all widths.
    """
    check_plan(lengths, global_batch_size, widths)
    check_shuffle(seed, window)
    generator = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = generator.permutation(len(lengths))
    whole = len(order) - len(order) % global_batch_size
    if window > 1:
        for start in range(0, whole, window * global_batch_size):
            rows = order[start : min(start + window * global_batch_size, whole)]
            order[start : start + len(rows)] = rows[np.argsort(lengths[rows], kind="stable")]
        # Replicas take consecutive rows of a batch: the last one should not get all the long rows.
        batches_of_rows = order[:whole].reshape(-1, global_batch_size)
        order[:whole] = generator.permuted(batches_of_rows, axis=1).reshape(-1)
    batches = cut(lengths, order, global_batch_size, widths)
    return [batches[index] for index in generator.permutation(len(batches))]


def evaluation_plan(lengths: np.ndarray, batch_size: int, widths: Sequence[int]) -> list[Batch]:
    """Every example exactly once, longest first: what does not fit into memory fails at once.

    Raises:
        ValueError: no examples, a size below 1, or a row wider than all widths.
    """
    check_plan(lengths, batch_size, widths)
    return cut(lengths, np.argsort(-lengths, kind="stable"), batch_size, widths)


def check_plan(lengths: np.ndarray, batch_size: int, widths: Sequence[int]) -> None:
    """Raises ValueError where these examples cannot be cut into such batches."""
    if not len(lengths):
        raise ValueError("There are no examples to make batches of.")
    if batch_size < 1:
        raise ValueError(f"A batch of {batch_size} rows is too small; it must have at least 1.")
    if lengths.max() > widths[-1]:
        raise ValueError(
            f"Example {lengths.argmax()} has {lengths.max()} tokens, more than the widest batch "
            f"({widths[-1]}); tokenize with max_seq_length={widths[-1]} or allow wider batches."
        )


def check_shuffle(seed: int, window: int) -> None:
    """Raises ValueError for a seed or a window that cannot shuffle."""
    if seed < 0:
        raise ValueError(f"train.seed={seed} must be at least 0.")
    if window < 1:
        raise ValueError(f"data.bucket_window={window} must be at least 1, which is no sorting.")


def cut(
    lengths: np.ndarray, order: np.ndarray, batch_size: int, widths: Sequence[int]
) -> list[Batch]:
    """Cuts `order` [E] into batches, each of the smallest width that holds its longest row."""
    padding = np.full(-len(order) % batch_size, NOT_AN_EXAMPLE)
    rows = np.concatenate([order, padding]).astype(np.int64).reshape(-1, batch_size)
    longest = np.where(rows == NOT_AN_EXAMPLE, 0, lengths[rows]).max(axis=1)
    fitting = np.asarray(widths)[np.searchsorted(widths, longest)]
    return [Batch(int(width), of_batch) for width, of_batch in zip(fitting, rows, strict=True)]


@dataclasses.dataclass(frozen=True)
class TrainingPlan(Sequence[Batch]):
    """The batches of a whole run, epoch after epoch, made one epoch at a time when asked for."""

    lengths: np.ndarray  # [E]
    global_batch_size: int
    widths: Sequence[int]
    seed: int
    window: int
    steps: int
    # Number and batches of the epoch that was asked for last.
    cache: dict[int, list[Batch]] = dataclasses.field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Steps of the run."""
        return self.steps

    @overload
    def __getitem__(self, step: int) -> Batch: ...

    @overload
    def __getitem__(self, step: slice) -> list[Batch]: ...

    def __getitem__(self, step: int | slice) -> Batch | list[Batch]:
        """Batch of one step or of several; `plan[step:]` is what a run stopped at `step` lacks."""
        if isinstance(step, slice):
            return [self[number] for number in range(self.steps)[step]]
        number = range(self.steps)[step]  # IndexError outside, and counts -1 from the end
        length_of_epoch = steps_per_epoch(len(self.lengths), self.global_batch_size)
        epoch, position = divmod(number, length_of_epoch)
        if epoch not in self.cache:
            batches = epoch_plan(
                self.lengths, self.global_batch_size, self.widths, self.seed, epoch, self.window
            )
            self.cache.clear()
            self.cache[epoch] = batches
        return self.cache[epoch][position]

    def __iter__(self) -> Iterator[Batch]:
        """All batches in order."""
        return (self[step] for step in range(self.steps))


def training_plan(
    lengths: np.ndarray,
    global_batch_size: int,
    widths: Sequence[int],
    seed: int,
    window: int,
    steps: int,
) -> TrainingPlan:
    """The plan of a run of `steps` steps; arguments and errors are those of `epoch_plan`."""
    check_plan(lengths, global_batch_size, widths)
    check_shuffle(seed, window)
    return TrainingPlan(lengths, global_batch_size, widths, seed, window, steps)


def by_width(batches: Sequence[Batch]) -> dict[int, list[Batch]]:
    """Splits a plan by width, keeping the order within each width."""
    groups: dict[int, list[Batch]] = {}
    for batch in batches:
        groups.setdefault(batch.width, []).append(batch)
    return dict(sorted(groups.items()))


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

# ------------------------------------------------------------------- the examples and their batches

LINES_PER_CHUNK = 1024  # tokenized by one call: hides its cost, and leaves work for every core

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

    def sequences(self, rows: tf.Tensor) -> tf.Tensor:
        """The sequences that the examples `rows` [B] are made of: their own numbers, [B].

        Where an example is several sequences, which then stay together, they are [B, C].
        """
        return rows

    def fingerprint(self) -> int:
        """A checksum of tokens and targets."""
        fingerprint = zlib.crc32(self.token_ids.tobytes())
        for target in self.targets.values():
            fingerprint = zlib.crc32(np.ascontiguousarray(target).tobytes(), fingerprint)
        return fingerprint

    def feed(
        self, run: RunConfig, first_step: int, total_steps: int, accelerator: Accelerator
    ) -> Feed:
        """The batches of a run, by its plan, from one of its steps on."""
        plan = training_plan(
            self.lengths,
            run.train.global_batch_size,
            widths_for(run.data.max_seq_length, accelerator.static_shapes),
            run.train.seed,
            run.data.bucket_window,
            total_steps,
        )
        return Feed(self, plan, first_step, accelerator, run.data.service)


def tokenize(
    tokenizer: Tokenizer,
    texts: TextExamples,
    max_seq_length: int,
    targets: dict[str, np.ndarray],
) -> Examples:
    """Tokenizes all texts, in chunks on all cores, into rows of at most `max_seq_length` tokens."""
    columns = [texts.text_a] if texts.text_b is None else [texts.text_a, texts.text_b]
    function = packer(tokenizer, len(columns), max_seq_length)
    token_ids, segment_ids, lengths = in_chunks(function, columns, LINES_PER_CHUNK)
    row_splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return Examples(token_ids.astype(np.int32), segment_ids.astype(np.int32), row_splits, targets)


@functools.lru_cache(maxsize=4)  # the files of a run share one
def packer(tokenizer: Tokenizer, columns: int, max_seq_length: int) -> Callable[..., Any]:
    """From one or two columns of texts to token ids, segment ids and lengths of rows."""

    def pack(*segments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pieces = [tokenizer(segment) for segment in segments]
        packed = tokenizer.pack(pieces[0], pieces[1] if len(pieces) > 1 else None, max_seq_length)
        lengths = packed.token_ids.row_lengths()
        return packed.token_ids.flat_values, packed.segment_ids.flat_values, lengths

    return traced(pack, columns)


def dataset(examples: Examples, batches: Sequence[Batch], static: bool) -> tf.data.Dataset:
    """Cuts the planned batches out of the examples, in the order of the plan.

    Each element is a dict: `token_ids`, `segment_ids` and `mask` int32 [B, S] (0 on padding; for
    examples of several sequences [B, C, S]), `weight` float32 [B] (0 on rows that are no example),
    `example` int64 [B] (row number or NOT_AN_EXAMPLE) and every target [B, ...] (zeros on rows that
    are no example). S is the width of the batch.

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
        sequences = examples.sequences(rows)  # [B], or [B, C]
        batch = gather_tokens(store, sequences, int(widths[0]) if static else width)
        weight = tf.cast(rows != NOT_AN_EXAMPLE, tf.float32)
        return batch | {"weight": weight, "example": rows} | gather_targets(targets, rows)

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
    """Gathers rows [B] or [B, C] of the flat arrays of `Examples`, padded to `width`, S."""
    is_example = rows != NOT_AN_EXAMPLE  # [B]
    present = tf.maximum(rows, 0)  # [B]; padding reads row 0, which has length 0 below
    start = tf.gather(store["row_splits"], present)  # [B]
    length = tf.gather(store["row_splits"], present + 1) - start  # [B]
    length = tf.where(is_example, length, 0)  # [B]
    position = tf.cast(tf.range(width), tf.int64)  # [S]
    mask = position < length[..., tf.newaxis]  # [B, S]
    token = tf.where(mask, start[..., tf.newaxis] + position, 0)  # [B, S]; into the flat arrays
    return {
        "token_ids": tf.where(mask, tf.gather(store["token_ids"], token), 0),
        "segment_ids": tf.where(mask, tf.gather(store["segment_ids"], token), 0),
        "mask": tf.cast(mask, tf.int32),
    }


def gather_targets(targets: dict[str, tf.Tensor], rows: tf.Tensor) -> dict[str, tf.Tensor]:
    """Gathers the targets of rows [B]; zeros where a row is no example."""
    gathered = {}
    for name, values in targets.items():
        keep = tf.reshape(rows != NOT_AN_EXAMPLE, [-1] + [1] * (values.shape.rank - 1))  # [B, 1..]
        of_rows = tf.gather(values, tf.maximum(rows, 0))  # [B, ...]
        gathered[name] = tf.where(keep, of_rows, tf.zeros([], values.dtype))
    return gathered


def distribute(
    batches: tf.data.Dataset, accelerator: Accelerator, service: str = ""
) -> tf.distribute.DistributedDataset:
    """Global batches [B, ...], cut among the replicas; see `service.from_service`.

    Of several processes they begin anew where they end: read as many as there are.
    """
    if service:
        return from_service(batches, accelerator, service)
    if accelerator.has_workers:  # they would ask each other at every step whether there is more
        batches = batches.repeat()
    return accelerator.strategy.experimental_distribute_dataset(batches)


class Feed:
    """Hands out iterators over the planned batches, in the plan's order."""

    def __init__(
        self,
        examples: Examples,
        plan: TrainingPlan,
        first_step: int,
        accelerator: Accelerator,
        data_service: str = "",
    ) -> None:
        """With static shapes there is one iterator for each width, otherwise a single one."""
        self.static = accelerator.static_shapes
        self.widths = [plan[step].width for step in range(first_step, len(plan))]
        self.position = 0
        remaining = plan[first_step:]
        groups = by_width(remaining) if self.static else {0: remaining}
        self.iterators: dict[int, tf.data.Iterator] = {
            width: iter(
                distribute(dataset(examples, group, self.static), accelerator, data_service)
            )
            for width, group in groups.items()
        }

    def next(self, most: int) -> tuple[tf.data.Iterator, int]:
        """An iterator, and for how many steps (at most `most`) it is the one to use."""
        ahead = self.widths[self.position : self.position + most]
        width, count = 0, len(ahead)
        if self.static:
            width = ahead[0]
            count = next((i for i, other in enumerate(ahead) if other != width), len(ahead))
        self.position += count
        return self.iterators[width], count
