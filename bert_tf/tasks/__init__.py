"""The tasks by name. A new head is one file beside this one and one line here."""

from __future__ import annotations

from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Task
from bert_tf.tasks.pretraining import PretrainingTask

TASKS: dict[str, type[Task]] = {
    "classification": ClassificationTask,
    "pretraining": PretrainingTask,
}


def only_classification(task: Task, purpose: str) -> ClassificationTask:
    """The task, where it is a classification; raises ValueError for those without labels."""
    if not isinstance(task, ClassificationTask):
        raise ValueError(
            f"a run of the task {task.run.task.name!r} cannot {purpose}: it has no labels. "
            "Fine-tune a model from it (--config.model.init_checkpoint=ITS_FOLDER), and take that."
        )
    return task
