"""Question answering: the span of a text that answers a question (paper, sections 4.2 and 4.3).

Legend: B windows of a batch, S pieces of a window, H hidden, W windows, Q questions, K spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import answer_metrics, kernels
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches, question_windows
from bert_tf.data.question_windows import WindowExamples
from bert_tf.data.squad import Questions, read_questions
from bert_tf.encoder import BertEncoder, OutputLayer
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks.answer_spans import best_spans, find_answers
from bert_tf.tasks.contract import Features
from bert_tf.tokenization import Tokenizer

METRICS = ("f1", "exact_match")
# SQuAD 2.0: the best that a threshold reaches comes first, as thresholds are tuned afterwards.
METRICS_WITH_NO_ANSWER = (
    "best_f1",
    "best_exact_match",
    "f1",
    "exact_match",
    "answerable_f1",
    "answerable_exact_match",
    "unanswerable_f1",
    "unanswerable_exact_match",
)


class SpanHead(keras.layers.Layer):
    """A linear map of every position (original release, run_squad.py, whose names it has)."""

    def __init__(self, config: BertConfig, prefix: str = "") -> None:
        super().__init__(name="cls/squad")
        self.output_layer = OutputLayer(2, config, prefix + "cls/squad/")

    def call(self, sequence: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Vectors [B, S, H], mask [B, S] to logits float32 [B, S, 2]: begins, ends an answer.

        Padding gets no share of the probability; in the original release it does, where batches
        are always as wide as they can be.
        """
        rows = tf.reshape(sequence, [-1, sequence.shape[-1]])  # [B * S, H]
        shape = tf.concat([tf.shape(mask), [2]], axis=0)
        logits = tf.reshape(self.output_layer(rows), shape)
        padding = 1.0 - tf.expand_dims(tf.cast(mask, tf.float32), -1)  # [B, S, 1]
        return logits + padding * kernels.MASKED_SCORE


class SpanModel(keras.layers.Layer):
    """Encoder and span head."""

    def __init__(self, encoder: BertEncoder, prefix: str = "") -> None:
        super().__init__(name="bert_question_answering")
        self.encoder = encoder
        self.head = SpanHead(encoder.config, prefix)

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, S] to logits float32 [B, S, 2]."""
        output = self.encoder(
            features["token_ids"],
            features["segment_ids"],
            features["mask"],
            training=training and seed is not None,
            seed=seed,
        )
        return self.head(output.sequence, features["mask"])


@dataclasses.dataclass(frozen=True)
class QuestionAnsweringTask:
    """Spans of texts, or none, from files of SQuAD's form."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer
    # Log-odds of no answer above which the answer is "" (SQuAD 2.0). It is a metric, too: measured
    # with the best weights, saved beside them, and set when a run is opened.
    no_answer_threshold: float = 0.0

    fresh_weights = ("cls/squad/",)
    terms = ("loss",)

    @classmethod
    def from_data(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer
    ) -> QuestionAnsweringTask:
        """The task of a new run; raises ValueError where a setting does not fit."""
        question_windows.check_settings(run.data, config)
        for name in ("max_answer_length", "n_best"):
            if getattr(run.task, name) < 1:
                raise ValueError(
                    f"config.task.{name}={getattr(run.task, name)} must be at least 1."
                )
        return cls(run, config, tokenizer)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> QuestionAnsweringTask:
        """The task as an earlier run saved it: its `run.json` says everything."""
        return cls(run, config, tokenizer)

    def save(self, folder: str) -> None:
        """There is nothing to save beside what every run saves."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> SpanModel:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        encoder = BertEncoder(self.config, layout, self.run.model.recompute)
        encoder.pooler.trainable = False  # nothing reads it, so it is no weight of the model
        return self.attach(encoder)

    def attach(self, encoder: BertEncoder, prefix: str = "") -> SpanModel:
        """The model on a given encoder; `prefix` begins the names of the head's weights."""
        return SpanModel(encoder, prefix)

    def questions(self, split: str, require_answers: bool, unique_ids: bool) -> Questions:
        """The questions of `train`, `dev` or `test`; see `squad.read_questions`."""
        sources = getattr(self.run.data, split, "")
        if not sources:
            raise ValueError(f"config.data.{split} is empty: name a file of SQuAD's form.")
        return read_questions(sources, require_answers, unique_ids)

    def examples(self, split: str) -> WindowExamples:
        """The windows of a split, with the answers in them where the file has answers."""
        questions = self.questions(split, require_answers=split != "test", unique_ids=True)
        if split != "test" and not self.run.task.no_answer:
            questions.check_answerable()
        return self.tokenize(questions)

    def tokenize(self, questions: Questions) -> WindowExamples:
        """Windows of all questions."""
        return question_windows.tokenize_questions(self.tokenizer, questions, self.run.data)

    def training_data(self) -> WindowExamples:
        """The windows to train on; without no_answer, of questions that have an answer."""
        questions = self.questions("train", require_answers=True, unique_ids=False)
        return self.tokenize(questions if self.run.task.no_answer else questions.answerable())

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Windows of the batch, float32 [1]: the loss is their mean."""
        return tf.reduce_sum(batch["weight"], keepdims=True)

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Loss summed over the windows, float32 [1]; `seed` int32 [2] drives dropout."""
        losses = window_losses(model(batch, training=True, seed=seed), batch)  # [B]
        return tf.reduce_sum(losses * batch["weight"], keepdims=True)

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """The spans of `best_spans`, and `loss` float32 [B] where the batch has answers."""
        logits = model(batch)  # [B, S, 2]
        task = self.run.task
        outputs = best_spans(logits, batch, task.max_answer_length, task.n_best)
        if "start" in batch:
            outputs["loss"] = window_losses(logits, batch)
        return outputs

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What the official script of the data set prints; the first one chooses the best."""
        return METRICS_WITH_NO_ANSWER if self.run.task.no_answer else METRICS

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """F1 and exact match of all questions, mean loss of all windows.

        With no_answer also `no_answer_threshold`, the one that is best for F1 here.

        Raises:
            ValueError: nobody says what the answers are.
        """
        assert isinstance(examples, WindowExamples)
        if not examples.questions.have_answers:
            raise ValueError(
                f"{examples.questions.source} has no answers to measure against; "
                "scripts/predict.py answers its questions."
            )
        task = self.run.task
        found = list(find_answers(outputs, examples, task.n_best, task.no_answer))
        texts = [answer.best_text for answer in found]
        rows = examples.questions.rows
        answers = [[answer.text for answer in row.answers or ()] for row in rows]
        loss = {"loss": float(outputs["loss"].mean())}
        if not task.no_answer:
            return answer_metrics.squad_1(texts, answers) | loss
        odds = [answer.null_odds for answer in found]
        measured = answer_metrics.squad_2(texts, answers, odds, self.no_answer_threshold)
        tuned = answer_metrics.tuned_threshold(texts, answers, odds)
        return measured | loss | {"no_answer_threshold": tuned}


def window_losses(logits: tf.Tensor, batch: Features) -> tf.Tensor:
    """Mean of the cross-entropies of start and end: logits [B, S, 2] to [B].

    Where the window does not hold the answer, both are at [CLS] (original release).
    """
    start, end = tf.unstack(logits, axis=-1)  # [B, S] each
    first = kernels.softmax_cross_entropy(start, batch["start"])
    last = kernels.softmax_cross_entropy(end, batch["end"])
    return (first + last) / 2.0
