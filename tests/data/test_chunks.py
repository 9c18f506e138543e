"""A function over all texts, in chunks."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from bert_tf.data.chunks import in_chunks, traced


def test_results_are_in_order_and_traced_once() -> None:
    traces = []

    def measure(text: tf.Tensor, other: tf.Tensor) -> dict[str, tf.Tensor]:
        traces.append(text.shape)
        return {"length": tf.strings.length(text), "joined": tf.strings.join([text, other])}

    texts = [b"x" * number for number in range(23)]
    function = traced(measure, columns=2)
    for size in (1, 5, 23, 100):
        found = in_chunks(function, [texts, texts[::-1]], size)
        assert found["length"].tolist() == list(range(23))
        assert set(found["joined"]) == {b"x" * 22}
    assert traces == [[None]]


def test_no_rows_give_empty_results() -> None:
    function = traced(lambda text: (tf.strings.length(text), text), columns=1)
    lengths, same = in_chunks(function, [[]], 5)
    assert lengths.shape == same.shape == (0,)
    assert lengths.dtype == np.int32
