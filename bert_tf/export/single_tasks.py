"""Each task of a run as if it were alone, for formats that know one head per model."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from bert_tf.encoder import variables_by_name
from bert_tf.restore import OpenedRun, narrow
from bert_tf.tasks.multi_task import MultiTask, reads_pooler


@dataclasses.dataclass(frozen=True, eq=False)
class SingleTask:
    """A trained task and what it reads of the encoder."""

    opened: OpenedRun  # its `task.config` is of the encoder up to the layer that the head reads
    weights: dict[str, np.ndarray]  # float32, by the names of a run of this task alone
    shortcut: bool = False  # whether the head reads the embeddings beside that layer


def single_tasks(opened: OpenedRun) -> dict[str, SingleTask]:
    """The tasks of a run by name; a run of one task is that task, without a name."""
    task = opened.task
    if isinstance(task, MultiTask):
        return {name: attached(opened, task, name) for name in task.parts}
    return {"": SingleTask(opened, weights_of(opened.model))}


def attached(opened: OpenedRun, task: MultiTask, name: str) -> SingleTask:
    """One of several tasks, without the layers above its own."""
    own = narrow(opened, name)
    weights = {alone(key, name): weight for key, weight in weights_of(own.model).items()}
    if not reads_pooler(task.parts[name]):  # it may be there for another task
        weights = {key: w for key, w in weights.items() if not key.startswith("bert/pooler/")}
    config = dataclasses.replace(task.config, num_hidden_layers=task.layer(name))
    own = dataclasses.replace(own, task=dataclasses.replace(own.task, config=config))
    return SingleTask(own, weights, task.run.tasks[name].shortcut)


def alone(key: str, name: str) -> str:
    """The name of a weight in a run of the task alone, where its pooler is the encoder's."""
    key = key.removeprefix(f"{name}/")
    return f"bert/{key}" if key.startswith("pooler/") else key


def weights_of(model: tf.Module) -> dict[str, np.ndarray]:
    """The weights that a model reads, float32 under every dtype policy."""
    return {name: variable.numpy() for name, variable in variables_by_name(model).items()}
