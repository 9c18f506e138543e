"""Tagging of words: named entities, parts of speech (paper, section 5.3).

The first piece of a word carries its label. Long texts are read in overlapping windows, and every
word is decided, and learnt, in the one that shows most around it.
Legend: B batch (of windows), S sequence, W decided words of a window, C tags, R words of all texts.
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import tensorflow as tf
import tf_keras as keras

from bert_tf import kernels
from bert_tf import metrics as metric_functions
from bert_tf.config import BertConfig, RunConfig, read_json, write_json
from bert_tf.data import batches, tagging, windows
from bert_tf.data.conll import read_tagged
from bert_tf.data.tagging import NOTHING, Decided, TaggedExamples, TaggedText
from bert_tf.data.text import did_you_mean, shorten
from bert_tf.encoder import BertEncoder, OutputLayer
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.spans import OUTSIDE, is_span_tag, span_scores, split_tag
from bert_tf.tasks import viterbi
from bert_tf.tasks.contract import Features
from bert_tf.tasks.feature_tagger import FeatureTagger, check_features
from bert_tf.tokenization import Tokenizer

LABELS_FILE = "labels.json"
SHOWN_TAGS = 20  # named in a message


# ------------------------------------------------------------------------------------- the model


class TaggingHead(keras.layers.Layer):
    """Dropout and a linear map of every position."""

    def __init__(self, num_tags: int, config: BertConfig, dropout: float, prefix: str = "") -> None:
        super().__init__(name="tagger")
        self.rate = dropout
        self.output_layer = OutputLayer(num_tags, config, prefix)

    def call(self, sequence: tf.Tensor, seed: tf.Tensor | None = None) -> tf.Tensor:
        """[B, S, H] to logits float32 [B, S, C]; `seed` int32 [2] turns dropout on."""
        shape = tf.shape(sequence)
        rows = tf.reshape(sequence, [-1, sequence.shape[-1]])  # [B * S, H]
        logits = self.output_layer(kernels.dropout(rows, self.rate, seed))  # [B * S, C]
        return tf.reshape(logits, [shape[0], shape[1], logits.shape[-1]])


class Tagger(keras.layers.Layer):
    """Encoder, dropout, linear map."""

    def __init__(
        self, encoder: BertEncoder, num_tags: int, dropout: float, prefix: str = ""
    ) -> None:
        super().__init__(name="bert_tagger")
        self.encoder = encoder
        self.head = TaggingHead(num_tags, encoder.config, dropout, prefix)

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """`token_ids`, `segment_ids`, `mask` int [B, S] to logits float32 [B, S, C]."""
        encoder_seed, head_seed = (None, None)
        if training and seed is not None:
            encoder_seed, head_seed = tf.unstack(tf.random.split(seed, num=2))
        output = self.encoder(
            features["token_ids"],
            features["segment_ids"],
            features["mask"],
            training=training and seed is not None,
            seed=encoder_seed,
        )
        return self.head(output.sequence, head_seed)


# -------------------------------------------------------------------------------------- the tags


@dataclasses.dataclass(frozen=True)
class Tags:
    """What a model's outputs stand for; C tags."""

    names: tuple[str, ...]  # by output number
    spans: bool  # whether they write spans down (IOB2) or stand for themselves (parts of speech)
    fallback: str  # of words that vanish in normalisation, such as a lone zero-width space

    def __post_init__(self) -> None:
        """Raises ValueError for tags that are no set of two or more."""
        if len(set(self.names)) != len(self.names) or self.fallback not in self.names:
            raise ValueError(f"Tags must differ: {shown(self.names)}.")

    @classmethod
    def infer(cls, text: TaggedText) -> Tags:
        """The tags of the training text: B and I of every type of span, or as they are, sorted.

        Raises:
            ValueError: the text has no tags, or one only.
        """
        source = text.source.source
        if text.tags is None:
            raise ValueError(f"{source} has no tags; name their column in config.data.label.")
        counts = collections.Counter(text.tags)
        spans = all(is_span_tag(tag) for tag in counts)
        if spans:
            types = sorted({split_tag(tag)[1] for tag in counts if tag != OUTSIDE})
            names = (OUTSIDE, *(f"{prefix}-{label}" for label in types for prefix in "BI"))
        else:
            names = tuple(sorted(counts))
        if len(names) < 2:
            raise ValueError(
                f"{source}: all {text.num_words} words have the tag {shown(names)}, and a tagger "
                "needs at least 2; is config.data.label the right column?"
            )
        fallback = OUTSIDE if OUTSIDE in names else counts.most_common(1)[0][0]
        return cls(names, spans, fallback)

    def encode(self, text: TaggedText) -> np.ndarray:
        """Numbers of the words' tags, int32 [R]; raises ValueError for unknown ones."""
        numbers = {name: number for number, name in enumerate(self.names)}
        tags = text.tags or []
        unknown = next((word for word, tag in enumerate(tags) if tag not in numbers), None)
        if unknown is not None:
            place = int(np.searchsorted(text.words_of, unknown, side="right")) - 1
            start, end = text.starts[unknown], text.ends[unknown]
            raise ValueError(
                f"{text.source.where(place)}: the tag {shorten(tags[unknown])} of the word "
                f"{shorten(text.texts[place][start:end])}, in the text that begins there, is "
                f"unknown.{did_you_mean(tags[unknown], self.names)} The model was trained with "
                f"{shown(self.names)}."
            )
        return np.array([numbers[tag] for tag in tags], np.int32)

    def inside(self) -> np.ndarray:
        """The tag of the parts behind the first one of a word, int32 [C]: I-X for B-X."""
        places = {name: number for number, name in enumerate(self.names)}
        continued = [
            "I" + name[1:] if self.spans and name[0] == "B" else name for name in self.names
        ]
        return np.array([places[name] for name in continued], np.int32)

    def save(self, path: str) -> None:
        """Writes `labels.json`."""
        write_json(path, dataclasses.asdict(self) | {"names": list(self.names)})

    @classmethod
    def load(cls, path: str) -> Tags:
        """Reads `labels.json`; raises ValueError naming the file."""
        values = read_json(path)
        try:
            return cls(tuple(values["names"]), bool(values["spans"]), values["fallback"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not describe the tags of words: {error!r}") from None


def shown(names: tuple[str, ...]) -> str:
    """The first names, for a message."""
    more = f" and {len(names) - SHOWN_TAGS} more" if len(names) > SHOWN_TAGS else ""
    return ", ".join(shorten(name) for name in names[:SHOWN_TAGS]) + more


# -------------------------------------------------------------------------------------- the task


@dataclasses.dataclass(frozen=True)
class TaggingTask:
    """Everything that training and evaluation need to know of the task."""

    run: RunConfig
    config: BertConfig
    tokenizer: Tokenizer
    tags: Tags

    fresh_weights = ("output_weights", "output_bias", "tagger/")
    terms: ClassVar[tuple[str, ...]] = ("loss",)

    @classmethod
    def from_data(cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer) -> TaggingTask:
        """The task as its training data define it; raises ValueError where they cannot work."""
        check_settings(run, config)
        tags = Tags.infer(read_text(run, tokenizer, "train"))
        if run.task.constrained and not tags.spans:
            raise ValueError(
                "config.task.constrained=True is for tags of spans (B-X, I-X, O); these are "
                f"{shown(tags.names)}."
            )
        return cls(run, config, tokenizer, tags)

    @classmethod
    def from_folder(
        cls, run: RunConfig, config: BertConfig, tokenizer: Tokenizer, folder: str
    ) -> TaggingTask:
        """The task as an earlier run saved it."""
        return cls(run, config, tokenizer, Tags.load(os.path.join(folder, LABELS_FILE)))

    def save(self, folder: str) -> None:
        """Writes what `from_folder` reads."""
        self.tags.save(os.path.join(folder, LABELS_FILE))

    def build_model(self, layout: type[Layout] = PaddedLayout) -> Tagger | FeatureTagger:
        """A model with fresh weights, to be called inside `strategy.scope()`."""
        if self.run.task.feature_layers:
            return FeatureTagger(self.config, len(self.tags.names), self.run.task, layout)
        encoder = BertEncoder(self.config, layout, self.run.model.recompute)
        encoder.pooler.trainable = False  # nothing reads it, so it is no weight of the model
        return self.attach(encoder)

    def attach(self, encoder: BertEncoder, prefix: str = "") -> Tagger:
        """The model on a given encoder; `prefix` begins the names of the head's weights."""
        return Tagger(encoder, len(self.tags.names), self.run.task.dropout, prefix)

    def text(self, split: str) -> TaggedText:
        """The words and pieces of `train`, `dev` or `test`."""
        return read_text(self.run, self.tokenizer, split)

    def examples(self, split: str) -> TaggedExamples:
        """The windows of a split, to be measured; raises ValueError where words have no tags."""
        text = self.text(split)
        if text.tags is None:
            raise ValueError(
                f"{text.source.source} has no tags to measure against; scripts/predict.py tags it."
            )
        return self.cut(text)

    def training_data(self) -> batches.Examples:
        """The windows to train on."""
        return self.learnt(self.text("train"))

    def learnt(self, text: TaggedText) -> TaggedExamples:
        """Windows with their labels; with `split_words`, every part of a word has one."""
        if not self.run.task.split_words:
            return self.cut(text)
        labels = self.tags.encode(text)
        pieces = np.flatnonzero(~tagging.continuations(self.tokenizer)[text.token_ids])
        with_pieces = np.flatnonzero(text.first_pieces != NOTHING)
        first = text.first_pieces[with_pieces]
        words = with_pieces[np.searchsorted(first, pieces, side="right") - 1]
        is_first = text.first_pieces[words] == pieces
        of_parts = np.where(is_first, labels[words], self.tags.inside()[labels[words]])
        return self.cut(text, Decided(words, pieces, of_parts))

    def cut(self, text: TaggedText, decided: Decided | None = None) -> TaggedExamples:
        """Windows; every word that has pieces is decided at its first one."""
        if decided is None:
            words = np.flatnonzero(text.first_pieces != NOTHING)
            labels = None if text.tags is None else self.tags.encode(text)[words]
            decided = Decided(words, text.first_pieces[words], labels)
        width, stride = windows.window_shape(self.run.data)
        return tagging.cut_examples(text, decided, self.tokenizer, width, stride)

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Labelled words of the batch, float32 [1]: the loss is their mean."""
        return tf.reduce_sum(word_weights(batch), keepdims=True)[0]

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Loss summed over the words, float32 [1]; `seed` int32 [2] drives dropout."""
        logits = decided_logits(model(batch, training=True, seed=seed), batch)
        return tf.reduce_sum(word_losses(logits, batch), keepdims=True)[0]

    def predict(self, model: tf.Module, batch: Features) -> dict[str, tf.Tensor]:
        """What evaluation and prediction keep of each window.

        Returns:
            `logits` float32 [B, W, C] of the decided words, and `loss` float32 [B], summed over
            them, where the batch has labels.
        """
        outputs = {"logits": decided_logits(model(batch), batch)}
        if "word_labels" in batch:
            losses = word_losses(outputs["logits"], batch)  # [B, W]
            outputs["loss"] = tf.reduce_sum(losses, axis=1)
        return outputs

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics of the task; the first one chooses the best checkpoint."""
        return ("f1", "precision", "recall", "accuracy") if self.tags.spans else ("accuracy",)

    def metrics(
        self, outputs: Mapping[str, np.ndarray], examples: batches.Examples
    ) -> dict[str, float]:
        """Scores of spans and accuracy over all words, and mean loss of the labelled ones."""
        examples = as_tagged(examples)
        text, labels = examples.text, self.tags.encode(examples.text)
        numbers, _ = self.decide(outputs["logits"], examples)
        measured = metric_functions.compute(("accuracy",), labels, numbers)
        if self.tags.spans:
            names = [self.tags.names[number] for number in numbers]
            measured |= span_scores(text.split(text.tags or []), text.split(names))
        loss = float(outputs["loss"].sum(dtype=np.float64)) / max(len(examples.words), 1)
        return {name: measured[name] for name in self.metric_names} | {"loss": loss}

    def decide(self, logits: np.ndarray, examples: TaggedExamples) -> tuple[np.ndarray, np.ndarray]:
        """The tag of every word and its probability, from `logits` [M, W, C].

        Returns:
            int32 [R] and float32 [R]; words without pieces have the fallback, and probability 0.

        Raises:
            ValueError: logits are not finite.
        """
        text = examples.text
        logits = logits[examples.windows, examples.slots].astype(np.float64)  # [D, C]
        if not np.isfinite(logits).all():
            raise ValueError(
                "the model's outputs are not finite numbers; it has diverged: lower the learning "
                "rate, or train in float32."
            )
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        chosen = log_probabilities.argmax(axis=-1)  # [D]
        if self.run.task.constrained:
            owner = np.searchsorted(text.words_of, examples.words, side="right")
            begins = np.diff(owner, prepend=-1) != 0  # where a text begins
            allowed = viterbi.allowed_transitions(self.tags.names)
            chosen = viterbi.best_path(log_probabilities, begins, allowed)
        numbers = np.full(text.num_words, self.tags.names.index(self.tags.fallback), np.int32)
        scores = np.zeros(text.num_words, np.float32)
        numbers[examples.words] = chosen
        scores[examples.words] = np.exp(log_probabilities[np.arange(len(chosen)), chosen])
        return numbers, scores


def decided_logits(logits: tf.Tensor, batch: Features) -> tf.Tensor:
    """[B, S, C] to those of the decided words, [B, W, C]."""
    return tf.gather(logits, batch["first_pieces"], batch_dims=1)


def word_weights(batch: Features) -> tf.Tensor:
    """1 for labelled words of real examples, float32 [B, W]."""
    labelled = tf.cast(batch["word_labels"] > 0, tf.float32)
    return labelled * batch["weight"][:, tf.newaxis]


def word_losses(logits: tf.Tensor, batch: Features) -> tf.Tensor:
    """Cross-entropy of each word, 0 where it has no label: [B, W, C] to [B, W]."""
    labels = tf.maximum(batch["word_labels"] - 1, 0)
    return kernels.softmax_cross_entropy(logits, labels) * word_weights(batch)


def as_tagged(examples: batches.Examples) -> TaggedExamples:
    """The examples of this task, for the type checker."""
    if not isinstance(examples, TaggedExamples):
        raise TypeError(f"{type(examples).__name__} is not of a tagging task.")
    return examples


def read_text(run: RunConfig, tokenizer: Tokenizer, split: str) -> TaggedText:
    """Reads `train`, `dev` or `test` (tags may be absent from `test`) as the recipe says."""
    source = getattr(run.data, split, "")
    if not source:
        raise ValueError(f"config.data.{split} is empty: name a file or `tfds:NAME/SPLIT`.")
    return tagging.read_pieces(tokenizer, read_tagged(source, run.data, split != "test"))


def check_settings(run: RunConfig, config: BertConfig) -> None:
    """Raises ValueError for settings of the task that cannot work, before any data is read."""
    run.data.check_length(config)
    check_features(run.task, run.optimizer.frozen, config)
    windows.window_shape(run.data)
    if run.task.glue or run.data.text_b:
        raise ValueError(
            f"config.task.glue={run.task.glue!r} and config.data.text_b={run.data.text_b!r} are "
            "for config.task.name=classification; a tagger reads single texts."
        )
