from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.tasks import viterbi

NAMES = ("O", "B-a", "I-a", "B-b", "I-b")
LENGTHS = np.array([4, 1, 0, 5, 3])


def is_allowed(path: tuple[int, ...]) -> bool:
    tags = ["O", *(NAMES[tag] for tag in path)]
    return all(
        not tag.startswith("I") or before in ("B" + tag[1:], "I" + tag[1:])
        for before, tag in itertools.pairwise(tags)
    )


def best_of_all(log_probabilities: np.ndarray) -> list[int]:
    """Tries every sequence."""
    every = itertools.product(range(len(NAMES)), repeat=len(log_probabilities))
    score = lambda path: sum(log_probabilities[place, tag] for place, tag in enumerate(path))  # noqa: E731
    return list(max(filter(is_allowed, every), key=score))


@pytest.mark.parametrize("seed", range(4))
def test_both_searches_find_the_best_of_all_sequences(seed: int) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, [len(LENGTHS), 5, len(NAMES)])
    logits[..., [2, 4]] += 2  # many I where none may be
    grid = tf.nn.log_softmax(logits).numpy()
    expected = [best_of_all(grid[text, :length]) for text, length in enumerate(LENGTHS)]
    greedy = [list(grid[text, :length].argmax(axis=1)) for text, length in enumerate(LENGTHS)]
    assert greedy != expected, "the constraint must matter for this test to mean much"

    flat = np.concatenate([grid[text, :length] for text, length in enumerate(LENGTHS)])
    begins = np.concatenate([np.arange(length) == 0 for length in LENGTHS])
    found = viterbi.best_path(flat, begins, viterbi.allowed_transitions(NAMES))
    assert found.tolist() == list(itertools.chain.from_iterable(expected))

    graph = tf.function(lambda *inputs: viterbi.best_path_in_graph(*inputs, NAMES), autograph=False)
    path = graph(tf.constant(grid, tf.float32), tf.constant(LENGTHS)).numpy()
    assert [row[:length].tolist() for row, length in zip(path, LENGTHS, strict=True)] == expected


def test_no_words() -> None:
    nothing = np.zeros([0, len(NAMES)])
    allowed = viterbi.allowed_transitions(NAMES)
    assert viterbi.best_path(nothing, np.zeros(0, bool), allowed).shape == (0,)
    for rows in (0, 2):
        grid, lengths = tf.zeros([rows, 1, len(NAMES)]), tf.zeros([rows], tf.int64)
        assert viterbi.best_path_in_graph(grid, lengths, NAMES).shape == (rows, 1)


def test_sums_of_a_long_corpus_lose_no_digits() -> None:
    """The same text again and again has the same tags each time."""
    rng = np.random.default_rng(0)
    text = tf.nn.log_softmax(rng.normal(0, 1, [7, len(NAMES)])).numpy().astype(np.float64)
    begins = np.tile(np.arange(7) == 0, 5_000)
    path = viterbi.best_path(np.tile(text, [5_000, 1]), begins, viterbi.allowed_transitions(NAMES))
    assert (path.reshape(5_000, 7) == path[:7]).all()
