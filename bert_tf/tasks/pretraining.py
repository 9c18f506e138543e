"""Pre-training: masked language model and next sentence (paper, section 3.1).

Legend: B batch, S sequence, P masked positions, H hidden, V vocabulary, E examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches
from bert_tf.data.pretraining import Records, find_files, read_examples, read_shape
from bert_tf.encoder import BertEncoder, Layout, PaddedLayout
from bert_tf.heads import MaskedLMHead, NextSentenceHead
from bert_tf.tasks.contract import Features
from bert_tf.tokenization import Tokenizer


class PretrainingModel(keras.layers.Layer):
    """Encoder with the heads of pre-training; every weight has the original release's name.

    Without the next-sentence head nothing reads the pooler: it is then no weight of the model, or
    weight decay would shrink it.
    """

    def __init__(
        self,
        config: BertConfig,
        next_sentence: bool = True,
        layout: type[Layout] = PaddedLayout,
        recompute: bool = False,
    ) -> None:
        super().__init__(name="bert_pretraining")
        self.encoder = BertEncoder(config, layout, recompute)
        self.masked_lm = MaskedLMHead(config)
        self.next_sentence = NextSentenceHead(config) if next_sentence else None
        self.encoder.pooler.trainable = next_sentence

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Logits of both heads.

        Args:
            features: `token_ids`, `segment_ids`, `mask` int [B, S], `masked_positions` int [B, P].
            training: whether dropout is applied, where there is a seed.
            seed: int32 [2].

        Returns:
            `masked_lm` float32 [B, P, V] and, where the model has that head, `next_sentence`
            float32 [B, 2].
        """
        output = self.encoder(
            features["token_ids"],
            features["segment_ids"],
            features["mask"],
            training=training and seed is not None,
            seed=seed,
        )
        table = self.encoder.embeddings.word_embeddings
        logits = {"masked_lm": self.masked_lm(output.sequence, features["masked_positions"], table)}
        if self.next_sentence is not None:
            logits["next_sentence"] = self.next_sentence(output.pooled)
        return logits


@dataclasses.dataclass(frozen=True)
class PretrainingTask:
    """Masked words, and whether the second segment follows the first, from TFRecord files."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer

    # Published encoders often come without these heads: they start from fresh weights.
    fresh_weights = ("cls/", "bert/pooler")

    @classmethod
    def from_data(cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer) -> PretrainingTask:
        """The task of a new run.

        Raises:
            ValueError: a setting does not fit, or no files are named.
        """
        run.data.check_length(config)
        if run.task.glue:
            raise ValueError(
                f"config.task.glue={run.task.glue!r} is for config.task.name=classification."
            )
        return cls(run, config, tokenizer)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> PretrainingTask:
        """The task as an earlier run saved it: its `run.json` says everything."""
        return cls(run, config, tokenizer)

    def save(self, folder: str) -> None:
        """There is nothing to save beside what every run saves."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> PretrainingModel:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        recompute = self.run.model.recompute
        return PretrainingModel(self.config, self.run.task.next_sentence, layout, recompute)

    def files(self, split: str) -> tuple[str, ...]:
        """The files of a split; raises ValueError where there are none."""
        return find_files(getattr(self.run.data, split, ""), f"config.data.{split}")

    def training_data(self) -> Records:
        """The training files, to be streamed."""
        files = self.files("train")
        return Records.index(files, read_shape(files, self.run, self.config))

    def examples(self, split: str) -> batches.Examples:
        """All records of a split in memory, to be measured."""
        files = self.files(split)
        return read_examples(files, read_shape(files, self.run, self.config), self.config)

    def loss_weights(self, batch: Features) -> tf.Tensor:
        """Masked positions and, where next sentences are learnt, examples: float32 [1 or 2]."""
        weights = [tf.reduce_sum(masked_weights(batch))]
        if self.run.task.next_sentence:
            weights.append(tf.reduce_sum(batch["weight"]))
        return tf.stack(weights)

    def loss_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Cross-entropy summed over masked positions, and over examples: float32 [1 or 2].

        Divided by `loss_weights` of the global batch and added up, it is the original release's
        loss (which adds 1e-5 to the number of masked positions).
        """
        losses = example_losses(model(batch, training=True, seed=seed), batch)
        sums = [tf.reduce_sum(losses["masked_lm_loss"] * batch["weight"])]
        if self.run.task.next_sentence:
            sums.append(tf.reduce_sum(losses["next_sentence_loss"] * batch["weight"]))
        return tf.stack(sums)

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """Sums of each example, float32 [B].

        `masked_lm_loss` and `masked_lm_correct` over its masked positions, `masked_lm_weight` their
        number; `next_sentence_loss` and `next_sentence_correct`.
        """
        logits = model(batch)
        hits = is_best(logits["masked_lm"], batch["masked_ids"])  # [B, P]
        weights = masked_weights(batch)  # [B, P]
        outputs = example_losses(logits, batch) | {
            "masked_lm_correct": tf.reduce_sum(hits * weights, axis=1),
            "masked_lm_weight": tf.reduce_sum(weights, axis=1),
        }
        if "next_sentence" in logits:
            label = batch["next_sentence_label"]
            outputs["next_sentence_correct"] = is_best(logits["next_sentence"], label)
        return outputs

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task; the first one chooses the best weights."""
        masked = ("masked_lm_loss", "masked_lm_accuracy")
        following = ("next_sentence_loss", "next_sentence_accuracy")
        return masked + (following if self.run.task.next_sentence else ())

    def metrics(
        self, outputs: Mapping[str, np.ndarray], targets: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """Means over all masked positions and all examples, and `loss`, the sum of both losses."""
        # Summed in float64: a million examples in float32 would lose the fourth digit.
        sums = {name: float(values.sum(dtype=np.float64)) for name, values in outputs.items()}
        positions = max(sums["masked_lm_weight"], 1.0)
        examples = len(outputs["masked_lm_weight"])
        values = {
            "masked_lm_loss": sums["masked_lm_loss"] / positions,
            "masked_lm_accuracy": sums["masked_lm_correct"] / positions,
            "loss": sums["masked_lm_loss"] / positions,
        }
        if self.run.task.next_sentence:
            values["next_sentence_loss"] = sums["next_sentence_loss"] / examples
            values["next_sentence_accuracy"] = sums["next_sentence_correct"] / examples
            values["loss"] += values["next_sentence_loss"]
        return values


def masked_weights(batch: Features) -> tf.Tensor:
    """1 at masked positions, 0 where a row has fewer or is no example: float32 [B, P]."""
    return batch["masked_weights"] * batch["weight"][:, tf.newaxis]


def example_losses(logits: Mapping[str, tf.Tensor], batch: Features) -> dict[str, tf.Tensor]:
    """`masked_lm_loss`, summed over the masked positions, and `next_sentence_loss`: [B] each."""
    each = kernels.softmax_cross_entropy(logits["masked_lm"], batch["masked_ids"])  # [B, P]
    losses = {"masked_lm_loss": tf.reduce_sum(each * batch["masked_weights"], axis=1)}
    if "next_sentence" in logits:
        losses["next_sentence_loss"] = kernels.softmax_cross_entropy(
            logits["next_sentence"], batch["next_sentence_label"]
        )
    return losses


def is_best(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """1 where the label has the highest logit: [..., C] and [...] to float32 [...]."""
    return tf.cast(tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels, tf.float32)
