"""The official conlleval.pl of CoNLL-2000 in Python, rule by rule, as the Perl program prints.

Ported from the published script (version of 2004-01-26, by Erik Tjong Kim Sang); tests alone use
it, to hold the package's scores to it. Its options (-l, -r, -d, -o) are left out.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence

BOUNDARY = "-X-"


def end_of_chunk(previous: str, tag: str, previous_type: str, type_: str) -> bool:
    pairs = {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O"), ("E", "E"), ("E", "I"), ("E", "O")}
    ends = (previous, tag) in pairs
    if previous not in ("O", ".") and previous_type != type_:
        ends = True
    return ends or previous in ("]", "[")


def start_of_chunk(previous: str, tag: str, previous_type: str, type_: str) -> bool:
    pairs = {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I"), ("E", "E"), ("E", "I"), ("O", "E")}
    starts = (previous, tag) in pairs
    if tag not in ("O", ".") and previous_type != type_:
        starts = True
    return starts or tag in ("]", "[")


def parse(tag: str) -> tuple[str, str]:
    head, hyphen, tail = tag.partition("-")
    return (head, tail) if hyphen else (tag, "")


def percentages(correct: int, guessed: int, found: int) -> tuple[float, float, float]:
    precision = 100 * correct / guessed if guessed > 0 else 0.0
    recall = 100 * correct / found if found > 0 else 0.0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
    return precision, recall, f1


class Counts:
    def __init__(self) -> None:
        self.correct: collections.Counter[str] = collections.Counter()
        self.found: collections.Counter[str] = collections.Counter()
        self.guessed: collections.Counter[str] = collections.Counter()
        self.right_tags = self.tokens = 0


def count(sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> Counts:
    """Chunks of (correct tags, guessed tags) of each sentence."""
    counts = Counts()
    in_correct = False
    last_correct = last_guessed = "O"
    last_correct_type = last_guessed_type = ""
    for correct_tags, guessed_tags in sentences:
        for first, correct_tag, guessed_tag in [
            *(("word", c, g) for c, g in zip(correct_tags, guessed_tags, strict=True)),
            (BOUNDARY, "O", "O"),
        ]:
            guessed, guessed_type = parse(guessed_tag)
            correct, correct_type = parse(correct_tag)
            if first == BOUNDARY:
                guessed = "O"
            correct_ends = end_of_chunk(last_correct, correct, last_correct_type, correct_type)
            guessed_ends = end_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
            correct_starts = start_of_chunk(last_correct, correct, last_correct_type, correct_type)
            guessed_starts = start_of_chunk(last_guessed, guessed, last_guessed_type, guessed_type)
            if in_correct:
                if correct_ends and guessed_ends and last_guessed_type == last_correct_type:
                    in_correct = False
                    counts.correct[last_correct_type] += 1
                elif correct_ends != guessed_ends or guessed_type != correct_type:
                    in_correct = False
            if correct_starts and guessed_starts and guessed_type == correct_type:
                in_correct = True
            counts.found[correct_type] += correct_starts
            counts.guessed[guessed_type] += guessed_starts
            if first != BOUNDARY:
                counts.right_tags += correct == guessed and guessed_type == correct_type
                counts.tokens += 1
            last_correct, last_guessed = correct, guessed
            last_correct_type, last_guessed_type = correct_type, guessed_type
    if in_correct:
        counts.correct[last_correct_type] += 1
    return counts


def report(sentences: Iterable[tuple[Sequence[str], Sequence[str]]]) -> str:
    """What the script prints, without the lines of each type."""
    counts = count(sentences)
    correct, guessed, found = (
        sum(counter.values()) for counter in (counts.correct, counts.guessed, counts.found)
    )
    precision, recall, f1 = percentages(correct, guessed, found)
    accuracy = 100 * counts.right_tags / counts.tokens
    return (
        f"processed {counts.tokens} tokens with {found} phrases; "
        f"found: {guessed} phrases; correct: {correct}.\n"
        f"accuracy: {accuracy:6.2f}%; precision: {precision:6.2f}%; "
        f"recall: {recall:6.2f}%; FB1: {f1:6.2f}\n"
    )
