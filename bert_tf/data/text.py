r"""Labelled text: one or two segments for each example, from files or from TensorFlow Datasets.

A file is read as rows (a dict of column name -> value), and the columns that a run names make its
examples. Text stays what the file says; labels and column names lose white space around them. Files
may be local or `gs://` and of any size (they are read in blocks), with or without a byte
order mark, with `\n` or `\r\n` line ends. Blank lines are no rows.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import tensorflow as tf
from absl import logging

from bert_tf.config import DataConfig
from bert_tf.data import tfds
from bert_tf.data.tfds import TFDS_PREFIX, Row

BLOCK_BYTES = 1 << 20  # read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHOWN_CHARACTERS = 60  # of a value quoted in a message


FIELDS = ("text_a", "text_b", "label", "index", "negative")  # of Columns, that name one


@dataclasses.dataclass(frozen=True)
class Columns:
    """Where the fields of an example are: column names, or numbers from 0; "" for none."""

    text_a: str
    text_b: str = ""
    label: str = ""
    index: str = ""  # the number that GLUE gives a test example; a file may lack it
    header: bool = True  # the first line of a TSV or CSV names the columns
    exact: bool = True  # each row must have as many columns as the first; False: those wanted
    skip_short_rows: bool = False  # leaves out and counts rows with too few columns
    negative: str = ""  # a text that does not belong to text_a (dual encoder)


# --------------------------------------------------------------------------------------------- rows


def source_rows(source: str, columns: Columns, data_dir: str) -> Iterator[tuple[int, Row]]:
    """Rows of a file or of `tfds:NAME/SPLIT`, with the line (record) where each starts, from 1.

    Raises:
        ValueError: on any row; names the source, the line, the value and the remedy.
    """
    if source.startswith(TFDS_PREFIX):
        return tfds.tfds_rows(source, data_dir)
    return file_rows(source, columns)


def file_rows(path: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Rows of a file, read as its ending says."""
    ending = os.path.splitext(path)[1].lower()
    if ending not in FORMATS:
        hint = " A file with one JSON object a line is .jsonl." if ending == ".json" else ""
        raise ValueError(
            f"{path!r} must end in {', '.join(FORMATS)}, which says how to read it, or be "
            f"{TFDS_PREFIX}NAME/SPLIT.{hint}"
        )
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(f"{path} is not a file.{similar_file(path)}")
    return FORMATS[ending](path, columns)


def similar_file(path: str) -> str:
    """A hint for a misspelt file name, or ""."""
    folder = os.path.dirname(path) or "."
    if not tf.io.gfile.isdir(folder):
        return f" The folder {folder} does not exist."
    return did_you_mean(os.path.basename(path), tf.io.gfile.listdir(folder))


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name, or ""."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def shorten(value: object) -> str:
    """The value as Python writes it, cut to what fits in a message."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def read_lines(path: str) -> Iterator[tuple[int, str]]:
    r"""Lines of a UTF-8 file and their numbers from 1, without line end and byte order mark.

    Only `\n` and `\r\n` end a line: `str.splitlines` would also cut texts at U+2028, U+0085...
    """
    for number, line in enumerate(byte_lines(path), start=1):
        if number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: byte 0x{line[error.start]:02x} at position {error.start} "
                f"of the line is not UTF-8 ({error.reason}). Save the file as UTF-8, for example "
                "with `iconv -f LATIN1 -t UTF-8` (or `-f UTF-16`) from what it is."
            ) from None


def byte_lines(path: str) -> Iterator[bytes]:
    """Lines without their newline, read in blocks (GFile's own lines are much slower)."""
    rest = b""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
    except tf.errors.OpError as error:
        raise ValueError(f"{path} cannot be read: {error.message}") from None
    if rest:
        yield rest


def tsv_rows(path: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Tab-separated values without quoting, as in GLUE: a quotation mark is part of the text."""
    records = ((number, line.split("\t")) for number, line in read_lines(path) if line)
    return table_rows(path, columns, records)


def csv_rows(path: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """Comma-separated values; fields in quotation marks may hold commas and newlines."""
    return table_rows(path, columns, csv_records(path))


def csv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """Records of a CSV and the line on which each starts."""
    reader = csv.reader((line + "\n" for _, line in read_lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {start}: {error}. A field with a comma, a line break or a quotation "
                "mark must stand in quotation marks, with those inside it doubled; look for one "
                "that is never closed."
            ) from None
        if fields is None:
            return
        if fields:
            yield start, fields


def table_rows(
    path: str, columns: Columns, records: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, Row]]:
    """Names the columns of the records and checks how many each record has."""
    first = next(records, None)
    if first is None:
        raise ValueError(f"{path} is empty; it must hold examples.")
    line, fields = first
    names = [name.strip() for name in fields] if columns.header else numbers(len(fields))
    check_unique(path, columns, names)
    if not columns.header:
        yield line, dict(zip(names, fields, strict=True))
    short = 0
    for line, fields in records:
        if len(fields) < len(names) and columns.skip_short_rows:
            short += 1
        elif len(fields) != len(names) and columns.exact:
            raise ValueError(wrong_count(path, line, fields, len(names)))
        else:
            yield line, dict(zip(names, fields, strict=False))
    if short:
        logging.warning("%s: left out %d rows with too few columns.", path, short)


def numbers(count: int) -> list[str]:
    """Names of columns that have none."""
    return [str(number) for number in range(count)]


def check_unique(path: str, columns: Columns, names: list[str]) -> None:
    """Raises ValueError where a wanted name stands for two columns."""
    for name in (getattr(columns, field) for field in FIELDS):
        if names.count(name) > 1:
            raise ValueError(
                f"{path} has {names.count(name)} columns {name!r}; rename all but one."
            )


def wrong_count(path: str, line: int, fields: list[str], expected: int) -> str:
    """The message for a row with too few or too many columns."""
    if len(fields) < expected:
        remedy = "add the missing values or remove the line"
    elif path.lower().endswith(".csv"):
        remedy = "put text with a comma in quotation marks"
    else:
        remedy = "take the tabs out of the text, or save the file as .csv with quotation marks"
    return (
        f"{path}, line {line}: {len(fields)} columns where the first line has {expected} "
        f"({shorten(fields)}); {remedy}."
    )


def jsonl_rows(path: str, columns: Columns) -> Iterator[tuple[int, Row]]:
    """One JSON object a line."""
    del columns  # objects name their values themselves
    number = 0
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: {shorten(line)} is not JSON ({error}); each line must be "
                "one whole object."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}, line {number}: {shorten(line)} is not an object; write "
                '{"text": "...", "label": "..."}, with the column names of the configuration.'
            )
        yield number, row
    if not number:
        raise ValueError(f"{path} is empty; it must hold examples.")


FORMATS: dict[str, Callable[[str, Columns], Iterator[tuple[int, Row]]]] = {
    ".tsv": tsv_rows,
    ".txt": tsv_rows,  # the original files of MRPC
    ".csv": csv_rows,
    ".jsonl": jsonl_rows,
}


__all__ = ["LIST_MARK", "Columns", "TextExamples", "columns_of", "read_examples"]

# ---------------------------------------------------------------------------------------- examples

# Before each label of a JSON list (it is ASCII's unit separator), so that labels may hold anything.
LIST_MARK = "\x1f"
DELIMITERS = {
    "\t": "tab-separated: rename it to .tsv",
    ",": "comma-separated: rename it to .csv",
    ";": "semicolon-separated: save it with commas (.csv) or tabs (.tsv)",
    "|": "separated by bars: save it with commas (.csv) or tabs (.tsv)",
}


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Examples as they stand in one file; E of them."""

    text_a: list[bytes]  # valid UTF-8
    text_b: list[bytes] | None  # None for single segments
    labels: list[str] | None  # as the file writes them; None where it has no such column
    ids: list[str] | None  # the `index` column where there is one
    source: str  # for messages
    lines: list[int]  # the line (tfds: record) where each example starts, from 1
    negatives: list[bytes] | None = None  # the `negative` column where one is named

    def __len__(self) -> int:
        """Number of examples, E."""
        return len(self.text_a)

    def where(self, example: int) -> str:
        """Place of an example, for messages."""
        return place(self.source, self.lines[example])

    def take(self, rows: Sequence[int]) -> TextExamples:
        """Some of the examples, by number."""
        return TextExamples(
            [self.text_a[row] for row in rows],
            chosen(self.text_b, rows),
            chosen(self.labels, rows),
            chosen(self.ids, rows),
            self.source,
            [self.lines[row] for row in rows],
            chosen(self.negatives, rows),
        )


Value = TypeVar("Value")


def chosen(values: list[Value] | None, rows: Sequence[int]) -> list[Value] | None:
    """The values of some rows, where there are any."""
    return None if values is None else [values[row] for row in rows]


def place(source: str, line: int) -> str:
    """Where something stands, for messages."""
    return f"{source}, {'record' if source.startswith(TFDS_PREFIX) else 'line'} {line}"


def columns_of(config: DataConfig) -> Columns:
    """The columns that a run's configuration names."""
    return Columns(config.text_a, config.text_b, config.label, header=config.header)


def read_examples(
    source: str, columns: Columns, data_dir: str = "", require_labels: bool = True
) -> TextExamples:
    """Reads all examples of a `.tsv`, `.csv` or `.jsonl` file or of `tfds:NAME/SPLIT`.

    Args:
        source: the file, local or `gs://`, or the data set.
        columns: which columns to take.
        data_dir: folder of TensorFlow Datasets; "" is their default.
        require_labels: False where there may be no labels, as in test files.

    Raises:
        ValueError: these examples are not there; names the source, line, value and remedy.
    """
    found: Columns | None = None
    lines: list[int] = []
    text_a: list[bytes] = []
    text_b: list[bytes] = []
    labels: list[str] = []
    ids: list[str] = []
    negatives: list[bytes] = []
    for line, row in source_rows(source, columns, data_dir):
        found = found or find_columns(columns, row, source, require_labels)
        where = place(source, line)
        lines.append(line)
        text_a.append(text_value(row, found.text_a, where))
        if found.text_b:
            text_b.append(text_value(row, found.text_b, where))
        if found.label:
            labels.append(label_value(row, found.label, where))
        if found.index:
            ids.append(label_value(row, found.index, where))
        if found.negative:
            negatives.append(text_value(row, found.negative, where))
    if found is None:
        raise ValueError(f"{source} holds no examples; is it the right file?")
    return TextExamples(
        text_a,
        text_b if found.text_b else None,
        labels if found.label else None,
        ids if found.index else None,
        source,
        lines,
        negatives if found.negative else None,
    )


def find_columns(columns: Columns, row: Row, source: str, require_labels: bool) -> Columns:
    """Replaces numbers by names; an index, and a label that may be absent, becomes "" if it is.

    Raises:
        ValueError: a wanted column is not there.
    """
    found: dict[str, Any] = {}
    for field in FIELDS:
        wanted = getattr(columns, field)
        found[field] = find_column(wanted, list(row))
        optional = field == "index" or (field == "label" and not require_labels)
        if wanted and not found[field] and not optional:
            raise ValueError(missing_column(source, columns, field, row))
    if not found["text_a"]:
        raise ValueError("config.data.text_a is empty: name the column of the text.")
    return dataclasses.replace(columns, **found)


def find_column(wanted: str, names: list[str]) -> str:
    """The name of the column `wanted` (a name or a number), or "" where there is none."""
    if wanted in names:
        return wanted
    is_position = wanted.isascii() and wanted.isdecimal() and int(wanted) < len(names)
    return names[int(wanted)] if is_position else ""


def missing_column(source: str, columns: Columns, field: str, row: Row) -> str:
    """The message for a column that is not there."""
    names, wanted = list(row), getattr(columns, field)
    message = f"{source} has no column {wanted!r} (config.data.{field})."
    if len(names) == 1:  # most often a file with another delimiter than its ending says
        for delimiter, advice in DELIMITERS.items():
            if delimiter in (names[0] if columns.header else str(row[names[0]])):
                return f"{message} It was read as one column and looks {advice}."
    message += did_you_mean(wanted, names)
    message += f" Its columns are {', '.join(shorten(name) for name in names)}."
    if columns.header:
        message += (
            " If these are the values of an example, the file has no header: set "
            "config.data.header=False and number the columns from 0."
        )
    return message


def text_value(row: Row, column: str, where: str) -> bytes:
    """The text of a column as UTF-8."""
    text = column_value(row, column, where)
    if not isinstance(text, str):
        raise ValueError(f"{where}: column {column!r} holds {shorten(text)}, which is not text.")
    try:
        return text.encode()
    except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, "\ud83d"
        raise ValueError(
            f"{where}: column {column!r} holds {shorten(text)}, which is not valid Unicode "
            f"({error.reason} at character {error.start}); correct the escape sequence."
        ) from None


def label_value(row: Row, column: str, where: str) -> str:
    """The label of a column as text; the labels of a list each after a LIST_MARK."""
    label = column_value(row, column, where)
    parts = label if isinstance(label, list) else [label]
    if not all(isinstance(part, str | int | float) for part in parts):
        raise ValueError(
            f"{where}: column {column!r} holds {shorten(label)}, which is not a label; write text, "
            "a number, or a list of them."
        )
    texts = [part.strip() if isinstance(part, str) else json.dumps(part) for part in parts]
    return "".join(LIST_MARK + text for text in texts) if isinstance(label, list) else texts[0]


def column_value(row: Row, column: str, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """The value of a column, which a row may lack though the first one has it."""
    if column not in row:
        raise ValueError(
            f"{where} has no column {column!r}, only {', '.join(shorten(name) for name in row)}; "
            "complete the example or remove it."
        )
    return row[column]
