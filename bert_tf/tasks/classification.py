"""Classification and regression of one or two segments (paper, section 4.1).

Legend: B batch, S sequence, C classes (or 1 for regression), E examples.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging

from bert_tf import kernels
from bert_tf import metrics as metric_functions
from bert_tf.config import BertConfig, RunConfig, read_json, write_json
from bert_tf.data import batches, glue, text
from bert_tf.data.text import LIST_MARK, TextExamples, did_you_mean, shorten
from bert_tf.encoder import BertEncoder, OutputLayer
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks.contract import Features
from bert_tf.tokenization import Tokenizer

METRICS = {
    "class": ("accuracy",),
    "multilabel": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman"),
}


# ------------------------------------------------------------------------------------- the model


class ClassificationHead(keras.layers.Layer):
    """Dropout and a linear map of the pooled vector (original release, run_classifier.py)."""

    def __init__(
        self, num_outputs: int, config: BertConfig, dropout: float, prefix: str = ""
    ) -> None:
        super().__init__(name="classifier")
        self.rate = dropout
        self.output_layer = OutputLayer(num_outputs, config, prefix)

    def call(self, pooled: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """Pooled [B, H] to logits float32 [B, C]; `seed` int32 [2] turns dropout on."""
        return self.output_layer(kernels.dropout(pooled, self.rate, seed))


class Classifier(keras.layers.Layer):
    """Encoder, dropout, linear map of the pooled vector."""

    def __init__(
        self, encoder: BertEncoder, num_outputs: int, dropout: float, prefix: str = ""
    ) -> None:
        super().__init__(name="bert_classifier")
        self.encoder = encoder
        self.head = ClassificationHead(num_outputs, encoder.config, dropout, prefix)

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, S] to logits float32 [B, C]."""
        encoder_seed, head_seed = (None, None)
        if training and seed is not None:
            encoder_seed, head_seed = tf.unstack(tf.random.split(seed, num=2))
        output = self.encoder(
            features["token_ids"],
            features["segment_ids"],
            features["mask"],
            training=training and seed is not None,
            seed=encoder_seed,
            cls_only=True,
        )
        return self.head(output.pooled, head_seed)


# ------------------------------------------------------------------------------------- the labels

KINDS = ("class", "multilabel", "regression")
LARGEST_SCORE = float(np.finfo(np.float32).max)
SHOWN_LABELS = 20  # named in a message


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a model's outputs stand for; C labels."""

    kind: str  # "class" (exactly one), "multilabel" (any number of them) or "regression" (a score)
    names: tuple[str, ...] = ()  # by output number; empty for regression
    separator: str = ","  # between the labels of one example (multilabel)

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown kind and for names that do not fit it."""
        if self.kind not in KINDS:
            raise ValueError(f"config.task.kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Labels must differ: {shown(self.names)}.")
        if (self.kind == "regression") == bool(self.names):
            raise ValueError(f"Labels of kind {self.kind!r} cannot be named {list(self.names)}.")
        if self.kind == "multilabel" and not self.separator:
            raise ValueError("config.data.label_separator is empty; multi-label text needs one.")

    @classmethod
    def infer(cls, kind: str, examples: TextExamples, separator: str = ",") -> Labels:
        """Takes the labels of the training examples, in sorted order (numbers by value).

        Raises:
            ValueError: no labels, a missing one, a single class, or scores that are not numbers.
        """
        if kind == "regression":
            labels = cls(kind, (), separator)
            labels.encode(examples)
            return labels
        names = {name for parts in parse(kind, examples, separator) for name in parts}
        if kind == "class" and len(names) < 2:
            raise ValueError(
                f"{examples.source}: all {len(examples)} examples have the label {shown(names)}, "
                "and a classifier needs at least 2; is config.data.label the right column?"
            )
        if not names:
            raise ValueError(f"{examples.source} has no label on any of {len(examples)} examples.")
        if len(names) > max(SHOWN_LABELS, len(examples) // 2):
            logging.warning(
                "%s: %d different labels in %d examples; is config.data.label the right column?",
                examples.source,
                len(names),
                len(examples),
            )
        return cls(kind, sorted_names(names), separator)

    @property
    def num_outputs(self) -> int:
        """Outputs of the model: C, or 1 for regression."""
        return len(self.names) or 1

    def encode(self, examples: TextExamples) -> np.ndarray:
        """Numbers for the labels of all examples.

        Returns:
            class: int32 [E]; multilabel: float32 [E, C] of 0 and 1; regression: float32 [E].

        Raises:
            ValueError: a label is missing, unknown, or no finite number (regression).
        """
        if self.kind == "regression":
            labels = given_labels(examples)
            return np.array(
                [score(examples, e, label) for e, label in enumerate(labels)], np.float32
            )
        numbers = {name: number for number, name in enumerate(self.names)}
        parsed = parse(self.kind, examples, self.separator)
        for example, parts in enumerate(parsed):
            for name in parts:
                if name not in numbers:
                    raise ValueError(self.unknown(examples.where(example), name))
        if self.kind == "class":
            return np.array([numbers[name] for (name,) in parsed], np.int32)
        encoded = np.zeros([len(examples), len(self.names)], np.float32)
        for example, parts in enumerate(parsed):
            encoded[example, [numbers[name] for name in parts]] = 1.0
        return encoded

    def unknown(self, where: str, name: str) -> str:
        """The message for a label that training has not seen."""
        return (
            f"{where}: label {shorten(name)} is unknown.{did_you_mean(name, self.names)} The model "
            f"was trained with {shown(self.names)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Labels:
        """The inverse of `to_dict`; raises ValueError where it is none."""
        try:
            return cls(values["kind"], tuple(values["names"]), values["separator"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"kind, names and separator are needed: {error!r}.") from None

    def save(self, path: str) -> None:
        """Writes `labels.json`."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str) -> Labels:
        """Reads `labels.json`; raises ValueError naming the file."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path} does not describe labels: {error}") from None


def given_labels(examples: TextExamples) -> list[str]:
    """The labels, or ValueError where the file has none."""
    if examples.labels is None:
        raise ValueError(
            f"{examples.source} has no labels; name their column in config.data.label."
        )
    return examples.labels


def parse(kind: str, examples: TextExamples, separator: str) -> list[list[str]]:
    """The labels of each example: exactly one for "class", any number for "multilabel".

    Raises:
        ValueError: an example of kind "class" has none, or a JSON list of them.
    """
    labels = given_labels(examples)
    if kind == "multilabel":
        return [split_labels(label, separator) for label in labels]
    for example, label in enumerate(labels):
        if not label:
            raise ValueError(f"{examples.where(example)}: the label is missing; add it.")
        if label.startswith(LIST_MARK):
            raise ValueError(
                f"{examples.where(example)}: the label is the list {split_labels(label, '')}; set "
                "config.task.kind=multilabel, or give each example a single label."
            )
    return [[label] for label in labels]


def split_labels(label: str, separator: str) -> list[str]:
    """The labels of a JSON list, or of text with separators; without empty and repeated ones."""
    parts = label[1:].split(LIST_MARK) if label.startswith(LIST_MARK) else label.split(separator)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def score(examples: TextExamples, example: int, label: str) -> float:
    """A finite number, or ValueError naming the line."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_SCORE:  # true for nan, too
        raise ValueError(
            f"{examples.where(example)}: {shorten(label)} is not a finite number, which a score "
            "(config.task.kind=regression) must be."
        )
    return value


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """By value where all are numbers ("2" before "10"), else by code points."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def shown(names: tuple[str, ...] | set[str]) -> str:
    """The first names, for a message."""
    listed = sorted_names(set(names))
    more = f" and {len(listed) - SHOWN_LABELS} more" if len(listed) > SHOWN_LABELS else ""
    return ", ".join(shorten(name) for name in listed[:SHOWN_LABELS]) + more


# -------------------------------------------------------------------------------------- the task


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Everything that training, evaluation, prediction and export need to know of the task."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer
    labels: Labels

    # Heads that a pre-trained checkpoint does not bring: they start from fresh weights.
    fresh_weights = ("output_weights", "output_bias", "bert/pooler")
    terms: ClassVar[tuple[str, ...]] = ("loss",)

    @classmethod
    def from_data(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer
    ) -> ClassificationTask:
        """The task as its training data define it: labels are inferred from there.

        Raises:
            ValueError: the data cannot be read, or a setting does not fit.
        """
        check_settings(run, config)
        if run.task.glue:
            table = glue.GLUE[run.task.glue]
            return cls(run, config, tokenizer, Labels(table.kind, table.labels))
        examples = read_split(run, "train")
        labels = Labels.infer(run.task.kind, examples, run.data.label_separator)
        return cls(run, config, tokenizer, labels)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> ClassificationTask:
        """The task as an earlier run saved it."""
        return cls(run, config, tokenizer, Labels.load(os.path.join(folder, "labels.json")))

    def save(self, folder: str) -> None:
        """Writes what `from_folder` reads."""
        self.labels.save(os.path.join(folder, "labels.json"))

    def build_model(self, layout: type[Layout] = PaddedLayout) -> Classifier:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        return self.attach(BertEncoder(self.config, layout, self.run.model.recompute))

    def attach(self, encoder: BertEncoder, prefix: str = "") -> Classifier:
        """The model on a given encoder; `prefix` begins the names of the head's weights."""
        return Classifier(encoder, self.labels.num_outputs, self.run.task.dropout, prefix)

    def texts(self, split: str) -> text.TextExamples:
        """The text of `train`, `dev` or `test`."""
        return read_split(self.run, split)

    def examples(self, split: str) -> batches.Examples:
        """The tokenized examples of a split; labels are checked against the training labels."""
        return self.tokenize(self.texts(split))

    def tokenize(self, texts: text.TextExamples) -> batches.Examples:
        """Token ids, and labels where there are some."""
        targets = {} if texts.labels is None else {"label": self.labels.encode(texts)}
        return batches.tokenize(self.tokenizer, texts, self.run.data.max_seq_length, targets)

    def training_data(self) -> batches.Examples:
        """The training examples, in memory."""
        return self.examples("train")

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Examples of the batch, float32 [1]: the loss is their mean."""
        return tf.reduce_sum(batch["weight"], keepdims=True)

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Loss summed over the examples, float32 [1]; `seed` int32 [2] drives dropout."""
        logits = model(batch, training=True, seed=seed)  # [B, C]
        losses = self.example_losses(logits, batch["label"])  # [B]
        return tf.reduce_sum(losses * batch["weight"], keepdims=True)

    def example_losses(self, logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Cross-entropy, the mean of binary cross-entropies, or squared error: [B, C] to [B]."""
        if self.labels.kind == "regression":
            return tf.square(logits[:, 0] - label)
        if self.labels.kind == "multilabel":
            each = tf.nn.sigmoid_cross_entropy_with_logits(label, logits)  # [B, C]
            return tf.reduce_mean(each, axis=-1)
        return kernels.softmax_cross_entropy(logits, label)

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What evaluation and prediction keep of each example.

        Returns:
            `logits` and `probabilities`, float32 [B, C] (probabilities of a regression are its
            scores), and `loss` float32 [B] where the batch has labels.
        """
        logits = model(batch)  # [B, C]
        outputs = {"logits": logits, "probabilities": self.probabilities(logits)}
        if "label" in batch:
            outputs["loss"] = self.example_losses(logits, batch["label"])
        return outputs

    def probabilities(self, logits: tf.Tensor) -> tf.Tensor:
        """[B, C] to [B, C]."""
        if self.labels.kind == "regression":
            return logits
        return tf.sigmoid(logits) if self.labels.kind == "multilabel" else tf.nn.softmax(logits)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task; the first one chooses the best checkpoint."""
        if self.run.task.glue:
            return glue.GLUE[self.run.task.glue].metrics
        return METRICS[self.labels.kind]

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """Metrics and mean loss of all examples: outputs of `predict`, and their labels."""
        labels, decisions = examples.targets["label"], self.decisions(outputs["probabilities"])
        measured = metric_functions.compute(self.metric_names, labels, decisions)
        return measured | {"loss": float(outputs["loss"].mean())}

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """Class numbers [E], 0/1 for each label [E, C], or scores [E]."""
        if self.labels.kind == "regression":
            return probabilities[:, 0]
        if self.labels.kind == "multilabel":
            return (probabilities > 0.5).astype(np.int32)
        return probabilities.argmax(axis=-1).astype(np.int32)


def read_split(run: RunConfig, split: str) -> text.TextExamples:
    """Reads `train`, `dev` or `test` (labels may be absent from `test`) as the recipe says."""
    data = run.data
    if run.task.glue:
        return glue.read_split(glue.GLUE[run.task.glue], data.data_dir, split)
    source = getattr(data, split, "")
    if not source:
        raise ValueError(f"config.data.{split} is empty: name a file or `tfds:NAME/SPLIT`.")
    columns = text.columns_of(data)
    return text.read_examples(source, columns, data.data_dir, require_labels=split != "test")


def check_settings(run: RunConfig, config: BertConfig) -> None:
    """Raises ValueError for settings of the task that cannot work, before any data is read."""
    if run.task.glue and run.task.glue not in glue.GLUE:
        raise ValueError(
            f"config.task.glue={run.task.glue!r} is no GLUE task; choose {', '.join(glue.GLUE)}."
        )
    if run.task.kind not in METRICS:
        raise ValueError(f"config.task.kind={run.task.kind!r} must be one of {', '.join(METRICS)}.")
    run.data.check_length(config)
    if run.data.max_seq_length < 3 + bool(run.data.text_b):
        raise ValueError(
            f"config.data.max_seq_length={run.data.max_seq_length} leaves no room for text beside "
            "[CLS] and [SEP]; 128 is usual."
        )
