"""Questions and texts of a few words for the tests, and the tiny run that learns from them."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from bert_tf.config import RunConfig
from tests.tiny_run import tiny_run

FILLERS = ("the", "cat", "dog", "sat", "on", "mat", "ran", "is", "was", "new", "old", "happy")


def write_questions(path: pathlib.Path, count: int, seed: int, unanswerable: bool = False) -> None:
    """A file of SQuAD's form: the colour of the house or of the book, or neither is said."""
    random = np.random.default_rng(seed)
    paragraphs = []
    for number in range(count):
        thing = ("house", "book")[number % 2]
        words = list(random.choice(FILLERS, size=random.integers(0, 30)))
        colour = " ".join(random.choice(("red", "blue", "un un", "d7"), size=2))
        answers = []
        if not (unanswerable and number % 3 == 0):
            words[(place := int(random.integers(0, len(words) + 1))) : place] = [thing, colour]
            start = len(" ".join([*words[: place + 1], ""]))
            answers = [{"text": colour, "answer_start": start}] * 2
        question = {"id": f"{path.stem}-{number}", "question": thing, "answers": answers}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    document = {"version": "tiny", "data": [{"title": "all", "paragraphs": paragraphs}]}
    path.write_text(json.dumps(document))


def tiny_question_run(
    folder: pathlib.Path, no_answer: bool = False, **changes: dict[str, Any]
) -> RunConfig:
    """Settings that train in seconds; most texts need two windows or more."""
    kind = "answers" if not no_answer else "or_none"
    files = {name: folder / f"{kind}_{name}.json" for name in ("train", "dev", "test")}
    for seed, (name, path) in enumerate(files.items()):
        if not path.exists():
            write_questions(path, 40 if name == "train" else 15, seed, no_answer)
    data = {name: str(path) for name, path in files.items()}
    sizes = {"max_seq_length": 24, "max_query_length": 4, "doc_stride": 8}
    values: dict[str, dict[str, Any]] = {
        "data": data | sizes,
        "task": {
            "name": "question_answering",
            "no_answer": no_answer,
            "max_answer_length": 8,
            "n_best": 5,
        },
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return tiny_run(folder, **values)
