"""Several tasks on one encoder, each at a layer of its own: hierarchical multi-task learning.

After Sanh, Wolf, Ruder 2018, "A Hierarchical Multi-task Approach for Learning Embeddings from
Semantic Tasks" (arXiv 1811.06031): simple tasks are attached low, complex ones high, and every step
is of one task, drawn at random. `config.tasks` has the tasks by name; each is what it is when it is
alone, with its own data, settings, losses and metrics, on an encoder that ends at its layer.

- **A step** of one task computes the layers up to its own and moves their weights and its head's.
  All other weights stay as they are bit by bit, without decay, and so do their moments; bias
  correction counts the steps that used a weight. (Optimizers of torch, in which the paper's code
  is written, treat weights without a gradient so.)
- **The input of a level** is, in the paper, the word embeddings beside the output of the level
  below. In a BERT the level below *is* the input of the next block; the embeddings reach a head by
  `shortcut`: it then reads [its layer's output; output of the embeddings], 2 H wide. For a whole
  text that is [what the pooler makes of its [CLS]; the mean of the embeddings of its tokens]: the
  embedding of [CLS] is the same in every text.
- **The pooler** between [CLS] and a classifier is the encoder's own at the top layer, which all
  classifiers there share as they share the layers below. It was pre-trained on the top layer, so
  that classifiers lower down each have a new one of their own.
- **The loss** of a step is that of its task times `loss_weight`, and so it is logged as NAME/loss;
  evaluation has the losses as they are. `average`, the mean of the first metric of all tasks, on a
  scale from 0 to 1, chooses the best weights unless `train.best_metric` names another.

Legend: B batch, S sequence, H hidden, T terms of all tasks, E examples.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches
from bert_tf.data.mixture import SeveralExamples, check_sampling, task_of
from bert_tf.encoder import BertEncoder, EncoderOutput, Linear
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Features, Part
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tasks.tagging import TaggingTask
from bert_tf.tokenization import Tokenizer

PARTS: dict[str, type[Part]] = {
    "classification": ClassificationTask,
    "question_answering": QuestionAnsweringTask,
    "tagging": TaggingTask,
}
HUNDREDTHS = ("question_answering",)  # tasks whose metrics go up to 100, as the official scripts'
AVERAGE = "average"
FOLDER = "tasks"  # in the folder of a run: a folder of each task
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# First parts of the names of the encoder's weights and of pre-training's heads.
RESERVED = ("bert", "cls", "embeddings")


# ------------------------------------------------------------------------------------- the model


class AttachedEncoder(BertEncoder):
    """The lowest layers of another encoder, with its weights: what the head of one task reads.

    `config.hidden_size` is the width of `sequence` and `pooled`: H, or 2 H with the shortcut.
    """

    def __init__(
        self, encoder: BertEncoder, num_layers: int, shortcut: bool, pooler: Linear
    ) -> None:
        keras.layers.Layer.__init__(self, name=encoder.name)  # without weights of its own
        self.supports_masking = True
        width = encoder.config.hidden_size * (2 if shortcut else 1)
        self.config = dataclasses.replace(encoder.config, hidden_size=width)
        self.layout = encoder.layout
        self.recompute = encoder.recompute
        self.shortcut = shortcut
        self.embeddings = encoder.embeddings
        self.blocks = encoder.blocks[:num_layers]
        self.pooler = pooler

    def call(
        self,
        token_ids: tf.Tensor,
        segment_ids: tf.Tensor | None = None,
        mask: tf.Tensor | None = None,
        training: bool = False,
        seed: tf.Tensor | None = None,
        cls_only: bool = False,
    ) -> EncoderOutput:
        """As `BertEncoder.call`; its last layer is the one that the task is attached to."""
        output = super().call(token_ids, segment_ids, mask, training, seed, cls_only)
        if not self.shortcut:
            return output
        embeddings = output.embeddings  # [B, S, H]
        mean = mean_of_tokens(embeddings, mask)  # [B, H]
        if cls_only:
            embeddings = embeddings[:, :1]  # [B, 1, H], as `sequence`
        return output._replace(
            sequence=tf.concat([output.sequence, embeddings], axis=-1),  # [B, S, 2 H]
            pooled=tf.concat([output.pooled, mean], axis=-1),  # [B, 2 H]
        )


def mean_of_tokens(vectors: tf.Tensor, mask: tf.Tensor | None) -> tf.Tensor:
    """The mean of real tokens: [B, S, H] and int [B, S] to [B, H]."""
    if mask is None:
        return tf.reduce_mean(vectors, axis=1)
    weight = tf.expand_dims(tf.cast(mask, tf.float32), -1)  # [B, S, 1]
    total = tf.reduce_sum(tf.cast(vectors, tf.float32) * weight, axis=1)  # [B, H]
    return tf.cast(total / tf.maximum(tf.reduce_sum(weight, axis=1), 1.0), vectors.dtype)


class MultiTaskModel(keras.layers.Layer):
    """One encoder and the model of each task on it, which is called like the task's own."""

    def __init__(self, encoder: BertEncoder, parts: dict[str, tf.Module]) -> None:
        super().__init__(name="bert_multi_task")
        self.encoder = encoder
        self.parts = parts


# -------------------------------------------------------------------------------------- the task


@dataclasses.dataclass(frozen=True)
class MultiTask:
    """Several tasks as one; batches, outputs, terms and metrics are those of its parts by name."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer
    parts: dict[str, Part]  # by name, sorted: the order in a recipe means nothing

    @classmethod
    def from_data(cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer) -> MultiTask:
        """The tasks as their training data define them.

        Raises:
            ValueError: a setting does not fit, or one of the tasks cannot work; its name is said.
        """
        check_settings(run, config)
        return cls.of_parts(
            run,
            config,
            tokenizer,
            lambda name, part: part.from_data(run.part(name), config, tokenizer),
        )

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> MultiTask:
        """The tasks as an earlier run saved them."""

        def open_part(name: str, part: type[Part]) -> Part:
            own = os.path.join(folder, FOLDER, name)
            return part.from_folder(run.part(name), config, tokenizer, own)

        return cls.of_parts(run, config, tokenizer, open_part)

    @classmethod
    def of_parts(
        cls,
        run: RunConfig,
        config: BertConfig,
        tokenizer: Tokenizer,
        make: Callable[[str, type[Part]], Part],
    ) -> MultiTask:
        """Makes each part from its name and its class."""
        parts = {}
        for name in sorted(run.tasks):
            with naming(name):
                parts[name] = make(name, PARTS[run.tasks[name].task.name])
        return cls(run, config, tokenizer, parts)

    def save(self, folder: str) -> None:
        """Writes what `from_folder` reads: a folder for each task."""
        for name, part in self.parts.items():
            own = os.path.join(folder, FOLDER, name)
            tf.io.gfile.makedirs(own)
            part.save(own)

    @property
    def fresh_weights(self) -> tuple[str, ...]:
        """All heads, and the pooler where one reads it."""
        pooler = any(reads_pooler(part) for part in self.parts.values())
        return (*(f"{name}/" for name in self.parts), *(("bert/pooler",) if pooler else ()))

    def build_model(self, layout: type[Layout] = PaddedLayout) -> MultiTaskModel:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        encoder = BertEncoder(self.config, layout, self.run.model.recompute)
        tops = [self.layer(name) == self.config.num_hidden_layers for name in self.parts]
        readers = [reads_pooler(part) for part in self.parts.values()]
        encoder.pooler.trainable = any(map(min, tops, readers))  # else it is no weight of the model
        parts = {name: self.attached(name, encoder) for name in self.parts}
        return MultiTaskModel(encoder, parts)

    def attached(self, name: str, encoder: BertEncoder) -> tf.Module:
        """The model of one task at its layer of the encoder."""
        layer, part, pooler = self.layer(name), self.parts[name], encoder.pooler
        if reads_pooler(part) and layer < self.config.num_hidden_layers:
            size = self.config.hidden_size
            pooler = Linear(size, size, self.config, name=f"{name}/pooler/dense")
        shortcut = self.run.tasks[name].shortcut
        return part.attach(AttachedEncoder(encoder, layer, shortcut, pooler), f"{name}/")

    def layer(self, name: str) -> int:
        """The layer that a task reads, from 1."""
        return self.run.tasks[name].layer or self.config.num_hidden_layers

    def training_data(self) -> SeveralExamples:
        """The training examples of all tasks, in memory."""
        return self.gather(self.parts, lambda part: part.training_data())

    def examples(self, split: str) -> SeveralExamples:
        """The examples of a split of every task."""
        return self.gather(self.parts, lambda part: part.examples(split))

    @staticmethod
    def gather(
        sources: Mapping[str, Any], examples_of: Callable[[Any], batches.Examples]
    ) -> SeveralExamples:
        """The examples of each source (a task, or its answers), by the name of the task."""
        found = {}
        for name, source in sources.items():
            with naming(name):
                found[name] = examples_of(source)
        return SeveralExamples.of(found)

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms of every task: NAME/loss and so on."""
        return tuple(f"{name}/{term}" for name, part in self.parts.items() for term in part.terms)

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Weights of the terms of the batch's task, and 0 for the others, float32 [T]."""
        name = task_of(batch)
        return self.among_all(name, self.parts[name].term_weights(batch))

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Terms of the batch's task summed, times its loss weight; others are 0. Float32 [T]."""
        name = task_of(batch)
        sums = self.parts[name].term_sums(model.parts[name], batch, seed)
        return self.among_all(name, sums * self.run.tasks[name].loss_weight)

    def among_all(self, name: str, terms: tf.Tensor) -> tf.Tensor:
        """Puts the terms of one task at their place among those of all: [T] with zeros."""
        names = list(self.parts)
        counts = [len(part.terms) for part in self.parts.values()]
        place = names.index(name)
        return tf.pad(terms, [[sum(counts[:place]), sum(counts[place + 1 :])]])

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What the batch's task keeps of each example."""
        name = task_of(batch)
        return self.parts[name].predict(model.parts[name], batch)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """`average`, and the metrics and loss of every task behind its name."""
        own = {name: (*part.metric_names, "loss") for name, part in self.parts.items()}
        return (AVERAGE, *(f"{name}/{metric}" for name, names in own.items() for metric in names))

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """The metrics of every task, their average, and the weighted sum of the losses.

        Raises:
            ValueError: the examples of a task have no labels.
        """
        assert isinstance(examples, SeveralExamples)
        measured: dict[str, float] = {}
        firsts, loss = [], 0.0
        for name, part in self.parts.items():
            own_outputs = under(name, outputs)
            if "loss" not in own_outputs:
                raise ValueError(
                    f"the examples of the task {name!r} have no labels to measure against; "
                    "scripts/predict.py labels them. scripts/evaluate.py --task=NAME measures one "
                    "task alone."
                )
            with naming(name):
                own = part.metrics(own_outputs, examples.parts[name])
            measured |= {f"{name}/{metric}": value for metric, value in own.items()}
            scale = 100.0 if part.run.task.name in HUNDREDTHS else 1.0
            firsts.append(own[part.metric_names[0]] / scale)
            loss += self.run.tasks[name].loss_weight * own["loss"]
        return {AVERAGE: sum(firsts) / len(firsts)} | measured | {"loss": loss}


Value = TypeVar("Value")


def under(name: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """What is named NAME/KEY, by KEY."""
    start = f"{name}/"
    return {
        key.removeprefix(start): value for key, value in values.items() if key.startswith(start)
    }


def reads_pooler(part: Part) -> bool:
    """Whether the head of a task reads `pooled`: a checkpoint without a pooler will do for it."""
    return "bert/pooler" in part.fresh_weights


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Says in errors which of the tasks they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"task {name!r} (its settings are config.tasks.{name}.*): {error}"
        ) from None


def check_settings(run: RunConfig, config: BertConfig) -> None:
    """Raises ValueError for settings that cannot work, before any data are read."""
    check_sampling(run)
    for name, part in run.tasks.items():
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ValueError(
                f"{name!r} in config.tasks cannot name a task: take letters, digits and _, a "
                f"letter first, and none of {', '.join(RESERVED)}."
            )
        if name.endswith("_ids") and name.removesuffix("_ids") in run.tasks:
            raise ValueError(
                f"config.tasks: {name!r} is the name of a signature of the task "
                f"{name.removesuffix('_ids')!r}; choose another name."
            )
        if part.task.name not in PARTS:
            raise ValueError(
                f"config.tasks.{name}.task.name={part.task.name!r} cannot be learnt with others; "
                f"choose one of {', '.join(PARTS)}."
            )
        if part.task.feature_layers:
            raise ValueError(
                f"config.tasks.{name}.task.feature_layers={part.task.feature_layers} reads an "
                "encoder that does not learn, and this one does; leave it at 0."
            )
        if not 0 <= part.layer <= config.num_hidden_layers:
            raise ValueError(
                f"config.tasks.{name}.layer={part.layer} must be from 1 to "
                f"{config.num_hidden_layers}, the layers of this encoder, or 0 for the top one."
            )
        if not (part.loss_weight > 0.0 and math.isfinite(part.loss_weight)):
            raise ValueError(
                f"config.tasks.{name}.loss_weight={part.loss_weight} must be above 0; leave the "
                "task out if it is not to be learnt."
            )
