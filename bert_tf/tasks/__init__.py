"""The tasks by name. A new head is one file beside this one and one line here."""

from __future__ import annotations

from bert_tf.tasks.classification import ClassificationTask

TASKS = {"classification": ClassificationTask}
