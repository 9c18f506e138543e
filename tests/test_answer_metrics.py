from __future__ import annotations

import random
from typing import Any

import official_squad
import pytest

from bert_tf import answer_metrics

WORDS = ["the", "a", "An", "cat", "Cat's", "mat", "1,985", "Köln", "…", "theatre", "U.S.", "-", "İ"]


def dataset(answers: list[list[str]]) -> list[Any]:
    """Questions 0, 1, 2, ... with these answers, as the official scripts read them."""
    questions = [
        {"id": str(number), "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for number, texts in enumerate(answers)
    ]
    return [{"paragraphs": [{"qas": questions[:7]}, {"qas": questions[7:]}]}]


def by_id(values: list[Any]) -> dict[str, Any]:
    return {str(number): value for number, value in enumerate(values)}


def some_text(source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(source.randrange(5)))


def near(source: random.Random, answers: list[str]) -> str:
    """Now and then what is right, or a part of it."""
    text = source.choice([*answers, some_text(source)])
    return text if source.random() < 0.5 else text[source.randrange(3) :]


@pytest.mark.parametrize("seed", range(5))
def test_squad_1_is_the_official_script(seed: int) -> None:
    source = random.Random(seed)
    answers = [[some_text(source) for _ in range(source.randrange(1, 4))] for _ in range(200)]
    predictions = [near(source, texts) for texts in answers]
    official = official_squad.evaluate_1(dataset(answers), by_id(predictions))
    measured = answer_metrics.squad_1(predictions, answers)
    assert 20 < official["f1"] < 90
    for name, value in official.items():
        assert 100 * measured[name] == pytest.approx(value, rel=1e-15, abs=0), name


NAMES = {
    "exact": "exact_match",
    "f1": "f1",
    "HasAns_exact": "answerable_exact_match",
    "HasAns_f1": "answerable_f1",
    "NoAns_exact": "unanswerable_exact_match",
    "NoAns_f1": "unanswerable_f1",
    "best_exact": "best_exact_match",
    "best_f1": "best_f1",
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.2, 0.9])
def test_squad_2_is_the_official_script(seed: int, threshold: float) -> None:
    source = random.Random(seed)
    answers = [[some_text(source) for _ in range(source.randrange(4))] for _ in range(200)]
    predictions = [near(source, texts) for texts in answers]
    # Ties, and a hint of whether there is an answer.
    no_answer = [round(source.random() - 0.5 * bool(texts), 1) for texts in answers]
    official = official_squad.evaluate_2(
        dataset(answers), by_id(predictions), by_id(no_answer), threshold
    )
    measured = answer_metrics.squad_2(predictions, answers, no_answer, threshold)
    assert measured.keys() == set(NAMES.values())
    for theirs, ours in NAMES.items():
        assert 100 * measured[ours] == pytest.approx(official[theirs], rel=1e-15, abs=0), ours
    scores = [
        answer_metrics.best_of(answer_metrics.word_f1_or_nothing, text, answer_metrics.right(texts))
        for text, texts in zip(predictions, answers, strict=True)
    ]
    found = answer_metrics.best_threshold(
        predictions, scores, [bool(texts) for texts in answers], no_answer
    )
    assert found[1] == official["best_f1_thresh"]


def test_the_tuned_threshold_reaches_the_best_score_and_stands_between_two_questions() -> None:
    predictions = ["cat", "mat", "sat", "hat"]
    answers = [["cat"], ["mat"], [], ["dog"]]
    no_answer = [-4.0, -1.0, 2.0, 3.0]
    tuned = answer_metrics.tuned_threshold(predictions, answers, no_answer)
    assert tuned == 0.5
    measured = answer_metrics.squad_2(predictions, answers, no_answer, tuned)
    assert measured["f1"] == measured["best_f1"] == 0.75


@pytest.mark.parametrize(
    ("answers", "answered"), [([[], []], 0), ([["cat"], ["mat"]], 2)], ids=["none", "all"]
)
def test_a_threshold_that_answers_nothing_or_everything(
    answers: list[list[str]], answered: int
) -> None:
    no_answer = [-7.5, 3.25]
    tuned = answer_metrics.tuned_threshold(["cat", "mat"], answers, no_answer)
    assert sum(value <= tuned for value in no_answer) == answered


def test_by_hand() -> None:
    assert answer_metrics.normalize_answer(" The  U.S.-an the, theatre ") == "usan theatre"
    assert answer_metrics.word_f1("in the red house", "a red house!") == pytest.approx(0.8)
    assert answer_metrics.word_f1("", "") == 0.0, "as evaluate-v1.1.py"
    assert answer_metrics.word_f1_or_nothing("the", "") == 1.0, "as evaluate-v2.0.py"
    assert answer_metrics.exact_match("The", "a") == 1.0
    assert answer_metrics.squad_1([], []) == {"f1": 0.0, "exact_match": 0.0}
