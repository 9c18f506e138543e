"""The one training loop, for every task and every device.

A step is: losses of each replica's share of the batch -> gradients -> sum over replicas -> clipping
by the norm of the global gradient -> update. Losses are sums divided by the weights of the *global*
batch, so that 1 or N replicas, and 1 or N micro-batches, give the same update. Below it, from the
top: the run, the loop on the host, the step on the device, and evaluation.

What a step computes depends on (weights, slots, step, seed) alone: batches come from a plan that is
a function of the step, dropout from a seed folded with the step. A run that is killed and started
again from its last checkpoint therefore ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import run_folder
from bert_tf.checkpoints import Pretrained
from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.data.mixture import SeveralExamples
from bert_tf.distribution import Accelerator, Preempted, listening_for_sigterm, next_batch
from bert_tf.encoder import variables_by_name
from bert_tf.optimization import Optimizer, moving
from bert_tf.run_folder import SUMS, MetricsLog, Reporter, TrainingState, start
from bert_tf.tasks.contract import Features, Feed, Task, TrainingData


class NonFiniteLoss(Exception):  # noqa: N818
    """The loss or the gradient is no number any more; the last good checkpoint is kept."""


def train(
    run: RunConfig,
    workdir: str,
    accelerator: Accelerator,
    task: Task,
    pretrained: Pretrained,
) -> dict[str, float]:
    """Trains, evaluates and saves to the end of the run, from where an earlier process stopped.

    Args:
        run: the resolved configuration.
        workdir: the folder of the run.
        accelerator: from `distribution.connect`.
        task: from `Task.from_data`.
        pretrained: weights to start from; see `run_folder.start`.

    Returns:
        The metrics of the best evaluation, with its `step`.

    Raises:
        ValueError: settings or data that cannot work, before the first step.
        Preempted: SIGTERM came.
        NonFiniteLoss: the loss is no number any more.
    """
    run.train.check(accelerator.replicas)
    chosen = check_metric(run, task)
    run_folder.check_same_run(workdir, run)
    if accelerator.is_chief:
        run_folder.prepare(workdir, run)
        run_folder.save_assets(workdir, task)
    training_data, dev_examples = task.training_data(), task.examples("dev")
    total_steps = batches.count_steps(run.train, len(training_data))
    logging.info(
        "%s training and %s dev examples; %d steps of %d examples (%d on each replica).",
        f"{len(training_data):,}",
        f"{len(dev_examples):,}",
        total_steps,
        run.train.global_batch_size,
        run.train.global_batch_size // accelerator.replicas,
    )
    state = start(run, workdir, accelerator, task, pretrained, total_steps)
    run_folder.check_same_data(state.progress, training_data, workdir)
    run_folder.check_same_step(accelerator, state.progress.step, workdir)
    loop = Loop(run, workdir, accelerator, task, state, total_steps, dev_examples, chosen)
    if state.progress.step >= total_steps or loop.has_stalled():
        logging.info("Nothing left to train: %s is at step %d.", workdir, state.progress.step)
    else:
        loop.run_from(training_data)
    return state.progress.best


def check_metric(run: RunConfig, task: Task) -> str:
    """The metric that chooses the best weights; raises ValueError where it is not measured."""
    measured = (*task.metric_names, "loss")
    chosen = run.train.best_metric or measured[0]
    if chosen not in measured:
        raise ValueError(
            f"config.train.best_metric={chosen!r} is not measured; choose {', '.join(measured)}."
        )
    return chosen


def is_better(chosen: str, metrics: dict[str, float], than: dict[str, float]) -> bool:
    """Whether `metrics` beat `than`: higher is better, but for losses."""
    sign = -1.0 if chosen.endswith("loss") else 1.0
    return sign * metrics[chosen] > sign * than[chosen]


@dataclasses.dataclass
class Loop:
    """One run on its way."""

    run: RunConfig
    workdir: str
    accelerator: Accelerator
    task: Task
    state: TrainingState
    total_steps: int
    dev_examples: batches.Examples
    chosen: str  # the metric that decides which weights are the best
    sigterm_came: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        """Compiles nothing yet: functions are traced at their first call."""
        chief = self.accelerator.is_chief
        self.reporter = Reporter(
            self.workdir if chief else None, self.total_steps, self.state.progress.step
        )
        self.metrics_log = MetricsLog(self.workdir, self.state.progress.step) if chief else None
        self.train_steps = make_train_steps(
            self.run, self.accelerator, self.task, self.state.model, self.state.optimizer
        )
        self.evaluator = Evaluator(self.run, self.accelerator, self.task, self.state.model)

    def run_from(self, data: TrainingData) -> None:
        """Trains from the current step to the end of the run."""
        step = self.state.progress.step
        feed = data.feed(self.run, step, self.total_steps, self.accelerator)
        with listening_for_sigterm() as self.sigterm_came:
            while self.state.progress.step < self.total_steps:
                self.advance(feed)
                if self.has_stalled():
                    patience = self.run.train.early_stopping
                    logging.info("Early stopping: %d evaluations without a better one.", patience)
                    break

    def advance(self, feed: Feed) -> None:
        """Runs a few steps on the device, then logs, evaluates and saves as they fall due."""
        progress, train = self.state.progress, self.run.train
        boundaries = (train.log_every, train.eval_every, train.save_every)
        stop = min(next_multiple(progress.step, every, self.total_steps) for every in boundaries)
        iterator, count = feed.next(min(stop - progress.step, train.steps_per_loop))
        sums = self.reporter.run(self.train_steps, iterator, count)
        self.check_finite(sums.pop("bad_step"))
        progress.step += count
        learning_rate = sums.pop("learning_rate")
        for name, value in sums.items():
            progress.interval[name] = progress.interval.get(name, 0.0) + value
        done = progress.step == self.total_steps
        if progress.step % train.log_every == 0 or done:
            self.log(learning_rate)
        # One worker may have been told to stop: then all do, at the same step.
        terminated = any(self.accelerator.numbers_of_workers(self.sigterm_came()))
        paused = time.monotonic()
        if done or (train.eval_every and progress.step % train.eval_every == 0):
            self.evaluate()
        if done or progress.step % train.save_every == 0 or self.has_stalled() or terminated:
            self.save()
        self.reporter.pause(time.monotonic() - paused)
        if terminated and not done:
            raise Preempted(
                f"SIGTERM: saved at step {progress.step} of {self.total_steps} in {self.workdir}; "
                "the same command goes on from there."
            )

    def check_finite(self, bad_step: float) -> None:
        """Raises NonFiniteLoss where a step's loss or gradient was no number."""
        if bad_step >= 0:
            newest = run_folder.newest_step(os.path.join(self.workdir, "checkpoints"))
            raise NonFiniteLoss(
                f"the loss or its gradient is not finite at step {int(bad_step)}. The last good "
                f"checkpoint is {newest or 'none yet'}. Lower config.optimizer.learning_rate, "
                "lengthen config.optimizer.warmup_proportion, or use --config.runtime.dtype="
                "float32, in a new --workdir."
            )

    def log(self, learning_rate: float) -> None:
        """Writes the means since the last log, then begins a new interval."""
        progress = self.state.progress
        sums, progress.interval = progress.interval, {}
        scalars = {"loss": sums["loss"] / sums["weight"]}
        for name in self.task.terms:
            if name != "loss" and sums[f"{name}/weight"]:
                scalars[name] = sums[f"{name}/sum"] / max(sums[f"{name}/weight"], 1.0)
        scalars["learning_rate"] = learning_rate
        self.write(scalars)
        self.reporter.training(progress.step, sums, scalars)

    def write(self, scalars: dict[str, float]) -> None:
        """To metrics.jsonl."""
        if self.metrics_log is not None:
            self.metrics_log.write(self.state.progress.step, scalars)

    def evaluate(self) -> None:
        """Measures the dev examples and keeps the weights where they are the best so far."""
        progress = self.state.progress
        outputs = self.evaluator.predict(self.dev_examples)
        metrics = self.task.metrics(outputs, self.dev_examples)
        scalars = {f"eval/{name}": value for name, value in metrics.items()}
        self.write(scalars)
        self.reporter.scalars(progress.step, scalars)
        is_best = not progress.best or is_better(self.chosen, metrics, progress.best)
        logging.info(
            "eval at step %d: %s%s",
            progress.step,
            "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()),
            "  (best so far)" if is_best else "",
        )
        if not is_best:
            progress.stale_evaluations += 1
            return
        progress.best, progress.stale_evaluations = metrics | {"step": progress.step}, 0
        if self.accelerator.is_chief:
            weights = variables_by_name(self.state.model)
            tensors = {name: variable.numpy() for name, variable in weights.items()}
            run_folder.write_step(os.path.join(self.workdir, "best"), progress, tensors, keep=1)

    def has_stalled(self) -> bool:
        """Whether early stopping has come."""
        patience = self.run.train.early_stopping
        return bool(patience) and self.state.progress.stale_evaluations >= patience

    def save(self) -> None:
        """Saves everything that a later process needs to go on from here."""
        if self.accelerator.is_chief:
            folder = os.path.join(self.workdir, "checkpoints")
            keep = self.run.train.keep_checkpoints
            run_folder.write_step(folder, self.state.progress, self.state.tensors(), keep)
        self.accelerator.numbers_of_workers(0)  # nobody goes on, or ends, before it is written


def next_multiple(step: int, every: int, last: int) -> int:
    """The next step after `step` at which something that happens `every` steps falls due."""
    return min((step // every + 1) * every, last) if every else last


# ------------------------------------------------------------------------- the step on the device
# losses -> gradients -> sum over replicas -> clip -> update

# One a weight; None where the batch's task does not use it.
Gradients = list[tf.Tensor | tf.IndexedSlices | None]
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
    keep_rows = accelerator.sends_rows and run.train.accumulation == 1 and not run.tasks
    gradients_of = make_gradients(task, model, run.train.accumulation, keep_rows)
    if accelerator.compile_gradients:
        gradients_of = tf.function(gradients_of, jit_compile=True, autograph=False)

    def replica_step(batch: Features) -> dict[str, tf.Tensor]:
        context, total = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.SUM
        tokens = tf.math.count_nonzero(batch["mask"], dtype=tf.float32)
        positions = tf.cast(tf.size(batch["mask"]), tf.float32)
        counts = [tf.reduce_sum(batch["weight"]), tokens, positions, task.term_weights(batch)]
        weight, tokens, positions, term_weights = context.all_reduce(total, counts)
        seed = tf.random.fold_in(
            tf.stack([run.train.seed, tf.cast(context.replica_id_in_sync_group, tf.int32)]),
            tf.cast(optimizer.step, tf.int32),
        )
        term_sums, gradients = gradients_of(batch, seed, term_weights, optimizer.loss_scale)
        most_rows = (batch["mask"].shape[:-1].num_elements() or 0) * run.data.max_seq_length
        own = [accelerator.to_send(g, most_rows) for g in gradients if g is not None]
        term_sums, *own = context.all_reduce(total, [term_sums, *own])
        loss, used = total_loss(task, term_sums, term_weights), map(tf.convert_to_tensor, own)
        update = optimizer.apply_gradients([g if g is None else next(used) for g in gradients])
        is_bad = ~(tf.math.is_finite(loss) & update["usable"])
        values = [*tf.unstack(term_sums), *tf.unstack(term_weights)]
        return dict(zip(summed_terms(task), values, strict=True)) | {
            "loss": loss * weight,
            "weight": weight,
            "tokens": tokens,
            "positions": positions,
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
            batch, waited = next_batch(iterator, after=last["bad_step"])
            step = first_replica(strategy.run(replica_step, args=(batch,))) | {"waited": waited}
            sums = {name: sums[name] + step[name] for name in sums}
            bad_step = tf.where(last["bad_step"] < 0.0, step["bad_step"], last["bad_step"])
            return done + 1, sums, {"learning_rate": step["learning_rate"], "bad_step": bad_step}

        sums = dict.fromkeys([*SUMS, "waited", *summed_terms(task)], tf.constant(0.0))
        last = {"learning_rate": tf.constant(0.0), "bad_step": tf.constant(-1.0)}
        _, sums, last = tf.while_loop(
            lambda done, *_: done < count, one_more, (tf.constant(0), sums, last)
        )
        return sums | last

    return train_steps


def make_gradients(
    task: Task, model: tf.Module, accumulation: int, keep_rows: bool = False
) -> GradientFunction:
    """Returns a function of (batch, seed, term weights, loss scale) to (sums, gradients).

    The sums [T] are those of this replica's share of the global batch, whose term weights [T] are
    given; so are the gradients of the loss: with `keep_rows`, of tables one row an occurrence.
    """
    form = tf.identity if keep_rows else tf.convert_to_tensor
    weights = list(moving(task.run.optimizer, variables_by_name(model)).values())

    def micro_gradients(
        batch: Features, seed: tf.Tensor, term_weights: tf.Tensor, scale: tf.Tensor
    ) -> tuple[tf.Tensor, Gradients]:
        with tf.GradientTape() as tape:
            sums = task.term_sums(model, batch, seed)  # [T]
            scaled = total_loss(task, sums, term_weights) * scale
        gradients, unscale = tape.gradient(scaled, weights), 1.0 / scale
        return sums, [g if g is None else tf.math.scalar_mul(unscale, form(g)) for g in gradients]

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


# ------------------------------------------------------------------------------------- evaluation


class Evaluator:
    """Applies `Task.predict` to all examples of a split."""

    def __init__(
        self, run: RunConfig, accelerator: Accelerator, task: Task, model: tf.Module
    ) -> None:
        """`model` must have been built in the strategy's scope."""
        self.run = run
        self.accelerator = accelerator

        def predict_part(part: Features) -> dict[str, tf.Tensor]:
            return task.predict(model, part) | {"example": part["example"]}

        self.predict_batch = tf.function(
            lambda batch: accelerator.strategy.run(predict_part, (batch,)), autograph=False
        )

    def predict(self, examples: batches.Examples) -> dict[str, np.ndarray]:
        """The outputs of `Task.predict` for all examples, in their order: each [E, ...]."""
        if isinstance(examples, SeveralExamples):
            return examples.by_part(self.run, self.predict_alike)
        return self.predict_alike(examples, self.run)

    def predict_alike(self, examples: batches.Examples, run: RunConfig) -> dict[str, np.ndarray]:
        """The outputs for examples of one task."""
        static = self.accelerator.static_shapes
        widths = batches.widths_for(run.data.max_seq_length, static)
        plan = batches.evaluation_plan(examples.lengths, run.train.eval_batch_size, widths)
        groups = list(batches.by_width(plan).values()) if static else [plan]
        parts: dict[str, list[np.ndarray]] = {}
        for group in groups:
            dataset = batches.dataset(examples, group, static)
            distributed = batches.distribute(dataset, self.accelerator)
            # The spec leaves the width open; a batch itself would be traced twice.
            predict_batch = self.predict_batch.get_concrete_function(distributed.element_spec)
            for batch in itertools.islice(distributed, len(group)):
                for name, value in predict_batch(batch).items():
                    parts.setdefault(name, []).append(self.accelerator.own_rows(value))
        gather = self.accelerator.gather
        return in_order({name: gather(np.concatenate(values)) for name, values in parts.items()})


def in_order(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Drops padding rows and sorts by example number, checking that each is there once."""
    example = outputs.pop("example")
    rows = np.flatnonzero(example >= 0)
    rows = rows[np.argsort(example[rows], kind="stable")]
    if not np.array_equal(example[rows], np.arange(len(rows))):
        raise RuntimeError("evaluation lost or repeated examples; please report this.")
    return {name: values[rows] for name, values in outputs.items()}
