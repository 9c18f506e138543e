"""What a tagger answers, to files and to clients.

`predictions.jsonl` has a line for each text: `text` (given words with a space between them),
`words` with `text`, `start`, `end`, `label` and `score` each, and, where tags write spans down,
`spans` with the same. The score of a word is the probability of its tag. That of a span is the
lowest one of its words: a span is wrong as soon as one word is, and a threshold then means the same
for spans of any length, which it would not for a mean.

`serving_default` takes strings `text` [N] of any length and answers, padded to the text with the
most words, W:

- `words` string [N, W], as they stand in the text; "" on padding;
- `labels` string [N, W]; "" on padding;
- `scores` float32 [N, W]; `starts` and `ends` int32 [N, W], in characters; 0 on padding;
- `num_words` int32 [N].

`ids` answers `labels` string [N, S] ("" on padding), `probabilities` and `logits` float32 [N, S, C]
for every piece of one window; the first piece of a word is the one that was trained to know.

Offsets count characters (Unicode code points, as Python does) of the text as it was sent. Its words
are those of BERT's tokenizer: it splits at white space and around every punctuation mark.

Legend: N texts, W words, S pieces, M windows, R words and T pieces of all texts, C tags.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from bert_tf.data import batches, tagging, windows
from bert_tf.data.tagging import TaggedExamples
from bert_tf.data.windows import Windows
from bert_tf.spans import find_spans
from bert_tf.tasks import serving, viterbi
from bert_tf.tasks.contract import PREDICTIONS_FILE, IdsAnswer, Signature
from bert_tf.tasks.serving import Tensors
from bert_tf.tasks.tagging import TaggingTask, as_tagged
from bert_tf.tokenization import TokensWithOffsets

WINDOWS_AT_ONCE = 64  # that the model reads; bounds the memory that a long text takes
DIGITS = 6  # of scores in files


class GraphWords(NamedTuple):
    """The words of texts, one text after the other."""

    pieces: tf.Tensor  # int64 [R], the first piece of each word
    row: tf.Tensor  # int64 [R], the text of each
    row_splits: tf.Tensor  # int64 [N + 1], where the words of each text begin and end
    start: tf.Tensor  # int32 [R], characters
    end: tf.Tensor  # int32 [R]


@dataclasses.dataclass(frozen=True)
class TaggingAnswers:
    """The answers of a tagger; see `contract.Answers`."""

    task: TaggingTask

    def examples(self, split: str) -> TaggedExamples:
        """The windows of a split, whatever tags it has."""
        return self.task.cut(dataclasses.replace(self.task.text(split), tags=None))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """`predictions.jsonl`."""
        del split
        examples = as_tagged(examples)
        numbers, scores = self.task.decide(outputs["logits"], examples)
        tags = [self.task.tags.names[number] for number in numbers]
        lines = []
        for text, (first, end) in zip(
            examples.text.texts, examples.text.word_ranges(), strict=True
        ):
            words = [
                answer(text, start, stop, label, score)
                for start, stop, label, score in zip(
                    examples.text.starts[first:end].tolist(),
                    examples.text.ends[first:end].tolist(),
                    tags[first:end],
                    scores[first:end].tolist(),
                    strict=True,
                )
            ]
            line: dict[str, Any] = {"text": text, "words": words}
            if self.task.tags.spans:
                line["spans"] = spans_of(text, words)
            lines.append(json.dumps(line, ensure_ascii=False))
        return {PREDICTIONS_FILE: lines}

    def card(self) -> dict[str, Any]:
        """The tags in the order of `probabilities`, and what offsets count."""
        return {
            "labels": list(self.task.tags.names),
            "offsets": "characters (Unicode code points) of the text as sent; ends are exclusive",
        }

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Requests of the usual sizes, and a text of two windows."""
        longest = self.task.run.data.max_seq_length
        yield from serving.warmup_requests(self.task.tokenizer, ("text",), longest)
        yield serving.TEXT_SIGNATURE, {"text": ["." * longest]}

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """`serving_default` (strings) and `ids`."""
        answer_ids = self.ids_answers(model)[serving.IDS_SIGNATURE]
        return {
            serving.TEXT_SIGNATURE: serving.strings_signature(
                ("text",), lambda texts: self.answer_texts(model, texts[0])
            ),
            serving.IDS_SIGNATURE: serving.ids_signature(self.task, answer_ids),
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What `ids` does."""
        return {serving.IDS_SIGNATURE: lambda features: self.answer_ids(model, features)}

    def answer_ids(self, model: tf.Module, features: Tensors) -> Tensors:
        """The tag of every piece: int32 [N, S] each to what the top of this file says."""
        is_piece = features["mask"] > 0  # [N, S]
        logits = tf.where(tf.expand_dims(is_piece, -1), model(features), 0.0)  # [N, S, C]
        names = tf.gather(tf.constant(self.task.tags.names), tf.argmax(logits, axis=-1))
        return {
            "labels": tf.where(is_piece, names, ""),
            "probabilities": tf.nn.softmax(logits),
            "logits": logits,
        }

    def answer_texts(self, model: tf.Module, text: tf.Tensor) -> Tensors:
        """Strings [N] to their words and tags."""
        tokens = self.task.tokenizer(text, offsets=True)
        words = self.split_words(tokens)
        logits = self.word_logits(model, tokens.token_ids, words)  # [R, C]
        counts = words.row_splits[1:] - words.row_splits[:-1]  # [N]
        tags = self.decide(logits, words.row_splits, counts)  # [R]
        probabilities = tf.nn.softmax(logits)
        columns = {
            "words": substrings(text, words),
            "labels": tf.gather(tf.constant(self.task.tags.names), tags),
            "scores": tf.gather(probabilities, tags, batch_dims=1),
            "starts": words.start,
            "ends": words.end,
        }
        rows = {
            name: tf.RaggedTensor.from_row_splits(column, words.row_splits).to_tensor()
            for name, column in columns.items()
        }
        return rows | {"num_words": tf.cast(counts, tf.int32)}

    def split_words(self, tokens: TokensWithOffsets) -> GraphWords:
        """The words that pieces make up."""
        continues = tf.constant(tagging.continuations(self.task.tokenizer))  # [V]
        token_ids = tokens.token_ids
        pieces = tf.where(~tf.gather(continues, token_ids.values))[:, 0]  # [R]
        behind = tf.concat([pieces[1:], [tf.size(token_ids.values, tf.int64)]], axis=0)
        last = behind[: tf.size(pieces)] - 1  # without words there is none
        return GraphWords(
            pieces,
            tf.gather(token_ids.value_rowids(), pieces),
            tf.searchsorted(pieces, token_ids.row_splits, out_type=tf.int64),
            tf.gather(tokens.char_start.values, pieces),
            tf.gather(tokens.char_end.values, last),
        )

    def word_logits(
        self, model: tf.Module, token_ids: tf.RaggedTensor, words: GraphWords
    ) -> tf.Tensor:
        """Logits of every word, float32 [R, C], in the window that decides it."""
        width, stride = windows.window_shape(self.task.run.data)
        cut = windows.cut_windows(token_ids.row_splits, width, stride)
        grids = self.grids(token_ids, cut)
        logits = read_in_parts(model, grids, len(self.task.tags.names))  # [M, S, C]
        window = cut.deciding(words.pieces)  # [R]
        column = words.pieces - tf.gather(cut.start, window) + 1  # [R], behind [CLS]
        return tf.gather_nd(logits, tf.stack([window, column], axis=1))

    def grids(self, token_ids: tf.RaggedTensor, cut: Windows) -> Tensors:
        """`token_ids`, `segment_ids` and `mask` int32 [M, S] of the windows."""
        places = tf.ragged.range(cut.start, cut.start + cut.size)  # [M, (pieces)]
        pieces = places.with_values(tf.gather(token_ids.values, places.values))
        tokenizer = self.task.tokenizer
        packed = tokenizer.pack(pieces, None, self.task.run.data.max_seq_length)
        return serving.padded(packed, tokenizer.pad_id)

    def decide(self, logits: tf.Tensor, row_splits: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Tags int32 [R] from logits [R, C]."""
        if not self.task.run.task.constrained:
            return tf.argmax(logits, axis=-1, output_type=tf.int32)
        rows = tf.RaggedTensor.from_row_splits(tf.nn.log_softmax(logits), row_splits)
        grid = rows.to_tensor(shape=[None, None, len(self.task.tags.names)])  # [N, W, C]
        grid = serving.at_least_one_column(grid)
        path = viterbi.best_path_in_graph(grid, counts, self.task.tags.names)  # [N, W]
        return tf.RaggedTensor.from_tensor(path, lengths=counts).values


def read_in_parts(model: tf.Module, features: Tensors, num_tags: int) -> tf.Tensor:
    """Logits float32 [M, S, C] of windows [M, S], some of them at a time."""
    # Once at least: a list of no tensors could not tell its shape.
    count = tf.maximum(tf.shape(features["token_ids"])[0], 1)

    def read(start: tf.Tensor, parts: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        part = {name: grid[start : start + WINDOWS_AT_ONCE] for name, grid in features.items()}
        logits = model(part)  # [up to WINDOWS_AT_ONCE, S, C]
        return start + WINDOWS_AT_ONCE, parts.write(start // WINDOWS_AT_ONCE, logits)

    parts = tf.TensorArray(
        tf.float32,
        size=(count + WINDOWS_AT_ONCE - 1) // WINDOWS_AT_ONCE,
        infer_shape=False,
        element_shape=[None, None, num_tags],
    )
    _, parts = tf.while_loop(
        lambda start, _: start < count, read, (0, parts), parallel_iterations=1
    )
    return parts.concat()


def substrings(text: tf.Tensor, words: GraphWords) -> tf.Tensor:
    """The words as they stand in their texts [N], string [R]."""
    # By code points: a slice of the string itself would copy the whole text for every word.
    code_points = tf.strings.unicode_decode(text, "UTF-8", errors="ignore")
    base = tf.gather(code_points.row_splits, words.row)  # [R]
    places = tf.ragged.range(
        base + tf.cast(words.start, tf.int64), base + tf.cast(words.end, tf.int64)
    )
    return tf.strings.unicode_encode(
        places.with_values(tf.gather(code_points.values, places.values)), "UTF-8"
    )


def answer(text: str, start: int, end: int, label: str, score: float) -> dict[str, Any]:
    """A word or a span, for JSON."""
    return {
        "text": text[start:end],
        "start": start,
        "end": end,
        "label": label,
        "score": round(score, DIGITS),
    }


def spans_of(text: str, words: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The spans of one text, from its words with their tags."""
    return [
        answer(
            text,
            words[span.start]["start"],
            words[span.end - 1]["end"],
            span.label,
            min(word["score"] for word in words[span.start : span.end]),
        )
        for span in find_spans(word["label"] for word in words)
    ]
