"""Which choice is right, to files and to clients.

`predictions.jsonl` has a line for each example: `label` (the number of the choice, from 0),
`choice` (its text) and `probabilities` of all choices.

`serving_default` takes `context` string [N] and `choices` string [N, C], any number of choices,
and, where the run names `config.data.text_b`, `start` string [N], with which every choice begins.
It answers `label` int32 [N], `choice` string [N], `probabilities` and `logits` float32 [N, C].
Where TF Serving joins requests with `pad_variable_length_inputs`, all must have equally many
choices: it would pad them with copies of the first choice, which nobody could tell from real ones.

`ids` takes a row for each choice, int32 [N, S], and answers `scores` float32 [N]: softmax over the
scores of one example's choices gives their probabilities.

Legend: N examples, C choices of each, S the longest row of the batch.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.data import batches
from bert_tf.data.multiple_choice import ChoiceExamples
from bert_tf.tasks import serving
from bert_tf.tasks.contract import PREDICTIONS_FILE, IdsAnswer, Signature
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.tasks.serving import Tensors

CHOICES = "choices"
USUAL_CHOICES = 4  # of warm-up requests; SWAG's
DIGITS = 6  # of probabilities in files


@dataclasses.dataclass(frozen=True)
class MultipleChoiceAnswers:
    """The answers of multiple choice; see `contract.Answers`."""

    task: MultipleChoiceTask

    def examples(self, split: str) -> ChoiceExamples:
        """The tokenized examples of a split, without the labels that it may have."""
        return self.task.tokenize(dataclasses.replace(self.task.texts(split), labels=None))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """`predictions.jsonl`."""
        del split
        assert isinstance(examples, ChoiceExamples)
        lines = []
        for choices, row in zip(examples.texts.choices, outputs["probabilities"], strict=True):
            best = int(row.argmax())
            probabilities = [round(float(value), DIGITS) for value in row]
            line = {"label": best, "choice": choices[best].decode(), "probabilities": probabilities}
            lines.append(json.dumps(line, ensure_ascii=False))
        return {PREDICTIONS_FILE: lines}

    def card(self) -> dict[str, Any]:
        """What `label` counts."""
        return {"labels": "the number of the choice, from 0"}

    @property
    def text_inputs(self) -> tuple[str, ...]:
        """Names of the string inputs."""
        return ("context", "start", CHOICES) if self.task.run.data.text_b else ("context", CHOICES)

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """`serving_default` (strings) and `ids`."""

        def answer_texts(texts: Sequence[tf.Tensor]) -> Tensors:
            *others, choices = texts  # [N] each, [N, C]
            outputs = self.task.predict(model, self.text_features(others, choices))
            label = tf.argmax(outputs["logits"], axis=-1, output_type=tf.int32)  # [N]
            return {
                "label": label,
                "choice": tf.gather(choices, label, batch_dims=1),
                "probabilities": outputs["probabilities"],
                "logits": outputs["logits"],
            }

        answer_ids = self.ids_answers(model)[serving.IDS_SIGNATURE]
        return {
            serving.TEXT_SIGNATURE: serving.strings_signature(
                self.text_inputs, answer_texts, lists=(CHOICES,)
            ),
            serving.IDS_SIGNATURE: serving.ids_signature(self.task, answer_ids),
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What `ids` does."""
        return {serving.IDS_SIGNATURE: lambda features: {"scores": model.scores(features)[:, 0]}}

    def text_features(self, others: Sequence[tf.Tensor], choices: tf.Tensor) -> Tensors:
        """Context, and start where there is one, [N] each, choices [N, C] to int32 [N, C, S]."""
        shape = tf.shape(choices)
        checks = [
            tf.debugging.assert_equal(
                tf.shape(other)[0], shape[0], f"{' and '.join(self.text_inputs)} differ in number."
            )
            for other in others
        ]
        checks.append(tf.debugging.assert_positive(shape[1], "choices have no columns."))
        with tf.control_dependencies(checks):
            grids = [tf.repeat(tf.reshape(other, [-1]), shape[1]) for other in others]  # [N * C]
        context, *start = grids
        choice = tf.strings.join([*(start or [""]), tf.reshape(choices, [-1])], " ")  # [N * C]
        tokenizer = self.task.tokenizer
        longest = self.task.run.data.max_seq_length
        packed = tokenizer.pack(tokenizer(context), tokenizer(choice), longest)
        rows = serving.padded(packed, tokenizer.pad_id)  # [N * C, S]
        return {
            name: tf.reshape(grid, [shape[0], shape[1], tf.shape(grid)[1]])
            for name, grid in rows.items()
        }

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Requests of the usual sizes, with `USUAL_CHOICES` choices."""
        longest = self.task.run.data.max_seq_length
        requests = serving.warmup_requests(self.task.tokenizer, self.text_inputs, longest)
        for signature, inputs in requests:
            if signature == serving.TEXT_SIGNATURE:
                inputs[CHOICES] = [[text] * USUAL_CHOICES for text in inputs[CHOICES]]
            yield signature, inputs
