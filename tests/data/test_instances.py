"""Pairs and masks: exact where the original is, and its distributions elsewhere.

Every token of the test's documents has an id of its own, its place plus FIRST_ID, so that the
source of each piece of an instance can be told.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from bert_tf.data.instances import (
    Documents,
    InstanceConfig,
    Instances,
    Pairs,
    PieceTable,
    build_pairs,
    choose,
    make_instances,
    number_words,
    take_that_fit,
    truncate,
)
from tests import original_pretraining as original

CLS, SEP, MASK, FIRST_ID = 1, 2, 3, 10


def make_documents(sizes: list[list[int]]) -> Documents:
    """Documents of sentences of so many tokens."""
    lengths = [length for document in sizes for length in document]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    counts = [len(document) for document in sizes]
    return Documents(
        np.arange(starts[-1], dtype=np.int32) + FIRST_ID,
        starts.tolist(),
        np.concatenate([[0], np.cumsum(counts)]).tolist(),
        len(sizes),
    )


def random_sizes(documents: int, sentences: int, longest: int = 40) -> list[list[int]]:
    generator = np.random.default_rng(5)
    return [generator.integers(1, longest, sentences).tolist() for _ in range(documents)]


def table(documents: Documents) -> PieceTable:
    """Three pieces in ten go on with a word."""
    continues = np.random.default_rng(6).random(len(documents.token_ids) + FIRST_ID) < 0.3
    return PieceTable(CLS, SEP, MASK, continues)


def create(documents: Documents, config: InstanceConfig) -> tuple[Pairs, Instances]:
    generator = np.random.default_rng(7)
    pairs = build_pairs(documents, config, random.Random(8))
    return pairs, make_instances(documents.token_ids, pairs, config, table(documents), generator)


def restored(instances: Instances) -> np.ndarray:
    """input_ids as they were before masking."""
    ids = instances.input_ids.copy()
    rows, slots = np.nonzero(instances.masked_lm_weights)
    ids[rows, instances.masked_lm_positions[rows, slots]] = instances.masked_lm_ids[rows, slots]
    return ids


@pytest.fixture(scope="module")
def documents() -> Documents:
    return make_documents(random_sizes(20, 400))


@pytest.fixture(scope="module")
def made(documents: Documents) -> tuple[Pairs, Instances]:
    """About 23,000 instances."""
    return create(documents, InstanceConfig(dupe_factor=10))


# ------------------------------------------------------------------------------------------- pairs


def test_every_instance_is_two_neighbouring_or_foreign_segments(
    documents: Documents, made: tuple[Pairs, Instances]
) -> None:
    instances = made[1]
    token_starts = np.array(documents.sentence_starts)[documents.document_starts]
    for ids, mask, segments, label in zip(
        restored(instances),
        instances.input_mask,
        instances.segment_ids,
        instances.next_sentence_labels,
        strict=True,
    ):
        length = mask.sum()
        assert not ids[length:].any()
        assert not segments[length:].any()
        assert mask[:length].all()
        first_b = int(segments.argmax())
        a, b = ids[1 : first_b - 1], ids[first_b : length - 1]
        assert (ids[0], ids[first_b - 1], ids[length - 1]) == (CLS, SEP, SEP)
        assert segments[first_b:length].all()
        assert len(a) >= 1
        assert len(b) >= 1
        assert (np.diff(a) == 1).all()
        assert (np.diff(b) == 1).all()
        ends = np.array([a[0], a[-1], b[0], b[-1]]) - FIRST_ID
        a_first, a_last, b_first, b_last = np.searchsorted(token_starts, ends, "right")
        assert a_first == a_last
        assert b_first == b_last
        assert (a_first != b_first) == label
        assert label or b[0] > a[-1]


def test_next_sentence_follows_and_unused_sentences_come_back(documents: Documents) -> None:
    pairs = build_pairs(documents, InstanceConfig(dupe_factor=1), random.Random(3))
    a_end = pairs.a_start + pairs.a_length
    real = ~pairs.random_next
    np.testing.assert_array_equal(pairs.b_start[real], a_end[real])
    # What comes next begins where the own text of an instance ended: nothing is lost or repeated.
    own_end = np.where(pairs.random_next, a_end, pairs.b_start + pairs.b_length)
    np.testing.assert_array_equal(pairs.a_start[1:], own_end[:-1])
    assert own_end[-1] == len(documents.token_ids)
    # Segments begin and end with sentences.
    starts = documents.sentence_starts
    for edge in (pairs.a_start, a_end, pairs.b_start, pairs.b_start + pairs.b_length):
        assert np.isin(edge, starts).all()


def test_half_of_the_next_sentences_are_random() -> None:
    documents = make_documents([[1] * 20_000] * 5)  # so many chunks that the last one is nothing
    pairs = build_pairs(documents, InstanceConfig(max_seq_length=13), random.Random(1))
    assert len(pairs.random_next) > 80_000
    assert pairs.random_next.mean() == pytest.approx(0.5, abs=0.005)


def test_a_random_next_sentence_is_of_any_other_document() -> None:
    documents = make_documents([[1] * 6_000] * 4)
    config = InstanceConfig(max_seq_length=13, short_seq_prob=0.0, dupe_factor=40)
    pairs = build_pairs(documents, config, random.Random(1))
    own, other = pairs.a_start // 6_000, pairs.b_start // 6_000
    counts = np.zeros((4, 4))
    np.add.at(counts, (own[pairs.random_next], other[pairs.random_next]), 1)
    assert not counts.diagonal().any()
    shares = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares[~np.eye(4, dtype=bool)], 1 / 3, atol=0.02)
    places = (pairs.b_start % 6_000)[pairs.random_next] / 6_000  # anywhere in it
    assert places.mean() == pytest.approx(0.5, abs=0.01)


def test_a_tenth_of_the_passes_are_short_with_any_target() -> None:
    # One pass through the first document for each call; a whole pair tells the target.
    documents = make_documents([[1] * 1_500, [1] * 1_500])
    config = InstanceConfig(max_seq_length=64, dupe_factor=20_000)
    pairs = build_pairs(Documents(*_fields(documents), 1), config, random.Random(4))
    whole = np.where(pairs.random_next, 0, pairs.a_length + pairs.b_length)
    passes = np.cumsum(pairs.a_start == 0) - 1
    targets = np.zeros(config.dupe_factor, np.int64)
    np.maximum.at(targets, passes, whole)
    short = targets[targets < 61]
    assert len(short) / len(targets) == pytest.approx(0.1 * 59 / 60, abs=0.006)
    assert short.min() == 2
    assert short.max() == 60
    assert short.mean() == pytest.approx(31, abs=1)


def _fields(documents: Documents) -> tuple[Any, ...]:
    return documents.token_ids, documents.sentence_starts, documents.document_starts


def test_own_documents_alone_make_instances() -> None:
    documents = make_documents([[3] * 50, [3] * 50, [3] * 50])
    pairs = build_pairs(Documents(*_fields(documents), 2), InstanceConfig(), random.Random(4))
    assert pairs.a_start.max() < 300
    assert pairs.b_start.max() > 300


def test_a_single_document_is_refused() -> None:
    with pytest.raises(ValueError, match="only one document"):
        build_pairs(make_documents([[3] * 50]), InstanceConfig(), random.Random(4))


def test_masked_words_alone_have_runs_of_sentences_without_a_pair() -> None:
    documents = make_documents(random_sizes(1, 400))  # one is enough
    config = InstanceConfig(max_seq_length=64, next_sentence=False, dupe_factor=3)
    pairs, instances = create(documents, config)
    a_end = pairs.a_start + pairs.a_length
    np.testing.assert_array_equal(pairs.a_start[1:], a_end[:-1] % len(documents.token_ids))
    assert not pairs.b_length.any()
    assert instances.next_sentence_labels is None
    assert not instances.segment_ids.any()
    lengths = instances.input_mask.sum(axis=1)
    np.testing.assert_array_equal(lengths, np.minimum(pairs.a_length, 62) + 2)
    assert (lengths == 64).mean() > 0.8
    for ids, length in zip(restored(instances), lengths, strict=True):
        assert (ids[0], ids[length - 1]) == (CLS, SEP)
        assert (np.diff(ids[1 : length - 1]) == 1).all()
        assert not ids[length:].any()
    wanted = np.maximum(1, np.rint(lengths * 0.15))
    np.testing.assert_array_equal(instances.masked_lm_weights.sum(axis=1), wanted)


def test_truncation_keeps_what_the_original_keeps() -> None:
    generator, rng = np.random.default_rng(1), random.Random(2)
    for _ in range(300):
        length_a, length_b = generator.integers(1, 40, 2).tolist()
        a, b = list(range(length_a)), list(range(length_b))
        room = rng.randint(2, 40)
        original.truncate_seq_pair(a, b, room, rng)
        pair = Pairs(*(np.array([value]) for value in (0, length_a, 0, length_b, True)))
        cut = truncate(pair, room, generator)
        assert (cut.a_length[0], cut.b_length[0]) == (len(a), len(b))
        for start, kept, whole in (
            (cut.a_start[0], len(a), length_a),
            (cut.b_start[0], len(b), length_b),
        ):
            assert 0 <= start <= whole - kept


def test_truncation_takes_each_token_from_either_end() -> None:
    shape = 50_000
    pairs = Pairs(
        np.zeros(shape, np.int64),
        np.full(shape, 60),
        np.zeros(shape, np.int64),
        np.full(shape, 80),
        np.zeros(shape, bool),
    )
    cut = truncate(pairs, 100, np.random.default_rng(3))
    for start, taken in ((cut.a_start, 10), (cut.b_start, 30)):
        assert start.mean() == pytest.approx(taken / 2, rel=0.01)
        assert start.var() == pytest.approx(taken / 4, rel=0.04)
    assert (cut.a_length == 50).all()
    assert (cut.b_length == 50).all()


# ------------------------------------------------------------------------------------------- masks


def test_as_many_predictions_as_the_original(made: tuple[Pairs, Instances]) -> None:
    instances = made[1]
    lengths = instances.input_mask.sum(axis=1)
    wanted = [min(20, max(1, round(length * 0.15))) for length in lengths.tolist()]
    np.testing.assert_array_equal(instances.masked_lm_weights.sum(axis=1), wanted)
    assert len(set(wanted)) == 20 - 1  # from 1 to the limit; 128 * 0.15 is 19
    filled = instances.masked_lm_weights > 0
    assert not instances.masked_lm_positions[~filled].any()
    assert not instances.masked_lm_ids[~filled].any()
    ascending = np.diff(instances.masked_lm_positions, axis=1) > 0
    assert ascending[filled[:, 1:]].all()


def test_the_limit_limits(documents: Documents) -> None:
    instances = create(documents, InstanceConfig(dupe_factor=1, max_predictions_per_seq=7))[1]
    assert instances.masked_lm_ids.shape[1] == 7
    assert instances.masked_lm_weights.sum(axis=1).max() == 7


@pytest.mark.parametrize("whole_words", ["", "per_piece", "per_word"])
def test_shares_of_mask_same_and_any(documents: Documents, whole_words: str) -> None:
    instances = create(documents, InstanceConfig(dupe_factor=10, whole_words=whole_words))[1]
    rows, slots = np.nonzero(instances.masked_lm_weights)
    now = instances.input_ids[rows, instances.masked_lm_positions[rows, slots]]
    before = instances.masked_lm_ids[rows, slots]
    assert len(now) > 300_000
    assert (now == MASK).mean() == pytest.approx(0.8, abs=0.004)
    assert (now == before).mean() == pytest.approx(0.1, abs=0.003)
    other = now[(now != MASK) & (now != before)]
    assert len(other) / len(now) == pytest.approx(0.1, abs=0.003)
    vocab_size = len(documents.token_ids) + FIRST_ID
    assert other.max() < vocab_size
    assert other.min() < 100  # any piece, from the first
    assert other.mean() == pytest.approx((vocab_size - 1) / 2, rel=0.01)


def test_every_position_is_as_likely(made: tuple[Pairs, Instances]) -> None:
    instances = made[1]
    full = instances.input_mask.all(axis=1)
    separator = instances.segment_ids.argmax(axis=1) - 1
    counts = np.bincount(
        instances.masked_lm_positions[full][instances.masked_lm_weights[full] > 0], minlength=128
    )
    assert counts[0] == counts[127] == 0
    candidates = full.sum() - np.bincount(separator[full], minlength=128)
    shares = counts[1:127] / candidates[1:127]
    assert full.sum() > 10_000
    np.testing.assert_allclose(shares, 19 / 125, rtol=0.12)
    assert shares[:63].mean() == pytest.approx(shares[63:].mean(), rel=0.01)


def test_special_pieces_are_never_chosen(made: tuple[Pairs, Instances]) -> None:
    assert made[1].masked_lm_ids[made[1].masked_lm_weights > 0].min() >= FIRST_ID


@pytest.mark.parametrize("form", ["per_piece", "per_word"])
def test_whole_words_are_chosen_whole(documents: Documents, form: str) -> None:
    instances = create(documents, InstanceConfig(dupe_factor=2, whole_words=form))[1]
    pieces = table(documents)
    before = restored(instances)
    mixed = several = 0
    for row in range(2_000):
        places = instances.masked_lm_positions[row][instances.masked_lm_weights[row] > 0].tolist()
        names = [
            {CLS: "[CLS]", SEP: "[SEP]"}.get(piece, "##x" if pieces.continues[piece] else "x")
            for piece in before[row][instances.input_mask[row]].tolist()
        ]
        words = original.candidates(names, do_whole_word_mask=True)
        assert sorted(places) == places
        for word in words:
            assert len(set(word) & set(places)) in (0, len(word))
            if len(word) > 1 and set(word) <= set(places):
                now, was = instances.input_ids[row, word], before[row, word]
                fates = np.where(now == MASK, 0, np.where(now == was, 1, 2))
                several += 1
                mixed += len(set(fates.tolist())) > 1
    assert several > 5_000
    if form == "per_word":
        assert mixed <= several * 0.001  # any piece of the vocabulary may be the piece itself
    else:
        assert mixed > several * 0.3  # two pieces: 1 - 0.8^2 - 2 * 0.1^2 = 0.34


def test_words_are_the_originals(documents: Documents) -> None:
    generator = np.random.default_rng(2)
    pieces = PieceTable(CLS, SEP, MASK, np.arange(20) >= 15)
    for _ in range(100):
        length_a, length_b = generator.integers(1, 8, 2)
        ids = generator.integers(10, 20, length_a + length_b + 3)
        ids[[0, length_a + 1, -1]] = CLS, SEP, SEP
        names = [{CLS: "[CLS]", SEP: "[SEP]"}.get(i, "##x" if i >= 15 else "x") for i in ids]
        is_token = ids >= 10
        words = number_words(ids[None], is_token[None], "per_piece", pieces)[0]
        found = [
            np.nonzero((words == word) & is_token)[0].tolist() for word in set(words[is_token])
        ]
        assert sorted(found) == original.candidates(names, do_whole_word_mask=True)


def test_words_that_fit_are_the_originals() -> None:
    generator = np.random.default_rng(3)
    sizes = generator.integers(0, 5, (500, 30))
    wanted = generator.integers(1, 40, 500)
    taken = take_that_fit(sizes, wanted)
    for row in range(500):
        ends = np.cumsum(sizes[row]).tolist()
        words = [
            list(range(end - size, end))
            for end, size in zip(ends, sizes[row].tolist(), strict=True)
        ]
        expected = original.chosen([word for word in words if word], int(wanted[row]))
        assert [words[number] for number in np.nonzero(taken[row])[0]] == expected


def test_choice_never_exceeds_the_candidates() -> None:
    words = np.broadcast_to(np.arange(8), (3, 8))
    is_token = np.zeros((3, 8), bool)
    is_token[:, 2:5] = True
    chosen = choose(words, is_token, np.array([2, 3, 7]), "", np.random.default_rng(0))
    assert chosen.sum(axis=1).tolist() == [2, 3, 3]
    assert not chosen[~is_token].any()


# ---------------------------------------------------------------------------- against the original


@pytest.mark.parametrize("whole_words", ["", "per_piece"])
def test_distributions_are_the_originals(whole_words: str) -> None:
    sizes = random_sizes(documents=12, sentences=100, longest=50)
    documents = make_documents(sizes)
    pieces = table(documents)
    names = [f"##{i}" if go_on else f"{i}" for i, go_on in enumerate(pieces.continues)]
    texts = []
    start = FIRST_ID
    for document in sizes:
        texts.append([])
        for length in document:
            texts[-1].append(names[start : start + length])
            start += length
    rng = random.Random(1)
    theirs = [
        instance
        for _ in range(12)
        for number in range(len(texts))
        for instance in original.create_instances_from_document(
            texts, number, 64, 0.0, 0.15, 10, names, rng, bool(whole_words)
        )
    ]
    # No short passes: the instances of one pass share its target, and so are no independent sample.
    config = InstanceConfig(64, 10, 0.15, 0.0, 60, whole_words)
    _, ours = create(documents, config)

    def compare(mine: np.ndarray, reference: list[float]) -> None:
        """Means and variances within four standard errors of the original's sample."""
        center = np.mean(reference)
        for power in (1, 2):
            ours_moved = (mine - center) ** power
            theirs_moved = (np.array(reference) - center) ** power
            error = theirs_moved.std() * np.sqrt((1 + 12 / 60) / len(reference))
            assert abs(ours_moved.mean() - theirs_moved.mean()) <= 4 * error

    lengths = ours.input_mask.sum(axis=1)
    length_b = ours.segment_ids.sum(axis=1)
    weights = ours.masked_lm_weights
    assert len(theirs) > 4_000
    assert len(lengths) / 60 == pytest.approx(len(theirs) / 12, rel=0.02)
    compare(lengths, [len(instance.tokens) for instance in theirs])
    compare(length_b, [sum(instance.segment_ids) for instance in theirs])
    compare(
        ours.next_sentence_labels.astype(float), [instance.is_random_next for instance in theirs]
    )
    compare(weights.sum(axis=1), [len(instance.masked_lm_positions) for instance in theirs])
    compare(
        ours.masked_lm_positions[weights > 0],
        [position for instance in theirs for position in instance.masked_lm_positions],
    )
    continues = pieces.continues[ours.masked_lm_ids[weights > 0]]
    compare(
        continues.astype(float), [i.startswith("##") for t in theirs for i in t.masked_lm_labels]
    )
    masks = ((ours.input_ids == MASK).sum(axis=1) / weights.sum(axis=1))[weights.sum(axis=1) > 0]
    compare(
        masks,
        [t.tokens.count("[MASK]") / len(t.masked_lm_labels) for t in theirs if t.masked_lm_labels],
    )


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_seq_length": 4}, "max_seq_length=4 must be from 5"),
        ({"max_seq_length": 1 << 16}, "65535"),
        ({"max_predictions_per_seq": 0}, "max_predictions_per_seq=0 must be at least 1"),
        ({"dupe_factor": 0}, "dupe_factor=0"),
        ({"masked_lm_prob": 1.0}, "masked_lm_prob=1.0 must be above 0"),
        ({"masked_lm_prob": 0.0}, "masked_lm_prob=0.0 must be above 0"),
        ({"short_seq_prob": -0.1}, "short_seq_prob=-0.1"),
        ({"whole_words": "words"}, "'per_word'"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InstanceConfig(**changes).check()


def test_the_shortest_length_works() -> None:
    documents = make_documents(random_sizes(3, 20))
    instances = create(documents, InstanceConfig(max_seq_length=5))[1]
    assert instances.input_mask.all()
    assert (instances.masked_lm_weights.sum(axis=1) == 1).all()
