"""Texts with several continuations, of which one is right: SWAG, and questions with given answers.

An example has a context (`config.data.text_a`), choices (`config.data.choices`) and a label
(`config.data.label`); `config.data.text_b`, where it is named, is what every choice begins with:
the start of the sentence in SWAG, or a question. Files are TSV, CSV, JSONL or `tfds:NAME/SPLIT`.

- Choices are one column that holds a list, as JSONL has them, or columns with commas between their
  names: `ending0,ending1,ending2,ending3`.
- The label is the number of the right choice, from 0, or its text.

A choice is read as `[CLS] context [SEP] start choice [SEP]`.
Legend: E examples, C choices of each, B batch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from bert_tf.config import DataConfig
from bert_tf.data import batches
from bert_tf.data.text import (
    Columns,
    TextExamples,
    column_value,
    did_you_mean,
    find_column,
    find_columns,
    place,
    shorten,
    source_rows,
    text_value,
)
from bert_tf.data.text_groups import TextGroups
from bert_tf.data.tfds import Row
from bert_tf.tokenization import Tokenizer

FEWEST_CHOICES = 2


# ---------------------------------------------------------------------------------------- the files


@dataclasses.dataclass(frozen=True)
class ChoiceTexts:
    """Examples as they stand in one file; E of them, with C choices each."""

    contexts: list[bytes]  # [E], valid UTF-8
    starts: list[bytes] | None  # [E]; None where choices stand for themselves
    choices: list[list[bytes]]  # [E][C]
    labels: list[int] | None  # [E], from 0; None where the file has no such column
    source: str  # for messages

    def __len__(self) -> int:
        """Number of examples, E."""
        return len(self.contexts)

    @property
    def num_choices(self) -> int:
        """Choices of every example, C."""
        return len(self.choices[0])


def read_choices(source: str, data: DataConfig, require_labels: bool = True) -> ChoiceTexts:
    """Reads all examples of a source; see the top of this file.

    Args:
        source: a file, local or `gs://`, or `tfds:NAME/SPLIT`.
        data: which columns to take.
        require_labels: False where there may be no labels, as in test files.

    Raises:
        ValueError: a column is missing, an example has another number of choices than the first
            one, or a label is none of its choices; names source, line, value and remedy.
    """
    wanted = Columns(data.text_a, data.text_b, data.label, header=data.header)
    found: Columns | None = None
    columns: list[str] = []
    contexts: list[bytes] = []
    starts: list[bytes] = []
    choices: list[list[bytes]] = []
    labels: list[int] = []
    for line, row in source_rows(source, wanted, data.data_dir):
        if found is None:
            found = find_columns(wanted, row, source, require_labels)
            columns = choice_columns(data, row, source)
        where = place(source, line)
        contexts.append(text_value(row, found.text_a, where))
        if found.text_b:
            starts.append(text_value(row, found.text_b, where))
        choices.append(choices_of(row, columns, where))
        check_number(choices, where)
        if found.label:
            value = column_value(row, found.label, where)
            labels.append(label_number(value, choices[-1], where))
    if found is None:
        raise ValueError(f"{source} holds no examples; is it the right file?")
    return ChoiceTexts(
        contexts,
        starts if found.text_b else None,
        choices,
        labels if found.label else None,
        source,
    )


def choice_columns(data: DataConfig, row: Row, source: str) -> list[str]:
    """The columns of the choices; raises ValueError where one of them is not there."""
    columns = []
    for wanted in (name.strip() for name in data.choices.split(",")):
        column = find_column(wanted, list(row))
        if not column:
            raise ValueError(
                f"{source} has no column {wanted!r} (config.data.choices={data.choices!r})."
                f"{did_you_mean(wanted, row)} Its columns are "
                f"{', '.join(shorten(name) for name in row)}. Name one column that holds a list, "
                "or all columns of choices with commas between them."
            )
        if column in columns:
            raise ValueError(
                f"config.data.choices={data.choices!r} names the column {column!r} of {source} "
                "twice; name each choice once."
            )
        columns.append(column)
    return columns


def choices_of(row: Row, columns: list[str], where: str) -> list[bytes]:
    """The choices of an example: the list in one column, or the texts of several."""
    if len(columns) > 1:
        return [text_value(row, column, where) for column in columns]
    (column,) = columns
    listed = column_value(row, column, where)
    if not isinstance(listed, list):
        raise ValueError(
            f"{where}: column {column!r} holds {shorten(listed)}, which is not a list of choices; "
            "write a JSON list of texts, or name several columns in config.data.choices."
        )
    return [text_value({column: choice}, column, where) for choice in listed]


def check_number(choices: list[list[bytes]], where: str) -> None:
    """Raises ValueError where the last example has too few choices, or another number of them."""
    count, expected = len(choices[-1]), len(choices[0])
    if count < FEWEST_CHOICES:
        raise ValueError(
            f"{where}: {count} choice(s); an example needs at least {FEWEST_CHOICES}. Complete it "
            "or remove it."
        )
    if count != expected:
        raise ValueError(
            f"{where}: {count} choices where the first example has {expected}; all examples of a "
            "file need equally many. Complete it, remove it, or split the file."
        )


def label_number(value: Any, choices: list[bytes], where: str) -> int:  # noqa: ANN401 - of JSON
    """The number of the right choice, from 0, by its number or its text.

    Raises:
        ValueError: it is neither, or could be both, or two choices have this text.
    """
    last = len(choices) - 1
    if isinstance(value, str):
        text = value.strip()
        places = [n for n, choice in enumerate(choices) if choice.decode().strip() == text]
        numbers = [int(text)] if text.isascii() and text.isdecimal() else []
        if len({number for number in places + numbers if number <= last}) > 1:
            raise ValueError(
                f"{where}: the label {shorten(value)} could mean several choices; write the "
                f"number of the right one, 0 to {last}, as a number in a .jsonl file."
            )
        value = next(iter(places + numbers), value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(
            f"{where}: the label {shorten(value)} is neither the number of a choice (0 to {last}) "
            f"nor the text of one ({', '.join(shorten(c.decode()) for c in choices)}); correct it."
        )
    if not 0 <= value <= last:
        raise ValueError(
            f"{where}: the label {value} is no choice: they are numbered from 0 to {last}."
        )
    return value


# ------------------------------------------------------------------------------------- the examples


@dataclasses.dataclass(frozen=True)
class ChoiceExamples(TextGroups):
    """Examples whose choices are read apart from each other: batches of [B, C, S]."""

    texts: ChoiceTexts


def tokenize_choices(
    tokenizer: Tokenizer, texts: ChoiceTexts, max_seq_length: int
) -> ChoiceExamples:
    """Tokenizes all choices into rows of at most `max_seq_length` tokens; target `label` [E]."""
    starts = texts.starts or [b""] * len(texts)
    pairs = TextExamples(
        text_a=[context for context in texts.contexts for _ in range(texts.num_choices)],
        text_b=[
            start + b" " + choice
            for start, choices in zip(starts, texts.choices, strict=True)
            for choice in choices
        ],
        labels=None,
        ids=None,
        source=texts.source,
        lines=[],
    )
    rows = batches.tokenize(tokenizer, pairs, max_seq_length, {})
    targets = {} if texts.labels is None else {"label": np.array(texts.labels, np.int32)}
    columns = rows.token_ids, rows.segment_ids, rows.row_splits
    return ChoiceExamples(*columns, targets, texts.num_choices, texts)
