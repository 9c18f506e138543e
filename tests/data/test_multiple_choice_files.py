"""Files of multiple choice: what is read, what is refused, and the batches they become."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from bert_tf.config import DataConfig
from bert_tf.data import batches
from bert_tf.data.multiple_choice import ChoiceExamples, read_choices, tokenize_choices
from bert_tf.tokenization import Tokenizer
from tests.tiny_run import CHECKPOINT

ENDINGS = "ending0,ending1,ending2,ending3"
SWAG = """,video-id,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label
0,a_1,The cat sat. It,The cat sat.,It,gold,"ran, then sat.",is red.,was new.,reads.,2
1,a_2,A dog ran. Then it,A dog ran.,Then it,gen,sat.,was a house.,is old.,read a book.,0
"""
IN_SWAG = DataConfig(text_a="sent1", text_b="sent2", choices=ENDINGS)
IN_JSON = DataConfig(text_a="context", text_b="question")


def written(path: pathlib.Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def example(**changes: Any) -> dict[str, Any]:
    row = {"context": "the cat", "question": "is it", "choices": ["red", "old"], "label": 1}
    return row | changes


def test_the_columns_of_swag(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text(SWAG)
    texts = read_choices(str(path), IN_SWAG)
    assert (len(texts), texts.num_choices) == (2, 4)
    assert texts.contexts == [b"The cat sat.", b"A dog ran."]
    assert texts.starts == [b"It", b"Then it"]
    assert texts.choices[0] == [b"ran, then sat.", b"is red.", b"was new.", b"reads."]
    assert texts.labels == [2, 0]
    whole = DataConfig(text_a="startphrase", choices=ENDINGS, label="absent")
    texts = read_choices(str(path), whole, require_labels=False)
    assert texts.contexts[1] == b"A dog ran. Then it"
    assert texts.starts is None
    assert texts.labels is None


@pytest.mark.parametrize(
    ("choices", "label", "number"),
    [
        (["red", "old"], 1, 1),
        (["red", "old"], "1", 1),
        (["red", "old"], "old", 1),
        (["red", " old "], "old ", 1),
        (["7", "1", "é"], "é", 2),
        (["7", "1", "x"], "1", 1),
        (["7", "1", "x"], "7", 0),
        (["1", "0"], 1, 1),
    ],
)
def test_a_label_is_the_number_or_the_text_of_a_choice(
    tmp_path: pathlib.Path, choices: list[str], label: Any, number: int
) -> None:
    path = written(tmp_path / "a.jsonl", example(choices=choices, label=label))
    assert read_choices(path, IN_JSON).labels == [number]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"choices": ["a", "b", "c"]}, ("line 2: 3 choices where the first example has 2",)),
        ({"choices": ["a"]}, ("line 2: 1 choice(s); an example needs at least 2",)),
        ({"choices": "a"}, ("line 2", "holds 'a', which is not a list", "config.data.choices")),
        ({"choices": ["a", 3]}, ("line 2: column 'choices' holds 3, which is not text",)),
        ({"label": 2}, ("line 2: the label 2 is no choice", "from 0 to 1")),
        ({"label": -1}, ("line 2: the label -1 is no choice", "from 0 to 1")),
        ({"label": "3"}, ("line 2: the label 3 is no choice",)),
        ({"label": "rad"}, ("line 2: the label 'rad' is neither", "(0 to 1)", "'red', 'old'")),
        ({"label": True}, ("line 2: the label True is neither",)),
        ({"label": None}, ("line 2: the label None is neither",)),
        ({"choices": ["x", "x"], "label": "x"}, ("line 2", "could mean several choices")),
        ({"choices": ["1", "0"], "label": "1"}, ("line 2", "could mean several choices", "0 to 1")),
        ({"context": 5}, ("line 2: column 'context' holds 5",)),
    ],
)
def test_a_bad_example_is_named(
    tmp_path: pathlib.Path, changes: dict[str, Any], parts: tuple[str, ...]
) -> None:
    path = written(tmp_path / "bad.jsonl", example(), example(**changes))
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 2") as caught:
        read_choices(path, IN_JSON)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (DataConfig(text_a="sent1", choices="ending0,endin1"), r"no column 'endin1'.*'ending1'\?"),
        (DataConfig(text_a="sent1"), r"no column 'choices' \(config.data.choices='choices'\)"),
        (DataConfig(text_a="sent", choices=ENDINGS), r"no column 'sent' \(config.data.text_a\)"),
        (DataConfig(text_a="sent1", choices=ENDINGS, label="l"), r"no column 'l' \(config.data.la"),
        (
            DataConfig(text_a="sent1", choices="ending0,ending0"),
            "names the column 'ending0' .*twice",
        ),
        (DataConfig(text_a="sent1", choices="ending0"), "line 2: .*not a list of choices"),
    ],
)
def test_missing_columns_are_named(tmp_path: pathlib.Path, data: DataConfig, message: str) -> None:
    path = tmp_path / "swag.csv"
    path.write_text(SWAG)
    with pytest.raises(ValueError, match=message):
        read_choices(str(path), data)


@pytest.mark.parametrize("content", ["", SWAG.splitlines()[0] + "\n"])
def test_empty_files(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "empty.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"empty\.csv (is empty|holds no examples)"):
        read_choices(str(path), IN_SWAG)


# ---------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> ChoiceExamples:
    rows = [
        example(choices=["red", "old book on mat"], label=0),
        example(context="the dog ran on the mat", choices=["is", "was"], label=1),
        example(context="cat", choices=["", "new"], label=1),
    ]
    path = written(tmp_path_factory.mktemp("choices") / "a.jsonl", *rows)
    return tokenize_choices(Tokenizer.load(str(CHECKPOINT)), read_choices(path, IN_JSON), 16)


def test_every_choice_is_a_pair_with_the_start(examples: ChoiceExamples) -> None:
    tokenizer = Tokenizer.load(str(CHECKPOINT))
    assert len(examples) == 3
    splits = examples.row_splits
    assert len(splits) == 7
    second = slice(splits[1], splits[2])
    context, choice = tokenizer(["the cat", "is it old book on mat"]).to_list()
    expected = [tokenizer.cls_id, *context, tokenizer.sep_id, *choice, tokenizer.sep_id]
    assert examples.token_ids[second].tolist() == expected
    segments = [0] * (len(context) + 2) + [1] * (len(choice) + 1)
    assert examples.segment_ids[second].tolist() == segments
    np.testing.assert_array_equal(
        examples.lengths, np.diff(splits).reshape(3, 2).max(axis=1), "the longer choice counts"
    )


@pytest.mark.parametrize("static", [False, True])
def test_all_choices_of_an_example_stay_together(examples: ChoiceExamples, static: bool) -> None:
    rows = np.array([[2, 0], [1, batches.NOT_AN_EXAMPLE]])
    planned = [batches.Batch(16, each) for each in rows]
    dataset = batches.dataset(examples, planned, static)
    assert dataset.element_spec["token_ids"].shape == [2, 2, 16 if static else None]
    for batch, of_batch in zip(dataset.as_numpy_iterator(), rows, strict=True):
        assert batch["mask"].shape == (2, 2, 16)
        np.testing.assert_array_equal(batch["example"], of_batch)
        np.testing.assert_array_equal(batch["weight"], of_batch >= 0)
        for place, row in enumerate(of_batch):
            for choice in range(2):
                start, end = examples.row_splits[2 * row + choice :][:2] if row >= 0 else (0, 0)
                ids = examples.token_ids[start:end]
                padding = (0, 16 - len(ids))
                np.testing.assert_array_equal(
                    batch["token_ids"][place, choice], np.pad(ids, padding)
                )
                np.testing.assert_array_equal(
                    batch["mask"][place, choice], np.pad(np.ones_like(ids), padding)
                )
    assert batch["label"].tolist() == [1, 0]
