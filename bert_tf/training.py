"""The one training loop, for every task and every device.

A step is: losses of each replica's share of the batch -> gradients -> sum over replicas -> clipping
by the norm of the global gradient -> update. Losses are sums divided by the weight of the *global*
batch, so that 1 or N replicas, and 1 or N micro-batches, give the same update.

What a step computes depends on (weights, slots, step, seed) alone: batches come from a plan that is
a function of the step, dropout from a seed folded with the step. A run that is killed and started
again from its last checkpoint therefore ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import time
import types

import tensorflow as tf
from absl import logging

from bert_tf import run_folder
from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.evaluation import Evaluator
from bert_tf.pretrained import Pretrained
from bert_tf.reporting import SUMS, Reporter
from bert_tf.run_folder import MetricsLog
from bert_tf.state import TrainingState, check_same_data, start
from bert_tf.steps import Feed, make_train_steps
from bert_tf.tasks.classification import ClassificationTask as Task

AT_LEAST_1 = (
    "global_batch_size",
    "accumulation",
    "steps_per_loop",
    "eval_batch_size",
    "save_every",
    "log_every",
    "keep_checkpoints",
)


class Preempted(Exception):  # noqa: N818 - not an error: everything is saved
    """SIGTERM came; the run is saved and can be continued with the same command."""


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
        pretrained: weights to start from.

    Returns:
        The metrics of the best evaluation, with its `step`.

    Raises:
        ValueError: settings or data that cannot work, before the first step.
        Preempted: SIGTERM came.
        NonFiniteLoss: the loss is no number any more.
    """
    check_settings(run, accelerator)
    chosen = check_metric(run, task)
    if accelerator.is_chief:
        run_folder.prepare(workdir, run)
        save_assets(workdir, task)
    train_examples, dev_examples = task.examples("train"), task.examples("dev")
    total_steps = count_steps(run, len(train_examples))
    logging.info(
        "%s training and %s dev examples; %d steps of %d examples (%d on each replica).",
        f"{len(train_examples):,}",
        f"{len(dev_examples):,}",
        total_steps,
        run.train.global_batch_size,
        run.train.global_batch_size // accelerator.replicas,
    )
    state = start(run, workdir, accelerator, task, pretrained, total_steps)
    check_same_data(state.progress, train_examples, workdir)
    loop = Loop(run, workdir, accelerator, task, state, total_steps, dev_examples, chosen)
    if state.progress.step >= total_steps or loop.has_stalled():
        logging.info("Nothing left to train: %s is at step %d.", workdir, state.progress.step)
    else:
        loop.run_from(train_examples)
    return state.progress.best


def check_settings(run: RunConfig, accelerator: Accelerator) -> None:
    """Raises ValueError for numbers that cannot work on these replicas."""
    train = run.train
    for name in AT_LEAST_1:
        if getattr(train, name) < 1:
            raise ValueError(f"config.train.{name}={getattr(train, name)} must be at least 1.")
    parts = accelerator.replicas * train.accumulation
    if train.global_batch_size % parts:
        raise ValueError(
            f"config.train.global_batch_size={train.global_batch_size} must be a multiple of "
            f"{accelerator.replicas} replica(s) x accumulation {train.accumulation} = {parts}."
        )
    if train.eval_batch_size % accelerator.replicas:
        raise ValueError(
            f"config.train.eval_batch_size={train.eval_batch_size} must be a multiple of the "
            f"{accelerator.replicas} replicas."
        )
    if train.steps < 0 or train.epochs <= 0:
        raise ValueError("config.train.epochs must be above 0 and config.train.steps at least 0.")


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
    sign = -1.0 if chosen == "loss" else 1.0
    return sign * metrics[chosen] > sign * than[chosen]


def count_steps(run: RunConfig, num_examples: int) -> int:
    """Steps of the whole run."""
    per_epoch = batches.steps_per_epoch(num_examples, run.train.global_batch_size)
    return run.train.steps or max(round(run.train.epochs * per_epoch), 1)


def save_assets(workdir: str, task: Task) -> None:
    """Writes what a later process needs to build the same model."""
    run_folder.write_json(os.path.join(workdir, "bert_config.json"), task.config.to_dict())
    task.tokenizer.save(workdir)
    task.save(workdir)


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
        self.terminated = False

    def run_from(self, examples: batches.Examples) -> None:
        """Trains from the current step to the end of the run."""
        widths = batches.widths_for(self.run.data.max_seq_length, self.accelerator.static_shapes)
        plan = batches.training_plan(
            examples.lengths,
            self.run.train.global_batch_size,
            widths,
            self.run.train.seed,
            self.run.data.bucket_window,
            self.total_steps,
        )
        previous = listen_for_sigterm(self)
        try:
            feed = Feed(examples, plan, self.state.progress.step, self.accelerator)
            while self.state.progress.step < self.total_steps:
                self.advance(feed)
                if self.has_stalled():
                    patience = self.run.train.early_stopping
                    logging.info("Early stopping: %d evaluations without a better one.", patience)
                    break
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def advance(self, feed: Feed) -> None:
        """Runs a few steps on the device, then logs, evaluates and saves as they fall due."""
        progress, train = self.state.progress, self.run.train
        boundaries = (train.log_every, train.eval_every, train.save_every)
        stop = min(next_multiple(progress.step, every, self.total_steps) for every in boundaries)
        iterator, count = feed.next(min(stop - progress.step, train.steps_per_loop))
        sums = self.train_steps(iterator, tf.constant(count, tf.int32))
        sums = {name: float(value) for name, value in sums.items()}
        self.check_finite(sums.pop("bad_step"))
        progress.step += count
        for name in SUMS:
            progress.interval[name] = progress.interval.get(name, 0.0) + sums[name]
        done = progress.step == self.total_steps
        if progress.step % train.log_every == 0 or done:
            self.log(sums["learning_rate"])
        paused = time.monotonic()
        if done or (train.eval_every and progress.step % train.eval_every == 0):
            self.evaluate()
        if done or progress.step % train.save_every == 0 or self.has_stalled() or self.terminated:
            self.save()
        self.reporter.pause(time.monotonic() - paused)
        if self.terminated and not done:
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
        """Writes the mean loss since the last log, then begins a new interval."""
        progress = self.state.progress
        sums, progress.interval = progress.interval, {}
        scalars = {"loss": sums["loss"] / sums["weight"], "learning_rate": learning_rate}
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
        metrics = self.task.metrics(outputs, self.dev_examples.targets)
        metrics["loss"] = float(outputs["loss"].mean())
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


def next_multiple(step: int, every: int, last: int) -> int:
    """The next step after `step` at which something that happens `every` steps falls due."""
    return min((step // every + 1) * every, last) if every else last


def listen_for_sigterm(loop: Loop) -> signal.Handlers | None:
    """Makes SIGTERM end the run after the steps under way; returns the handler before."""

    def handle(number: int, frame: types.FrameType | None) -> None:
        loop.terminated = True

    try:
        return signal.signal(signal.SIGTERM, handle)  # type: ignore[return-value]
    except ValueError:  # not the main thread (a notebook's worker, a test): nobody to listen for
        return None
