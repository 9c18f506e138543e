"""Runs a model over examples, on all replicas, each example exactly once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.distribution import Accelerator
from bert_tf.tasks.classification import ClassificationTask as Task

Features = Mapping[str, tf.Tensor]


class Evaluator:
    """Applies `Task.predict` to all examples of a split."""

    def __init__(
        self, run: RunConfig, accelerator: Accelerator, task: Task, model: tf.Module
    ) -> None:
        """`model` must have been built in the strategy's scope."""
        self.run = run
        self.accelerator = accelerator

        @tf.function(autograph=False, reduce_retracing=True)
        def predict_batch(batch: Features) -> dict[str, tf.Tensor]:
            return accelerator.strategy.run(
                lambda part: task.predict(model, part) | {"example": part["example"]}, args=(batch,)
            )

        self.predict_batch = predict_batch

    def predict(self, examples: batches.Examples) -> dict[str, np.ndarray]:
        """The outputs of `Task.predict` for all examples, in their order: each [E, ...]."""
        static = self.accelerator.static_shapes
        widths = batches.widths_for(self.run.data.max_seq_length, static)
        plan = batches.evaluation_plan(examples.lengths, self.run.train.eval_batch_size, widths)
        groups = list(batches.by_width(plan).values()) if static else [plan]
        parts: dict[str, list[np.ndarray]] = {}
        for group in groups:
            dataset = batches.dataset(examples, group, static)
            for batch in self.accelerator.strategy.experimental_distribute_dataset(dataset):
                for name, value in self.predict_batch(batch).items():
                    parts.setdefault(name, []).append(self.all_rows(value))
        return in_order({name: np.concatenate(values) for name, values in parts.items()})

    def all_rows(self, value: tf.Tensor) -> np.ndarray:
        """The rows of all replicas, those of other machines included."""
        strategy = self.accelerator.strategy
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return strategy.gather(value, axis=0).numpy()
        return np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])


def in_order(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops padding rows and sorts by example number, checking that each is there once."""
    example = outputs.pop("example")
    rows = np.flatnonzero(example >= 0)
    rows = rows[np.argsort(example[rows], kind="stable")]
    if not np.array_equal(example[rows], np.arange(len(rows))):
        raise RuntimeError("evaluation lost or repeated examples; please report this.")
    return {name: values[rows] for name, values in outputs.items()}
