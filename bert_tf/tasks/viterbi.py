"""The best sequence of tags in which no I-X stands anywhere but behind B-X or I-X (Viterbi 1967).

Twice the same search: over all words of a data set at once, and in the graph of a served model. A
test holds both to trying all sequences.
Legend: N texts, W words of the longest, D words of all texts, C tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bert_tf.spans import OUTSIDE, split_tag

FORBIDDEN = -1e9  # added to the log-probability of what may not be; finite, so that sums stay so


def allowed_transitions(names: Sequence[str]) -> np.ndarray:
    """Bool [C, C]: whether the second tag may follow the first."""
    allowed = np.ones([len(names), len(names)], bool)
    for second, name in enumerate(names):
        prefix, label = split_tag(name)
        if prefix == "I":
            allowed[:, second] = [
                split_tag(first) in (("B", label), ("I", label)) for first in names
            ]
    return allowed


def best_path(log_probabilities: np.ndarray, begins: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The best tags of all texts, one behind the other.

    Args:
        log_probabilities: [D, C].
        begins: bool [D], whether a text begins at the word.
        allowed: bool [C, C], of `allowed_transitions`.

    Returns:
        int64 [D].
    """
    count, tags = log_probabilities.shape
    inside = np.where(allowed, 0.0, FORBIDDEN)  # [C, C]
    # No tag may follow every other one but those that may begin a text.
    first = np.broadcast_to(np.where(allowed.all(axis=0), 0.0, FORBIDDEN), [tags, tags])
    pointers = np.zeros([count, tags], np.int64)
    score = np.zeros(tags)
    for word in range(count):
        candidates = score[:, np.newaxis] + (first if begins[word] else inside)  # [C, C]
        pointers[word] = candidates.argmax(axis=0)
        score = candidates.max(axis=0) + log_probabilities[word]
        score -= score.max()  # only differences count: sums of a long corpus would lose digits
    path = np.zeros(count, np.int64)
    tag = int(score.argmax())
    for word in range(count - 1, -1, -1):
        path[word] = tag
        tag = pointers[word, tag]
    return path


def best_path_in_graph(
    log_probabilities: tf.Tensor, lengths: tf.Tensor, names: Sequence[str]
) -> tf.Tensor:
    """The same for texts side by side: float32 [N, W, C] and words of each int [N] to int32 [N, W].

    W is at least 1. Places behind the last word hold any tag.
    """
    tags = len(names)
    inside = tf.constant(np.where(allowed_transitions(names), 0.0, FORBIDDEN), tf.float32)
    rows, words = tf.shape(log_probabilities)[0], tf.shape(log_probabilities)[1]
    itself = tf.broadcast_to(tf.range(tags), [rows, tags])
    by_word = tf.transpose(log_probabilities, [1, 0, 2])  # [W, N, C]
    is_word = tf.range(words)[:, tf.newaxis] < tf.cast(lengths, tf.int32)  # [W, N]

    def forward(
        before: tuple[tf.Tensor, tf.Tensor], word: tuple[tf.Tensor, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores [N, C] and, for each tag, the best one before it."""
        candidates = before[0][:, :, tf.newaxis] + inside  # [N, C, C]
        score = tf.reduce_max(candidates, axis=1) + word[0]
        score -= tf.reduce_max(score, axis=1, keepdims=True)
        pointer = tf.argmax(candidates, axis=1, output_type=tf.int32)
        real = word[1][:, tf.newaxis]
        return tf.where(real, score, before[0]), tf.where(real, pointer, itself)

    # In front of every text stands O.
    outside = tf.one_hot([list(names).index(OUTSIDE)], tags, 0.0, FORBIDDEN)  # [1, C]
    start = (tf.tile(outside, [rows, 1]), itself)
    scores, pointers = tf.scan(forward, (by_word, is_word), start)  # [W, N, C] each
    last = tf.concat([start[0][tf.newaxis], scores], axis=0)[-1]  # [N, C]

    def backward(after: tf.Tensor, pointer: tf.Tensor) -> tf.Tensor:
        return tf.gather(pointer, after, batch_dims=1)

    tag = tf.argmax(last, axis=1, output_type=tf.int32)  # [N], of the last word
    before = tf.scan(backward, pointers, tag, reverse=True)  # [W, N], the tag before each word
    path = tf.concat([before, tag[tf.newaxis]], axis=0)[1:]  # [W, N]
    return tf.transpose(path)
