"""What question answering answers, to files and to clients.

`serving_default` takes `question` and `context` strings [N] of any length: the windows are cut in
the graph, as for training, and pass the model a few at a time. It answers, for each question:

- `answer` string [N], always a slice of the context; "" for no answer;
- `score` float32 [N], the probability of that answer among all that the model may give;
- `start` and `end` int32 [N], its code points in the context, and `start_byte`, `end_byte`, its
  bytes (all -1 for no answer);
- `no_answer_probability` float32 [N] (task.no_answer), of no answer against the likeliest one.

`ids` answers `start_logits` and `end_logits` float32 [N, S], for clients that cut themselves.

Legend: N questions, W windows, S pieces of a window, K pieces of all contexts.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import tensorflow as tf

from bert_tf.data import batches
from bert_tf.data.question_windows import Pairs, WindowExamples, Windows, cut, tokenize_pairs
from bert_tf.data.squad import Questions
from bert_tf.tasks import serving
from bert_tf.tasks.answer_spans import IMPOSSIBLE, NO_ANSWER, Found, Span, best_spans, find_answers
from bert_tf.tasks.contract import PREDICTIONS_FILE, IdsAnswer, Signature
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tasks.serving import Tensors
from bert_tf.tokenization import PackedTokens

TEXT_INPUTS = ("question", "context")
WINDOWS_AT_ONCE = 32  # in the graph: bounds the memory of a long text


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringAnswers:
    """The answers of question answering; see `contract.Answers`."""

    task: QuestionAnsweringTask

    def examples(self, split: str) -> WindowExamples:
        """The windows of a split, without the answers that it may have."""
        questions = self.task.questions(split, require_answers=False, unique_ids=True)
        rows = [row._replace(answers=None) for row in questions.rows]
        return self.task.tokenize(Questions(rows, questions.source))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """`predictions.jsonl`, and the files of the original release by question id."""
        assert isinstance(examples, WindowExamples)
        settings = self.task.run.task
        found = list(find_answers(outputs, examples, settings.n_best, settings.no_answer))
        ids = [row.id for row in examples.questions.rows]
        decided = [answer.decided(self.threshold) for answer in found]
        lines = [self.line(*each) for each in zip(ids, found, decided, strict=True)]
        official: dict[str, list[Any]] = {
            "predictions.json": [span.text for span in decided],
            "nbest_predictions.json": [self.n_best(answer) for answer in found],
        }
        if settings.no_answer:
            official["null_odds.json"] = [answer.null_odds for answer in found]
        return {PREDICTIONS_FILE: [json.dumps(line, ensure_ascii=False) for line in lines]} | {
            name: [json.dumps(dict(zip(ids, values, strict=True)), ensure_ascii=False, indent=1)]
            for name, values in official.items()
        }

    @property
    def threshold(self) -> float | None:
        """On the log-odds of no answer; None where there always is one."""
        return self.task.no_answer_threshold if self.task.run.task.no_answer else None

    def line(self, number: str, found: Found, span: Span) -> dict[str, Any]:
        """What a server answers, for a line of JSON."""
        answer = {
            "id": number,
            "answer": span.text,
            "score": round(span.probability, 6),
            "start": span.start,
            "end": span.end,
        }
        if not self.task.run.task.no_answer:
            return answer
        chance = float(scipy.special.expit(found.null_odds))
        return answer | {"no_answer_probability": round(chance, 6)}

    def n_best(self, found: Found) -> list[dict[str, Any]]:
        """The likeliest answers, no answer among them where the task knows that; never none."""
        spans = list(found.spans)
        if self.task.run.task.no_answer or not spans:
            spans.append(found.null)
        return [span.to_dict() for span in sorted(spans, key=lambda span: -span.probability)]

    def card(self) -> dict[str, Any]:
        """The threshold above which there is no answer."""
        return {} if self.threshold is None else {"no_answer_threshold": self.threshold}

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """`serving_default` (strings) and `ids`."""

        def answer_texts(texts: Sequence[tf.Tensor]) -> Tensors:
            question, context = serving.of_one_number(texts, TEXT_INPUTS)
            pairs = tokenize_pairs(self.task.tokenizer, question, context)
            windows = cut(self.task.tokenizer, pairs, self.task.run.data)
            return self.graph_answers(self.joined(model, windows, pairs), context, pairs)

        answer_ids = self.ids_answers(model)[serving.IDS_SIGNATURE]
        return {
            serving.TEXT_SIGNATURE: serving.strings_signature(TEXT_INPUTS, answer_texts),
            serving.IDS_SIGNATURE: serving.ids_signature(self.task, answer_ids),
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What `ids` does."""

        def answer(features: Tensors) -> Tensors:
            start, end = tf.unstack(model(features), axis=-1)
            return {"start_logits": start, "end_logits": end}

        return {serving.IDS_SIGNATURE: answer}

    def joined(self, model: tf.Module, windows: Windows, pairs: Pairs) -> Tensors:
        """The likeliest span of each question.

        Returns:
            `score`, `null_score` and `mass` float32 [N] (see `best_spans`), `first` and `last`
            int64 [N], numbers of its pieces in its context.
        """
        scores, places = self.in_chunks(model, windows)  # [W, 3], [W, 2]
        owner, count = windows.question, pairs.question.nrows()
        score = tf.math.unsorted_segment_max(scores[:, 0], owner, count)  # [N]
        mass = tf.math.unsorted_segment_max(scores[:, 1], owner, count)
        shares = tf.exp(scores[:, 1] - tf.gather(mass, owner))
        number = tf.range(tf.size(owner, tf.int64))
        is_best = scores[:, 0] == tf.gather(score, owner)
        # The first of equal windows, of which every question has one.
        best = tf.math.unsorted_segment_min(
            tf.where(is_best, number, tf.size(owner, tf.int64)), owner, count
        )
        pieces = tf.cast(tf.gather(places, best), tf.int64)  # positions in the window [N, 2]
        pieces += tf.gather(windows.piece_shift, best)[:, tf.newaxis]
        return {
            "score": score,
            "null_score": tf.math.unsorted_segment_min(scores[:, 2], owner, count),
            "mass": mass + tf.math.log(tf.math.unsorted_segment_sum(shares, owner, count)),
            "first": pieces[:, 0],
            "last": pieces[:, 1],
        }

    def in_chunks(self, model: tf.Module, windows: Windows) -> tuple[tf.Tensor, tf.Tensor]:
        """The likeliest span of each window: WINDOWS_AT_ONCE pass the model, then the next.

        Returns:
            float32 [W, 3]: its score, the mass of all spans, the score of no answer; int32 [W, 2]:
            positions of its first and last piece.
        """
        count = tf.size(windows.question)
        longest = self.task.run.task.max_answer_length

        def one_more(
            begin: tf.Tensor, scores: tf.Tensor, places: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            rows = tf.range(begin, tf.minimum(begin + WINDOWS_AT_ONCE, count))
            packed = PackedTokens(
                tf.gather(windows.token_ids, rows), tf.gather(windows.segment_ids, rows)
            )
            batch = serving.padded(packed, self.task.tokenizer.pad_id) | {
                "starts_from": tf.gather(windows.starts_from, rows),
                "starts_to": tf.gather(windows.starts_to, rows),
            }
            spans = best_spans(model(batch), batch, longest, count=1)
            null_score = tf.reduce_sum(spans["null_logits"], axis=1)
            more = tf.stack([spans["span_score"][:, 0], spans["span_mass"], null_score], axis=1)
            more_places = tf.concat([spans["span_start"], spans["span_end"]], axis=1)
            return (
                begin + WINDOWS_AT_ONCE,
                tf.concat([scores, more], axis=0),
                tf.concat([places, more_places], axis=0),
            )

        _, scores, places = tf.while_loop(
            lambda begin, *_: begin < count,
            one_more,
            (tf.constant(0), tf.zeros([0, 3]), tf.zeros([0, 2], tf.int32)),
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None, 3]),
                tf.TensorShape([None, 2]),
            ),
            parallel_iterations=1,
        )
        return scores, places

    def graph_answers(self, best: Tensors, context: tf.Tensor, pairs: Pairs) -> Tensors:
        """What clients get, from what `joined` returns: see the top of this file."""
        found = best["score"] > IMPOSSIBLE / 2  # [N]
        score, mass = best["score"], best["mass"]
        answers: Tensors = {}
        if self.threshold is not None:
            odds = best["null_score"] - best["score"]
            answers["no_answer_probability"] = tf.sigmoid(odds)
            found &= odds <= self.threshold
            mass = tf.reduce_logsumexp(tf.stack([mass, best["null_score"]]), axis=0)
            score = tf.where(found, score, best["null_score"])
        places = {}
        for name, column, piece in (
            ("start", pairs.context.char_start, best["first"]),
            ("end", pairs.context.char_end, best["last"]),
            ("start_byte", pairs.context.byte_start, best["first"]),
            ("end_byte", pairs.context.byte_end, best["last"]),
        ):
            # Texts without any pieces have nothing to gather from.
            values = tf.concat([column.values, [0]], axis=0)  # [K + 1]
            place = tf.where(found, column.row_starts() + piece, 0)
            places[name] = tf.where(found, tf.gather(values, place), NO_ANSWER)
        begin = tf.maximum(places["start_byte"], 0)
        length = tf.maximum(places["end_byte"], 0) - begin
        share = tf.exp(score - mass)
        return (
            answers
            | places
            | {
                "answer": tf.strings.substr(context, begin, length),
                "score": share if self.threshold is not None else tf.where(found, share, 0.0),
            }
        )

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Requests of the usual sizes."""
        longest = self.task.run.data.max_seq_length
        return serving.warmup_requests(self.task.tokenizer, TEXT_INPUTS, longest)
