"""Exact match and F1 of answers, as the official scripts of SQuAD 1.1 and 2.0 compute them.

Every sum runs in the order of those scripts, so that even the last printed digit is theirs; scores
are shares here and per cent there. Legend: Q questions.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Callable, Sequence

PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")

Score = Callable[[str, str], float]  # of a prediction against one right answer


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation, articles and superfluous white space."""
    letters = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", letters).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both are the same after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(answer))


def word_f1(prediction: str, answer: str) -> float:
    """F1 of the words that both share (SQuAD 1.1): 0 where either has none."""
    predicted, right = normalize_answer(prediction).split(), normalize_answer(answer).split()
    common = (collections.Counter(predicted) & collections.Counter(right)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(right)
    return (2 * precision * recall) / (precision + recall)


def word_f1_or_nothing(prediction: str, answer: str) -> float:
    """The same with SQuAD 2.0's rule: no words is right where the answer has none either."""
    predicted, right = normalize_answer(prediction), normalize_answer(answer)
    if not predicted or not right:
        return float(predicted == right)
    return word_f1(prediction, answer)


def best_of(score: Score, prediction: str, answers: Sequence[str]) -> float:
    """The score against the answer that it fits best; [] is the answer ""."""
    return max(score(prediction, answer) for answer in answers or [""])


def mean(values: Sequence[float]) -> float:
    """As the scripts sum it up, from the left; 0 of nothing."""
    return sum(values) / max(len(values), 1)


def squad_1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """`f1` and `exact_match` of evaluate-v1.1.py: one prediction and the right answers each [Q]."""
    pairs = list(zip(predictions, answers, strict=True))
    return {
        "f1": mean([best_of(word_f1, *pair) for pair in pairs]),
        "exact_match": mean([best_of(exact_match, *pair) for pair in pairs]),
    }


def squad_2(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    no_answer: Sequence[float],
    threshold: float,
) -> dict[str, float]:
    """What evaluate-v2.0.py prints, from predictions that are answers even where there may be none.

    Args:
        predictions: the likeliest answer to each question, [Q].
        answers: the right answers, [Q]; [] where there is none.
        no_answer: how likely it is that there is none, on any scale, [Q].
        threshold: above it the answer is "".

    Returns:
        `f1` and `exact_match` with that threshold, the same of questions with an answer
        (`answerable_f1`...) and without (`unanswerable_f1`...), and `best_f1` and
        `best_exact_match`: with the threshold that is best for each.
    """
    scores: dict[str, float] = {}
    for name, score in (("f1", word_f1_or_nothing), ("exact_match", exact_match)):
        pairs = list(zip(predictions, answers, strict=True))
        raw = [best_of(score, prediction, right(texts)) for prediction, texts in pairs]
        # Above the threshold "" is said, which is right where there is no answer.
        final = [
            float(not texts) if odds > threshold else value
            for value, texts, odds in zip(raw, answers, no_answer, strict=True)
        ]
        has_answer = [bool(texts) for texts in answers]
        kinds = list(zip(final, has_answer, strict=True))
        scores[name] = mean(final)
        scores[f"best_{name}"] = best_threshold(predictions, raw, has_answer, no_answer)[0]
        scores[f"answerable_{name}"] = mean([value for value, has in kinds if has])
        scores[f"unanswerable_{name}"] = mean([value for value, has in kinds if not has])
    return scores


def right(answers: Sequence[str]) -> list[str]:
    """The answers that have words."""
    return [answer for answer in answers if normalize_answer(answer)]


def best_threshold(
    predictions: Sequence[str],
    scores: Sequence[float],
    has_answer: Sequence[bool],
    no_answer: Sequence[float],
) -> tuple[float, float | None]:
    """The best mean score that a threshold on `no_answer` reaches, [Q] each.

    As `find_best_thresh` of evaluate-v2.0.py: answers are said from the surest on, the mean is
    looked at after each, and the first best one counts.

    Returns:
        The mean, and the `no_answer` of the last question that is answered there; None where it is
        best to answer none.
    """
    current = best = float(sum(not has for has in has_answer))
    threshold: float | None = None
    for number in sorted(range(len(no_answer)), key=lambda number: no_answer[number]):
        if has_answer[number]:
            current += scores[number]
        elif predictions[number]:
            current -= 1
        if current > best:
            best, threshold = current, no_answer[number]
    return best / max(len(scores), 1), threshold


def tuned_threshold(
    predictions: Sequence[str], answers: Sequence[Sequence[str]], no_answer: Sequence[float]
) -> float:
    """The threshold that is best for F1, half-way to the next question: safe from rounding.

    Arguments are those of `squad_2`.
    """
    pairs = zip(predictions, answers, strict=True)
    scores = [best_of(word_f1_or_nothing, prediction, right(texts)) for prediction, texts in pairs]
    has_answer = [bool(texts) for texts in answers]
    threshold = best_threshold(predictions, scores, has_answer, no_answer)[1]
    if threshold is None:
        return min(no_answer, default=0.0) - 1.0
    following = [value for value in no_answer if value > threshold]
    return (threshold + min(following)) / 2 if following else threshold + 1.0
