"""Tagged words as pieces, and as windows of pieces that a model reads.

Legend: E texts, R words and T pieces of all texts, M windows, W decided words of a window at most.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf.data.batches import Examples
from bert_tf.data.conll import TaggedSource
from bert_tf.data.windows import SPECIAL_PIECES, Windows, cut_windows
from bert_tf.spans import OUTSIDE, Span
from bert_tf.tokenization import Tokenizer, in_chunks, traced

WORDS_PER_CHUNK = 16_384  # tokenized by one call
TEXTS_PER_CHUNK = 512
NOTHING = -1  # first piece of a word that vanishes in normalisation; label of one without a label
CONTINUES = "##"


@dataclasses.dataclass(frozen=True)
class TaggedText:
    """Texts, their words, and the pieces of these."""

    source: TaggedSource
    texts: list[str]  # [E]
    words_of: np.ndarray  # int64 [E + 1], where the words of each text begin and end
    starts: np.ndarray  # int64 [R], characters into its text
    ends: np.ndarray  # int64 [R]
    tags: list[str] | None  # [R]
    token_ids: np.ndarray  # int32 [T]
    pieces_of: np.ndarray  # int64 [E + 1], where the pieces of each text begin and end
    first_pieces: np.ndarray  # int64 [R], or NOTHING

    @property
    def num_words(self) -> int:
        """R."""
        return len(self.starts)

    def split(self, tags: Sequence[str]) -> list[list[str]]:
        """What belongs to each word [R], by text."""
        return [list(tags[first:end]) for first, end in self.word_ranges()]

    def words(self) -> list[list[str]]:
        """The words of each text, as they stand in it."""
        starts, ends = self.starts.tolist(), self.ends.tolist()
        return [
            [text[starts[word] : ends[word]] for word in range(first, end)]
            for text, (first, end) in zip(self.texts, self.word_ranges(), strict=True)
        ]

    def word_ranges(self) -> Iterator[tuple[int, int]]:
        """First word and the one behind the last, of each text."""
        places = self.words_of.tolist()
        return pairwise(places)


def read_pieces(tokenizer: Tokenizer, source: TaggedSource) -> TaggedText:
    """Tokenizes what was read: word by word, or texts that split into words as served ones do."""
    return of_texts(tokenizer, source) if source.texts else of_words(tokenizer, source)


def continuations(tokenizer: Tokenizer) -> np.ndarray:
    """Bool [V]: whether a piece continues a word; the others begin one."""
    return np.array(
        [piece.startswith(CONTINUES) and piece != CONTINUES for piece in tokenizer.vocab]
    )


@functools.lru_cache(maxsize=4)  # the files of a run share one
def word_reader(tokenizer: Tokenizer) -> Callable[..., Any]:
    """From words to their pieces, and how many each has."""

    def pieces(words: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found: tf.RaggedTensor = tokenizer(words)
        return found.values, found.row_lengths()

    return traced(pieces, columns=1)


@functools.lru_cache(maxsize=4)
def text_reader(tokenizer: Tokenizer) -> Callable[..., Any]:
    """From texts to their pieces, how many each has, and where they start and end."""

    def pieces(texts: tf.Tensor) -> tuple[tf.Tensor, ...]:
        found = tokenizer(texts, offsets=True)
        places = (found.char_start.values, found.char_end.values)
        return (found.token_ids.values, found.token_ids.row_lengths(), *places)

    return traced(pieces, columns=1)


def of_words(tokenizer: Tokenizer, source: TaggedSource) -> TaggedText:
    """The pieces of given words; a text is its words with a space between them."""
    words = [word for each in source.words for word in each.words]
    encoded = [word.encode() for word in words]
    token_ids, lengths = in_chunks(word_reader(tokenizer), [encoded], WORDS_PER_CHUNK)
    piece_ends = running_total(lengths)  # [R + 1]
    words_of = running_total([len(each.words) for each in source.words])
    sizes = np.array([len(word) for word in words], np.int64)
    begins = running_total(sizes + 1)  # [R + 1], in all texts with a space behind each word
    base = np.repeat(begins[words_of[:-1]], np.diff(words_of))
    tagged = all(each.tags is not None for each in source.words)
    return TaggedText(
        source,
        [" ".join(each.words) for each in source.words],
        words_of,
        begins[:-1] - base,
        begins[:-1] - base + sizes,
        list(chain.from_iterable(each.tags or () for each in source.words)) if tagged else None,
        token_ids,
        piece_ends[words_of],
        np.where(lengths > 0, piece_ends[:-1], NOTHING),
    )


def of_texts(tokenizer: Tokenizer, source: TaggedSource) -> TaggedText:
    """The words that the tokenizer splits texts into, at white space and around punctuation."""
    texts = [each.text for each in source.texts]
    encoded = [text.encode() for text in texts]
    token_ids, lengths, starts, ends = in_chunks(text_reader(tokenizer), [encoded], TEXTS_PER_CHUNK)
    pieces_of = running_total(lengths)
    first = np.flatnonzero(~continuations(tokenizer)[token_ids])  # [R]
    last = np.append(first[1:], len(token_ids))[: len(first)] - 1
    text = TaggedText(
        source,
        texts,
        np.searchsorted(first, pieces_of).astype(np.int64),
        starts[first].astype(np.int64),
        ends[last].astype(np.int64),
        None,
        token_ids,
        pieces_of,
        first.astype(np.int64),
    )
    return dataclasses.replace(text, tags=tags_of_spans(text))


def running_total(lengths: np.ndarray | list[int]) -> np.ndarray:
    """0 and the sums so far: [E] to int64 [E + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def tags_of_spans(text: TaggedText) -> list[str] | None:
    """The tag of every word, from the spans of characters; None where a text has no spans.

    A word that a span only touches belongs to it as a whole; that, and spans without a word of
    their own, is logged.
    """
    if any(each.spans is None for each in text.source.texts):
        return None
    tags = [OUTSIDE] * text.num_words
    inexact = total = 0
    for each, (first, end) in zip(text.source.texts, text.word_ranges(), strict=True):
        starts, ends = text.starts[first:end], text.ends[first:end]
        for span in each.spans or ():
            total += 1
            inexact += not mark(tags, span, first, starts, ends)
    if inexact:
        logging.warning(
            "%s: %d of %d spans do not begin and end where words do, and are widened to whole "
            "words, or have no word of their own.",
            text.source.source,
            inexact,
            total,
        )
    return tags


def mark(tags: list[str], span: Span, first: int, starts: np.ndarray, ends: np.ndarray) -> bool:
    """Tags the words of a span; returns whether it begins and ends where they do."""
    begin = int(np.searchsorted(ends, span.start, side="right"))
    end = int(np.searchsorted(starts, span.end, side="left"))
    prefix = "B"
    for word in range(begin, end):
        if tags[first + word] == OUTSIDE:
            tags[first + word] = f"{prefix}-{span.label}"
            prefix = "I"
    whole = begin < end and starts[begin] == span.start and ends[end - 1] == span.end
    return bool(whole and prefix == "I")


# -------------------------------------------------------------------------------------- the windows


@dataclasses.dataclass(frozen=True)
class TaggedExamples(Examples):
    """Windows as examples, M of them, and where each word is decided; D words have pieces."""

    text: TaggedText
    words: np.ndarray  # int64 [D], which of the R
    windows: np.ndarray  # int64 [D], the window that decides it
    slots: np.ndarray  # int64 [D], its place among the words that this window decides


@dataclasses.dataclass(frozen=True)
class Decided:
    """Which pieces carry an answer; D of them, in order."""

    words: np.ndarray  # int64 [D]
    pieces: np.ndarray  # int64 [D]
    labels: np.ndarray | None  # int32 [D], or NOTHING


def cut_examples(
    text: TaggedText, decided: Decided, tokenizer: Tokenizer, width: int, stride: int
) -> TaggedExamples:
    """Windows of `width` pieces as examples.

    Their targets are `first_pieces` int32 [M, W], columns of `token_ids` (0, which is [CLS], on
    padding), and, where there are labels, `word_labels` int32 [M, W]: the label plus 1, 0 for none.
    """
    windows = Windows(*(part.numpy() for part in cut_windows(text.pieces_of, width, stride)))
    row_splits = running_total(windows.size + SPECIAL_PIECES)
    token_ids = np.zeros(row_splits[-1], np.int32)
    token_ids[row_splits[:-1]] = tokenizer.cls_id
    token_ids[row_splits[1:] - 1] = tokenizer.sep_id
    inside = np.ones(len(token_ids), bool)
    inside[row_splits[:-1]] = inside[row_splits[1:] - 1] = False
    places = np.arange(windows.size.sum()) - np.repeat(
        running_total(windows.size)[:-1] - windows.start, windows.size
    )
    token_ids[inside] = text.token_ids[places]

    deciding = windows.deciding(tf.constant(decided.pieces)).numpy()  # [D]
    slots = np.arange(len(deciding)) - np.searchsorted(deciding, deciding)
    grid = np.zeros([len(windows.row), slots.max(initial=0) + 1], np.int32)  # [M, W]
    targets = {"first_pieces": grid.copy()}
    targets["first_pieces"][deciding, slots] = decided.pieces - windows.start[deciding] + 1
    if decided.labels is not None:
        targets["word_labels"] = grid
        grid[deciding, slots] = decided.labels + 1
    segment_ids = np.zeros_like(token_ids)
    return TaggedExamples(
        token_ids, segment_ids, row_splits, targets, text, decided.words, deciding, slots
    )


def joined(parts: Sequence[Examples]) -> Examples:
    """Windows, one after the other: targets [M, W, ...] get the largest W, filled with 0."""
    widest = max(part.targets["first_pieces"].shape[1] for part in parts)
    targets = {}
    for name in parts[0].targets:
        grids = [part.targets[name] for part in parts]
        targets[name] = np.concatenate([padded_columns(grid, widest) for grid in grids])
    lengths = np.concatenate([part.lengths for part in parts])
    return Examples(
        np.concatenate([part.token_ids for part in parts]),
        np.concatenate([part.segment_ids for part in parts]),
        running_total(lengths),
        targets,
    )


def widened(examples: TaggedExamples, columns: int) -> TaggedExamples:
    """The windows with targets [M, columns, ...], filled with 0."""
    targets = {name: padded_columns(grid, columns) for name, grid in examples.targets.items()}
    return dataclasses.replace(examples, targets=targets)


def padded_columns(grid: np.ndarray, columns: int) -> np.ndarray:
    """[M, W, ...] to [M, columns, ...], filled with 0."""
    missing = [(0, 0), (0, columns - grid.shape[1])] + [(0, 0)] * (grid.ndim - 2)
    return np.pad(grid, missing)
