"""Sentence embeddings: texts that belong together get vectors of similar direction.

Two texts are read by one encoder, each by itself, and pooled to a vector. Learnt is to find the
partner of a text among the partners of all texts of the batch (in-batch negatives); `ranking.py`
has the loss.
Legend: B pairs, K texts of a pair (3 with a hard negative), S sequence, H hidden, E examples.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging

from bert_tf import embedding
from bert_tf import metrics as metric_functions
from bert_tf.config import BertConfig, RunConfig, TaskConfig
from bert_tf.data import batches, glue, text
from bert_tf.data.text import TextExamples
from bert_tf.data.text_groups import TextGroups, tokenize_groups
from bert_tf.encoder import BertEncoder
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tasks import ranking
from bert_tf.tasks.classification import Labels
from bert_tf.tasks.contract import Features
from bert_tf.tokenization import Tokenizer

POOLINGS = ("mean", "max", "cls")
SCORE_METRICS = ("spearman", "pearson")  # of pairs with a label


# ------------------------------------------------------------------------------------- the model


class DualEncoder(keras.layers.Layer):
    """Encoder and pooling. Nothing reads BERT's own pooler, so it is no weight of the model."""

    def __init__(
        self,
        config: BertConfig,
        task: TaskConfig,
        layout: type[Layout] = PaddedLayout,
        recompute: bool = False,
    ) -> None:
        super().__init__(name="bert_dual_encoder")
        self.pooling = task.pooling
        self.normalize = task.normalize
        self.encoder = BertEncoder(config, layout, recompute)
        self.encoder.pooler.trainable = False

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, S] or [B, K, S] to float32 [B, H], [B, K, H].

        Every text is read by itself.
        """
        shape = tf.shape(features["mask"])
        token_ids, segment_ids, mask = (
            tf.reshape(features[name], [-1, shape[-1]])  # [B * K, S]
            for name in ("token_ids", "segment_ids", "mask")
        )
        is_training = training and seed is not None
        output = self.encoder(token_ids, segment_ids, mask, training=is_training, seed=seed)
        sequence = tf.cast(output.sequence, tf.float32)  # [B * K, S, H]
        vectors = embedding.pool(sequence, mask, self.pooling)  # [B * K, H]
        if self.normalize:
            vectors = embedding.normalized(vectors)
        size = vectors.shape[-1]
        vectors = tf.reshape(vectors, tf.concat([shape[:-1], [size]], axis=0))
        return tf.ensure_shape(vectors, [*features["mask"].shape[:-1], size])


# -------------------------------------------------------------------------------------- the task


@dataclasses.dataclass(frozen=True)
class DualEncoderTask:
    """Everything that training and evaluation need to know of the task."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer

    fresh_weights = ()
    terms = ("loss", "in_batch_accuracy")

    @classmethod
    def from_data(cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer) -> DualEncoderTask:
        """The task of a new run; raises ValueError where settings cannot work."""
        check_settings(run, config)
        return cls(run, config, tokenizer)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> DualEncoderTask:
        """The task as an earlier run saved it."""
        del folder  # there are no labels
        return cls(run, config, tokenizer)

    def save(self, folder: str) -> None:
        """Nothing: the settings say it all."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> DualEncoder:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        return DualEncoder(self.config, self.run.task, layout, self.run.model.recompute)

    @property
    def has_scores(self) -> bool:
        """Whether dev pairs are measured by a score that people gave them."""
        return bool(self.run.data.label or self.run.task.glue)

    def texts(self, split: str) -> TextExamples:
        """The pairs of `train`, `dev` or `test`, with or without scores."""
        pairs = read_split(self.run, split, self.has_scores)
        if pairs.text_b is None:
            raise ValueError(
                "config.data.text_b is empty: a dual encoder learns from pairs of texts; name the "
                "column of the second one."
            )
        return pairs

    def examples(self, split: str) -> TextGroups:
        """The tokenized pairs of a split, with their scores where there are some."""
        return self.tokenize(self.texts(split))

    def tokenize(self, pairs: TextExamples) -> TextGroups:
        """Token ids of each text, and scores where there are some."""
        targets = {} if pairs.labels is None else {"label": Labels("regression").encode(pairs)}
        columns = [column for column in (pairs.text_a, pairs.text_b, pairs.negatives) if column]
        return tokenize_groups(self.tokenizer, columns, self.run.data.max_seq_length, targets)

    def training_data(self) -> TextGroups:
        """The pairs that belong together, in memory."""
        return self.tokenize(positive_pairs(self.texts("train"), self.run.task.min_score))

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Pairs of the batch for each term, float32 [2]."""
        return tf.reduce_sum(batch["weight"]) * tf.ones([len(self.terms)])

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Loss and hits summed over the pairs, float32 [2]; `seed` int32 [2] drives dropout."""
        vectors = model(batch, training=True, seed=seed)  # [B, K, H]
        scale = self.run.task.scale
        return ranking.loss_and_hits(vectors, batch["text_ids"], batch["weight"], scale)

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What evaluation and prediction keep of each pair.

        Returns:
            `vectors` float32 [B, 2, H] of length 1, and their `cosine` float32 [B].
        """
        vectors = embedding.normalized(model(batch)[:, :2])  # [B, 2, H]
        cosine = tf.reduce_sum(vectors[:, 0] * vectors[:, 1], axis=-1)  # [B]
        return {"vectors": vectors, "cosine": cosine}

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task; the first one chooses the best checkpoint."""
        return SCORE_METRICS if self.has_scores else ranking.METRICS

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """How well cosines follow the scores, or how high partners rank among all of the split.

        With scores, `loss` is the part of their variance that no linear map of the cosine explains:
        1 - pearson ** 2. Without, it is the training loss over all pairs of the split.
        """
        if not self.has_scores:
            ids = examples.targets["text_ids"]
            return ranking.measure(outputs["vectors"], ids, self.run.task.scale)
        if "label" not in examples.targets:
            raise ValueError(
                f"there are no scores to measure against in the column {self.run.data.label!r}; "
                "scripts/predict.py writes cosines, and --config.data.label='' trains a run that "
                "is measured by how high partners rank."
            )
        labels = examples.targets["label"]
        measured = metric_functions.compute(SCORE_METRICS, labels, outputs["cosine"])
        return measured | {"loss": 1.0 - measured["pearson"] ** 2}


# -------------------------------------------------------------------------------------- the data


def read_split(run: RunConfig, split: str, has_scores: bool) -> TextExamples:
    """Reads the pairs of a split: of `train` with hard negatives, of `dev` with their scores."""
    data = run.data
    if run.task.glue:
        return glue.read_split(glue.GLUE[run.task.glue], data.data_dir, split)
    source = getattr(data, split, "")
    if not source:
        raise ValueError(f"config.data.{split} is empty: name a file or `tfds:NAME/SPLIT`.")
    columns = text.columns_of(data)
    if split == "train":
        columns = dataclasses.replace(columns, negative=data.negative)
    needs_scores = has_scores and split == "dev"
    return text.read_examples(source, columns, data.data_dir, require_labels=needs_scores)


def positive_pairs(pairs: TextExamples, min_score: float) -> TextExamples:
    """The pairs with a score of at least `min_score`; all where the file has no scores.

    Raises:
        ValueError: there are scores but no `min_score`, or the other way round, or no pair reaches
            it.
    """
    if pairs.labels is None:
        if min_score:
            raise ValueError(
                f"{pairs.source} has no scores, which config.task.min_score={min_score:g} needs: "
                "name their column in config.data.label, or leave min_score out to learn all pairs."
            )
        return pairs
    scores = Labels("regression").encode(pairs)
    if not min_score and np.ptp(scores) > 0.0:
        raise ValueError(
            f"{pairs.source} has pairs with scores from {scores.min():g} to {scores.max():g}. Only "
            "those that belong together can be learnt: say from which score on they do "
            "(config.task.min_score, 4.0 for STS-B)."
        )
    kept = np.flatnonzero(scores >= min_score).tolist()
    if not kept:
        raise ValueError(
            f"{pairs.source}: no pair has a score of config.task.min_score={min_score:g}; the "
            f"highest is {scores.max():g}."
        )
    logging.info(
        "%s: %d of %d pairs have a score of at least %g and are learnt.",
        pairs.source,
        len(kept),
        len(pairs),
        min_score,
    )
    return pairs.take(kept)


def check_settings(run: RunConfig, config: BertConfig) -> None:
    """Raises ValueError for settings of the task that cannot work, before any data is read."""
    task = run.task
    run.data.check_length(config)
    if task.glue and not (task.glue in glue.GLUE and glue.GLUE[task.glue].kind == "regression"):
        raise ValueError(
            f"config.task.glue={task.glue!r} has no pairs with scores; a dual encoder knows stsb, "
            "and files of your own (config.data.train, .dev)."
        )
    if task.pooling not in POOLINGS:
        raise ValueError(
            f"config.task.pooling={task.pooling!r} must be one of {', '.join(POOLINGS)}."
        )
    if not (math.isfinite(task.scale) and task.scale > 0.0):
        raise ValueError(f"config.task.scale={task.scale} must be above 0; 20 is usual.")
    if run.data.max_seq_length < 3:
        raise ValueError(
            f"config.data.max_seq_length={run.data.max_seq_length} leaves no room for text beside "
            "[CLS] and [SEP]; 128 is usual."
        )
    if run.train.accumulation != 1:
        raise ValueError(
            f"config.train.accumulation={run.train.accumulation} must be 1: the negatives of a "
            "pair are the other pairs of its batch, and micro-batches do not see each other. Save "
            "memory with config.model.recompute=True, or use more replicas."
        )
