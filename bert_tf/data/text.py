"""Labelled text: one or two segments for each example, from a file or from TensorFlow Datasets.

Text stays what the file says; labels and column names lose white space around them.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from bert_tf.config import DataConfig
from bert_tf.data.rows import TFDS_PREFIX, Columns, Row, did_you_mean, shorten, source_rows

__all__ = ["LIST_MARK", "Columns", "TextExamples", "columns_of", "read_examples"]

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

    def __len__(self) -> int:
        """Number of examples, E."""
        return len(self.text_a)

    def where(self, example: int) -> str:
        """Place of an example, for messages."""
        return place(self.source, self.lines[example])


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
    if found is None:
        raise ValueError(f"{source} holds no examples; is it the right file?")
    return TextExamples(
        text_a,
        text_b if found.text_b else None,
        labels if found.label else None,
        ids if found.index else None,
        source,
        lines,
    )


def find_columns(columns: Columns, row: Row, source: str, require_labels: bool) -> Columns:
    """Replaces numbers by names; an index, and a label that may be absent, becomes "" if it is.

    Raises:
        ValueError: a wanted column is not there.
    """
    found: dict[str, Any] = {}
    for field in ("text_a", "text_b", "label", "index"):
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
