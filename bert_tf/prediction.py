"""Predictions as files: JSON lines for everybody, and what the GLUE server expects."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from bert_tf.data import glue
from bert_tf.data.text import TextExamples
from bert_tf.tasks.classification import ClassificationTask as Task


def write_predictions(
    task: Task,
    folder: str,
    split: str,
    texts: TextExamples,
    outputs: Mapping[str, np.ndarray],
) -> list[str]:
    """Writes `predictions.jsonl`, and for GLUE its submission file; returns the paths."""
    tf.io.gfile.makedirs(folder)
    lines = task.predictions(outputs)
    path = os.path.join(folder, "predictions.jsonl")
    with tf.io.gfile.GFile(path + ".tmp", "w") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
    if not task.run.task.glue:
        return [path]
    names = glue.GLUE[task.run.task.glue].submissions
    submission = os.path.join(folder, names.get(split, names["test"]))
    glue.write_submission(submission, texts.ids, [line["label"] for line in lines])
    return [path, submission]
