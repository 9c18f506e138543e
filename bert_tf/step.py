"""One step on the device: losses -> gradients -> sum over replicas -> clip -> update.

Losses are sums divided by the weights of the *global* batch, so that 1 or N replicas, and 1 or N
micro-batches, give the same update. What a step computes depends on (weights, slots, step, seed)
alone: dropout follows from a seed folded with the step.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from bert_tf.config import RunConfig
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer, moving
from bert_tf.run_folder import SUMS
from bert_tf.tasks.contract import Features, Task

Gradients = list[tf.Tensor | None]  # one a weight; None where the batch's task does not use it
# (batch, seed, term weights of the global batch [T], loss scale) -> (term sums [T], gradients)
GradientFunction = Callable[..., tuple[tf.Tensor, Gradients]]


def make_replica_step(
    run: RunConfig,
    accelerator: Accelerator,
    task: Task,
    model: tf.Module,
    optimizer: Optimizer,
) -> Callable[[Features], dict[str, tf.Tensor]]:
    """Returns a replica's part of one step, from its share of the batch to sums for the host."""
    gradients_of = make_gradients(task, model, run.train.accumulation)
    if accelerator.compile_gradients:
        gradients_of = tf.function(gradients_of, jit_compile=True, autograph=False)

    def replica_step(batch: Features) -> dict[str, tf.Tensor]:
        context = tf.distribute.get_replica_context()
        total, mask = tf.distribute.ReduceOp.SUM, batch["mask"]
        weight = context.all_reduce(total, tf.reduce_sum(batch["weight"]))
        term_weights = context.all_reduce(total, task.term_weights(batch))  # [T]
        seed = tf.random.fold_in(
            tf.stack([run.train.seed, tf.cast(context.replica_id_in_sync_group, tf.int32)]),
            tf.cast(optimizer.step, tf.int32),
        )
        term_sums, gradients = gradients_of(batch, seed, term_weights, optimizer.loss_scale)
        term_sums = context.all_reduce(total, term_sums)
        loss = total_loss(task, term_sums, term_weights)
        used = iter(context.all_reduce(total, [g for g in gradients if g is not None]))
        update = optimizer.apply_gradients([g if g is None else next(used) for g in gradients])
        is_bad = ~(tf.math.is_finite(loss) & update["usable"])
        values = [*tf.unstack(term_sums), *tf.unstack(term_weights)]
        return dict(zip(summed_terms(task), values, strict=True)) | {
            "loss": loss * weight,
            "weight": weight,
            "tokens": context.all_reduce(total, tf.math.count_nonzero(mask, dtype=tf.float32)),
            "positions": context.all_reduce(total, tf.cast(tf.size(mask), tf.float32)),
            "steps": tf.constant(1.0),
            "learning_rate": update["learning_rate"],
            "bad_step": tf.where(is_bad, tf.cast(optimizer.step, tf.float32), -1.0),
        }

    return replica_step


def summed_terms(task: Task) -> list[str]:
    """What is summed up of each term of a task."""
    return [f"{name}/{kind}" for kind in ("sum", "weight") for name in task.terms]


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
    replica_step = make_replica_step(run, accelerator, task, model, optimizer)

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
            sums = {name: sums[name] + step[name] for name in sums}
            bad_step = tf.where(last["bad_step"] < 0.0, step["bad_step"], last["bad_step"])
            return done + 1, sums, {"learning_rate": step["learning_rate"], "bad_step": bad_step}

        sums = dict.fromkeys([*SUMS, *summed_terms(task)], tf.constant(0.0))
        last = {"learning_rate": tf.constant(0.0), "bad_step": tf.constant(-1.0)}
        _, sums, last = tf.while_loop(
            lambda done, *_: done < count, one_more, (tf.constant(0), sums, last)
        )
        return sums | last

    return train_steps


def make_gradients(task: Task, model: tf.Module, accumulation: int) -> GradientFunction:
    """Returns a function of (batch, seed, term weights, loss scale) to (sums, dense gradients).

    The sums [T] are those of this replica's share of the global batch, whose term weights [T] are
    given; so are the gradients of the loss.
    """
    weights = list(moving(task.run.optimizer, variables_by_name(model)).values())

    def micro_gradients(
        batch: Features, seed: tf.Tensor, term_weights: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, Gradients]:
        with tf.GradientTape() as tape:
            sums = task.term_sums(model, batch, seed)  # [T]
            scaled = total_loss(task, sums, term_weights) * scale
        # Gradients of tables come as one row an occurrence; norm and update need the sum.
        gradients = tape.gradient(scaled, weights)
        return sums, [g if g is None else tf.convert_to_tensor(g) / scale for g in gradients]

    def accumulated(
        batch: Features, seed: tf.Tensor, term_weights: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, Gradients]:
        size = tf.shape(batch["weight"])[0] // accumulation
        used: list[bool] = []  # of each weight, known once `add` was traced

        def add(
            index: tf.Tensor, sums: tf.Tensor, gradients: list[tf.Tensor]
        ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
            part = {name: v[index * size : (index + 1) * size] for name, v in batch.items()}
            part_seed = tf.random.fold_in(seed, index)
            more_sums, more = micro_gradients(part, part_seed, term_weights, scale)
            used[:] = [gradient is not None for gradient in more]
            pairs = zip(gradients, more, strict=True)
            gradients = [a if b is None else a + b for a, b in pairs]
            return index + 1, sums + more_sums, gradients

        zeros = (tf.zeros_like(term_weights), [tf.zeros(variable.shape) for variable in weights])
        _, sums, gradients = tf.while_loop(
            lambda index, *_: index < accumulation, add, (tf.constant(0), *zeros)
        )
        return sums, [g if is_used else None for g, is_used in zip(gradients, used, strict=True)]

    return micro_gradients if accumulation == 1 else accumulated


def total_loss(task: Task, sums: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The terms that are losses, each a mean, added up: sums and weights [T] to a scalar."""
    is_loss = tf.constant([float(name.endswith("loss")) for name in task.terms])  # [T]
    return tf.reduce_sum(is_loss * sums / tf.maximum(weights, 1.0))
