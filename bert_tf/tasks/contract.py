"""What the loop, the run folder and restoring ask of a task: every task is one class that has this.

What a trained task answers, to files and to clients, is a class of its own: `Answers`.

Legend: B batch, T terms of a step, E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data.batches import Examples
from bert_tf.distribution import Accelerator
from bert_tf.encoder import BertEncoder
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tokenization import Tokenizer

Features = Mapping[str, tf.Tensor]  # a batch, or a micro-batch of it: each [B, ...]
Signature = Any  # tf.types.experimental.ConcreteFunction
# `token_ids`, `segment_ids` and `mask` int32 [B, S], by name, to answers by name.
IdsAnswer = Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]
PREDICTIONS_FILE = "predictions.jsonl"  # one answer a line, in the order of the examples


class Feed(Protocol):
    """Hands out the batches of a run, from one of its steps on."""

    def next(self, most: int) -> tuple[tf.data.Iterator, int]:
        """An iterator, and for how many steps (at most `most`) it is the one to use."""


class TrainingData(Protocol):
    """What a run trains on. Its batches are a pure function of (data, seed, step).

    A batch has `token_ids`, `segment_ids` and `mask` int32 [B, S] (or [B, C, S], where an example
    is several sequences), `weight` float32 [B] (0 on rows that are no example) and whatever else
    the task's losses need, each [B, ...].
    """

    def __len__(self) -> int:
        """Examples of one epoch, E."""

    def fingerprint(self) -> int:
        """A number that other data do not have."""

    def feed(
        self, run: RunConfig, first_step: int, total_steps: int, accelerator: Accelerator
    ) -> Feed:
        """The batches from `first_step` to the end of the run."""


Self = TypeVar("Self", bound="Task")


class Task(Protocol):
    """A task is a frozen dataclass with these fields and methods.

    A field with the name of a metric (a threshold that `metrics` tunes) gets its value of the best
    evaluation when a run is opened.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def run(self) -> RunConfig:
        """The run that the task belongs to."""

    @property
    def config(self) -> BertConfig:
        """The shape of the encoder."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary and casing of the model."""

    @property
    def fresh_weights(self) -> tuple[str, ...]:
        """Prefixes of weights that a pre-trained checkpoint need not bring."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` measures; the first one chooses the best weights."""

    @classmethod
    def from_data(
        cls: type[Self], run: RunConfig, config: BertConfig, tokenizer: Tokenizer
    ) -> Self:
        """The task of a new run; raises ValueError where data or settings cannot work."""

    @classmethod
    def from_folder(
        cls: type[Self], run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> Self:
        """The task as an earlier run saved it."""

    def save(self, folder: str) -> None:
        """Writes what `from_folder` reads."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> tf.Module:
        """A model with fresh weights, to be called inside `strategy.scope()`."""

    def training_data(self) -> TrainingData:
        """What to train on."""

    def examples(self, split: str) -> Examples:
        """The examples of `train`, `dev` or `test`, in memory, to be measured."""

    @property
    def terms(self) -> tuple[str, ...]:
        """What a training step measures, T names: those that end in "loss" add up to its loss.

        The others, such as accuracies, are logged and nothing else.
        """

    def term_weights(self, batch: Features) -> tf.Tensor:
        """What each term counts in this batch, float32 [T]: examples, or masked words.

        The loop sums it over the global batch before any term is divided by it.
        """

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Each term summed over this batch, float32 [T].

        A term of a step is (sum / weight of the global batch), so that replicas and micro-batches
        change nothing. `seed` int32 [2] drives dropout.
        """

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What evaluation keeps of each example: [B, ...] each."""

    def metrics(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> dict[str, float]:
        """`metric_names` and `loss`: from the outputs of `predict`, [E, ...], for all examples.

        `examples` is what `self.examples` returned.
        """


class Part(Task, Protocol):
    """A task that can share its encoder with others: see `tasks/multi_task.py`.

    Its training data and its examples are `Examples`, and its methods use no more of a model than
    calling it.
    """

    def attach(self, encoder: BertEncoder, prefix: str = "") -> tf.Module:
        """The model on a given encoder; `prefix` begins the names of the head's weights.

        `encoder.config.hidden_size` is the width of the vectors that the head reads.
        """


class Answers(Protocol):
    """What the trained model of a task answers: a frozen dataclass whose one field is the task."""

    def examples(self, split: str) -> Examples:
        """The examples of `train`, `dev` or `test`, whatever labels it has, to be predicted."""

    def files(
        self, split: str, examples: Examples, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, list[str]]:
        """The lines of each file of answers, by its name; `PREDICTIONS_FILE` is the first.

        Args:
            split: which examples these are.
            examples: what `self.examples` returned.
            outputs: of `Task.predict`, for all examples: [E, ...] each.
        """

    def signatures(self, model: tf.Module) -> dict[str, Signature]:
        """The signatures of a SavedModel by name; `model` is in float32, without padded rows."""

    def ids_answers(self, model: tf.Module) -> dict[str, IdsAnswer]:
        """What those signatures do that take ids, by name."""

    def warmup_requests(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Requests that a server replays at its start: name of a signature, inputs by name."""

    def card(self) -> dict[str, Any]:
        """What the model card says of this task beside what it says of all, for JSON."""
