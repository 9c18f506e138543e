"""Several short sequences in one row: shortest-pack-first by histogram (Krell et al. 2021).

Only the number of sequences of each length matters, not which ones they are. From the longest
length to the shortest, sequences join the packs that have most room left, as many packs at a time
as there are of one kind, so that the work depends on the number of lengths and not on the number of
sequences.

Legend: E sequences, R rows, G sequences that a row may have, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

NO_SEQUENCE = -1

Pack = tuple[int, ...]  # lengths of the sequences in a row, the longest first


def pack(lengths: np.ndarray, row_length: int, max_sequences: int) -> np.ndarray:
    """Puts every sequence into a row.

    Args:
        lengths: tokens of each sequence, [E].
        row_length: tokens that a row has room for, S.
        max_sequences: sequences that a row may have, G.

    Returns:
        int64 [R, G]: numbers of the sequences in each row; NO_SEQUENCE where it has fewer. Of equal
        lengths the first in `lengths` comes first.

    Raises:
        ValueError: a sequence is longer than a row, or has no token.
    """
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= row_length:
        raise ValueError(
            f"Sequences of {lengths.min()} to {lengths.max()} tokens cannot be packed into rows of "
            f"{row_length}."
        )
    histogram = np.bincount(lengths, minlength=row_length + 1)
    by_length = np.argsort(lengths, kind="stable")
    next_of = np.cumsum(histogram) - histogram  # of each length, into by_length
    parts = []
    for kind, count in plan_packs(histogram, max_sequences):
        rows = np.full((count, max_sequences), NO_SEQUENCE, np.int64)
        for column, length in enumerate(kind):
            rows[:, column] = by_length[next_of[length] : next_of[length] + count]
            next_of[length] += count
        parts.append(rows)
    return np.concatenate(parts) if parts else np.zeros((0, max_sequences), np.int64)


def plan_packs(histogram: np.ndarray, max_sequences: int) -> Iterator[tuple[Pack, int]]:
    """Kinds of packs and how many of each, for sequences counted by length, [S + 1]."""
    row_length = len(histogram) - 1
    # Kinds of packs that may still grow, by the room that they have left; full ones are yielded.
    growing: list[list[tuple[Pack, int]]] = [[] for _ in range(row_length + 1)]
    for length in range(row_length, 0, -1):
        left, room = int(histogram[length]), row_length
        while left:
            while room >= length and not growing[room]:
                room -= 1
            if room >= length:
                kind, available = growing[room].pop()
                count = used = min(left, available)
                if available > count:
                    growing[room].append((kind, available - count))
                kind = (*kind, length)
            else:  # no pack has room for it: new ones have room for several of this length
                several = min(left, row_length // length, max_sequences)
                kind, count = (length,) * several, left // several
                used = several * count
            left -= used
            room_left = row_length - sum(kind)
            if len(kind) == max_sequences or not room_left:
                yield kind, count
            else:
                growing[room_left].append((kind, count))
    for kinds in growing:
        yield from kinds
