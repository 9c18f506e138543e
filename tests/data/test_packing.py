"""Shortest-pack-first: every sequence once, no row too long, and the packs of a plain version."""

from __future__ import annotations

import numpy as np
import pytest

from bert_tf.data.packing import NO_SEQUENCE, pack


def plain(lengths: np.ndarray, row_length: int, max_sequences: int) -> list[list[int]]:
    """The same rule, one sequence at a time: the longest first, into the pack with most room."""
    packs: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        growing = [p for p in packs if len(p) < max_sequences and sum(p) + length <= row_length]
        if growing:
            min(growing, key=sum).append(int(length))
        else:
            packs.append([int(length)])
    return packs


@pytest.mark.parametrize("max_sequences", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [1, 17, 400])
def test_every_sequence_once_and_none_too_many(max_sequences: int, count: int) -> None:
    lengths = np.random.default_rng(count).integers(1, 65, count)
    rows = pack(lengths, 64, max_sequences)
    assert rows.shape[1] == max_sequences
    present = rows != NO_SEQUENCE
    assert sorted(rows[present]) == list(range(count))
    sums = np.where(present, lengths[rows], 0).sum(axis=1)
    assert sums.max() <= 64
    assert present[:, 0].all()
    assert (np.diff(present.astype(int), axis=1) <= 0).all()  # no gap between two sequences
    # As many rows, and as full, as packing one sequence after the other.
    assert sorted(sums) == sorted(map(sum, plain(lengths, 64, max_sequences)))


def test_one_sequence_a_row_is_no_packing() -> None:
    assert len(pack(np.full(50, 3), 64, 1)) == 50


def test_full_rows_are_left_alone() -> None:
    rows = pack(np.array([8, 8, 3, 5]), 8, 3)
    assert sorted(tuple(row) for row in rows.tolist()) == [(0, -1, -1), (1, -1, -1), (3, 2, -1)]


def test_nothing_to_pack() -> None:
    assert pack(np.zeros(0, np.int64), 8, 3).shape == (0, 3)


@pytest.mark.parametrize("lengths", [[9], [3, 0]])
def test_what_does_not_fit_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot be packed into rows of 8"):
        pack(np.array(lengths), 8, 3)
