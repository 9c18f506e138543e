"""What several tasks answer, to files and to clients: each what it answers alone, by its name.

Files lie in a folder for each task. Signatures are NAME (strings) and NAME_ids (tokens) for each
task, all of them on one copy of the encoder; there is no `serving_default`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.data import batches
from bert_tf.data.mixture import SeveralExamples
from bert_tf.tasks import serving
from bert_tf.tasks.classification_answers import ClassificationAnswers
from bert_tf.tasks.contract import Answers, IdsAnswer, Signature
from bert_tf.tasks.multi_task import MultiTask, under
from bert_tf.tasks.question_answering_answers import QuestionAnsweringAnswers
from bert_tf.tasks.tagging_answers import TaggingAnswers

PART_ANSWERS: dict[str, Callable[[Any], Answers]] = {
    "classification": ClassificationAnswers,
    "question_answering": QuestionAnsweringAnswers,
    "tagging": TaggingAnswers,
}


@dataclasses.dataclass(frozen=True)
class MultiTaskAnswers:
    """The answers of several tasks; see `contract.Answers`."""

    task: MultiTask

    @property
    def parts(self) -> dict[str, Answers]:
        """The answers of each task."""
        parts = self.task.parts
        return {name: PART_ANSWERS[part.run.task.name](part) for name, part in parts.items()}

    def examples(self, split: str) -> SeveralExamples:
        """The examples of a split of every task, whatever labels they have."""
        return self.task.gather(self.parts, lambda answers: answers.examples(split))

    def files(
        self, split: str, examples: batches.Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """The files of each task, NAME/FILE."""
        assert isinstance(examples, SeveralExamples)
        return {
            f"{name}/{file}": lines
            for name, answers in self.parts.items()
            for file, lines in answers.files(
                split, examples.parts[name], under(name, outputs)
            ).items()
        }

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """NAME and NAME_ids of each task."""
        return {
            signature_name(name, own): signature
            for name, answers in self.parts.items()
            for own, signature in answers.signatures(model.parts[name]).items()
        }

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What NAME_ids of each task does."""
        return {
            signature_name(name, own): answer
            for name, answers in self.parts.items()
            for own, answer in answers.ids_answers(model.parts[name]).items()
        }

    def warmup_requests(self) -> Iterator[serving.Request]:
        """Those of every task."""
        for name, answers in self.parts.items():
            for own, inputs in answers.warmup_requests():
                yield signature_name(name, own), inputs

    def card(self) -> dict[str, Any]:
        """What is to be said of each task; lengths and data are each task's own."""
        runs = {name: part.run for name, part in self.task.parts.items()}
        return {
            "tasks": {
                name: {
                    "task": dataclasses.asdict(runs[name].task),
                    "layer": self.task.layer(name),
                    "max_seq_length": runs[name].data.max_seq_length,
                    **answers.card(),
                }
                for name, answers in self.parts.items()
            },
            "max_seq_length": max(run.data.max_seq_length for run in runs.values()),
            "data": {name: dataclasses.asdict(run.data) for name, run in runs.items()},
        }


def signature_name(name: str, own: str) -> str:
    """The name of a task's signature: its text signature has the task's name alone."""
    return name if own == serving.TEXT_SIGNATURE else f"{name}_{own}"
