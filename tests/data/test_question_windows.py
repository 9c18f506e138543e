from __future__ import annotations

import collections
import pathlib
import random

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig, DataConfig
from bert_tf.data.question_windows import (
    check_settings,
    covering_pieces,
    cut,
    tokenize_pairs,
    tokenize_questions,
)
from bert_tf.data.squad import Answer, Question, Questions
from bert_tf.tokenization import Tokenizer

VOCABULARY = pathlib.Path(__file__).parents[1] / "goldens/hf/tiny_pretraining/vocab.txt"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(str(VOCABULARY))


# ----------------------------------------------------------- run_squad.py of the original release

DocSpan = collections.namedtuple("DocSpan", ["start", "length"])


def doc_spans(num_doc_tokens: int, max_tokens_for_doc: int, doc_stride: int) -> list[DocSpan]:
    spans = []
    start_offset = 0
    while start_offset < num_doc_tokens:
        length = min(num_doc_tokens - start_offset, max_tokens_for_doc)
        spans.append(DocSpan(start=start_offset, length=length))
        if start_offset + length == num_doc_tokens:
            break
        start_offset += min(length, doc_stride)
    return spans


def check_is_max_context(spans: list[DocSpan], cur_span_index: int, position: int) -> bool:
    best_score = None
    best_span_index = None
    for span_index, doc_span in enumerate(spans):
        end = doc_span.start + doc_span.length - 1
        if position < doc_span.start or position > end:
            continue
        num_left_context = position - doc_span.start
        num_right_context = end - position
        score = min(num_left_context, num_right_context) + 0.01 * doc_span.length
        if best_score is None or score > best_score:
            best_score = score
            best_span_index = span_index
    return cur_span_index == best_span_index


# ------------------------------------------------------------------------------------------ cutting

SETTINGS = [
    DataConfig(max_seq_length=24, max_query_length=6, doc_stride=8),
    DataConfig(max_seq_length=24, max_query_length=6, doc_stride=1),
    DataConfig(max_seq_length=24, max_query_length=6, doc_stride=100),
    DataConfig(max_seq_length=10, max_query_length=6, doc_stride=8),
    DataConfig(max_seq_length=384, max_query_length=64, doc_stride=128),
]


@pytest.mark.parametrize("data", SETTINGS, ids=lambda data: str(data.doc_stride))
def test_windows_are_those_of_the_original_release(data: DataConfig, tokenizer: Tokenizer) -> None:
    source = random.Random(data.max_seq_length + data.doc_stride)
    letters = "abcdefghijklmnopqrstuvwxyz"
    longest = 900 if data.max_seq_length > 100 else 60
    questions = [source.choices(letters, k=source.randrange(80)) for _ in range(9)]
    contexts = [source.choices(letters, k=source.randrange(longest)) for _ in range(9)]
    pairs = tokenize_pairs(
        tokenizer,
        tf.constant([" ".join(words) for words in questions]),
        tf.constant([" ".join(words) for words in contexts]),
    )
    windows = cut(tokenizer, pairs, data)
    got = iter(range(windows.token_ids.nrows()))
    ids = {piece: number for number, piece in enumerate(tokenizer.vocab)}
    for number, (question, context) in enumerate(zip(questions, contexts, strict=True)):
        kept = question[: data.max_query_length]
        spans = doc_spans(len(context), data.max_seq_length - len(kept) - 3, data.doc_stride)
        for index, span in enumerate(spans or [DocSpan(0, 0)]):
            window = next(got)
            part = context[span.start : span.start + span.length]
            pieces = ["[CLS]", *kept, "[SEP]", *part, "[SEP]"]
            assert windows.token_ids[window].numpy().tolist() == [ids[piece] for piece in pieces]
            segments = [0] * (len(kept) + 2) + [1] * (len(part) + 1)
            assert windows.segment_ids[window].numpy().tolist() == segments
            assert windows.question[window] == number
            begin = len(kept) + 2
            assert windows.piece_shift[window] == span.start - begin
            own = [
                begin + place
                for place in range(span.length)
                if check_is_max_context(spans, index, span.start + place)
            ]
            first, last = int(windows.starts_from[window]), int(windows.starts_to[window])
            assert list(range(first, last)) == own
    assert next(got, None) is None


def test_no_questions_have_no_windows(tokenizer: Tokenizer) -> None:
    nothing = tf.constant([], tf.string)
    windows = cut(tokenizer, tokenize_pairs(tokenizer, nothing, nothing), SETTINGS[0])
    assert windows.token_ids.nrows() == 0
    assert windows.starts_to.shape == [0]


# ------------------------------------------------------------------------------------ the examples


def questions(*rows: tuple[str, str, tuple[Answer, ...] | None]) -> Questions:
    return Questions(
        [Question(str(number), *row) for number, row in enumerate(rows)], "questions.json"
    )


def test_every_window_with_the_whole_answer_points_to_it(tokenizer: Tokenizer) -> None:
    context = " ".join("abcdefghijklmnopqrstuvwxyz")
    answers = (Answer("k l m", 20),)
    rows = questions(("cat", context, answers), ("cat", context, ()), ("", "", ()))
    data = DataConfig(max_seq_length=14, max_query_length=4, doc_stride=5)
    examples = tokenize_questions(tokenizer, rows, data)
    assert examples.owner.tolist() == [0] * 5 + [1] * 5 + [2]
    pieces = np.split(examples.token_ids, examples.row_splits[1:-1])
    for window, (start, end) in enumerate(
        zip(examples.targets["start"], examples.targets["end"], strict=True)
    ):
        said = tokenizer.tokens(pieces[window].tolist())
        if "k" in said and "m" in said and examples.owner[window] == 0:
            assert said[start : end + 1] == ["k", "l", "m"]
        else:
            assert start == end == 0
    assert (examples.targets["start"] > 0).sum() == 2  # windows from piece 5 and from piece 10


def test_without_answers_there_are_no_positions(tokenizer: Tokenizer) -> None:
    examples = tokenize_questions(tokenizer, questions(("cat", "a b", None)), SETTINGS[0])
    assert examples.targets.keys() == {"starts_from", "starts_to"}


@pytest.mark.parametrize(
    ("context", "answer", "covered"),
    [
        ("in 1985, a cat", Answer("1985", 3), "1985"),
        ("in 1985s a cat", Answer("985", 4), "985"),  # a piece each: nothing is cut through
        ("the happiest cat", Answer("happi", 4), "happi"),
        ("was reading it", Answer("ading", 6), "reading"),  # pieces read, ##ing
        ("was reading it", Answer("readi", 4), "reading"),
        ("a 🙂 Köln b", Answer("Köln", 4), "Köln"),
        ("a  red \u00a0 house", Answer(" red \u00a0", 2), "red"),
        ("a \u200b\u200b cat", Answer("\u200b", 2), ""),  # no piece has any of it
    ],
)
def test_answers_get_the_pieces_that_cover_them(
    tokenizer: Tokenizer, context: str, answer: Answer, covered: str
) -> None:
    assert context[answer.start :].startswith(answer.text)
    pieces = tokenizer([context], offsets=True)
    char_start, char_end = pieces.char_start[0].numpy(), pieces.char_end[0].numpy()
    first, last = covering_pieces(char_start, char_end, answer)
    assert (context[char_start[first] : char_end[last]] if first <= last else "") == covered


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"doc_stride": 0}, "config.data.doc_stride=0 must be at least 1"),
        ({"max_query_length": 0}, "config.data.max_query_length=0 must be at least 1"),
        ({"max_seq_length": 67}, "leaves no room for text beside questions"),
        ({"max_seq_length": 600}, "exceeds the position table"),
    ],
)
def test_sizes_that_cannot_work(changes: dict[str, int], message: str) -> None:
    data = DataConfig(**({"max_seq_length": 384} | changes))
    with pytest.raises(ValueError, match=message):
        check_settings(data, BertConfig(vocab_size=10))
