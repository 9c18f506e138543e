"""The tasks by name. A new head is a file or two beside this one and a line in each table here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.classification_answers import ClassificationAnswers
from bert_tf.tasks.contract import Answers, Task
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.dual_encoder_answers import DualEncoderAnswers
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.multi_task_answers import MultiTaskAnswers
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.tasks.multiple_choice_answers import MultipleChoiceAnswers
from bert_tf.tasks.pretraining import PretrainingTask
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tasks.question_answering_answers import QuestionAnsweringAnswers
from bert_tf.tasks.tagging import TaggingTask
from bert_tf.tasks.tagging_answers import TaggingAnswers

TASKS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "dual_encoder": DualEncoderTask,
    "multi_task": MultiTask,
    "multiple_choice": MultipleChoiceTask,
    "pretraining": PretrainingTask,
    "question_answering": QuestionAnsweringTask,
    "tagging": TaggingTask,
}
# Pre-training has none: its model is there to be fine-tuned.
ANSWERS: dict[str, Callable[[Any], Answers]] = {
    "classification": ClassificationAnswers,
    "dual_encoder": DualEncoderAnswers,
    "multi_task": MultiTaskAnswers,
    "multiple_choice": MultipleChoiceAnswers,
    "question_answering": QuestionAnsweringAnswers,
    "tagging": TaggingAnswers,
}


def answers_of(task: Task, purpose: str) -> Answers:
    """What the task answers; raises ValueError for a task that has nothing to answer."""
    if task.run.task.name not in ANSWERS:
        raise ValueError(
            f"a run of the task {task.run.task.name!r} cannot {purpose}: it has no labels. "
            "Fine-tune a model from it (--config.model.init_checkpoint=ITS_FOLDER), and take that."
        )
    return ANSWERS[task.run.task.name](task)
