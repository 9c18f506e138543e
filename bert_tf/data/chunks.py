"""A TensorFlow function over all texts of a file: in chunks, on all cores."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def traced(function: Callable[..., Any], columns: int) -> Callable[..., Any]:
    """The function of so many columns of strings, each [n], as one graph for every n.

    Keep it for the next texts: to trace a tokenizer takes longer than to tokenize a small file.
    """
    return tf.function(function, [tf.TensorSpec([None], tf.string)] * columns, autograph=False)


def in_chunks(
    function: Callable[..., Any], columns: Sequence[Sequence[str | bytes]], size: int
) -> Any:  # noqa: ANN401 - the structure that the function returns
    """The outputs of a `traced` function for all rows, in their order.

    Args:
        function: returns a tensor, or a tuple or dict of some, with the results of its rows along
            the first axis.
        columns: of equal length, which may be 0.
        size: rows of a chunk.

    Returns:
        NumPy arrays in the structure that the function returns.
    """

    def compute(start: int) -> Any:  # noqa: ANN401
        with tf.device("CPU:0"):
            chunk = [tf.constant(column[start : start + size], tf.string) for column in columns]
            return tf.nest.map_structure(lambda output: output.numpy(), function(*chunk))

    # TensorFlow lets go of the interpreter while it computes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = list(threads.map(compute, range(0, max(len(columns[0]), 1), size)))
    return tf.nest.map_structure(lambda *outputs: np.concatenate(outputs), *parts)
