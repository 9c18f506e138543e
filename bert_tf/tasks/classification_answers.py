"""What a classifier or a regression answers, to files and to clients.

Both signatures answer, for each text:

- classes: `label` string [N], `probabilities` and `logits` float32 [N, C];
- multi-label: `label` string [N], all labels above one half joined by the separator of the training
  data; `labels` int32 [N, C], the same as 0 and 1; `probabilities` and `logits`;
- regression: `score` float32 [N], `logits` float32 [N, 1].

Legend: N texts, S the longest of the batch, C classes, E examples.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.data import batches, glue
from bert_tf.tasks import serving
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.contract import PREDICTIONS_FILE, IdsAnswer, Signature
from bert_tf.tasks.serving import Tensors


@dataclasses.dataclass(frozen=True)
class ClassificationAnswers:
    """The answers of a classification; see `contract.Answers`."""

    task: ClassificationTask

    def examples(self, split: str) -> batches.Examples:
        """The tokenized examples of a split, whatever labels it has."""
        return self.task.tokenize(dataclasses.replace(self.task.texts(split), labels=None))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """`predictions.jsonl`, and for GLUE its submission file."""
        answers = self.predictions(outputs)
        files = {PREDICTIONS_FILE: [json.dumps(line, ensure_ascii=False) for line in answers]}
        if self.task.run.task.glue:
            names = glue.GLUE[self.task.run.task.glue].submissions
            labels = [answer["label"] for answer in answers]
            lines = glue.submission_lines(self.task.texts(split).ids, labels)
            files[names.get(split, names["test"])] = lines
        return files

    def predictions(self, outputs: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """The answer to each example and the probabilities by name, as files have them."""
        names = self.task.labels.names or ("score",)
        rows = outputs["probabilities"]
        return [
            {
                "label": answer,
                "probabilities": {
                    name: round(float(value), 6) for name, value in zip(names, row, strict=True)
                },
            }
            for answer, row in zip(self.decided(rows), rows, strict=True)
        ]

    def decided(self, probabilities: np.ndarray) -> Sequence[str | float | list[str]]:
        """Label names, lists of label names (multi-label), or scores: one for each example."""
        decisions = self.task.decisions(probabilities)
        if self.task.labels.kind == "regression":
            return [float(score) for score in decisions]
        if self.task.labels.kind == "multilabel":
            return [[self.task.labels.names[c] for c in np.flatnonzero(row)] for row in decisions]
        return [self.task.labels.names[c] for c in decisions]

    def card(self) -> dict[str, Any]:
        """The labels in the order of `probabilities`."""
        return {"labels": list(self.task.labels.names)}

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """`serving_default` (strings) and `ids`."""
        answer = self.ids_answers(model)[serving.IDS_SIGNATURE]

        def answer_texts(texts: Sequence[tf.Tensor]) -> Tensors:
            return answer(self.text_features(texts))

        return {
            serving.TEXT_SIGNATURE: serving.strings_signature(self.text_inputs, answer_texts),
            serving.IDS_SIGNATURE: serving.ids_signature(self.task, answer),
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What `ids` does."""

        def answer(features: Tensors) -> Tensors:
            return graph_answers(self.task.labels, self.task.predict(model, features))

        return {serving.IDS_SIGNATURE: answer}

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """Names of the string inputs: one, or two for a task of pairs."""
        run = self.task.run
        columns = glue.GLUE[run.task.glue].columns if run.task.glue else run.data
        return ("text_a", "text_b") if columns.text_b else ("text",)

    def text_features(self, texts: Sequence[tf.Tensor]) -> Tensors:
        """One or two strings [N] to `token_ids`, `segment_ids` and `mask` int32 [N, S]."""
        tokenizer = self.task.tokenizer
        checked = serving.of_one_number(texts, self.text_inputs)
        token_ids = [tokenizer(text) for text in checked]  # one or two, int32 [N, (tokens)]
        first, second = token_ids[0], token_ids[1] if len(texts) > 1 else None
        packed = tokenizer.pack(first, second, self.task.run.data.max_seq_length)
        return serving.padded(packed, tokenizer.pad_id)

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Requests of the usual sizes."""
        longest = self.task.run.data.max_seq_length
        return serving.warmup_requests(self.task.tokenizer, self.text_inputs, longest)


def graph_answers(labels: Labels, outputs: Mapping[str, tf.Tensor]) -> Tensors:
    """What clients get, from the outputs of `ClassificationTask.predict`: see above."""
    logits, probabilities = outputs["logits"], outputs["probabilities"]  # [N, C]
    if labels.kind == "regression":
        return {"score": logits[:, 0], "logits": logits}
    names = tf.constant(labels.names)  # [C]
    scores = {"probabilities": probabilities, "logits": logits}
    if labels.kind == "class":
        return {"label": tf.gather(names, tf.argmax(probabilities, axis=-1))} | scores
    chosen = probabilities > 0.5  # [N, C]
    every_name = tf.broadcast_to(names, tf.shape(chosen))  # [N, C]
    joined = tf.strings.reduce_join(
        tf.ragged.boolean_mask(every_name, chosen),
        axis=-1,
        separator=labels.separator,
    )
    return {"label": joined, "labels": tf.cast(chosen, tf.int32)} | scores
