"""Multiple choice: which of several continuations or answers is right (paper, section 4.4, SWAG).

"The only task-specific parameters introduced is a vector whose dot product with the [CLS] token
representation C denotes a score for each choice which is normalized with a softmax layer."

Legend: B batch, C choices of an example, S sequence, H hidden, E examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf import metrics as metric_functions
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches
from bert_tf.data.multiple_choice import (
    ChoiceExamples,
    ChoiceTexts,
    read_choices,
    tokenize_choices,
)
from bert_tf.encoder import BertEncoder
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks.classification import Classifier
from bert_tf.tasks.contract import Features
from bert_tf.tokenization import Tokenizer

SHORTEST = 5  # [CLS] context [SEP] choice [SEP], with a piece of each
INPUTS = ("token_ids", "segment_ids", "mask")


class ChoiceModel(keras.layers.Layer):
    """A classifier with one output, which reads every choice as a row of its own.

    Its bias is the same for all choices, so that softmax does not see it; it is there because
    Hugging Face's BertForMultipleChoice has it.
    """

    def __init__(self, encoder: BertEncoder, dropout: float) -> None:
        super().__init__(name="bert_multiple_choice")
        self.classifier = Classifier(encoder, 1, dropout)

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, C, S] to logits float32 [B, C]."""
        shape = tf.shape(features["token_ids"])
        rows = {name: tf.reshape(features[name], [-1, shape[2]]) for name in INPUTS}  # [B * C, S]
        return tf.reshape(self.scores(rows, training, seed), shape[:2])

    def scores(
        self,
        rows: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """A score for each row: int [R, S] each to float32 [R, 1]."""
        return self.classifier(rows, training=training, seed=seed)


@dataclasses.dataclass(frozen=True)
class MultipleChoiceTask:
    """The right one of C choices; C follows from each file, and is no part of the model."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer

    fresh_weights = ("output_weights", "output_bias", "bert/pooler")
    terms = ("loss",)
    metric_names = ("accuracy",)

    @classmethod
    def from_data(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer
    ) -> MultipleChoiceTask:
        """The task of a new run; raises ValueError where a setting does not fit."""
        run.data.check_length(config)
        if run.data.max_seq_length < SHORTEST:
            raise ValueError(
                f"config.data.max_seq_length={run.data.max_seq_length} leaves no room for a "
                f"context and a choice beside [CLS] and two [SEP] (at least {SHORTEST}); 128 is "
                "usual."
            )
        if run.task.glue:
            raise ValueError(
                f"config.task.glue={run.task.glue!r} is for config.task.name=classification; "
                "multiple choice reads files with columns of choices."
            )
        return cls(run, config, tokenizer)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> MultipleChoiceTask:
        """The task as an earlier run saved it: its `run.json` says everything."""
        return cls(run, config, tokenizer)

    def save(self, folder: str) -> None:
        """There is nothing to save beside what every run saves."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> ChoiceModel:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        encoder = BertEncoder(self.config, layout, self.run.model.recompute)
        return ChoiceModel(encoder, self.run.task.dropout)

    def texts(self, split: str) -> ChoiceTexts:
        """The text of `train`, `dev` or `test` (labels may be absent from `test`)."""
        source = getattr(self.run.data, split, "")
        if not source:
            raise ValueError(f"config.data.{split} is empty: name a file or `tfds:NAME/SPLIT`.")
        return read_choices(source, self.run.data, require_labels=split != "test")

    def examples(self, split: str) -> ChoiceExamples:
        """The tokenized examples of a split."""
        return self.tokenize(self.texts(split))

    def tokenize(self, texts: ChoiceTexts) -> ChoiceExamples:
        """Token ids of every choice, and labels where there are some."""
        return tokenize_choices(self.tokenizer, texts, self.run.data.max_seq_length)

    def training_data(self) -> ChoiceExamples:
        """The training examples, in memory."""
        return self.examples("train")

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Examples of the batch, float32 [1]: the loss is their mean."""
        return tf.reduce_sum(batch["weight"], keepdims=True)

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Loss summed over the examples, float32 [1]; `seed` int32 [2] drives dropout."""
        logits = model(batch, training=True, seed=seed)  # [B, C]
        losses = kernels.softmax_cross_entropy(logits, batch["label"])  # [B]
        return tf.reduce_sum(losses * batch["weight"], keepdims=True)

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What evaluation and prediction keep of each example.

        Returns:
            `logits` and `probabilities`, float32 [B, C], and `loss` float32 [B] where the batch
            has labels.
        """
        logits = model(batch)  # [B, C]
        outputs = {"logits": logits, "probabilities": tf.nn.softmax(logits)}
        if "label" in batch:
            outputs["loss"] = kernels.softmax_cross_entropy(logits, batch["label"])
        return outputs

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """Accuracy and mean loss of all examples."""
        chosen = outputs["logits"].argmax(axis=-1)
        measured = metric_functions.compute(self.metric_names, examples.targets["label"], chosen)
        return measured | {"loss": float(outputs["loss"].mean())}
