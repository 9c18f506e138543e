"""Pre-training: masked language model and next sentence (paper, section 3.1).

Legend: B batch, S sequence, P masked positions and G sequences of a row, H hidden, V vocabulary,
E examples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import batches, token_shards
from bert_tf.data.files import find_files
from bert_tf.data.instances import InstanceConfig, piece_table
from bert_tf.data.pretraining import Records, read_examples, read_shape
from bert_tf.data.token_shards import Recipe, TokenShards
from bert_tf.encoder import BertEncoder
from bert_tf.heads import MaskedLMHead, NextSentenceHead
from bert_tf.layouts import Layout, PackedLayout, PaddedLayout
from bert_tf.tasks.contract import Features, TrainingData
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
            features: `token_ids`, `segment_ids`, `mask` int [B, S], `masked_positions` int [B, P],
                `cls_positions` int [B, G].
            training: whether dropout is applied, where there is a seed.
            seed: int32 [2].

        Returns:
            `masked_lm` float32 [B, P, V] and, where the model has that head, `next_sentence`
            float32 [B, G, 2].
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
            cls = tf.gather(output.sequence, features["cls_positions"], batch_dims=1)  # [B, G, H]
            pooled = self.encoder.pool(tf.reshape(cls, [-1, cls.shape[-1]]))  # [B * G, H]
            shape = tf.concat([tf.shape(features["cls_positions"]), [2]], axis=0)
            logits["next_sentence"] = tf.reshape(self.next_sentence(pooled), shape)
        return logits


@dataclasses.dataclass(frozen=True)
class PretrainingTask:
    """Masked words, and whether the second segment follows the first.

    It trains on TFRecord files or on token shards, and is measured on TFRecord files.
    """

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
        if self.run.task.packed_sequences > 1:
            layout = PackedLayout
        recompute = self.run.model.recompute
        return PretrainingModel(self.config, self.run.task.next_sentence, layout, recompute)

    def files(self, split: str) -> tuple[str, ...]:
        """The files of a split; raises ValueError where there are none."""
        return find_files(getattr(self.run.data, split, ""), f"config.data.{split}")

    def training_data(self) -> TrainingData:
        """The training files, to be streamed."""
        files, task = self.files("train"), self.run.task
        if files[0].endswith(token_shards.ENDING):
            shards = TokenShards.index(files, self.recipe(), self.config)
            shards.log_share(self.run.train.seed)
            return shards
        if task.packed_sequences > 1:
            raise ValueError(
                f"config.task.packed_sequences={task.packed_sequences} is for token shards, and "
                f"{files[0]} is none; scripts/create_pretraining_data.py --form=tokens makes them."
            )
        return Records.index(files, read_shape(files, self.run, self.config), self.config)

    def recipe(self) -> Recipe:
        """How rows are made of token shards."""
        task = self.run.task
        instances = InstanceConfig(
            max_seq_length=self.run.data.max_seq_length,
            max_predictions_per_seq=task.max_predictions_per_seq,
            masked_lm_prob=task.masked_lm_prob,
            short_seq_prob=task.short_seq_prob,
            dupe_factor=1,
            whole_words=task.whole_words,
            next_sentence=task.next_sentence,
        )
        return Recipe(instances, task.packed_sequences, piece_table(self.tokenizer))

    def examples(self, split: str) -> batches.Examples:
        """All records of a split in memory, to be measured."""
        files = self.files(split)
        return read_examples(files, read_shape(files, self.run, self.config), self.config)

    @property
    def terms(self) -> tuple[str, ...]:
        """Loss and accuracy of masked words and, where they are learnt, of next sentences."""
        return self.metric_names

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Masked positions, for loss and accuracy, and pairs of segments: float32 [2 or 4]."""
        weights = label_weights(batch)
        names = ("masked_lm", "next_sentence") if self.run.task.next_sentence else ("masked_lm",)
        return tf.repeat(tf.stack([tf.reduce_sum(weights[name]) for name in names]), 2)

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Cross-entropy and right answers, over masked positions and pairs: float32 [2 or 4].

        The losses, divided by `term_weights` of the global batch and added up, are the original
        release's loss (which adds 1e-5 to the number of masked positions).
        """
        measured = measure(model(batch, training=True, seed=seed), batch)  # [B] each
        return tf.stack([tf.reduce_sum(measured[name]) for name in self.terms])

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """Sums over each row, float32 [B]: those of `measure`."""
        return measure(model(batch), batch)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task; the first one chooses the best weights."""
        masked = ("masked_lm_loss", "masked_lm_accuracy")
        following = ("next_sentence_loss", "next_sentence_accuracy")
        return masked + (following if self.run.task.next_sentence else ())

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """Means over all masked positions and all pairs, and `loss`, the sum of both losses."""
        # Summed in float64: a million examples in float32 would lose the fourth digit.
        sums = {name: float(values.sum(dtype=np.float64)) for name, values in outputs.items()}
        values = {
            name: sums[name] / max(sums[name.rsplit("_", 1)[0] + "_weight"], 1.0)
            for name in self.metric_names
        }
        values["loss"] = sum(values[name] for name in self.metric_names if name.endswith("loss"))
        return values


def label_weights(batch: Features) -> dict[str, tf.Tensor]:
    """1 where there is something to predict, else 0: `masked_lm` and `next_sentence`, float32.

    The first is [B, P], the second [B, G].
    """
    rows = batch["weight"][:, tf.newaxis]  # [B, 1]; 0 on rows that are no example
    return {
        "masked_lm": batch["masked_weights"] * rows,
        "next_sentence": batch["next_sentence_weights"] * rows,
    }


def measure(logits: Mapping[str, tf.Tensor], batch: Features) -> dict[str, tf.Tensor]:
    """`HEAD_loss`, `HEAD_accuracy` (right answers) and `HEAD_weight`, summed over each row: [B].

    HEAD is `masked_lm`, and `next_sentence` where there are logits of it.
    """
    labels = {"masked_lm": batch["masked_ids"], "next_sentence": batch["next_sentence_labels"]}
    weights = label_weights(batch)
    sums = {}
    for head, scores in logits.items():
        # In rows: with the vocabulary behind two axes a TPU would lay all scores out anew.
        rows, wanted = tf.reshape(scores, [-1, scores.shape[-1]]), tf.reshape(labels[head], [-1])
        losses = kernels.softmax_cross_entropy(rows, wanted)  # [B * P, or B * G]
        right = tf.argmax(rows, axis=-1, output_type=wanted.dtype) == wanted
        losses, right = (tf.reshape(x, tf.shape(labels[head])) for x in (losses, right))
        sums[f"{head}_loss"] = tf.reduce_sum(losses * weights[head], axis=1)
        sums[f"{head}_accuracy"] = tf.reduce_sum(tf.cast(right, tf.float32) * weights[head], axis=1)
        sums[f"{head}_weight"] = tf.reduce_sum(weights[head], axis=1)
    return sums
