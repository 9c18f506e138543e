"""Examples of several tasks, and which task each step of a run is of.

A batch is of one task, and a task is drawn for every update (Sanh et al. 2018, "A Hierarchical
Multi-task Approach for Learning Embeddings from Semantic Tasks"). Which one is a pure function of
(seed, step), and the place in a task's own data follows from how many earlier steps drew it: a run
that stops and starts again sees the batches that it would have seen, with nothing to save but the
step.

A feature's name says which task a batch is of: it is part of the batch's type, so that a step is
traced once for each task, computes nothing of the others, and has static shapes.
Legend: E examples of all tasks, K tasks.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.data.batches import Examples
from bert_tf.distribution import Accelerator

MARK = "task:"  # with the name of the task behind it: a feature of every batch of that task
# What the share of a task in the steps follows, from E of its training data.
SAMPLINGS: dict[str, Callable[[int], float]] = {"size": float, "square_root": math.sqrt}
GIVEN = "shares"
CHOICES = (*SAMPLINGS, GIVEN)

Outputs = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SeveralExamples(Examples):
    """The examples of all tasks, one task after the other; `targets` say which task it is."""

    parts: dict[str, Examples]  # by task; each has a target MARK + its name

    @classmethod
    def of(cls, parts: Mapping[str, Examples]) -> SeveralExamples:
        """Puts the examples of K tasks together."""
        lengths = np.concatenate([part.lengths for part in parts.values()])  # [E]
        marked = {
            name: dataclasses.replace(
                part, targets=part.targets | {MARK + name: np.zeros(len(part), np.int32)}
            )
            for name, part in parts.items()
        }
        return cls(
            np.concatenate([part.token_ids for part in parts.values()]),
            np.concatenate([part.segment_ids for part in parts.values()]),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            {"task": np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])},
            marked,
        )

    def fingerprint(self) -> int:
        """A checksum of the data of every task."""
        parts = {name: part.fingerprint() for name, part in self.parts.items()}
        return zlib.crc32(repr(parts).encode())

    def by_part(self, run: RunConfig, answer: Callable[[Examples, RunConfig], Outputs]) -> Outputs:
        """What `answer` makes of each task's examples and run, named NAME/OUTPUT."""
        return {
            f"{name}/{key}": values
            for name, part in self.parts.items()
            for key, values in answer(part, run.part(name)).items()
        }

    def feed(  # type: ignore[override] # it hands out batches as any feed does
        self, run: RunConfig, first_step: int, total_steps: int, accelerator: Accelerator
    ) -> MixedFeed:
        """The batches of a run from one of its steps on; raises ValueError for a task without."""
        shares = step_shares(run, {name: len(part) for name, part in self.parts.items()})
        drawn = draw_tasks(shares, run.train.seed, total_steps, run.multi_task.steps_per_draw)
        counts = collections.Counter(dict.fromkeys(self.parts, 0))
        counts.update(drawn)
        logging.info("Steps of each task: %s.", ", ".join(f"{n} {c:,}" for n, c in counts.items()))
        for name, count in counts.items():
            if not count:
                raise ValueError(
                    f"the task {name!r}, with a share of {shares[name]:.2%}, is in none of the "
                    f"{total_steps:,} steps: train longer, or set config.multi_task.sampling."
                )
        done = collections.Counter(drawn[:first_step])
        feeds = {
            name: part.feed(run.part(name), done[name], counts[name], accelerator)
            for name, part in self.parts.items()
            if done[name] < counts[name]
        }
        return MixedFeed(feeds, drawn[first_step:])


class MixedFeed:
    """Hands out the batches of several tasks, those of one task at a time."""

    def __init__(self, feeds: Mapping[str, batches.Feed], drawn: list[str]) -> None:
        """`drawn` is the task of each step that is left."""
        self.feeds = feeds
        self.drawn = drawn
        self.position = 0

    def next(self, most: int) -> tuple[tf.data.Iterator, int]:
        """An iterator, and for how many steps (at most `most`) it is the one to use."""
        ahead = self.drawn[self.position : self.position + most]
        count = next((i for i, name in enumerate(ahead) if name != ahead[0]), len(ahead))
        iterator, count = self.feeds[ahead[0]].next(count)
        self.position += count
        return iterator, count


def task_of(batch: Mapping[str, object]) -> str:
    """The task whose batch this is."""
    return next(name for name in batch if name.startswith(MARK)).removeprefix(MARK)


def draw_tasks(
    shares: Mapping[str, float], seed: int, steps: int, steps_per_draw: int
) -> list[str]:
    """The task of each step; more steps do not change the first ones."""
    batches.check_shuffle(seed, window=1)
    names = list(shares)
    # Three numbers: the plans of epochs have streams of two.
    generator = np.random.Generator(np.random.PCG64([seed, 0, 1]))
    limits = np.cumsum([shares[name] for name in names])  # [K]
    chosen = np.searchsorted(limits[:-1], generator.random(-(-steps // steps_per_draw)), "right")
    return [names[number] for number in np.repeat(chosen, steps_per_draw)[:steps]]


def step_shares(run: RunConfig, sizes: Mapping[str, int]) -> dict[str, float]:
    """The share of each task in the steps, from the size of its training data; they sum to 1."""
    sampling = run.multi_task.sampling
    shares = {
        name: run.tasks[name].share if sampling == GIVEN else SAMPLINGS[sampling](size)
        for name, size in sizes.items()
    }
    return {name: share / sum(shares.values()) for name, share in shares.items()}


def check_sampling(run: RunConfig) -> None:
    """Raises ValueError for settings by which no tasks can be drawn."""
    config = run.multi_task
    if config.sampling not in CHOICES:
        raise ValueError(
            f"config.multi_task.sampling={config.sampling!r} must be one of {', '.join(CHOICES)}."
        )
    if config.steps_per_draw < 1:
        raise ValueError(
            f"config.multi_task.steps_per_draw={config.steps_per_draw} must be at least 1."
        )
    for name, part in run.tasks.items():
        given = f"config.tasks.{name}.share={part.share}"
        if config.sampling == GIVEN and not (part.share > 0.0 and math.isfinite(part.share)):
            raise ValueError(
                f"{given}, but with config.multi_task.sampling=shares each task needs a share "
                "above 0; leave the task out if it is not to be learnt."
            )
        if config.sampling != GIVEN and part.share:
            raise ValueError(
                f"{given} has no effect with config.multi_task.sampling={config.sampling}; set "
                "that to shares."
            )
