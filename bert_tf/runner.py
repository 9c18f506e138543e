"""Whole jobs: train (once or with several seeds), from a configuration to a finished run folder."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import distillation, distribution, run_folder, tpu, training
from bert_tf.config import RunConfig
from bert_tf.layouts import Layout
from bert_tf.restore import OpenedRun, narrow, new_task, open_checkpoint, open_run
from bert_tf.tasks import TASKS
from bert_tf.tasks.contract import Task
from bert_tf.training import Evaluator


def train(run: RunConfig, workdir: str, restarts: int = 1) -> dict[str, float]:
    """Trains as `run` says, with `restarts` seeds one after the other.

    With several, each has its own folder `workdir/seed-N`, `workdir/restarts.json` has all
    metrics with mean and standard deviation, and the best run's files are copied to `workdir`
    itself, so that evaluate, predict and export find the best model there.

    Returns:
        The metrics of the best evaluation.

    Raises:
        ValueError: settings or data that cannot work.
    """
    if restarts < 1:
        raise ValueError(f"--restarts={restarts} must be at least 1.")
    check_task(run)
    accelerator = connect(run)
    if accelerator.kind == "tpu":
        tpu.check_paths(run, workdir, accelerator.strategy)
    with distribution.watching_workers(accelerator):
        return train_seeds(run, workdir, restarts, accelerator)


def train_seeds(
    run: RunConfig, workdir: str, restarts: int, accelerator: distribution.Accelerator
) -> dict[str, float]:
    """As `train`, on devices that are connected."""
    if restarts == 1:
        return train_once(run, workdir, accelerator, home=workdir)[1]
    results: list[dict[str, float]] = []
    for seed in range(run.train.seed, run.train.seed + restarts):
        logging.info("Seed %d (%d of %d).", seed, len(results) + 1, restarts)
        seeded = dataclasses.replace(run, train=dataclasses.replace(run.train, seed=seed))
        folder = os.path.join(workdir, f"seed-{seed}")
        chosen, metrics = train_once(seeded, folder, accelerator, workdir)
        results.append({"seed": seed} | metrics)
    return keep_best(workdir, results, chosen, accelerator.is_chief)


def check_task(run: RunConfig) -> None:
    """Raises ValueError for a task that is none."""
    if run.task.name not in TASKS:
        raise ValueError(
            f"config.task.name={run.task.name!r} is no task; choose one of {', '.join(TASKS)}."
        )


def connect(run: RunConfig) -> distribution.Accelerator:
    """Devices, dtype policy and determinism, in the order in which TensorFlow wants them."""
    if run.runtime.accelerator in ("auto", "cpu"):
        distribution.make_logical_cpus(run.runtime.replicas)
    if run.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    return distribution.connect(run.runtime)


def train_once(
    run: RunConfig, workdir: str, accelerator: distribution.Accelerator, home: str
) -> tuple[str, dict[str, float]]:
    """One run in one folder; `home` has what all seeds share, such as a teacher's logits.

    Returns:
        The metric that chooses the best weights, and the metrics of the best evaluation.
    """
    task, pretrained = new_task(run)
    task = distillation.with_teacher(task, home, accelerator)
    metrics = training.train(run, workdir, accelerator, task, pretrained)
    return training.check_metric(run, task), metrics


def keep_best(
    workdir: str, results: list[dict[str, float]], chosen: str, is_chief: bool
) -> dict[str, float]:
    """Writes `restarts.json` and copies the files of the run with the best metric to `workdir`.

    Of several processes the chief alone writes.
    """
    names = [name for name in results[0] if name not in ("seed", "step")]
    best = results[0]
    for result in results[1:]:
        best = result if training.is_better(chosen, result, best) else best
    summary = {name: mean_and_deviation([result[name] for result in results]) for name in names}
    for name, (mean, deviation) in summary.items():
        logging.info("%s %.4f +- %.4f over %d seeds", name, mean, deviation, len(results))
    if not is_chief:
        return best
    run_folder.write_json(
        os.path.join(workdir, "restarts.json"),
        {
            "runs": results,
            "mean": {name: mean for name, (mean, _) in summary.items()},
            "standard_deviation": {name: deviation for name, (_, deviation) in summary.items()},
            "best_seed": best["seed"],
        },
    )
    run_folder.copy_for_serving(os.path.join(workdir, f"seed-{best['seed']}"), workdir)
    return best


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of two values or more."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


@dataclasses.dataclass(frozen=True)
class Session:
    """A trained run on its devices, ready to evaluate or predict."""

    opened: OpenedRun
    evaluator: Evaluator

    def task_for(self, split: str, source: str | None) -> Task:
        """The run's task, reading `split` from the file `source` where one is given."""
        task, run = self.opened.task, self.opened.run
        if source is None:
            return task
        if run.tasks:
            raise ValueError(
                f"--input={source} is for one of the tasks {', '.join(sorted(run.tasks))}; say for "
                "which with --task=NAME."
            )
        # A file of the user's own has the columns of the recipe, not the layout of a GLUE folder.
        values = run.to_dict()
        values["data"][split] = source
        values["task"]["glue"] = ""
        return dataclasses.replace(task, run=RunConfig.from_dict(values))


def open_session(
    workdir: str, accelerator: str | None = None, task_name: str | None = None
) -> Session:
    """Opens a trained run folder on the devices that its recipe, or `accelerator`, names.

    `task_name` opens one task of a run of several as if it were alone.
    """
    run = run_folder.read_run(workdir)

    def open_model(layout: type[Layout]) -> OpenedRun:
        opened = open_run(workdir, layout)
        return opened if task_name is None else narrow(opened, task_name)

    return session_on(run, accelerator, open_model)


def open_untrained(run: RunConfig, accelerator: str | None = None) -> Session:
    """Opens what a recipe starts from, without training; see `restore.open_checkpoint`."""
    check_task(run)
    return session_on(run, accelerator, functools.partial(open_checkpoint, run))


def session_on(
    run: RunConfig, accelerator: str | None, open_model: Callable[[type[Layout]], OpenedRun]
) -> Session:
    """Connects to the devices and opens the model in their scope."""
    if accelerator is not None:
        runtime = dataclasses.replace(run.runtime, accelerator=accelerator)
        run = dataclasses.replace(run, runtime=runtime)
    connected = connect(run)
    with connected.strategy.scope():
        opened = open_model(connected.layout)
    return Session(opened, Evaluator(opened.run, connected, opened.task, opened.model))
