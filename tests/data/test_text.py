"""Reading examples: every format, and every message a user can meet."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable

import pytest

from bert_tf.config import DataConfig
from bert_tf.data import text as text_module
from bert_tf.data.text import LIST_MARK, Columns, columns_of, read_examples

TEXT = Columns("text", label="label")
PAIR = Columns("first", "second", "label", "index")
Write = Callable[[str, bytes | str], str]


@pytest.fixture
def write(tmp_path: pathlib.Path) -> Write:
    def write_file(name: str, content: bytes | str) -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write_file


def message_of(source: str, columns: Columns = TEXT, **options: bool) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers look at the message
        read_examples(source, columns, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_tsv_takes_quotation_marks_and_white_space_as_text(write: Write) -> None:
    path = write("train.tsv", 'label\ttext\n1\t"Never" he said, "\n0\t  trailing  \n')
    examples = read_examples(path, TEXT)
    assert examples.text_a == [b'"Never" he said, "', b"  trailing  "]
    assert examples.labels == ["1", "0"]
    assert (examples.text_b, examples.ids, examples.lines) == (None, None, [2, 3])
    assert len(examples) == 2
    assert examples.where(1) == f"{path}, line 3"


def test_pairs_and_index(write: Write) -> None:
    path = write("dev.tsv", "index\tfirst\tsecond\tlabel\n7\ta\tb\tno\n9\tc\td\tyes\n")
    examples = read_examples(path, PAIR)
    assert examples.text_a == [b"a", b"c"]
    assert examples.text_b == [b"b", b"d"]
    assert examples.ids == ["7", "9"]


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", text_module.BYTE_ORDER_MARK])
@pytest.mark.parametrize("ending", [".tsv", ".csv"])
def test_byte_order_mark_line_ends_and_missing_last_newline(
    write: Write, ending: str, mark: bytes, line_end: str
) -> None:
    content = line_end.join(["text,label", "ein,1", "", "zwei,0"])
    content = content.replace(",", "\t") if ending == ".tsv" else content
    examples = read_examples(write("train" + ending, mark + content.encode()), TEXT)
    assert examples.text_a == [b"ein", b"zwei"]
    assert examples.labels == ["1", "0"]
    assert examples.lines == [2, 4]


@pytest.mark.parametrize("character", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r"])
def test_only_newline_ends_a_line_of_tsv_and_jsonl(write: Write, character: str) -> None:
    text = f"one{character}two"
    assert read_examples(write("a.tsv", f"text\tlabel\n{text}\t1\n"), TEXT).text_a == [
        text.encode()
    ]
    if character != "\r":
        examples = read_examples(write("a.csv", f"text,label\n{text},1\n"), TEXT)
        assert examples.text_a == [text.encode()]
    if character > "\x1f":  # JSON does not allow raw control characters
        examples = read_examples(write("a.jsonl", f'{{"text": "{text}", "label": 1}}\n'), TEXT)
        assert examples.text_a == [text.encode()]


def test_lines_are_joined_across_blocks(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.tsv", "text\tlabel\n" + "".join(f"números {n}\t{n % 2}\n" for n in range(50)))
    whole = read_examples(path, TEXT)
    assert whole.text_a == [f"números {n}".encode() for n in range(50)]
    for size in (1, 7, 16):
        monkeypatch.setattr(text_module, "BLOCK_BYTES", size)
        assert read_examples(path, TEXT) == whole


def test_csv_quoting_and_line_numbers(write: Write) -> None:
    content = 'text,label\n"a, ""b""\nsecond line",x\nplain,y\n'
    examples = read_examples(write("train.csv", content), TEXT)
    assert examples.text_a == [b'a, "b"\nsecond line', b"plain"]
    assert examples.lines == [2, 4]


def test_columns_by_number_with_and_without_header(write: Write) -> None:
    numbered = Columns("1", label="0", header=False)
    assert read_examples(write("a.csv", "x,one\ny,two\n"), numbered).text_a == [b"one", b"two"]
    numbered = Columns("1", label="0")
    assert read_examples(write("b.csv", "label,text\ny,two\n"), numbered).text_a == [b"two"]


def test_labels_and_headers_lose_white_space(write: Write) -> None:
    examples = read_examples(write("a.csv", "text , label\ngood, positive \n"), TEXT)
    assert examples.labels == ["positive"]
    assert examples.text_a == [b"good"]


def test_jsonl_labels(write: Write) -> None:
    labels = ["a b", 3, 2.5, True, ["x", "y,z", 1], []]
    lines = "\n".join(json.dumps({"text": "é", "label": label}) for label in labels)
    examples = read_examples(write("a.jsonl", lines + "\n\n"), TEXT)
    lists = [f"{LIST_MARK}x{LIST_MARK}y,z{LIST_MARK}1", ""]
    assert examples.labels == ["a b", "3", "2.5", "true", *lists]
    assert examples.text_a == ["é".encode()] * 6


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_labels_may_be_absent_only_where_allowed(write: Write, name: str) -> None:
    path = write(name, '{"text": "t"}\n' if name == "a.jsonl" else "text\nt\n")
    assert read_examples(path, TEXT, require_labels=False).labels is None
    assert "has no column 'label' (config.data.label)" in message_of(path)


def test_labels_are_read_where_they_are_not_required(write: Write) -> None:
    path = write("a.tsv", "text\tlabel\nt\t1\n")
    assert read_examples(path, TEXT, require_labels=False).labels == ["1"]


def test_columns_of_a_configuration() -> None:
    config = DataConfig(text_a="premise", text_b="claim", label="gold", header=False)
    assert columns_of(config) == Columns("premise", "claim", "gold", header=False)


def test_missing_file(write: Write) -> None:
    path = write("train.tsv", "text\tlabel\na\t1\n")
    assert "Did you mean 'train.tsv'?" in message_of(path.replace("train", "trian"))
    assert "The folder" in message_of("/no/such/folder/train.tsv")


def test_a_folder_is_not_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "folder.tsv").mkdir()
    assert "is not a file" in message_of(str(tmp_path / "folder.tsv"))


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_empty_file_and_header_alone(write: Write, name: str) -> None:
    assert f"{name} is empty" in message_of(write(name, ""))
    content = "\n\n" if name == "a.jsonl" else "text,label\n"
    assert f"{name} holds no examples" in message_of(write(name, content))


def test_unknown_ending(write: Write) -> None:
    assert "must end in .tsv, .txt, .csv, .jsonl" in message_of(write("a.xlsx", "x"))
    assert "one JSON object a line is .jsonl" in message_of(write("a.json", "{}"))


@pytest.mark.parametrize(
    ("name", "delimiter", "advice"),
    [
        ("a.tsv", ",", "comma-separated: rename it to .csv"),
        ("a.csv", "\t", "tab-separated: rename it to .tsv"),
        ("a.csv", ";", "semicolon-separated: save it with commas"),
        ("a.tsv", "|", "separated by bars: save it with commas"),
    ],
)
def test_wrong_delimiter(write: Write, name: str, delimiter: str, advice: str) -> None:
    path = write(name, f"text{delimiter}label\ngood{delimiter}1\n")
    assert advice in message_of(path)
    numbered = Columns("0", label="1", header=False)
    assert advice in message_of(write(name, f"good{delimiter}1\n"), numbered)


def test_missing_column(write: Write) -> None:
    message = message_of(write("a.tsv", "texts\tlabel\nx\t1\n"))
    assert "no column 'text' (config.data.text_a)" in message
    assert "Did you mean 'texts'?" in message
    assert "Its columns are 'texts', 'label'." in message


def test_file_without_header_read_with_one(write: Write) -> None:
    message = message_of(write("a.tsv", "a fine film\t1\nx\t0\n"))
    assert "Its columns are 'a fine film', '1'" in message
    assert "config.data.header=False" in message


def test_column_number_out_of_range(write: Write) -> None:
    path = write("a.tsv", "x\t1\n")
    assert "no column '2'" in message_of(path, Columns("2", label="1", header=False))
    assert "config.data.text_a is empty" in message_of(path, Columns("", label="1", header=False))


def test_the_same_column_twice(write: Write) -> None:
    assert "2 columns 'text'" in message_of(write("a.tsv", "text\ttext\tlabel\na\tb\t1\n"))


def test_rows_with_too_few_columns(write: Write) -> None:
    path = write("a.tsv", f"text\tlabel\nx\t1\n{'long ' * 100}\ny\t0\n")
    message = message_of(path)
    assert "line 3: 1 columns where the first line has 2 (['long long" in message
    assert "add the missing values" in message
    assert len(message) < 300


def test_rows_with_too_many_columns(write: Write) -> None:
    message = message_of(write("a.csv", "text,label\nwell, no,1\n"))
    assert "line 2: 3 columns where the first line has 2" in message
    assert "put text with a comma in quotation marks" in message
    assert "take the tabs out" in message_of(write("a.tsv", "text\tlabel\nwell\tno\t1\n"))


def test_inexact_tables_need_the_wanted_columns_only(write: Write) -> None:
    inexact = Columns("text", label="label", exact=False)
    path = write("a.tsv", "text\tlabel\tmore\nx\t1\ny\t0\tz\tz\n")
    assert read_examples(path, inexact).labels == ["1", "0"]
    path = write("b.tsv", "text\tlabel\nx\t1\ny\n")
    assert "line 3 has no column 'label', only 'text'" in message_of(path, inexact)


def test_short_rows_are_skipped_and_counted(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("a.tsv", "text\tlabel\nx\t1\nshort\ny\t0\nshort\n")
    columns = Columns("text", label="label", skip_short_rows=True)
    with caplog.at_level("WARNING", logger="absl"):
        examples = read_examples(path, columns)
    assert examples.lines == [2, 4]
    assert "left out 2 rows" in caplog.text


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_invalid_utf_8(write: Write, name: str) -> None:
    good = b'{"text": "x", "label": 1}' if name == "a.jsonl" else b"text,label"
    message = message_of(write(name, good + b"\ncaf\xe9,1\n"))
    assert f"{name}, line 2: byte 0xe9 at position 3 of the line is not UTF-8" in message
    assert "iconv" in message


def test_utf_16_is_named(write: Write) -> None:
    message = message_of(write("a.tsv", "text\tlabel\nx\t1\n".encode("utf-16")))
    assert "line 1: byte 0xff" in message
    assert "UTF-16" in message


@pytest.mark.parametrize(
    "record",
    ['"never closed,1\nx,0\n', '"closed" too early,1\n', "a\rb,1\n", f"{'x' * 140000},1\n"],
)
def test_csv_that_cannot_be_parsed(write: Write, record: str) -> None:
    message = message_of(write("a.csv", "text,label\nfine,1\n" + record))
    assert "a.csv, line 3:" in message
    assert "quotation" in message


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('{"text": "a", "label": 1', "is not JSON"),
        ("text\tlabel", "is not JSON"),
        ('["a", 1]', "is not an object"),
        ('{"label": 1}', "has no column 'text', only 'label'"),
        ('{"text": 5, "label": 1}', "column 'text' holds 5, which is not text"),
        ('{"text": null, "label": 1}', "column 'text' holds None, which is not text"),
        ('{"text": "a", "label": null}', "column 'label' holds None, which is not a label"),
        ('{"text": "a", "label": {"b": 1}}', "which is not a label"),
        ('{"text": "a", "label": ["b", null]}', "which is not a label"),
        ('{"text": "\\ud83d", "label": 1}', "is not valid Unicode"),
    ],
)
def test_jsonl_lines_that_are_no_examples(write: Write, line: str, part: str) -> None:
    path = write("a.jsonl", f'{{"text": "fine", "label": 1}}\n{line}\n')
    message = message_of(path)
    assert f"{path}, line 2" in message
    assert part in message


def test_tfds_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert "pip install tensorflow-datasets" in message_of("tfds:glue/sst2/train")


def test_tfds_without_split() -> None:
    assert "names no data set and split" in message_of("tfds:imdb")
