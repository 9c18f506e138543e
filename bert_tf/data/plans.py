"""The plan of batches: which rows make batch number s, and how wide it is.

The plan is a pure function of (lengths, seed, s): a run that stops and starts again at step s sees
exactly the batches that it would have seen, with nothing to save but s. Rows of one batch have
similar lengths, so that little of a batch is padding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, overload

import numpy as np

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
