"""The folder of a run: what is in it, and how it survives a process killed at any moment.

```
run.json                    the resolved RunConfig
bert_config.json vocab.txt tokenizer_config.json labels.json
tasks/NAME/                 labels.json of each of several tasks
metrics.jsonl               losses and metrics by step; the same bytes, however often it was killed
tensorboard/                the same and the speed, for TensorBoard
checkpoints/step-00000500/  weights, optimizer slots and progress, to go on from
best/step-00000500/         weights of the best evaluation, for evaluate, predict and export
```
A step folder is written under a temporary name and renamed when it is complete; a name without its
ending `.tmp` is therefore always whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging

from bert_tf.checkpoints import Pretrained
from bert_tf.config import RunConfig, read_json, write_json
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer, moving
from bert_tf.tasks.contract import Task, TrainingData
from bert_tf.weights import assign, read_tensors, write_tensors

STEP_FOLDER = re.compile(r"step-(\d{8})/?$")
# Fields that may differ when a run is continued: where it runs and what it keeps.
FREE_FIELDS = (
    "runtime.accelerator",
    "runtime.tpu",
    "train.steps_per_loop",
    "train.save_every",
    "train.keep_checkpoints",
    "train.eval_batch_size",
    "data.service",
    "distillation.cache",
)

# What writing a file ends in.
FILE_ERRORS = (
    tf.errors.AlreadyExistsError,
    tf.errors.FailedPreconditionError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnknownError,
)


@dataclasses.dataclass
class Progress:
    """What a run knows beside weights and slots; saved with each of its checkpoints.

    The data position and the seeds of dropout follow from the step alone.
    """

    step: int = 0
    interval: dict[str, float] = dataclasses.field(default_factory=dict)  # sums since the last log
    best: dict[str, float] = dataclasses.field(default_factory=dict)  # metrics of the best step
    stale_evaluations: int = 0  # evaluations since the best one
    data_fingerprint: int = 0  # of the training examples


def prepare(workdir: str, run: RunConfig) -> None:
    """Makes the folder and writes `run.json`; raises ValueError where it cannot be written."""
    path = os.path.join(workdir, "run.json")
    try:
        tf.io.gfile.makedirs(workdir)
        write_json(os.path.join(workdir, ".writable.json"), {})
        tf.io.gfile.remove(os.path.join(workdir, ".writable.json"))
    except (tf.errors.OpError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--workdir={workdir} cannot be written ({reason}); choose a folder on a disk with "
            "space, where you may write."
        ) from None
    write_json(path, run.to_dict())


def save_assets(workdir: str, task: Task) -> None:
    """Writes what a later process needs to build the same model."""
    write_json(os.path.join(workdir, "bert_config.json"), task.config.to_dict())
    task.tokenizer.save(workdir)
    task.save(workdir)


def has_saved(workdir: str) -> bool:
    """Whether weights of any step are there."""
    return any(step_folders(os.path.join(workdir, part)) for part in ("checkpoints", "best"))


def check_same_run(workdir: str, run: RunConfig) -> None:
    """Raises ValueError naming the fields in which the run in a folder differs from `run`."""
    path = os.path.join(workdir, "run.json")
    # A run that stopped before it saved anything, at bad input for example, is no run to protect.
    if not tf.io.gfile.exists(path) or not has_saved(workdir):
        return
    # Fields that are newer than the run have their defaults there.
    there = RunConfig.from_dict(read_json(path))
    before, now = flatten(there.to_dict()), flatten(run.to_dict())
    changed = [
        f"config.{key}: {before.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_FIELDS
    ]
    if changed:
        raise ValueError(
            f"{workdir} holds another run: {'; '.join(changed)}. Choose another "
            "--workdir, or start with the settings of that run to continue it."
        )


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, dict)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def read_run(workdir: str) -> RunConfig:
    """The configuration of a run folder; raises ValueError where there is none."""
    path = os.path.join(workdir, "run.json")
    if not tf.io.gfile.exists(path):
        raise ValueError(f"--workdir={workdir} is not the folder of a run: it has no run.json.")
    return RunConfig.from_dict(read_json(path))


@contextlib.contextmanager
def writing(place: str) -> Iterator[None]:
    """Errors of the file system inside become a ValueError that names the place."""
    try:
        yield
    except tf.errors.OpError as error:
        if not isinstance(error, FILE_ERRORS) or "OOM" in error.message:  # memory of a device
            raise
        raise ValueError(
            f"{place} cannot be written ({error.message}); choose a folder on a disk with space, "
            "where you may write."
        ) from None


def write_step(folder: str, progress: Progress, tensors: dict[str, np.ndarray], keep: int) -> None:
    """Writes `folder/step-N` whole or not at all, then removes all but the newest `keep`.

    Raises:
        ValueError: the disk is full or gone. Earlier step folders are untouched.
    """
    target = os.path.join(folder, f"step-{progress.step:08d}")
    temporary = target + ".tmp"
    try:
        remove_tree(temporary)
        tf.io.gfile.makedirs(temporary)
        write_tensors(os.path.join(temporary, "model.ckpt"), tensors)
        write_json(os.path.join(temporary, "progress.json"), dataclasses.asdict(progress))
        remove_tree(target)  # left by an earlier process that was killed after this step
        tf.io.gfile.rename(temporary, target)
    except (tf.errors.OpError, OSError, ValueError) as error:
        remove_tree(temporary)
        raise ValueError(
            f"step {progress.step} could not be saved in {folder}: {str(error).splitlines()[0]}. "
            f"What was saved before is whole ({newest_step(folder) or 'nothing yet'}); free some "
            "space and run the same command again."
        ) from None
    for old in step_folders(folder)[:-keep]:
        remove_tree(old)


def step_folders(folder: str) -> list[str]:
    """Complete step folders, the oldest first."""
    if not tf.io.gfile.isdir(folder):
        return []
    names = (name.rstrip("/") for name in tf.io.gfile.listdir(folder))
    return [os.path.join(folder, name) for name in sorted(names) if STEP_FOLDER.match(name)]


def newest_step(folder: str) -> str | None:
    """The newest complete step folder."""
    folders = step_folders(folder)
    return folders[-1] if folders else None


def read_progress(step_folder: str) -> Progress:
    """The progress saved in a step folder."""
    return Progress(**read_json(os.path.join(step_folder, "progress.json")))


def remove_tree(path: str) -> None:
    """Removes a folder if it is there."""
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line, with the step and what was measured there.

    It holds nothing that differs between two runs of the same command, such as speed.
    """

    def __init__(self, workdir: str, step: int) -> None:
        """Opens the file and drops lines after `step`: they belong to a process that was killed."""
        self.path = os.path.join(workdir, "metrics.jsonl")
        kept = [line for line in self.lines() if line_step(line) <= step]
        with tf.io.gfile.GFile(self.path + ".tmp", "w") as file:
            file.write("".join(kept))
        tf.io.gfile.rename(self.path + ".tmp", self.path, overwrite=True)

    def lines(self) -> list[str]:
        """The lines so far; a last line cut off by a kill is left out."""
        if not tf.io.gfile.exists(self.path):
            return []
        with tf.io.gfile.GFile(self.path) as file:
            return [line for line in file.read().splitlines(keepends=True) if line.endswith("\n")]

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line."""
        try:
            with tf.io.gfile.GFile(self.path, "a") as file:
                file.write(json.dumps({"step": step} | values) + "\n")
        except (tf.errors.OpError, OSError) as error:
            logging.warning("%s could not be written: %s", self.path, error)


def line_step(line: str) -> int:
    """The step of one line of `metrics.jsonl`."""
    return json.loads(line)["step"]


def copy_for_serving(source: str, target: str) -> None:
    """Copies what evaluate, predict and export need from one run folder to another."""
    names = ("bert_config.json", "vocab.txt", "tokenizer_config.json", "labels.json", "run.json")
    newest = newest_step(os.path.join(source, "best"))
    if newest is None:
        raise ValueError(f"{source} has no best weights to copy.")
    copied = os.path.join(target, "best", os.path.basename(newest))
    remove_tree(os.path.join(target, "best"))
    temporary = copied + ".tmp"
    tf.io.gfile.makedirs(temporary)
    for name in tf.io.gfile.listdir(newest):
        tf.io.gfile.copy(os.path.join(newest, name), os.path.join(temporary, name))
    tf.io.gfile.rename(temporary, copied)
    for name in names:
        if tf.io.gfile.exists(os.path.join(source, name)):
            tf.io.gfile.copy(os.path.join(source, name), os.path.join(target, name), overwrite=True)
    tasks = os.path.join(source, "tasks")  # of several tasks: a folder for each
    for task in tf.io.gfile.listdir(tasks) if tf.io.gfile.isdir(tasks) else []:
        own = os.path.join(tasks, task)
        tf.io.gfile.makedirs(os.path.join(target, "tasks", task))
        for name in tf.io.gfile.listdir(own):
            to = os.path.join(target, "tasks", task, name)
            tf.io.gfile.copy(os.path.join(own, name), to, overwrite=True)


# ----------------------------------------------------------------------------------------- progress

# What the train loop sums up on the device, and the host between two lines of the log.
SUMS = ("loss", "weight", "tokens", "positions", "steps")


class Reporter:
    """Turns the sums of an interval into a progress line and TensorBoard scalars."""

    def __init__(self, workdir: str | None, total_steps: int, step: int) -> None:
        """`workdir` None writes no TensorBoard (workers that are not the chief)."""
        self.total_steps = total_steps
        self.first_step = step
        self.started = self.last_time = time.monotonic()
        self.in_steps = self.waited = 0.0  # seconds
        folder = None if workdir is None else os.path.join(workdir, "tensorboard")
        self.writer = tf.summary.create_file_writer(folder) if folder else None

    def run(
        self,
        train_steps: Callable[..., dict[str, tf.Tensor]],
        iterator: tf.data.Iterator,
        count: int,
    ) -> dict[str, float]:
        """The sums of `count` steps; keeps the time they took, and how long they had no data.

        `waited` among the sums, which does not come back, is NaN where that is not known.
        """
        began = time.monotonic()
        sums = train_steps(iterator, tf.constant(count, tf.int32))
        numbers = {name: float(value) for name, value in sums.items()}  # waits for the device
        self.in_steps += time.monotonic() - began
        self.waited += numbers.pop("waited")
        return numbers

    def pause(self, seconds: float) -> None:
        """Takes evaluation and saving out of the speed of training."""
        self.last_time += seconds

    def training(self, step: int, sums: dict[str, float], scalars: dict[str, float]) -> None:
        """Shows one interval: `sums` since the last call, `scalars` as in metrics.jsonl."""
        now = time.monotonic()
        seconds = max(now - self.last_time, 1e-9)
        speed = {
            "steps_per_second": sums["steps"] / seconds,
            "examples_per_second": sums["weight"] / seconds,
            "tokens_per_second": sums["tokens"] / seconds,
            "padding": 1.0 - sums["tokens"] / max(sums["positions"], 1.0),
            # Shares of the time: something else than steps ran; the steps had no data.
            "between_steps": max(1.0 - self.in_steps / seconds, 0.0),
        }
        if math.isfinite(self.waited):
            speed["no_data"] = self.waited / seconds
        self.scalars(step, scalars | {f"speed/{name}": value for name, value in speed.items()})
        logging.info(
            "step %d/%d  loss %.4f  lr %.2e  %.1f examples/s  %s tokens/s  %s  ETA %s",
            step,
            self.total_steps,
            scalars["loss"],
            scalars["learning_rate"],
            speed["examples_per_second"],
            f"{speed['tokens_per_second']:,.0f}",
            "  ".join(
                f"{share.replace('_', ' ')} {speed[share]:.0%}"
                for share in ("padding", "between_steps", "no_data")
                if share in speed
            ),
            self.eta(step),
        )
        self.last_time = now
        self.in_steps = self.waited = 0.0

    def eta(self, step: int) -> str:
        """Time left at the average speed so far, evaluation and saving included."""
        done = max(step - self.first_step, 1)
        seconds = (time.monotonic() - self.started) / done * (self.total_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars for TensorBoard."""
        if self.writer is None:
            return
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()


# ---------------------------------------------------------------------------------------- the start


@dataclasses.dataclass
class TrainingState:
    """Everything that a step changes."""

    model: tf.Module
    optimizer: Optimizer
    progress: Progress

    def tensors(self) -> dict[str, np.ndarray]:
        """Weights and slots by name, as they are saved."""
        named = variables_by_name(self.model) | self.optimizer.saved_variables()
        return {name: variable.numpy() for name, variable in named.items()}


def start(
    run: RunConfig,
    workdir: str,
    accelerator: Accelerator,
    task: Task,
    pretrained: Pretrained,
    total_steps: int,
) -> TrainingState:
    """Builds model and optimizer, and resumes, or loads pre-trained weights, or starts fresh.

    The weights are taken out of `pretrained`, not to be in memory twice while the model trains.
    """
    keras.utils.set_random_seed(run.train.seed)
    with accelerator.strategy.scope():
        model = task.build_model(accelerator.layout)
        weights = variables_by_name(model)
        optimizer = Optimizer(
            run.optimizer,
            moving(run.optimizer, weights),
            total_steps,
            task.config.num_hidden_layers,
            loss_scaling=accelerator.dtype == "float16",
            counts_uses=bool(run.tasks),
        )
    state = TrainingState(model, optimizer, Progress())
    newest = newest_step(os.path.join(workdir, "checkpoints"))
    if newest:
        saved = read_tensors(os.path.join(newest, "model.ckpt"))
        assign(weights | optimizer.saved_variables(), saved, newest)
        state.progress = read_progress(newest)
        logging.info("Resumed from %s: weights, slots, step, data position.", newest)
    elif pretrained.weights:
        # The head of another task (other labels) is not this one's: it starts fresh.
        usable = {
            name: value
            for name, value in pretrained.weights.items()
            if not name.startswith(task.fresh_weights)
            or name not in weights
            or value.shape == tuple(weights[name].shape)
        }
        report = assign(weights, usable, pretrained.source, optional=task.fresh_weights)
        logging.info(
            "Started from the weights of %s (init_checkpoint); fresh: %s; not used: %s.",
            pretrained.source,
            ", ".join(report.fresh) or "none",
            ", ".join(report.unused) or "none",
        )
    else:
        logging.info("Started from random weights.")
    pretrained.weights.clear()
    return state


def check_same_data(progress: Progress, data: TrainingData, workdir: str) -> None:
    """Raises ValueError where a resumed run would go on with other data than it began with."""
    fingerprint = data.fingerprint()
    if progress.step and progress.data_fingerprint != fingerprint:
        raise ValueError(
            f"the training data are not those that {workdir} was trained on so far; restore them, "
            "or start a new run in another --workdir with init_checkpoint set to this one."
        )
    progress.data_fingerprint = fingerprint


def check_same_step(accelerator: Accelerator, step: int, workdir: str) -> None:
    """Raises ValueError where several processes would go on from different steps."""
    steps = accelerator.numbers_of_workers(step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the workers found different steps in --workdir={workdir}: "
            f"{', '.join(map(str, steps))}. It must be one folder that all of them see, on gs:// "
            "or other shared storage."
        )
