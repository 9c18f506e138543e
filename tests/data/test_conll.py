from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from bert_tf.config import DataConfig
from bert_tf.data.conll import read_tagged
from bert_tf.spans import Span

COLUMNS = DataConfig()
WORD_AND_TAG = [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter"], ["B-PER"])]


def read(path: pathlib.Path, content: str, data: DataConfig = COLUMNS, labels: bool = True) -> Any:
    path.write_text(content, "utf-8")
    return read_tagged(str(path), data, labels)


def pairs(found: Any) -> list[tuple[list[str], list[str] | None]]:
    return [(each.words, each.tags) for each in found.words]


@pytest.mark.parametrize(
    "content",
    [
        "EU\tB-ORG\nrejects\tO\n\nPeter\tB-PER\n",
        "EU B-ORG\nrejects O\n\n\nPeter B-PER",
        "\ufeffEU\tB-ORG\r\nrejects\tO\r\n\t\r\nPeter\tB-PER\r\n",
        "-DOCSTART- -X- O\n\nEU NNP I-ORG\nrejects VBZ O\n\nPeter NNP I-PER\n",
        "EU   NNP   S-ORG\nrejects VBZ O\n-DOCSTART-\nPeter NNP S-PER\n",
        "# a comment\nEU\tB-ORG\nrejects\tO\n\n# another one\nPeter\tB-PER\n",
    ],
)
def test_columns(tmp_path: pathlib.Path, content: str) -> None:
    assert pairs(read(tmp_path / "a.conll", content)) == WORD_AND_TAG


def test_any_column_of_conll_u(tmp_path: pathlib.Path) -> None:
    lines = [
        "# text = a b c d e",
        "1-2\tdu\t_\t_",
        "1\tde\tde\tADP",
        "2\tle\tle\tDET",
        "2.1\tx\tx\tX",
    ]
    data = DataConfig(text_a="1", label="3")
    assert pairs(read(tmp_path / "a.conllu", "\n".join(lines), data)) == [
        (["de", "le"], ["ADP", "DET"])
    ]
    data = DataConfig(text_a="1", label="-2")
    assert pairs(read(tmp_path / "a.conllu", "\n".join(lines), data))[0][1] == ["de", "le"]


def test_words_may_begin_with_a_number_sign(tmp_path: pathlib.Path) -> None:
    found = read(tmp_path / "a.conll", "#\tO\n#tag\tB-x\n\n#\tO\n")
    assert [each.words for each in found.words] == [["#", "#tag"], ["#"]]


def test_words_without_tags(tmp_path: pathlib.Path) -> None:
    found = read(tmp_path / "a.txt", "EU\nrejects\n\nPeter\n", labels=False)
    assert pairs(found) == [(["EU", "rejects"], None), (["Peter"], None)]


def test_parts_of_speech_stay_as_they_are(tmp_path: pathlib.Path) -> None:
    found = read(tmp_path / "a.conll", "E\tS\nB\tNN\n")
    assert found.words[0].tags == ["S", "NN"]


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_spans_in_json_lines(tmp_path: pathlib.Path) -> None:
    city = {"start": 3, "end": 9, "label": "city"}
    person = {"start": 0, "end": 2, "label": "person"}
    rows = [{"text": "Al Zürich", "spans": [city, person]}, {"text": "", "spans": []}]
    found = read(tmp_path / "a.jsonl", jsonl(*rows), DataConfig(label="spans"))
    assert [each.text for each in found.texts] == ["Al Zürich", ""]
    assert found.texts[0].spans == [Span("person", 0, 2), Span("city", 3, 9)]
    unlabelled = read(tmp_path / "a.jsonl", jsonl({"text": "x"}), labels=False)
    assert unlabelled.texts[0].spans is None


def test_lists_of_words_in_json_lines(tmp_path: pathlib.Path) -> None:
    row = {"tokens": ["EU", "rejects"], "tags": ["I-ORG", "O"]}
    found = read(tmp_path / "a.jsonl", jsonl(row), DataConfig(text_a="tokens", label="tags"))
    assert pairs(found) == [(["EU", "rejects"], ["B-ORG", "O"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("EU\tO\nrejects O O\n", r"a\.conll, line 2: 3 columns where the first line has 2"),
        ("EU\tNN\tO\nrejects\tO\n", r"line 2: 2 columns where the first line has 3"),
        ("EU\n", r"line 1: 'EU' has no tag"),
        ("EU\tO\n\nPeter\t\n", r"line 3: the tag of 'Peter' is empty"),
        ("a\tO\nb\tB-x\n\nc\tO\nd\tperson\n", r"line 4: the tag 'person' is neither O nor"),
        ("", r"a\.conll holds no words"),
        ("\n\n-DOCSTART- O\n", r"a\.conll holds no words"),
    ],
)
def test_malformed_columns(tmp_path: pathlib.Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.conll", content)


@pytest.mark.parametrize(("text_a", "label"), [("2", "1"), ("0", "2"), ("0", "-3"), ("-3", "0")])
def test_columns_that_are_not_there(tmp_path: pathlib.Path, text_a: str, label: str) -> None:
    with pytest.raises(ValueError, match=r"line 1: there is no column -?\d among 2"):
        read(tmp_path / "a.conll", "EU\tO\n", DataConfig(text_a=text_a, label=label))


def test_a_file_that_is_not_there(tmp_path: pathlib.Path) -> None:
    (tmp_path / "train.conll").write_text("")
    with pytest.raises(ValueError, match=r"Did you mean 'train\.conll'"):
        read_tagged(str(tmp_path / "trian.conll"), COLUMNS)


def test_what_is_not_utf_8_is_named_by_its_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.conll").write_bytes(b"EU\tO\n\xff\tO\n")
    with pytest.raises(ValueError, match=r"a\.conll, line 2: byte 0xff"):
        read_tagged(str(tmp_path / "a.conll"), COLUMNS)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            [{"start": 0, "end": 10, "label": "x"}],
            r"line 1: the span .* lies outside the text.* 9 ch",
        ),
        ([{"start": -1, "end": 2, "label": "x"}], "lies outside the text"),
        ([{"start": 2, "end": 2, "label": "x"}], "or is empty"),
        ([{"start": 0.5, "end": 2, "label": "x"}], "must have whole numbers"),
        ([{"start": 0, "end": 2, "label": ""}], "the label '' of a span must be a word"),
        ([{"start": 0, "end": 2}], "is no span; write"),
        ([[0, 2, "x"]], "is no span; write"),
        ("x", "column 'spans' holds 'x'; write a list of spans"),
        (
            [{"start": 0, "end": 4, "label": "x"}, {"start": 3, "end": 5, "label": "y"}],
            r"the spans \('x', 0, 4\) and \('y', 3, 5\) overlap",
        ),
    ],
)
def test_spans_that_cannot_be(tmp_path: pathlib.Path, spans: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(
            tmp_path / "a.jsonl",
            jsonl({"text": "Al Zürich", "spans": spans}),
            DataConfig(label="spans"),
        )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": ["a", "b"], "label": ["O"]}, "line 1: 1 tags for 2 words"),
        ({"text": ["a", 3], "label": ["O", "O"]}, "line 1: 3 is no text"),
        ({"text": 3, "label": []}, "column 'text' holds 3, which is not text"),
        ({"text": "a"}, "has no column 'label'"),
        ({"label": []}, "has no column 'text'"),
    ],
)
def test_rows_that_cannot_be(tmp_path: pathlib.Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.jsonl", jsonl(row))


def test_texts_and_lists_of_words_do_not_mix(tmp_path: pathlib.Path) -> None:
    rows = [{"text": "a", "label": []}, {"text": ["a"], "label": ["O"]}]
    with pytest.raises(ValueError, match=r"has texts \(line 1\) and lists of words \(line 2\)"):
        read(tmp_path / "a.jsonl", jsonl(*rows))
