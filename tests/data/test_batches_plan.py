"""The plan of batches: complete, random, cheap to pad, and the same however often a run stops."""

from __future__ import annotations

import numpy as np
import pytest

from bert_tf.data.batches import (
    NOT_AN_EXAMPLE,
    by_width,
    epoch_plan,
    evaluation_plan,
    steps_per_epoch,
    training_plan,
    widths_for,
)

WIDTHS = widths_for(64, static=False)
LENGTHS = np.random.default_rng(5).integers(3, 65, 1003)


def examples_in(plan: list) -> np.ndarray:
    rows = np.concatenate([batch.rows for batch in plan])
    return rows[rows != NOT_AN_EXAMPLE]


@pytest.mark.parametrize(
    ("max_seq_length", "static", "expected"),
    [
        (32, False, (8, 16, 24, 32)),
        (30, False, (8, 16, 24, 30)),
        (5, False, (5,)),
        (8, False, (8,)),
        (128, True, (32, 64, 128)),
        (384, True, (96, 192, 384)),
        (100, True, (32, 56, 100)),
        (16, True, (8, 16)),
        (3, True, (3,)),
    ],
)
def test_widths(max_seq_length: int, static: bool, expected: tuple[int, ...]) -> None:
    assert widths_for(max_seq_length, static) == expected


@pytest.mark.parametrize("window", [1, 4, 1000])
@pytest.mark.parametrize("batch_size", [1, 17, 1003, 2000])
def test_an_epoch_has_every_example_once(batch_size: int, window: int) -> None:
    plan = epoch_plan(LENGTHS, batch_size, WIDTHS, seed=1, epoch=0, window=window)
    assert len(plan) == steps_per_epoch(len(LENGTHS), batch_size)
    assert sorted(examples_in(plan)) == list(range(len(LENGTHS)))
    padding = [(batch.rows == NOT_AN_EXAMPLE).sum() for batch in plan]
    assert sorted(padding)[:-1] == [0] * (len(plan) - 1)  # one batch at most is smaller
    for batch in plan:
        assert batch.rows.shape == (batch_size,)
        assert batch.rows.dtype == np.int64
        longest = LENGTHS[batch.rows[batch.rows != NOT_AN_EXAMPLE]].max()
        assert batch.width == min(width for width in WIDTHS if width >= longest)


def test_evaluation_has_every_example_once_longest_first() -> None:
    plan = evaluation_plan(LENGTHS, 100, WIDTHS)
    rows = examples_in(plan)
    assert sorted(rows) == list(range(len(LENGTHS)))
    assert (np.diff(LENGTHS[rows]) <= 0).all()
    np.testing.assert_array_equal(plan[-1].rows[3:], NOT_AN_EXAMPLE)
    equal = evaluation_plan(np.full(7, 5), 4, WIDTHS)
    assert examples_in(equal).tolist() == list(range(7))  # ties keep the order of the file


def test_sorting_saves_padding_and_window_1_does_not_sort() -> None:
    padded = {
        window: sum(batch.width * 10 for batch in epoch_plan(LENGTHS, 10, WIDTHS, 1, 0, window))
        for window in (1, 50)
    }
    tokens = LENGTHS.sum()
    assert padded[50] < 1.2 * tokens  # half a multiple of 8 a row, and the smaller batch
    assert padded[1] > 1.6 * tokens
    order = np.random.Generator(np.random.PCG64([1, 0])).permutation(len(LENGTHS))
    plain = {tuple(order[start : start + 10]) for start in range(0, 1000, 10)}
    batches = {tuple(batch.rows) for batch in epoch_plan(LENGTHS, 10, WIDTHS, 1, 0, 1)}
    assert plain < batches


def test_order_of_batches_and_rows_is_not_by_length() -> None:
    plan = epoch_plan(LENGTHS, 10, WIDTHS, seed=1, epoch=0, window=1000)
    whole = [batch for batch in plan if NOT_AN_EXAMPLE not in batch.rows]
    means = np.array([LENGTHS[batch.rows].mean() for batch in whole])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3
    # Each place of a batch gets as long rows as any other: replicas take consecutive places.
    by_place = np.stack([LENGTHS[batch.rows] for batch in whole]).mean(axis=0)
    assert np.ptp(by_place) < 1.0


def test_the_smaller_batch_is_a_random_sample() -> None:
    lengths = np.arange(3, 13)  # 10 examples, batches of 4: 2 left over
    leftovers = []
    for epoch in range(200):
        for batch in epoch_plan(lengths, 4, WIDTHS, seed=0, epoch=epoch, window=50):
            if NOT_AN_EXAMPLE in batch.rows:
                leftovers.extend(batch.rows[:2])
    counts = np.bincount(leftovers, minlength=10)
    assert counts.min() > 20  # of 40 expected
    assert counts.max() < 65


def test_epochs_and_seeds_differ() -> None:
    plans = [
        np.concatenate([batch.rows for batch in epoch_plan(LENGTHS, 17, WIDTHS, seed, epoch, 50)])
        for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]
    ]
    for one in range(4):
        for other in range(one):
            assert (plans[one] != plans[other]).mean() > 0.9


def test_the_plan_never_changes() -> None:
    """A run must be able to go on after an upgrade: these are the rows of the first release."""
    plan = epoch_plan(np.arange(3, 14), 3, (8, 16), seed=1, epoch=2, window=2)
    assert [(batch.width, batch.rows.tolist()) for batch in plan] == [
        (16, [9, 8, 6]),
        (8, [3, 4, 0]),
        (16, [5, 1, 10]),
        (16, [7, 2, -1]),
    ]


def test_a_run_that_stops_sees_the_batches_it_would_have_seen() -> None:
    arguments = (LENGTHS, 17, WIDTHS, 3, 5, 200)  # 59 steps an epoch: three and a half epochs
    whole = list(training_plan(*arguments))
    assert len(whole) == len(training_plan(*arguments)) == 200
    for step in (0, 1, 58, 59, 60, 118, 199, 200):
        rest = training_plan(*arguments)[step:]
        assert len(rest) == 200 - step
        for expected, batch in zip(whole[step:], rest, strict=True):
            assert batch.width == expected.width
            np.testing.assert_array_equal(batch.rows, expected.rows)


def test_a_training_plan_is_a_sequence_of_epochs() -> None:
    plan = training_plan(LENGTHS, 17, WIDTHS, 3, 5, 100)
    second = epoch_plan(LENGTHS, 17, WIDTHS, 3, 1, 5)
    np.testing.assert_array_equal(plan[60].rows, second[1].rows)
    np.testing.assert_array_equal(plan[-1].rows, plan[99].rows)
    np.testing.assert_array_equal(plan[3].rows, epoch_plan(LENGTHS, 17, WIDTHS, 3, 0, 5)[3].rows)
    with pytest.raises(IndexError):
        plan[100]


def test_by_width_keeps_the_order() -> None:
    plan = epoch_plan(LENGTHS, 17, WIDTHS, seed=1, epoch=0, window=50)
    groups = by_width(plan)
    assert list(groups) == sorted({batch.width for batch in plan})
    for width, batches in groups.items():
        assert [id(b) for b in batches] == [id(b) for b in plan if b.width == width]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"lengths": np.zeros(0, np.int64)}, "There are no examples"),
        ({"global_batch_size": 0}, "A batch of 0 rows is too small"),
        ({"widths": (8, 16)}, r"has 64 tokens, more than the widest batch \(16\)"),
        ({"seed": -1}, r"train\.seed=-1 must be at least 0"),
        ({"window": 0}, r"data\.bucket_window=0 must be at least 1"),
    ],
)
def test_what_cannot_be_planned(changes: dict, part: str) -> None:
    arguments = {
        "lengths": LENGTHS,
        "global_batch_size": 4,
        "widths": WIDTHS,
        "seed": 0,
        "window": 2,
    }
    with pytest.raises(ValueError, match=part):
        training_plan(**(arguments | changes), steps=5)
    with pytest.raises(ValueError, match=part):
        epoch_plan(**(arguments | changes), epoch=0)
