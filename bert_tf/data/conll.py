"""Labelled words: CoNLL columns, JSON lines with spans, and TensorFlow Datasets.

- `.jsonl`: an object a line, `{"text": "...", "spans": [{"start": 0, "end": 5, "label": "city"}]}`,
  with offsets that count characters (Unicode code points) from 0; or a list of words in place of
  the text and a list of their tags. `config.data.text_a` and `config.data.label` name the two.
- `tfds:NAME/SPLIT`: the same, from a TensorFlow Dataset.
- Every other file has CoNLL columns: a word a line, with tabs or white space between its columns;
  an empty line ends a sentence. The word is in column `config.data.text_a`, the tag in column
  `config.data.label`: numbers from 0, negative ones from the end. Names, as the defaults are, stand
  for the first and the last column. Lines that begin with `-DOCSTART-`, and what CoNLL-U has beside
  words (comments, `3-4` and `5.1` in its first column), are left out.

Tags of spans become IOB2 from any scheme; see `bert_tf.spans`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import tensorflow as tf

from bert_tf import spans
from bert_tf.config import DataConfig
from bert_tf.data import text as text_files
from bert_tf.data.text import Columns, place, read_lines, shorten
from bert_tf.data.tfds import TFDS_PREFIX, Row
from bert_tf.spans import Span

DOCUMENT_MARK = "-DOCSTART-"
COMMENT_MARK = "#"
NO_WORD = re.compile(r"\d+[-.]\d+")  # first column of CoNLL-U's ranges and empty nodes
FIRST, LAST = 0, -1


class Words(NamedTuple):
    """One text, as words."""

    words: list[str]
    tags: list[str] | None  # None where the file has none
    line: int  # of the file, where it starts


class Text(NamedTuple):
    """One text, as it was written."""

    text: str
    spans: list[Span] | None  # of characters, in order; None where the file has none
    line: int


@dataclasses.dataclass(frozen=True)
class TaggedSource:
    """The texts of one source: all with words, or all as written. E of them."""

    source: str
    words: list[Words]
    texts: list[Text]

    def where(self, index: int) -> str:
        """The place of a text, for messages."""
        return place(self.source, (self.words or self.texts)[index].line)


def read_tagged(source: str, data: DataConfig, require_labels: bool = True) -> TaggedSource:
    """Reads all texts of a source; see the top of this file.

    Raises:
        ValueError: names the source, the line, what is wrong there, and the remedy.
    """
    found: list[Words | Text]
    if source.startswith(TFDS_PREFIX) or source.lower().endswith(".jsonl"):
        found = list(read_rows(source, data, require_labels))
    else:
        found = list(read_columns(source, data, require_labels))
    if not found:
        raise ValueError(f"{source} holds no words; is it the right file?")
    words = [each for each in found if isinstance(each, Words)]
    texts = [each for each in found if isinstance(each, Text)]
    if words and texts:
        raise ValueError(
            f"{source} has texts (line {texts[0].line}) and lists of words (line {words[0].line}); "
            "write all in one way."
        )
    tags = {tag for each in words for tag in each.tags or ()}
    if any(tag.startswith(("B-", "I-")) for tag in tags) or all(map(spans.is_span_tag, tags)):
        words = [in_iob2(each, source) for each in words]
    return TaggedSource(source, words, texts)


def in_iob2(words: Words, source: str) -> Words:
    """The same with tags of IOB2; raises ValueError for a tag without a prefix."""
    if words.tags is None:
        return words
    for tag in words.tags:
        if not spans.is_span_tag(tag):
            raise ValueError(
                f"{place(source, words.line)}: the tag {shorten(tag)} is neither O nor one with a "
                f"prefix ({', '.join(spans.PREFIXES)}) and a hyphen, as others of this file are, "
                "in the text that begins there; correct it."
            )
    return words._replace(tags=spans.to_iob2(words.tags))


# -------------------------------------------------------------------------------------- the columns


def read_columns(path: str, data: DataConfig, require_labels: bool) -> Iterator[Words]:
    """The sentences of a file of columns."""
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(f"{path} is not a file.{text_files.similar_file(path)}")
    word_at, tag_at = column_number(data.text_a, FIRST), column_number(data.label, LAST)
    width = 0
    words: list[str] = []
    tags: list[str] = []
    start = 0
    for line, fields in column_lines(path):
        if fields is None:
            if words:
                yield Words(words, tags or None, start)
            words, tags = [], []
            continue
        width = width or len(fields)
        if NO_WORD.fullmatch(fields[0]) and word_at != FIRST:
            continue
        check_columns(path, line, fields, width)
        start = start if words else line
        words.append(column(path, line, fields, word_at))
        if width > 1 or require_labels:
            tags.append(tag_of(path, line, fields, tag_at))
    if words:
        yield Words(words, tags or None, start)


def column_lines(path: str) -> Iterator[tuple[int, list[str] | None]]:
    """Lines and their fields; None where a sentence ends."""
    seen = tabs = False
    for number, line in read_lines(path):
        if not line.strip(" \t") or line.startswith(DOCUMENT_MARK):
            yield number, None
            continue
        # Words may begin with #, too: a comment is a line without tabs in a file that has them, or
        # stands in front of everything else.
        marked = line.startswith(COMMENT_MARK) and "\t" not in line
        if marked and (tabs or (not seen and line.startswith(COMMENT_MARK + " "))):
            continue
        seen, tabs = True, tabs or "\t" in line
        yield number, line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


def column_number(name: str, default: int) -> int:
    """A number from 0, or from the end where negative; `default` for a name."""
    return int(name) if re.fullmatch(r"-?\d+", name) else default


def check_columns(path: str, line: int, fields: Sequence[str], width: int) -> None:
    """Raises ValueError for a line with more or fewer columns than the first."""
    if len(fields) != width:
        raise ValueError(
            f"{path}, line {line}: {len(fields)} columns where the first line has {width} "
            f"({shorten(list(fields))}); a line holds one word and its tags, with the same number "
            "of columns everywhere, and an empty line ends a sentence."
        )


def column(path: str, line: int, fields: Sequence[str], number: int) -> str:
    """The field of a column; raises ValueError where the line has no such column."""
    if not -len(fields) <= number < len(fields):
        raise ValueError(
            f"{path}, line {line}: there is no column {number} among {len(fields)} "
            f"({shorten(list(fields))}); config.data.text_a and config.data.label count from 0, "
            "or from the end with -1."
        )
    return fields[number]


def tag_of(path: str, line: int, fields: Sequence[str], number: int) -> str:
    """The tag of a line; raises ValueError where there is none."""
    if len(fields) < 2:
        raise ValueError(
            f"{path}, line {line}: {shorten(fields[0])} has no tag; each line needs a word and its "
            "tag, with a tab or a space between them."
        )
    tag = column(path, line, fields, number).strip()
    if not tag:
        raise ValueError(
            f"{path}, line {line}: the tag of {shorten(fields[0])} is empty; write O, or its tag."
        )
    return tag


# ----------------------------------------------------------------------------------------- the rows


def read_rows(source: str, data: DataConfig, require_labels: bool) -> Iterator[Words | Text]:
    """Texts with spans, or words with tags, from JSON lines or TensorFlow Datasets."""
    columns = Columns(data.text_a, label=data.label)
    for line, row in text_files.source_rows(source, columns, data.data_dir):
        where = place(source, line)
        given = text_files.column_value(row, data.text_a, where)
        labels = row_labels(row, data.label, require_labels, where)
        if isinstance(given, list):
            yield Words(*row_words(given, labels, where), line)
        else:
            text = text_files.text_value(row, data.text_a, where).decode()
            yield Text(text, None if labels is None else row_spans(text, labels, where), line)


def row_labels(row: Row, name: str, required: bool, where: str) -> list[Any] | None:
    """The list of tags or of spans; None where there may be none."""
    if row.get(name) is None and not required:
        return None
    labels = text_files.column_value(row, name, where)
    if not isinstance(labels, list):
        raise ValueError(
            f"{where}: column {name!r} holds {shorten(labels)}; write a list of spans, such as "
            '[{"start": 0, "end": 5, "label": "person"}], or a list with a tag for each word.'
        )
    return labels


def row_words(
    words: list[Any], tags: list[Any] | None, where: str
) -> tuple[list[str], list[str] | None]:
    """Words and tags, checked."""
    for value in [*words, *(tags or [])]:
        if not isinstance(value, str):
            raise ValueError(f"{where}: {shorten(value)} is no text; write words and tags as text.")
    if tags is not None and len(words) != len(tags):
        raise ValueError(f"{where}: {len(tags)} tags for {len(words)} words; each needs one.")
    return words, tags


def row_spans(text: str, given: list[Any], where: str) -> list[Span]:
    """Spans of characters in order; raises ValueError for those that cannot be."""
    found = sorted((row_span(text, each, where) for each in given), key=lambda span: span.start)
    for first, second in pairwise(found):
        if second.start < first.end:
            raise ValueError(
                f"{where}: the spans {tuple(first)} and {tuple(second)} overlap; a word can have "
                "one label only, so keep one of the two."
            )
    return found


def row_span(text: str, given: Any, where: str) -> Span:  # noqa: ANN401 - any JSON value
    """One span."""
    try:
        span = Span(given["label"], given["start"], given["end"])
    except (TypeError, KeyError, IndexError):
        raise ValueError(
            f"{where}: {shorten(given)} is no span; write "
            '{"start": 0, "end": 5, "label": "person"}.'
        ) from None
    numbers = (span.start, span.end)
    if not isinstance(span.label, str) or not span.label or span.label.strip() != span.label:
        raise ValueError(f"{where}: the label {shorten(span.label)} of a span must be a word.")
    if any(isinstance(number, bool) or not isinstance(number, int) for number in numbers):
        raise ValueError(f"{where}: the span {tuple(span)} must have whole numbers for its ends.")
    if not 0 <= span.start < span.end <= len(text):
        raise ValueError(
            f"{where}: the span {tuple(span)} lies outside the text, which has {len(text)} "
            "characters, or is empty; offsets count characters (not bytes) from 0, and the end is "
            "behind the last one."
        )
    return span
