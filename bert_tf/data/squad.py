"""Questions about texts: SQuAD 1.1 and 2.0 files (Rajpurkar et al., 2016 and 2018).

`.json` is the form of the official files: articles of paragraphs of questions. `.jsonl` has one
question a line, as Hugging Face's copy of the data set has them: `id`, `question`, `context` and
`answers`, which holds lists `text` and `answer_start`. Positions count code points.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from bert_tf.data.text import Columns, jsonl_rows, place, shorten, similar_file

OFFICIAL_FORM = (
    '{"data": [{"paragraphs": [{"context": "...", "qas": [{"id": "...", "question": "...", '
    '"answers": [{"text": "...", "answer_start": 0}]}]}]}]}'
)


class Answer(NamedTuple):
    """A piece of a context, `context[start : start + len(text)]`."""

    text: str
    start: int


class Question(NamedTuple):
    """One question about one text."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...] | None  # empty: it has no answer; None: nobody says


@dataclasses.dataclass(frozen=True)
class Questions:
    """Questions in the order of their files; Q of them."""

    rows: list[Question]
    source: str  # for messages

    def __len__(self) -> int:
        """Number of questions, Q."""
        return len(self.rows)

    @property
    def have_answers(self) -> bool:
        """Whether every question says what its answers are, or that there is none."""
        return all(row.answers is not None for row in self.rows)

    def check_answerable(self) -> None:
        """Raises ValueError where no question has an answer, as in some published test files."""
        if not any(best_answer(row) for row in self.rows):
            raise ValueError(
                f"{self.source}: none of {len(self)} questions has an answer; take a file with "
                "answers, or set config.task.no_answer=True where there really are none."
            )

    def answerable(self) -> Questions:
        """Without the questions that have no answer in their text; logs how many those are.

        Raises:
            ValueError: none has one.
        """
        self.check_answerable()
        rows = [row for row in self.rows if best_answer(row) is not None]
        if len(rows) < len(self):
            logging.warning(
                "%s: left out %d of %d questions that have no answer; to learn that there is none, "
                "set config.task.no_answer=True.",
                self.source,
                len(self) - len(rows),
                len(self),
            )
        return Questions(rows, self.source)


def best_answer(question: Question) -> Answer | None:
    """What to learn where people answered differently: the most frequent answer, then the first."""
    given = [answer for answer in question.answers or () if answer.text.strip()]
    return collections.Counter(given).most_common(1)[0][0] if given else None


# ------------------------------------------------------------------------------------------ reading


def read_questions(sources: str, require_answers: bool, unique_ids: bool) -> Questions:
    """Reads all questions of comma-separated `.json` and `.jsonl` files.

    Args:
        sources: paths, local or `gs://`.
        require_answers: False where there may be none, as in test files.
        unique_ids: False where an id may stand for several questions, as in training files.

    Raises:
        ValueError: these questions are not there; names the file, the question and the remedy.
    """
    rows: list[Question] = []
    seen: set[str] = set()
    for path in (name.strip() for name in sources.split(",")):
        found = [checked(row, where) for where, row in file_questions(path)]
        if not found:
            raise ValueError(f"{path} holds no questions; is it the right file?")
        for row in found:
            if unique_ids and row.id in seen:
                raise ValueError(
                    f"{path}: two questions have the id {row.id!r}; predictions and scores go by "
                    "id, so give each its own."
                )
            if require_answers and row.answers is None:
                raise ValueError(
                    f"{path}: question {row.id!r} has no `answers`; add them, or [] where the text "
                    "holds none."
                )
            seen.add(row.id)
        rows += found
    return Questions(rows, sources)


def file_questions(path: str) -> Iterator[tuple[str, Question]]:
    """The questions of a file, each with its place for messages."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".json", ".jsonl"):
        raise ValueError(
            f"{path!r} must end in .json (the form of SQuAD's files) or .jsonl (one question a "
            "line), which says how to read it."
        )
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(f"{path} is not a file.{similar_file(path)}")
    return jsonl_questions(path) if ending == ".jsonl" else json_questions(path)


def json_questions(path: str) -> Iterator[tuple[str, Question]]:
    """Questions of a file of the official form."""
    articles = member(read_document(path), "data", list, path)
    for number, article in enumerate(articles, start=1):
        where = f"{path}, article {number}"
        for count, paragraph in enumerate(member(article, "paragraphs", list, where), start=1):
            where = f"{path}, article {number}, paragraph {count}"
            context = member(paragraph, "context", str, where)
            for entry in member(paragraph, "qas", list, where):
                yield question_of(entry, context, where)


def read_document(path: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a whole JSON file; raises ValueError naming the place of a mistake."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        hint = " One JSON object a line is .jsonl." if "Extra data" in error.msg else ""
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: this is not JSON ({error.msg}); "
            f"fetch the file again, or correct it.{hint}"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte 0x{error.object[error.start]:02x} at position {error.start} is not "
            f"UTF-8 ({error.reason}); save the file as UTF-8."
        ) from None
    except tf.errors.OpError as error:
        raise ValueError(f"{path} cannot be read: {error.message}") from None


def jsonl_questions(path: str) -> Iterator[tuple[str, Question]]:
    """Questions of a file with one object a line."""
    for line, row in jsonl_rows(path, Columns("")):
        where = place(path, line)
        yield question_of(row, member(row, "context", str, where), where)


def question_of(entry: Any, context: str, where: str) -> tuple[str, Question]:  # noqa: ANN401
    """A question from its JSON object, and its place: from here on its id names it."""
    number = member(entry, "id", (str, int), where)
    where = f"{where}, question {str(number)!r}"
    question = member(entry, "question", str, where)
    answers: tuple[Answer, ...] | None = None
    if entry.get("is_impossible"):
        answers = ()  # what SQuAD 2.0 calls `plausible_answers` are none
    elif "answers" in entry:
        answers = answers_of(entry["answers"], where)
    return where, Question(str(number), question, context, answers)


def answers_of(answers: Any, where: str) -> tuple[Answer, ...]:  # noqa: ANN401 - any JSON value
    """Answers from a list of objects, or from an object of lists."""
    if isinstance(answers, dict):
        texts = member(answers, "text", list, f"{where}, answers")
        starts = member(answers, "answer_start", list, f"{where}, answers")
        if len(texts) != len(starts):
            raise ValueError(
                f"{where}: {len(texts)} answer texts and {len(starts)} answer_start; give each "
                "text its own."
            )
        answers = [
            {"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)
        ]
    if not isinstance(answers, list):
        raise ValueError(f"{where}: `answers` holds {shorten(answers)}, which is no list.")
    return tuple(
        Answer(member(answer, "text", str, where), member(answer, "answer_start", int, where))
        for answer in answers
    )


def member(container: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:  # noqa: ANN401
    """The member of a JSON object; raises ValueError where it is missing or of another type."""
    if not isinstance(container, dict) or name not in container:
        held = ", ".join(map(shorten, container)) if isinstance(container, dict) else ""
        held = f"only {held}" if held else shorten(container)
        raise ValueError(f"{where} has no {name!r}, {held}; SQuAD's files are {OFFICIAL_FORM}.")
    value = container[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(
            f"{where}: {name!r} holds {shorten(value)}, a {type(value).__name__}; SQuAD's files "
            f"are {OFFICIAL_FORM}."
        )
    return value


def checked(row: Question, where: str) -> Question:
    """The question, where its texts are text and its answers stand where they say.

    An answer without text is none (some files write one where they found nothing).

    Raises:
        ValueError: naming the question.
    """
    for name in ("question", "context"):
        text = getattr(row, name)
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, "\ud83d"
            raise ValueError(
                f"{where}: `{name}` holds {shorten(text[error.start :])}, which is not valid "
                f"Unicode ({error.reason}); correct the escape sequence."
            ) from None
    for answer in row.answers or ():
        found = row.context[max(answer.start, 0) : max(answer.start, 0) + len(answer.text)]
        if found == answer.text and answer.start >= 0:
            continue
        elsewhere = row.context.find(answer.text)
        remedy = (
            f"it stands at {elsewhere}: correct answer_start, which counts characters from 0"
            if elsewhere >= 0
            else "it is nowhere in the context: correct its text"
        )
        raise ValueError(
            f"{where}: the answer {shorten(answer.text)} is not at answer_start={answer.start} of "
            f"its context (there is {shorten(found)}); {remedy}."
        )
    return row
