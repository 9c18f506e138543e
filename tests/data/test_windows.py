from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import DataConfig
from bert_tf.data.windows import cut_windows, window_shape


@pytest.mark.parametrize("width", [1, 2, 5, 8])
@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8])
def test_every_piece_is_decided_where_it_sees_most(width: int, stride: int) -> None:
    if stride > width:
        return
    lengths = [0, 1, width, width + 1, 0, 2 * width, 3 * width + 2, 0]
    row_splits = np.concatenate([[0], np.cumsum(lengths)])
    windows = cut_windows(tf.constant(row_splits, tf.int64), width, stride)
    row, start, size = (part.numpy() for part in windows[:3])
    assert set(row) == set(range(len(lengths)))
    for text, length in enumerate(lengths):
        own = np.flatnonzero(row == text)
        assert all(size[own] == min(length, width))
        assert start[own[0]] == row_splits[text]
        assert start[own[-1]] + size[own[-1]] == row_splits[text + 1]
        assert all(np.diff(start[own]) <= stride)
        for piece in range(row_splits[text], row_splits[text + 1]):
            # The original release's rule: the poorer side of the context, the first of equals.
            poorer = [
                min(piece - start[w], start[w] + size[w] - 1 - piece)
                if start[w] <= piece < start[w] + size[w]
                else -1
                for w in own
            ]
            deciding = int(windows.deciding(tf.constant([piece], tf.int64))[0])
            assert deciding == own[int(np.argmax(poorer))]


def test_no_texts_have_no_windows() -> None:
    windows = cut_windows(tf.constant([0], tf.int64), 4, 2)
    assert [part.shape for part in windows] == [(0,)] * 4


@pytest.mark.parametrize(
    ("length", "stride", "shape"), [(128, 0, (126, 63)), (10, 8, (8, 8)), (3, 0, (1, 1))]
)
def test_window_shape(length: int, stride: int, shape: tuple[int, int]) -> None:
    assert window_shape(DataConfig(max_seq_length=length, window_stride=stride)) == shape


@pytest.mark.parametrize(
    ("length", "stride", "message"),
    [(10, 9, "must be from 1 to 8"), (10, -1, "must be from 1 to 8"), (2, 0, "leaves no room")],
)
def test_windows_that_would_skip_pieces(length: int, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        window_shape(DataConfig(max_seq_length=length, window_stride=stride))
