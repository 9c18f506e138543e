"""Long texts under a question, in windows: `[CLS] question [SEP] part of the text [SEP]`.

The cuts are those of the original release's run_squad.py, written as TensorFlow ops, so that a
served model cuts as training did. Windows overlap; a piece of the text belongs to the window in
which it has most context, and an answer counts only in the window that its first piece belongs to.

Legend: Q questions, W windows, S pieces of a window, K pieces of all contexts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf.config import BertConfig, DataConfig
from bert_tf.data import batches
from bert_tf.data.squad import Answer, Questions, best_answer
from bert_tf.tokenization import Tokenizer, TokensWithOffsets, in_chunks, traced

QUESTIONS_PER_CHUNK = 256  # tokenized by one call
CLS_POSITION = 0  # where windows without the answer point to


def check_settings(data: DataConfig, config: BertConfig) -> None:
    """Raises ValueError for sizes of windows that cannot work."""
    data.check_length(config)
    for name in ("doc_stride", "max_query_length"):
        if getattr(data, name) < 1:
            raise ValueError(f"config.data.{name}={getattr(data, name)} must be at least 1.")
    # [CLS], two [SEP] and one piece of the text.
    if data.max_query_length + 4 > data.max_seq_length:
        raise ValueError(
            f"config.data.max_seq_length={data.max_seq_length} leaves no room for text beside "
            f"questions of config.data.max_query_length={data.max_query_length} pieces; 384 and 64 "
            "are usual."
        )


class Pairs(NamedTuple):
    """Pieces of questions and of their texts."""

    question: tf.RaggedTensor  # int32 [Q, (tokens)]
    context: TokensWithOffsets  # [Q, (tokens)] each


class Windows(NamedTuple):
    """Windows in the order of their questions and of the text."""

    token_ids: tf.RaggedTensor  # int32 [W, (S)]
    segment_ids: tf.RaggedTensor  # int32 [W, (S)]
    question: tf.Tensor  # int64 [W]; whose window it is
    piece_shift: tf.Tensor  # int64 [W]; number of a piece in its context - position in the window
    starts_from: tf.Tensor  # int32 [W]; answers start at positions starts_from <= i < starts_to
    starts_to: tf.Tensor  # int32 [W]


def tokenize_pairs(tokenizer: Tokenizer, question: tf.Tensor, context: tf.Tensor) -> Pairs:
    """Strings [Q] and [Q] to pieces; a text under several questions is tokenized once."""
    different, numbers = tf.unique(context)
    pieces = tokenizer(different, offsets=True)
    return Pairs(
        tokenizer(question),
        TokensWithOffsets(*(tf.gather(column, numbers) for column in pieces)),
    )


def cut(tokenizer: Tokenizer, pairs: Pairs, data: DataConfig) -> Windows:
    """Cuts texts into windows; every question has at least one, even under an empty text."""
    with tf.device("CPU:0"):
        question = pairs.question[:, : data.max_query_length]
        context = pairs.context.token_ids
        room = data.max_seq_length - 3 - question.row_lengths()  # [Q]; pieces of text in a window
        stride = tf.minimum(room, data.doc_stride)
        beyond = tf.maximum(context.row_lengths() - room, 0)  # the first window
        count = 1 - (-beyond // stride)  # [Q]; 1 and the quotient rounded up
        owner = tf.repeat(tf.range(question.nrows()), count)  # [W]
        number = tf.range(tf.size(owner, tf.int64)) - tf.gather(
            tf.cumsum(count, exclusive=True), owner
        )
        first = number * tf.gather(stride, owner)  # [W]; piece of the context
        length = tf.minimum(tf.gather(context.row_lengths(), owner) - first, tf.gather(room, owner))
        begin = tf.gather(context.row_starts(), owner) + first
        places = tf.ragged.range(begin, begin + length)  # int64 [W, (pieces)] into all contexts
        own_from, own_count = owned(places, length)
        head = [
            filled(tokenizer.cls_id, owner),
            tf.gather(question, owner),
            filled(tokenizer.sep_id, owner),
        ]
        tail = [
            places.with_values(tf.gather(context.values, places.values)),
            filled(tokenizer.sep_id, owner),
        ]
        token_ids = tf.concat([*head, *tail], axis=1)
        text_begin = tf.gather(question.row_lengths(), owner) + 2  # [W]; position in the window
        position = tf.ragged.range(token_ids.row_lengths())
        segment_ids = token_ids.with_values(
            tf.cast(position.values >= tf.gather(text_begin, position.value_rowids()), tf.int32)
        )
        starts_from = text_begin + own_from
        return Windows(
            token_ids,
            segment_ids,
            owner,
            first - text_begin,
            tf.cast(starts_from, tf.int32),
            tf.cast(starts_from + own_count, tf.int32),
        )


def owned(places: tf.RaggedTensor, length: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Which pieces of a window have most context there, as in the original release.

    A piece has as much as the nearer end of the window is away, plus 0.01 x pieces of the window;
    the first of equal windows wins. Those of a window are neighbours.

    Args:
        places: int64 [W, (pieces)], numbers of the pieces in all contexts, K.
        length: int64 [W], pieces of each window.

    Returns:
        First owned piece of each window, counted from the window's first, and how many: int64 [W].
    """
    windows = tf.size(length, tf.int64)
    total = tf.reduce_max(tf.concat([places.values, [-1]], axis=0)) + 1  # K at most
    window = places.value_rowids()
    left = tf.ragged.range(length).values
    right = tf.gather(length, window) - 1 - left
    score = 100 * tf.minimum(left, right) + tf.gather(length, window)
    best = tf.math.unsorted_segment_max(score, places.values, total)  # [K]
    contender = tf.where(score == tf.gather(best, places.values), window, windows)
    winner = tf.math.unsorted_segment_min(contender, places.values, total)  # [K]
    is_own = tf.gather(winner, places.values) == window
    count = tf.math.unsorted_segment_sum(tf.cast(is_own, tf.int64), window, windows)
    first = tf.math.unsorted_segment_min(
        tf.where(is_own, left, tf.gather(length, window)), window, windows
    )
    return tf.minimum(first, length), count


def filled(value: int, owner: tf.Tensor) -> tf.RaggedTensor:
    """A column of the int32 value: ragged [W, (1)]."""
    return tf.RaggedTensor.from_uniform_row_length(
        tf.fill(tf.shape(owner), value), 1, nrows=tf.size(owner, tf.int64), validate=False
    )


# ------------------------------------------------------------------------------------- the examples


@dataclasses.dataclass(frozen=True)
class WindowExamples(batches.Examples):
    """Windows as examples, and where their pieces stand in the texts; see `Windows`.

    `targets` has `starts_from` and `starts_to` and, where the questions have answers, the positions
    `start` and `end` of the answer (of [CLS] in windows without it): int32 [W].
    """

    questions: Questions
    owner: np.ndarray  # int64 [W], number of the question
    piece_shift: np.ndarray  # int64 [W]
    piece_splits: np.ndarray  # int64 [Q + 1]; pieces of context q are [splits[q]:splits[q + 1]]
    char_start: np.ndarray  # int32 [K], of each piece in its context
    char_end: np.ndarray  # int32 [K]


@functools.lru_cache(maxsize=4)  # the files of a run share one
def window_cutter(tokenizer: Tokenizer, data: DataConfig) -> Callable[..., Any]:
    """From questions and contexts to the arrays that `WindowExamples` are made of."""

    def cut_windows(question: tf.Tensor, context: tf.Tensor) -> dict[str, tf.Tensor]:
        pairs = tokenize_pairs(tokenizer, question, context)
        windows = cut(tokenizer, pairs, data)
        return {
            "token_ids": windows.token_ids.values,
            "segment_ids": windows.segment_ids.values,
            "lengths": windows.token_ids.row_lengths(),
            "windows": tf.math.bincount(
                tf.cast(windows.question, tf.int32), minlength=tf.size(question)
            ),
            "piece_shift": windows.piece_shift,
            "starts_from": windows.starts_from,
            "starts_to": windows.starts_to,
            "pieces": pairs.context.token_ids.row_lengths(),
            "char_start": pairs.context.char_start.values,
            "char_end": pairs.context.char_end.values,
        }

    return traced(cut_windows, columns=2)


def tokenize_questions(
    tokenizer: Tokenizer, questions: Questions, data: DataConfig
) -> WindowExamples:
    """Tokenizes and cuts all questions, in chunks on all cores."""
    columns = [
        [row.question for row in questions.rows],
        [row.context for row in questions.rows],
    ]
    arrays = in_chunks(window_cutter(tokenizer, data), columns, QUESTIONS_PER_CHUNK)
    examples = WindowExamples(
        token_ids=arrays["token_ids"],
        segment_ids=arrays["segment_ids"],
        row_splits=splits(arrays["lengths"]),
        targets={name: arrays[name] for name in ("starts_from", "starts_to")},
        questions=questions,
        owner=np.repeat(np.arange(len(questions)), arrays["windows"]),
        piece_shift=arrays["piece_shift"],
        piece_splits=splits(arrays["pieces"]),
        char_start=arrays["char_start"],
        char_end=arrays["char_end"],
    )
    if questions.have_answers:
        examples.targets.update(answer_positions(examples))
    return examples


def splits(lengths: np.ndarray) -> np.ndarray:
    """Where rows of these lengths begin, and where the last ends: int64 [rows + 1]."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def answer_positions(examples: WindowExamples) -> dict[str, np.ndarray]:
    """`start` and `end` int32 [W], the positions of the answer in each window.

    A window that does not hold the whole answer points to [CLS], as in the original release.
    """
    pieces = np.zeros([len(examples.questions), 2], np.int64)  # first and last of the answer
    pieces[:, 1] = -1
    answers = inexact = lost = 0
    for number, row in enumerate(examples.questions.rows):
        answer = best_answer(row)
        if answer is None:
            continue
        here = slice(*examples.piece_splits[number : number + 2])
        char_start, char_end = examples.char_start[here], examples.char_end[here]
        first, last = covering_pieces(char_start, char_end, answer)
        answers += 1
        lost += first > last
        if first <= last:
            pieces[number] = first, last
            begin, end = trimmed(answer)
            inexact += (char_start[first], char_end[last]) != (begin, end)
    if inexact or lost:
        logging.info(
            "%s: of %d answers %d begin or end inside a piece, and get the pieces that cover them; "
            "%d have no piece at all, and count as no answer.",
            examples.questions.source,
            answers,
            inexact,
            lost,
        )
    first, last = (pieces[examples.owner] - examples.piece_shift[:, np.newaxis]).T  # positions [W]
    has_answer = pieces[examples.owner, 1] >= 0
    inside = has_answer & (first >= text_begins(examples)) & (last < examples.lengths - 1)
    return {
        "start": np.where(inside, first, CLS_POSITION).astype(np.int32),
        "end": np.where(inside, last, CLS_POSITION).astype(np.int32),
    }


def text_begins(examples: WindowExamples) -> np.ndarray:
    """Position of the first piece of the text in each window, int64 [W]."""
    return np.add.reduceat(examples.segment_ids == 0, examples.row_splits[:-1])


def trimmed(answer: Answer) -> tuple[int, int]:
    """Where an answer begins and ends, without white space around it."""
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    return begin, begin + len(answer.text.strip())


def covering_pieces(
    char_start: np.ndarray, char_end: np.ndarray, answer: Answer
) -> tuple[int, int]:
    """First and last of the pieces [K] that share a character with the answer.

    They are those of the answer, or reach beyond it where it begins or ends inside a piece ("5" of
    "1985"). The first is beyond the last where no piece has any of it (control characters).
    """
    begin, end = trimmed(answer)
    first = int(np.searchsorted(char_end, begin, side="right"))
    return first, int(np.searchsorted(char_start, end, side="left")) - 1
