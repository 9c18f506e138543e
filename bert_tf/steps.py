"""The training step on the device, and the batches that feed it.

losses -> gradients -> sum over replicas -> clip -> update
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer
from bert_tf.reporting import SUMS
from bert_tf.tasks.classification import ClassificationTask as Task

Features = Mapping[str, tf.Tensor]
# (batch, seed, weight of the global batch, loss scale) -> (loss, gradients)
GradientFunction = Callable[
    [Features, tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, list[tf.Tensor]]
]


def make_train_steps(
    run: RunConfig,
    accelerator: Accelerator,
    task: Task,
    model: tf.Module,
    optimizer: Optimizer,
) -> tf.types.experimental.GenericFunction:
    """Returns `train_steps(iterator, count)`: `count` steps on the device, then sums for the host.

    The loop over steps is inside the function: the host costs as much as a small model's step, and
    a TPU would wait for it.
    """
    strategy = accelerator.strategy
    gradients_of = make_gradients(task, model, run.train.accumulation)
    if accelerator.compile_gradients:
        gradients_of = tf.function(gradients_of, jit_compile=True, autograph=False)

    def replica_step(batch: Features) -> dict[str, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        total = tf.distribute.ReduceOp.SUM
        weight = context.all_reduce(total, tf.reduce_sum(batch["weight"]))
        seed = tf.random.fold_in(
            tf.stack([run.train.seed, tf.cast(context.replica_id_in_sync_group, tf.int32)]),
            tf.cast(optimizer.step, tf.int32),
        )
        loss, gradients = gradients_of(batch, seed, weight, optimizer.loss_scale)
        loss = context.all_reduce(total, loss)
        update = optimizer.apply_gradients(context.all_reduce(total, gradients))
        is_bad = ~(tf.math.is_finite(loss) & update["usable"])
        return {
            "loss": loss * weight,
            "weight": weight,
            "tokens": context.all_reduce(total, tf.cast(tf.reduce_sum(batch["mask"]), tf.float32)),
            "positions": context.all_reduce(total, tf.cast(tf.size(batch["mask"]), tf.float32)),
            "steps": tf.constant(1.0),
            "learning_rate": update["learning_rate"],
            "bad_step": tf.where(is_bad, tf.cast(optimizer.step, tf.float32), -1.0),
        }

    def first_replica(values: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {name: strategy.experimental_local_results(v)[0] for name, v in values.items()}

    # AutoGraph would rewrite the whole model's Python for nothing, which takes most of a start-up;
    # the only loops are written as tf.while_loop.
    @tf.function(autograph=False)
    def train_steps(iterator: tf.data.Iterator, count: tf.Tensor) -> dict[str, tf.Tensor]:
        def one_more(
            done: tf.Tensor, sums: dict[str, tf.Tensor], last: dict[str, tf.Tensor]
        ) -> tuple[tf.Tensor, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
            step = first_replica(strategy.run(replica_step, args=(iterator.get_next(),)))
            sums = {name: sums[name] + step[name] for name in SUMS}
            bad_step = tf.where(last["bad_step"] < 0.0, step["bad_step"], last["bad_step"])
            return done + 1, sums, {"learning_rate": step["learning_rate"], "bad_step": bad_step}

        sums = dict.fromkeys(SUMS, tf.constant(0.0))
        last = {"learning_rate": tf.constant(0.0), "bad_step": tf.constant(-1.0)}
        _, sums, last = tf.while_loop(
            lambda done, *_: done < count, one_more, (tf.constant(0), sums, last)
        )
        return sums | last

    return train_steps


def make_gradients(task: Task, model: tf.Module, accumulation: int) -> GradientFunction:
    """Returns a function of (batch, seed, global weight, loss scale) to (loss, dense gradients).

    The loss is this replica's share of the mean loss of the global batch.
    """
    weights = list(variables_by_name(model).values())

    def micro_gradients(
        batch: Features, seed: tf.Tensor, weight: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            losses = task.losses(model, batch, seed)  # [B]
            loss = tf.reduce_sum(losses * batch["weight"]) / tf.maximum(weight, 1.0)
            scaled = loss * scale
        # Gradients of tables come as one row an occurrence; norm and update need the sum.
        gradients = tape.gradient(scaled, weights, unconnected_gradients="zero")
        return loss, [tf.convert_to_tensor(gradient) / scale for gradient in gradients]

    def accumulated(
        batch: Features, seed: tf.Tensor, weight: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        size = tf.shape(batch["weight"])[0] // accumulation

        def add(
            index: tf.Tensor, loss: tf.Tensor, sums: list[tf.Tensor]
        ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
            part = {name: v[index * size : (index + 1) * size] for name, v in batch.items()}
            more_loss, more = micro_gradients(part, tf.random.fold_in(seed, index), weight, scale)
            return index + 1, loss + more_loss, [a + b for a, b in zip(sums, more, strict=True)]

        zeros = [tf.zeros(variable.shape) for variable in weights]
        _, loss, sums = tf.while_loop(
            lambda index, *_: index < accumulation, add, (tf.constant(0), tf.constant(0.0), zeros)
        )
        return loss, sums

    return micro_gradients if accumulation == 1 else accumulated


class Feed:
    """Hands out iterators over the planned batches, in the plan's order."""

    def __init__(
        self,
        examples: batches.Examples,
        plan: batches.TrainingPlan,
        first_step: int,
        accelerator: Accelerator,
    ) -> None:
        """With static shapes there is one iterator for each width, otherwise a single one."""
        self.static = accelerator.static_shapes
        self.widths = [plan[step].width for step in range(first_step, len(plan))]
        self.position = 0
        strategy = accelerator.strategy
        remaining = plan[first_step:]
        groups = batches.by_width(remaining) if self.static else {0: remaining}
        self.iterators: dict[int, tf.data.Iterator] = {
            width: iter(
                strategy.experimental_distribute_dataset(
                    batches.dataset(examples, group, self.static)
                )
            )
            for width, group in groups.items()
        }

    def next(self, most: int) -> tuple[tf.data.Iterator, int]:
        """An iterator, and for how many steps (at most `most`) it is the one to use."""
        ahead = self.widths[self.position : self.position + most]
        width, count = 0, len(ahead)
        if self.static:
            width = ahead[0]
            count = next((i for i, other in enumerate(ahead) if other != width), len(ahead))
        self.position += count
        return self.iterators[width], count
