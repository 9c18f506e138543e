"""Opens a finished run, or a checkpoint: task, model, weights, to evaluate, predict or export."""

from __future__ import annotations

import dataclasses
import os
from typing import TypeVar

import tensorflow as tf
from absl import logging

from bert_tf import run_folder
from bert_tf.checkpoints import Pretrained, read_pretrained
from bert_tf.config import BertConfig, RunConfig
from bert_tf.encoder import variables_by_name
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks import TASKS
from bert_tf.tasks.contract import Task
from bert_tf.tasks.multi_task import MultiTask, under
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign, read_weights

AnyTask = TypeVar("AnyTask", bound=Task)
# Where weights are looked for: those of the best evaluation, else the newest that were saved.
WEIGHT_FOLDERS = ("best", "checkpoints")


@dataclasses.dataclass(frozen=True)
class OpenedRun:
    """A run with its trained weights."""

    run: RunConfig
    task: Task
    model: tf.Module
    metrics: dict[str, float]  # of the best evaluation, with its `step`; empty if there was none
    weights_from: str  # the step folder


def open_run(workdir: str, layout: type[Layout] = PaddedLayout) -> OpenedRun:
    """Builds the model of a run, under the current dtype policy, and gives it its best weights.

    Args:
        workdir: the folder of the run; gs:// works.
        layout: how the model lays out rows; see `encoder.Layout`.

    Raises:
        ValueError: the folder is not of a run, something in it is missing or damaged, or nothing
            was trained yet.
    """
    run = run_folder.read_run(workdir)
    task, step_folder = read_task(run, workdir), trained_step(workdir)
    model = task.build_model(layout)
    # The optimizer's slots, which lie beside the weights in checkpoints/, are left out.
    weights = read_weights(os.path.join(step_folder, "model.ckpt"))
    assign(variables_by_name(model), weights, step_folder)
    progress = run_folder.read_progress(step_folder)
    task = with_tuned(task, progress.best)
    if progress.step == 0:
        logging.warning(
            "%s holds weights of step 0: they are untrained, and so are all answers. Train first: "
            "scripts/train.py.",
            step_folder,
        )
    else:
        logging.info("Weights of step %d from %s.", progress.step, step_folder)
    return OpenedRun(run, task, model, progress.best, step_folder)


def open_checkpoint(run: RunConfig, layout: type[Layout] = PaddedLayout) -> OpenedRun:
    """The model of a run before its first step, for tasks whose heads the checkpoint brings.

    Args:
        run: its `model.init_checkpoint` says where the weights are.
        layout: how the model lays out rows; see `encoder.Layout`.

    Raises:
        ValueError: a setting cannot work, or the checkpoint lacks weights of the model, such as
            those of a classifier.
    """
    if not run.model.init_checkpoint:
        raise ValueError("config.model.init_checkpoint is empty: name the checkpoint to open.")
    task, pretrained = new_task(run)
    model = task.build_model(layout)
    assign(variables_by_name(model), pretrained.weights, pretrained.source)
    return OpenedRun(run, task, model, {}, pretrained.source)


def new_task(run: RunConfig) -> tuple[Task, Pretrained]:
    """The task of a new run, and what its model starts from; raises ValueError as they do."""
    pretrained = read_pretrained(run.model)
    if pretrained.tokenizer is None:
        raise ValueError(
            f"{run.model.init_checkpoint} has no vocabulary beside it; name one with "
            "config.model.vocab_file."
        )
    task = TASKS[run.task.name].from_data(run, pretrained.config, pretrained.tokenizer)
    return task, pretrained


def read_task(run: RunConfig, workdir: str) -> Task:
    """The task of the run in a folder; raises ValueError where something of it is missing."""
    if run.task.name not in TASKS:
        raise ValueError(
            f"{workdir} is a run of the task {run.task.name!r}; this version knows "
            f"{', '.join(TASKS)}."
        )
    return TASKS[run.task.name].from_folder(
        run,
        BertConfig.from_file(os.path.join(workdir, "bert_config.json")),
        Tokenizer.load(workdir),
        workdir,
    )


def narrow(opened: OpenedRun, name: str) -> OpenedRun:
    """One task of a run of several, as if it were alone; raises ValueError where there is none."""
    task = opened.task
    if not isinstance(task, MultiTask):
        raise ValueError(f"--task={name}: this run is of one task alone; leave the flag out.")
    if name not in task.parts:
        raise ValueError(f"--task={name} is no task of this run; it has {', '.join(task.parts)}.")
    part, model = task.parts[name], opened.model.parts[name]
    metrics = under(name, opened.metrics)
    return dataclasses.replace(opened, run=part.run, task=part, model=model, metrics=metrics)


def with_tuned(task: AnyTask, metrics: dict[str, float]) -> AnyTask:
    """The task with what the best evaluation tuned: its fields that have a metric's name."""
    if isinstance(task, MultiTask):
        tuned = {name: with_tuned(part, under(name, metrics)) for name, part in task.parts.items()}
        return dataclasses.replace(task, parts=tuned)
    names = {field.name for field in dataclasses.fields(task)} & metrics.keys()
    return dataclasses.replace(task, **{name: metrics[name] for name in names})


def trained_step(workdir: str) -> str:
    """The step folder with the weights to use; raises ValueError where nothing was saved yet."""
    for part in WEIGHT_FOLDERS:
        newest = run_folder.newest_step(os.path.join(workdir, part))
        if newest is not None:
            if part != WEIGHT_FOLDERS[0]:
                logging.warning("%s has no evaluation yet; using its newest weights.", workdir)
            return newest
    raise ValueError(
        f"{workdir} holds no trained weights (no best/step-* and no checkpoints/step-*): the run "
        "stopped before it saved any. Train it with scripts/train.py and the same --workdir."
    )
