"""What a run changes as it goes: weights, optimizer slots, progress; and where they come from."""

from __future__ import annotations

import dataclasses
import os
import zlib

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging

from bert_tf import checkpoints, run_folder
from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer
from bert_tf.pretrained import Pretrained
from bert_tf.run_folder import Progress
from bert_tf.tasks.classification import ClassificationTask as Task


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
    """Builds model and optimizer, and resumes, or loads pre-trained weights, or starts fresh."""
    keras.utils.set_random_seed(run.train.seed)
    with accelerator.strategy.scope():
        model = task.build_model(accelerator.layout)
        weights = variables_by_name(model)
        optimizer = Optimizer(
            run.optimizer,
            weights,
            total_steps,
            task.config.num_hidden_layers,
            loss_scaling=accelerator.dtype == "float16",
        )
    state = TrainingState(model, optimizer, Progress())
    newest = run_folder.newest_step(os.path.join(workdir, "checkpoints"))
    if newest:
        saved = checkpoints.read_tensors(os.path.join(newest, "model.ckpt"))
        checkpoints.assign(weights | optimizer.saved_variables(), saved, newest)
        state.progress = run_folder.read_progress(newest)
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
        report = checkpoints.assign(weights, usable, pretrained.source, optional=task.fresh_weights)
        logging.info(
            "Started from the weights of %s (init_checkpoint); fresh: %s; not used: %s.",
            pretrained.source,
            ", ".join(report.fresh) or "none",
            ", ".join(report.unused) or "none",
        )
    else:
        logging.info("Started from random weights.")
    return state


def check_same_data(progress: Progress, examples: batches.Examples, workdir: str) -> None:
    """Raises ValueError where a resumed run would go on with other data than it began with."""
    fingerprint = zlib.crc32(examples.token_ids.tobytes())
    for target in examples.targets.values():
        fingerprint = zlib.crc32(np.ascontiguousarray(target).tobytes(), fingerprint)
    if progress.step and progress.data_fingerprint != fingerprint:
        raise ValueError(
            f"the training data are not those that {workdir} was trained on so far; restore them, "
            "or start a new run in another --workdir with init_checkpoint set to this one."
        )
    progress.data_fingerprint = fingerprint
