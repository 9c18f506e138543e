"""Spans of words and the tags that write them down, by the rules of the official conlleval script.

A tag is `O` or a prefix and a type, such as `B-person`. Corpora use the prefixes in four ways:
IOB2 (B begins every span), IOB1 (B only where a span touches another of its type), BIOES and its
twin BILOU (with letters for the last word of a span and for spans of one word). conlleval's rule of
where a span begins covers all of them, and sequences that are well-formed in none: so everything
that is read becomes IOB2 by that rule, and no setting is needed. What conlleval, written for B, I
and E, does not know is done as seqeval does it: S and U are spans of one word, and B begins a span
behind an E of its type, too (conlleval joins those two).

Legend: E texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
BEGINNING = ("B", "S", "U")
CLOSING = (OUTSIDE, "E", "L", "S", "U")  # behind these every tag begins a span
PREFIXES = ("B", "I", "E", "S", "L", "U")


class Span(NamedTuple):
    """Words `start` to `end` (exclusive) of one text."""

    label: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type; types may hold hyphens."""
    prefix, _, label = tag.partition("-")
    return prefix, label


def is_span_tag(tag: str) -> bool:
    """Whether the tag is `O` or has the prefix of a span."""
    return tag == OUTSIDE or (split_tag(tag)[0] in PREFIXES and "-" in tag)


def to_iob2(tags: Iterable[str]) -> list[str]:
    """The tags of one text as IOB2, from any scheme."""
    converted = []
    prefix_before, label_before = OUTSIDE, ""
    for tag in tags:
        prefix, label = split_tag(tag)
        begins = prefix in BEGINNING or prefix_before in CLOSING or label != label_before
        converted.append(OUTSIDE if prefix == OUTSIDE else f"{'B' if begins else 'I'}-{label}")
        prefix_before, label_before = prefix, label
    return converted


def find_spans(tags: Iterable[str]) -> list[Span]:
    """The spans of one text, in order; an I without a B in front of it begins one."""
    spans: list[Span] = []
    for place, tag in enumerate(to_iob2(tags)):
        prefix, label = split_tag(tag)
        if prefix == "B":
            spans.append(Span(label, place, place + 1))
        elif prefix == "I":
            spans[-1] = spans[-1]._replace(end=place + 1)
    return spans


def span_scores(
    labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]
) -> dict[str, float]:
    """`f1`, `precision` and `recall` of whole spans, all types counted together (micro average).

    A span counts where type, first and last word are right. The numbers are those of conlleval.pl,
    as fractions, and of seqeval in its default mode; 0 where nothing was found or is there. (Tests
    hold them to seqeval, which needs a build from source and rounds otherwise than conlleval.)

    Args:
        labels: the tags of each text, E of them.
        predictions: the same.

    Raises:
        ValueError: the two differ in number.
    """
    right = found = there = 0
    for of_text, predicted in zip(labels, predictions, strict=True):
        if len(of_text) != len(predicted):
            raise ValueError(f"{len(predicted)} tags for a text of {len(of_text)} words.")
        expected, answered = set(find_spans(of_text)), set(find_spans(predicted))
        right += len(expected & answered)
        found += len(answered)
        there += len(expected)
    # In per cent, as conlleval computes them: ties in the last printed digit then round alike.
    precision, recall = 100 * right / max(found, 1), 100 * right / max(there, 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1 / 100, "precision": precision / 100, "recall": recall / 100}
