"""The shapes that a recipe is compiled for are those that its data would give."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.data.mixture import SeveralExamples
from bert_tf.distribution import Accelerator, cpu_strategy
from bert_tf.preflight import stand_in
from bert_tf.preflight.stand_in import Specs
from bert_tf.restore import new_task
from bert_tf.tasks.contract import Task, TrainingData
from tests.tasks.test_dual_encoder import pair_run
from tests.tasks.test_multi_task import several
from tests.tasks.test_multiple_choice import choice_run
from tests.tasks.test_pretraining_task import packed_run, run_of
from tests.test_distillation import (
    student_of,
    student_run,
    tagger,
    tagging_student,
    teacher,
)
from tests.tiny_questions import tiny_question_run
from tests.tiny_records import PREDICTIONS
from tests.tiny_run import tiny_run

__all__ = ["tagger", "teacher"]  # fixtures of another file

ON_TPU = Accelerator("tpu", cpu_strategy(1), "float32")
WORDS = ("first_pieces", "word_labels", "taught", "teacher")  # [B, W, ...], or [B, ...]


def regression_run(folder: pathlib.Path) -> RunConfig:
    lines = ["text\tlabel", "the cat\t0.5", "old\t1.5"]
    (folder / "scores.tsv").write_text("\n".join(lines) + "\n")
    return tiny_run(folder, data={"train": str(folder / "scores.tsv")}, task={"kind": "regression"})


def records_run(folder: pathlib.Path) -> RunConfig:
    return run_of(folder, task={"max_predictions_per_seq": PREDICTIONS})


def multilabel_run(folder: pathlib.Path) -> RunConfig:
    return tiny_run(folder, task={"kind": "multilabel"})


RUNS: dict[str, Callable[[pathlib.Path], RunConfig]] = {
    "classification": tiny_run,
    "regression": regression_run,
    "multilabel": multilabel_run,
    "question_answering": tiny_question_run,
    "multiple_choice": choice_run,
    "dual_encoder": pair_run,
    "multi_task": several,
    "records": records_run,
    "packed": packed_run,
}


def real_specs(run: RunConfig, data: TrainingData) -> dict[str, Specs]:
    """The widest batches as a TPU would get them, by part."""
    if isinstance(data, SeveralExamples):
        return {name: real_specs(run.part(name), part)[""] for name, part in data.parts.items()}
    if not isinstance(data, batches.Examples):  # streamed
        iterator, _ = data.feed(run, 0, 1, ON_TPU).next(1)
        return {"": dict(iterator.element_spec)}
    rows = np.zeros(run.train.global_batch_size, np.int64)
    plan = [batches.Batch(run.data.max_seq_length, rows)]
    return {"": dict(batches.dataset(data, plan, static=True).element_spec)}


def shapes(parts: dict[str, Specs]) -> dict[str, dict[str, tuple]]:
    """Comparable. Words of a row follow from the data; a stand-in has as many as fit."""

    def shape(name: str, spec: tf.TensorSpec) -> list[int | None]:
        several_words = name in WORDS and len(spec.shape) + (name != "teacher") > 2
        return [None if several_words and axis == 1 else n for axis, n in enumerate(spec.shape)]

    return {
        part: {name: (spec.dtype.name, shape(name, spec)) for name, spec in sorted(specs.items())}
        for part, specs in parts.items()
    }


def check(task: Task, data: TrainingData, classes: int) -> None:
    """Compares the batches of a real task with those of its stand-in."""
    made = stand_in.parts_of(stand_in.stand_in(task.run, task.config, classes))
    batch = task.run.train.global_batch_size
    specs = {
        name: stand_in.features(
            part, name, stand_in.Size(batch, part.run.data.max_seq_length, classes)
        )
        for name, part in made.items()
    }
    assert shapes(specs) == shapes(real_specs(task.run, data))


@pytest.mark.parametrize("name", RUNS)
def test_shapes_are_those_of_the_real_batches(tmp_path: pathlib.Path, name: str) -> None:
    task, _ = new_task(RUNS[name](tmp_path))
    check(task, task.training_data(), classes=3 if name == "multiple_choice" else 2)


def test_shapes_with_a_teacher(tmp_path: pathlib.Path, teacher: str) -> None:
    student = student_of(student_run(tmp_path, teacher), tmp_path)
    check(student, student.training_data(), classes=2)


def test_shapes_of_a_taught_tagger(tmp_path: pathlib.Path, tagger: str) -> None:
    student = tagging_student(tmp_path, tagger)
    check(student, student.training_data(), classes=5)
