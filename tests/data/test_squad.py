from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from bert_tf.data.squad import Answer, Question, best_answer, read_questions

CONTEXT = "Köln 🙂 was built in 1985."
QUESTION = {
    "id": "q1",
    "question": "When?",
    "answers": [{"text": "1985", "answer_start": 20}, {"text": "in 1985", "answer_start": 17}],
}


def document(*questions: dict[str, Any], context: Any = CONTEXT) -> dict[str, Any]:
    return {"version": "1.1", "data": [{"paragraphs": [{"context": context, "qas": questions}]}]}


def write(path: pathlib.Path, value: Any) -> str:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


def read(path: str, require_answers: bool = True, unique_ids: bool = True) -> list[Question]:
    return read_questions(path, require_answers, unique_ids).rows


def test_the_official_form(tmp_path: pathlib.Path) -> None:
    impossible = {
        "id": 7,
        "question": "",
        "is_impossible": True,
        "answers": [],
        "plausible_answers": [{"text": "Köln", "answer_start": 0}],
    }
    path = write(tmp_path / "a.json", document(QUESTION, impossible))
    assert read(path) == [
        Question("q1", "When?", CONTEXT, (Answer("1985", 20), Answer("in 1985", 17))),
        Question("7", "", CONTEXT, ()),
    ]


def test_a_byte_order_mark_is_no_mistake(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.json", "\ufeff" + json.dumps(document(QUESTION)))
    assert len(read(path)) == 1


def test_one_question_a_line(tmp_path: pathlib.Path) -> None:
    lines = [
        {"id": "a", "question": "When?", "context": CONTEXT}
        | {"answers": {"text": ["1985"], "answer_start": [20]}},
        {"id": "b", "question": "When?", "context": "", "answers": []},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(json.dumps(line) for line in lines))
    assert [row.answers for row in read(path)] == [(Answer("1985", 20),), ()]


def test_several_files_in_their_order(tmp_path: pathlib.Path) -> None:
    first = write(tmp_path / "a.json", document(QUESTION))
    second = write(tmp_path / "b.json", document(QUESTION | {"id": "q2"}))
    assert [row.id for row in read(f"{second}, {first}")] == ["q2", "q1"]


def test_files_without_answers(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.json", document({"id": "q1", "question": "When?"}))
    questions = read_questions(path, require_answers=False, unique_ids=True)
    assert questions.rows[0].answers is None
    assert not questions.have_answers
    with pytest.raises(ValueError, match="question 'q1' has no `answers`"):
        read(path)


def test_the_most_frequent_answer_is_learnt_and_the_first_of_equals() -> None:
    one, two, none = Answer("in", 17), Answer("1985", 20), Answer(" ", 4)
    assert best_answer(Question("a", "", CONTEXT, (one, none, two, none, none))) == one
    assert best_answer(Question("a", "", CONTEXT, (one, two, none, two))) == two
    assert best_answer(Question("a", "", CONTEXT, (none,))) is None


def test_questions_without_an_answer_can_be_left_out(tmp_path: pathlib.Path) -> None:
    empty = {"id": "q2", "question": "", "answers": [{"text": "", "answer_start": 0}]}
    path = write(tmp_path / "a.json", document(QUESTION, empty))
    kept = read_questions(path, True, True).answerable()
    assert [row.id for row in kept.rows] == ["q1"]
    blind = write(tmp_path / "b.json", document(empty))
    with pytest.raises(ValueError, match="none of 1 questions has an answer"):
        read_questions(blind, True, True).answerable()


def test_training_files_may_repeat_ids(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "a.json", document(QUESTION, QUESTION))
    assert len(read(path, unique_ids=False)) == 2
    with pytest.raises(ValueError, match="two questions have the id 'q1'"):
        read(path)


def wrong(**changes: Any) -> dict[str, Any]:
    return document(QUESTION | changes)


BAD = {
    "answer elsewhere": (
        wrong(answers=[{"text": "1985", "answer_start": 3}]),
        ["question 'q1'", "'1985'", "answer_start=3", "'n 🙂 '", "stands at 20"],
    ),
    "answer nowhere": (
        wrong(answers=[{"text": "1986", "answer_start": 20}]),
        ["question 'q1'", "'1986'", "nowhere in the context"],
    ),
    "negative place": (
        wrong(answers=[{"text": "", "answer_start": -1}]),
        ["question 'q1'", "answer_start=-1"],
    ),
    "beyond the end": (
        wrong(answers=[{"text": "1985", "answer_start": 10**12}]),
        ["question 'q1'", "there is ''"],
    ),
    "text for a number": (
        wrong(answers=[{"text": "1985", "answer_start": "20"}]),
        ["question 'q1'", "'answer_start' holds '20', a str"],
    ),
    "answers of another kind": (wrong(answers="1985"), ["question 'q1'", "which is no list"]),
    "no question": (document({"id": "q1"}), ["question 'q1'", "no 'question'", "only 'id'"]),
    "no id": (document({"question": "When?"}), ["article 1, paragraph 1", "no 'id'"]),
    "context of another kind": (
        document(QUESTION, context=None),
        ["article 1, paragraph 1", "'context' holds None"],
    ),
    "half of a surrogate pair": (
        wrong(question="When\ud83d?"),
        ["question 'q1'", "`question`", "not valid Unicode"],
    ),
    "no articles": ({"version": "1.1"}, ["no 'data'", "only 'version'"]),
    "a list": ([QUESTION], ["no 'data'", '{"data": [{"paragraphs"']),
    "no questions": ({"data": []}, ["holds no questions"]),
    "cut off": ('{"data": [\n{"paragraphs"', ["line 2, column", "not JSON"]),
    "lines": ('{"id": "a"}\n{"id": "b"}', ["not JSON", "is .jsonl"]),
    "empty": ("", ["not JSON"]),
}


@pytest.mark.parametrize("name", BAD)
def test_mistakes_are_named(tmp_path: pathlib.Path, name: str) -> None:
    value, parts = BAD[name]
    path = write(tmp_path / "bad.json", value)
    with pytest.raises(ValueError, match=r"bad\.json") as caught:
        read(path)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_lines_are_named(tmp_path: pathlib.Path) -> None:
    good = {"id": "a", "question": "When?", "context": CONTEXT, "answers": []}
    uneven = good | {"answers": {"text": ["1985"], "answer_start": []}}
    path = write(tmp_path / "a.jsonl", f"{json.dumps(good)}\n{json.dumps(uneven)}\n")
    with pytest.raises(ValueError, match=r"line 2, question 'a': 1 answer texts and 0"):
        read(path, unique_ids=False)


def test_mistakes_in_names_and_bytes(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "train.json", document(QUESTION))
    with pytest.raises(ValueError, match=r"is not a file\. Did you mean 'train.json'"):
        read(str(tmp_path / "trian.json"))
    with pytest.raises(ValueError, match=r"must end in \.json"):
        read("tfds:squad/train")
    (tmp_path / "a.json").write_bytes(b'{"data": "caf\xe9"}')
    with pytest.raises(ValueError, match=r"byte 0xe9 at position 13 is not UTF-8"):
        read(str(tmp_path / "a.json"))
