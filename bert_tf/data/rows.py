r"""Rows of TSV, CSV, JSONL and TensorFlow Datasets: a dict per example, column name -> value.

Files may be local or `gs://` and of any size (they are read in blocks), with or without a byte
order mark, with `\n` or `\r\n` line ends. Blank lines are no rows.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

TFDS_PREFIX = "tfds:"
BLOCK_BYTES = 1 << 20  # read at once
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SHOWN_CHARACTERS = 60  # of a value quoted in a message

Row = dict[str, Any]  # column name -> value


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


def source_rows(source: str, columns: Columns, data_dir: str) -> Iterator[tuple[int, Row]]:
    """Rows of a file or of `tfds:NAME/SPLIT`, with the line (record) where each starts, from 1.

    Raises:
        ValueError: on any row; names the source, the line, the value and the remedy.
    """
    if source.startswith(TFDS_PREFIX):
        return tfds_rows(source, data_dir)
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
    for name in (columns.text_a, columns.text_b, columns.label, columns.index):
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


def tfds_rows(source: str, data_dir: str) -> Iterator[tuple[int, Row]]:
    """Records of `tfds:NAME/SPLIT`, with the names of classes; a class of -1 (none) is no value."""
    name, _, split = source.removeprefix(TFDS_PREFIX).rpartition("/")
    builder = tfds_builder(source, name, data_dir)
    try:
        builder.download_and_prepare()
        records = builder.as_dataset(split=split).as_numpy_iterator()
    except Exception as error:  # a data set's own code and its download can fail in any way
        splits = ", ".join(sorted(builder.info.splits)) or "unknown before it is downloaded"
        raise ValueError(
            f"{source}: split {split!r} of {name!r} cannot be read from {builder.data_dir} "
            f"({one_line(error)}). Its splits: {splits}."
        ) from error
    features = builder.info.features
    if not hasattr(features, "keys"):
        raise ValueError(f"{source} has no named columns; only data sets of dicts can be read.")
    for number, record in enumerate(records, start=1):
        row = {column: tfds_value(value, features[column]) for column, value in record.items()}
        yield number, {column: value for column, value in row.items() if value is not None}


def tfds_builder(source: str, name: str, data_dir: str) -> Any:  # noqa: ANN401 - imported only here
    """The builder of a data set; raises ValueError where the package or the data set is missing."""
    if not name:
        raise ValueError(
            f"{source!r} names no data set and split; write {TFDS_PREFIX}NAME/SPLIT, for example "
            f"{TFDS_PREFIX}glue/sst2/train."
        )
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            f"{source} needs TensorFlow Datasets: run `pip install tensorflow-datasets`, or name a "
            "TSV, CSV or JSONL file."
        ) from None
    try:
        return tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # unknown name, or a builder that cannot be made
        raise ValueError(
            f"{source}: {name!r} is no data set of TFDS ({one_line(error)})."
        ) from error


def one_line(error: Exception) -> str:
    """The error's message without its line breaks."""
    return " ".join(str(error).split())


def tfds_value(value: Any, feature: Any) -> Any:  # noqa: ANN401 - any feature of any data set
    """The value as JSON would hold it; None where a class is not known."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [tfds_value(part, getattr(feature, "feature", None)) for part in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return value.item() if isinstance(value, np.generic) else value
