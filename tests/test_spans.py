"""Spans and their scores: equal to conlleval (a port of the official script) and to seqeval."""

from __future__ import annotations

import random
import warnings

import conlleval
import pytest
from seqeval import metrics as seqeval_metrics

from bert_tf.spans import find_spans, is_span_tag, span_scores, to_iob2

IOB2 = ["O", "B-PER", "I-PER", "O", "B-LO", "B-LO", "I-LO", "I-LO", "O", "B-PER", "B-LO"]
SCHEMES = {
    "IOB2": IOB2,
    "IOB1": ["O", "I-PER", "I-PER", "O", "I-LO", "B-LO", "I-LO", "I-LO", "O", "I-PER", "I-LO"],
    "BIOES": ["O", "B-PER", "E-PER", "O", "S-LO", "B-LO", "I-LO", "E-LO", "O", "S-PER", "S-LO"],
    "BILOU": ["O", "B-PER", "L-PER", "O", "U-LO", "B-LO", "I-LO", "L-LO", "O", "U-PER", "U-LO"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_becomes_iob2(scheme: str) -> None:
    assert to_iob2(SCHEMES[scheme]) == IOB2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("I-A I-A", "B-A I-A"),
        ("B-A I-B I-B", "B-A B-B I-B"),
        ("E-A E-A", "B-A B-A"),
        ("B-A E-A I-A", "B-A I-A B-A"),
        ("S-A I-A", "B-A B-A"),
        ("B-creative-work I-creative-work", "B-creative-work I-creative-work"),
        ("", ""),
    ],
)
def test_ill_formed_sequences_have_spans_as_conlleval_reads_them(given: str, expected: str) -> None:
    assert to_iob2(given.split()) == expected.split()


def test_find_spans() -> None:
    spans = [tuple(span) for span in find_spans(IOB2)]
    assert spans == [("PER", 1, 3), ("LO", 4, 5), ("LO", 5, 8), ("PER", 9, 10), ("LO", 10, 11)]
    assert not find_spans(["O", "O"])


def test_tags_of_spans_are_told_from_others() -> None:
    assert all(is_span_tag(tag) for tag in ["O", "B-PER", "I-a-b", "S-x", "U-x"])
    assert not any(is_span_tag(tag) for tag in ["NN", "PER", "B", "X-PER", "-LRB-", ""])


def random_tags(generator: random.Random, prefixes: str) -> list[list[str]]:
    """Sentences of any tags at all: most are well-formed in no scheme."""
    return [
        [
            "O" if generator.random() < 0.3 else f"{generator.choice(prefixes)}-{kind}"
            for kind in generator.choices(["PER", "LOC", "a-b"], k=generator.randint(0, 9))
        ]
        for _ in range(generator.randint(1, 12))
    ]


def alike(generator: random.Random, sentences: list[list[str]], prefixes: str) -> list[list[str]]:
    """The same with a few other tags, so that many spans agree."""
    return [
        [
            tag if generator.random() < 0.8 else generator.choice(["O", f"{prefixes[0]}-PER"])
            for tag in tags
        ]
        for tags in sentences
    ]


@pytest.mark.parametrize("prefixes", ["BI", "I", "IE"])  # those that conlleval was written for
def test_scores_are_those_of_conlleval_to_the_printed_digit(prefixes: str) -> None:
    generator = random.Random(5)
    seen = set()
    for _ in range(300):
        labels = random_tags(generator, prefixes)
        predictions = alike(generator, labels, prefixes)
        if not any(labels):
            continue
        scores = span_scores(labels, predictions)
        printed = conlleval.report(zip(labels, predictions, strict=True))
        expected = (
            f"precision: {100 * scores['precision']:6.2f}%; "
            f"recall: {100 * scores['recall']:6.2f}%; FB1: {100 * scores['f1']:6.2f}\n"
        )
        assert printed.endswith(expected), (labels, predictions)
        seen.add(round(scores["f1"], 3))
    assert len(seen) > 50, "scores must differ for this test to mean much"


@pytest.mark.parametrize("prefixes", ["BI", "BIE", "BIES", "I"])
def test_scores_are_those_of_seqeval(prefixes: str) -> None:
    """Of its default mode, on sequences of any kind; strict=True counts well-formed spans only."""
    generator = random.Random(6)
    for _ in range(200):
        labels = random_tags(generator, prefixes)
        predictions = alike(generator, labels, prefixes)
        scores = span_scores(labels, predictions)
        for name, score in scores.items():
            measure = getattr(seqeval_metrics, f"{name}_score")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = measure(labels, predictions, zero_division=0)
            assert score == pytest.approx(expected, abs=1e-12), name


def test_scores_of_nothing() -> None:
    nothing = {"f1": 0.0, "precision": 0.0, "recall": 0.0}
    assert span_scores([["O"], []], [["O"], []]) == nothing
    assert span_scores([["B-A"]], [["O"]]) == nothing
    assert span_scores([["O"]], [["B-A"]]) == nothing
    with pytest.raises(ValueError, match="1 tags for a text of 2 words"):
        span_scores([["O", "O"]], [["O"]])


def test_a_span_does_not_reach_into_the_next_text() -> None:
    scores = span_scores([["B-A"], ["I-A"]], [["B-A"], ["O"]])
    assert scores["recall"] == 0.5
    assert scores["precision"] == 1.0
