"""The folder of a run: what is in it, and how it survives a process killed at any moment.

```
run.json                    the resolved RunConfig
bert_config.json vocab.txt tokenizer_config.json labels.json
metrics.jsonl               losses and metrics by step; the same bytes, however often it was killed
tensorboard/                the same and the speed, for TensorBoard
checkpoints/step-00000500/  weights, optimizer slots and progress, to go on from
best/step-00000500/         weights of the best evaluation, for evaluate, predict and export
```
A step folder is written under a temporary name and renamed when it is complete; a name without its
ending `.tmp` is therefore always whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import checkpoints
from bert_tf.config import RunConfig, read_json, write_json

STEP_FOLDER = re.compile(r"step-(\d{8})/?$")
# Fields that may differ when a run is continued: they change no result.
FREE_FIELDS = (
    "runtime.accelerator",
    "runtime.tpu",
    "train.steps_per_loop",
    "train.save_every",
    "train.keep_checkpoints",
    "train.eval_batch_size",
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
    """Makes the folder and writes `run.json`, or checks that the folder belongs to this run.

    Raises:
        ValueError: the folder cannot be written, or holds another run.
    """
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
    # A run that stopped before it saved anything, at bad input for example, is no run to protect.
    if tf.io.gfile.exists(path) and has_saved(workdir):
        check_same_run(path, run)
    write_json(path, run.to_dict())


def has_saved(workdir: str) -> bool:
    """Whether weights of any step are there."""
    return any(step_folders(os.path.join(workdir, part)) for part in ("checkpoints", "best"))


def check_same_run(path: str, run: RunConfig) -> None:
    """Raises ValueError naming the fields in which the run at `path` differs from `run`."""
    before, now = flatten(read_json(path)), flatten(run.to_dict())
    changed = [
        f"config.{key}: {before.get(key)!r} there, {now.get(key)!r} here"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in FREE_FIELDS
    ]
    if changed:
        raise ValueError(
            f"{os.path.dirname(path)} holds another run: {'; '.join(changed)}. Choose another "
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
        checkpoints.write_tensors(os.path.join(temporary, "model.ckpt"), tensors)
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
    tf.io.gfile.makedirs(copied)
    for name in tf.io.gfile.listdir(newest):
        tf.io.gfile.copy(os.path.join(newest, name), os.path.join(copied, name))
    for name in names:
        if tf.io.gfile.exists(os.path.join(source, name)):
            tf.io.gfile.copy(os.path.join(source, name), os.path.join(target, name), overwrite=True)
