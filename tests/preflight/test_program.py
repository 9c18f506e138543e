"""The program that is compiled is the step that is trained with."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import RunConfig
from bert_tf.distribution import Accelerator, cpu_strategy
from bert_tf.preflight.program import as_values
from bert_tf.restore import new_task
from bert_tf.run_folder import start
from bert_tf.training import make_replica_step
from tests.tasks.test_multi_task import several
from tests.tiny_run import tiny_run

ON_TPU = Accelerator("tpu", cpu_strategy(1), "float32")


def first_batch(run: RunConfig, task: Any) -> dict[str, tf.Tensor]:
    feed = task.training_data().feed(run, 0, 2, ON_TPU)
    iterator, _ = feed.next(1)
    return next(iterator)


@pytest.mark.parametrize(("accumulation", "recompute"), [(1, False), (2, True)])
def test_the_program_is_the_step(
    tmp_path: pathlib.Path, accumulation: int, recompute: bool
) -> None:
    run = tiny_run(tmp_path, train={"accumulation": accumulation}, model={"recompute": recompute})
    check(run, tmp_path)


def test_the_program_of_one_of_several_tasks(tmp_path: pathlib.Path) -> None:
    check(several(tmp_path), tmp_path)


def check(run: RunConfig, folder: pathlib.Path) -> None:
    """Compares sums and updated variables of one step with those of the program."""
    task, pretrained = new_task(run)
    state = start(run, str(folder / "run"), ON_TPU, task, pretrained, total_steps=2)
    step = make_replica_step(run, ON_TPU, task, state.model, state.optimizer)
    batch = first_batch(run, task)
    concrete = tf.function(step, autograph=False).get_concrete_function(batch)
    pure, variables, updated = as_values(concrete)
    before = [variable.numpy() for variable in variables]
    arguments = [value for _, value in sorted(batch.items())]
    outputs = tf.function(pure, autograph=False)(*arguments, *before)
    expected = tf.nest.flatten(concrete(batch))
    after = [variables[place].numpy() for place in sorted(updated)]
    moved = [(before[place] != variables[place].numpy()).any() for place in sorted(updated)]
    assert sum(moved) > len(moved) / 2, "the step trains"
    for value, other in zip(outputs, [*expected, *after], strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-6)
