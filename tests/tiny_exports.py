"""A tiny run of every kind that can be exported, with strong weights, for the tests of formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.config import DataConfig, PartConfig, RunConfig, TaskConfig
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import Labels
from bert_tf.tasks.contract import Task
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from tests.test_conformance import (
    CONFIG,
    classification,
    multiple_choice,
    set_weights,
    tagging,
    tokenizer,
)

Arrays = dict[str, np.ndarray]
DATA = DataConfig(max_seq_length=12)


def three_classes() -> Task:
    return classification(Labels("class", ("bad", "fair", "good")))


def questions(no_answer: bool = False) -> Task:
    settings = TaskConfig(name="question_answering", no_answer=no_answer)
    return QuestionAnsweringTask(RunConfig(data=DATA, task=settings), CONFIG, tokenizer(), 0.5)


def vectors(pooling: str, normalize: bool = True) -> Task:
    settings = TaskConfig(name="dual_encoder", pooling=pooling, normalize=normalize)
    return DualEncoderTask(RunConfig(data=DATA, task=settings), CONFIG, tokenizer())


def several(**layers: tuple[int, bool]) -> MultiTask:
    """Tasks by name, `classes...`, `tags...` or `questions...`: layer and shortcut of each."""
    makers = {"classes": three_classes, "tags": tagging, "questions": questions}
    parts: dict[str, Any] = {name: makers[name.split("_")[0]]() for name in sorted(layers)}
    configs = {
        name: PartConfig(part.run.task, part.run.data, *layers[name])
        for name, part in parts.items()
    }
    run = RunConfig(task=TaskConfig(name="multi_task"), tasks=configs)
    own = {name: dataclasses.replace(part, run=run.part(name)) for name, part in parts.items()}
    return MultiTask(run, CONFIG, tokenizer(), own)


SINGLE: dict[str, Callable[[], Task]] = {
    "classes": three_classes,
    "several labels": lambda: classification(Labels("multilabel", ("a", "b", "c", "d"))),
    "scores": lambda: classification(Labels("regression")),
    "tags": tagging,
    "questions": questions,
    "choices": multiple_choice,
    "mean vectors": lambda: vectors("mean"),
    "highest vectors": lambda: vectors("max", normalize=False),
    "vectors of [CLS]": lambda: vectors("cls"),
}


def opened_run(task: Any) -> OpenedRun:
    """The run of a task, as `restore.open_run` returns it, with the same weights each time."""
    model = task.build_model()
    set_weights(model)
    return OpenedRun(task.run, task, model, {"accuracy": 0.875, "step": 40}, "runs/x/best/step-40")


def random_rows(texts: int, pieces: int) -> Arrays:
    """`token_ids`, `segment_ids` and `mask` int64 [N, S]: the first row is full, others padded."""
    rng = np.random.default_rng(texts * 100 + pieces)
    lengths = np.append(pieces, rng.integers(1, pieces + 1, texts - 1))[:, np.newaxis]  # [N, 1]
    columns = np.arange(pieces)
    mask = (columns < lengths).astype(np.int64)
    # No piece of its own but for [CLS] in front.
    token_ids = rng.integers(5, CONFIG.vocab_size, mask.shape)
    token_ids[:, 0] = 2
    return {
        "token_ids": token_ids * mask,
        "segment_ids": (columns >= lengths // 2) * mask,
        "mask": mask,
    }


def answers(signature: Any, rows: Arrays) -> Arrays:
    """The numbers that a signature for ids answers."""
    given = {name: tf.constant(grid, tf.int32) for name, grid in rows.items()}
    outputs = {name: value.numpy() for name, value in signature(**given).items()}
    return {name: value for name, value in outputs.items() if value.dtype == np.float32}
