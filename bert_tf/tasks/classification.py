"""Classification and regression of one or two segments (paper, section 4.1).

Legend: B batch, S sequence, C classes (or 1 for regression), E examples.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf import metrics as metric_functions
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches, glue, text
from bert_tf.data.labels import Labels
from bert_tf.encoder import BertEncoder
from bert_tf.heads import ClassificationHead
from bert_tf.layout import Layout, PaddedLayout
from bert_tf.tokenization import Tokenizer

METRICS = {
    "class": ("accuracy",),
    "multilabel": ("micro_f1", "macro_f1", "subset_accuracy"),
    "regression": ("pearson", "spearman"),
}


class Classifier(keras.layers.Layer):
    """Encoder, dropout, linear map of the pooled vector."""

    def __init__(
        self,
        config: BertConfig,
        num_outputs: int,
        dropout: float,
        layout: type[Layout] = PaddedLayout,
        recompute: bool = False,
    ) -> None:
        super().__init__(name="bert_classifier")
        self.encoder = BertEncoder(config, layout, recompute)
        self.head = ClassificationHead(num_outputs, config, dropout)

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


@dataclasses.dataclass(frozen=True)
class ClassificationTask:
    """Everything that training, evaluation, prediction and export need to know of the task."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer
    labels: Labels

    # Heads that a pre-trained checkpoint does not bring: they start from fresh weights.
    fresh_weights = ("output_weights", "output_bias", "bert/pooler")

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
        return Classifier(
            self.config,
            self.labels.num_outputs,
            self.run.task.dropout,
            layout,
            self.run.model.recompute,
        )

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

    def losses(
        self, model: Classifier, batch: Mapping[str, tf.Tensor], seed: tf.Tensor
    ) -> tf.Tensor:
        """Loss of each example, float32 [B]; `seed` int32 [2] drives dropout."""
        logits = model(batch, training=True, seed=seed)  # [B, C]
        return self.example_losses(logits, batch["label"])

    def example_losses(self, logits: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        """Cross-entropy, summed binary cross-entropy, or squared error: [B, C] to [B]."""
        if self.labels.kind == "regression":
            return tf.square(logits[:, 0] - label)
        if self.labels.kind == "multilabel":
            each = tf.nn.sigmoid_cross_entropy_with_logits(label, logits)  # [B, C]
            return tf.reduce_mean(each, axis=-1)
        return kernels.softmax_cross_entropy(logits, label)

    def predict(self, model: Classifier, batch: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
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
        self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Metrics over all examples: outputs of `predict`, concatenated, and targets [E, ...]."""
        return metric_functions.compute(
            self.metric_names, targets["label"], self.decisions(outputs["probabilities"])
        )

    def decisions(self, probabilities: np.ndarray) -> np.ndarray:
        """Class numbers [E], 0/1 for each label [E, C], or scores [E]."""
        if self.labels.kind == "regression":
            return probabilities[:, 0]
        if self.labels.kind == "multilabel":
            return (probabilities > 0.5).astype(np.int32)
        return probabilities.argmax(axis=-1).astype(np.int32)

    def write_predictions(
        self, folder: str, texts: text.TextExamples, outputs: Mapping[str, np.ndarray]
    ) -> list[str]:
        """Writes `predictions.jsonl`, and for GLUE its submission file; returns the paths."""
        tf.io.gfile.makedirs(folder)
        names = self.labels.names or ("score",)
        answers = self.answers(outputs["probabilities"])
        path = os.path.join(folder, "predictions.jsonl")
        with tf.io.gfile.GFile(path + ".tmp", "w") as file:
            for answer, row in zip(answers, outputs["probabilities"], strict=True):
                probabilities = {
                    name: round(float(value), 6) for name, value in zip(names, row, strict=True)
                }
                line = {"label": answer, "probabilities": probabilities}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        tf.io.gfile.rename(path + ".tmp", path, overwrite=True)
        if not self.run.task.glue:
            return [path]
        submission = os.path.join(folder, glue.GLUE[self.run.task.glue].submissions["test"])
        glue.write_submission(submission, texts.ids, answers)
        return [path, submission]

    def answers(self, probabilities: np.ndarray) -> Sequence[str | float | list[str]]:
        """Label names, lists of label names (multi-label), or scores: one for each example."""
        decisions = self.decisions(probabilities)
        if self.labels.kind == "regression":
            return [float(score) for score in decisions]
        if self.labels.kind == "multilabel":
            return [[self.labels.names[c] for c in np.flatnonzero(row)] for row in decisions]
        return [self.labels.names[c] for c in decisions]


def read_split(run: RunConfig, split: str) -> text.TextExamples:
    """Reads `train`, `dev` or `test` (labels may be absent from `test`) as the recipe says."""
    data = run.data
    if run.task.glue:
        return glue.read_split(glue.GLUE[run.task.glue], data.data_dir, split)
    source = getattr(data, split)
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
    length = run.data.max_seq_length
    if length > config.max_position_embeddings:
        raise ValueError(
            f"config.data.max_seq_length={length} exceeds the position table of the model "
            f"(max_position_embeddings={config.max_position_embeddings}); lower it, or use a model "
            "with a longer table."
        )
    if length < 3 + bool(run.data.text_b):
        raise ValueError(
            f"config.data.max_seq_length={length} leaves no room for text beside [CLS] and [SEP]; "
            "128 is usual."
        )
