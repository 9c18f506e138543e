"""Distillation: a student learns what a teacher answers (Hinton et al. 2015; Turc et al. 2019).

The teacher is another run of this package: of the same task, with the same labels, and with a model
and a vocabulary of its own. Before training it reads all texts once, those without labels
(`config.distillation.unlabelled`) too, and its logits are kept; see `teacher.py`.

With temperature T and share alpha, the loss of a step is the sum of two means:

    soft_loss = alpha T^2 KL(softmax(teacher / T) || softmax(student / T))    over all examples
    hard_loss = (1 - alpha) cross-entropy(label, student)                   over those with a label

T^2 keeps the gradient as large as that of the labels (Hinton et al., section 2). With several
labels an example, KL is the mean of those of the single labels; scores of a regression have the
squared difference instead, and no temperature.

Legend: B batch, E texts, R rows of logits (texts, or words), C classes, M windows, W words of one.
"""

from __future__ import annotations

import dataclasses
import math
import os
import zlib

import numpy as np
import tensorflow as tf

from bert_tf.config import DistillationConfig
from bert_tf.data import batches, tagging, text
from bert_tf.data.conll import read_tagged
from bert_tf.data.tagging import TaggedExamples
from bert_tf.data.text import TextExamples
from bert_tf.distribution import Accelerator
from bert_tf.tasks import classification
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Features, Task
from bert_tf.tasks.tagging import TaggingTask, decided_logits, word_losses, word_weights
from bert_tf.teacher import Teacher, labels_of, open_teacher

CACHE_FOLDER = "teacher"  # in the run folder


# -------------------------------------------------------------------------------------- the student


def soft_losses(kind: str, logits: tf.Tensor, teacher: tf.Tensor, temperature: float) -> tf.Tensor:
    """How far the student's answers are from the teacher's: logits [..., C] each to [...].

    `kind` is that of the labels: "class", "multilabel" or "regression".
    """
    if kind == "regression":
        return tf.reduce_sum(tf.square(logits - teacher), axis=-1)  # of one score
    student, teacher = logits / temperature, teacher / temperature
    if kind == "multilabel":
        shares = tf.sigmoid(teacher)
        yes = tf.math.log_sigmoid(teacher) - tf.math.log_sigmoid(student)
        no = tf.math.log_sigmoid(-teacher) - tf.math.log_sigmoid(-student)
        divergence = tf.reduce_mean(shares * yes + (1.0 - shares) * no, axis=-1)
    else:
        difference = tf.nn.log_softmax(teacher) - tf.nn.log_softmax(student)
        divergence = tf.reduce_sum(tf.nn.softmax(teacher) * difference, axis=-1)
    return temperature**2 * divergence


def mixed(settings: DistillationConfig, soft: tf.Tensor, hard: tf.Tensor) -> tf.Tensor:
    """Both sums with their shares of the loss, float32 [2]."""
    return tf.stack([settings.alpha * soft, (1.0 - settings.alpha) * hard])


@dataclasses.dataclass(frozen=True)
class DistilledClassification(ClassificationTask):
    """A classification or regression that learns from a teacher, too."""

    teacher: Teacher

    terms = ("soft_loss", "hard_loss")

    def training_data(self) -> batches.Examples:
        """Texts with and without labels.

        Targets beside `label`: `labelled` float32 [E], 1 where there is one, and `teacher` float32
        [E, C], its logits.
        """
        known = self.texts("train")
        data = self.run.data
        unlabelled = dataclasses.replace(text.columns_of(data), label="")
        more = [
            text.read_examples(source, unlabelled, data.data_dir, require_labels=False)
            for source in unlabelled_sources(self.run.distillation)
        ]
        for each in more:
            if (each.text_b is None) != (known.text_b is None):
                raise ValueError(
                    f"{each.source} and {known.source} must both have one text an example, or both "
                    f"two; config.data.text_b={data.text_b!r} names the column of the second."
                )
        every = [known, *more]
        text_a = [line for each in every for line in each.text_a]
        text_b = [line for each in every for line in each.text_b or ()] or None
        texts = list(zip(text_a, text_b, strict=True)) if text_b else [(line,) for line in text_a]
        label = self.labels.encode(known)
        unknown = len(text_a) - len(known)
        targets = {
            "label": np.concatenate([label, np.zeros([unknown, *label.shape[1:]], label.dtype)]),
            "labelled": np.repeat([1.0, 0.0], [len(known), unknown]).astype(np.float32),
            "teacher": self.teacher.logits(texts, self.run.train.eval_batch_size),
        }
        joined = TextExamples(text_a, text_b, None, None, known.source, [])
        examples = batches.tokenize(self.tokenizer, joined, data.max_seq_length, targets)
        return TaughtExamples.of(examples, self.teacher)

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Examples of the batch, and those with a label: float32 [2]."""
        weight = batch["weight"]
        return tf.stack([tf.reduce_sum(weight), tf.reduce_sum(weight * batch["labelled"])])

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Soft and hard losses summed over the examples, float32 [2]."""
        settings, weight = self.run.distillation, batch["weight"]
        logits = model(batch, training=True, seed=seed)  # [B, C]
        soft = soft_losses(self.labels.kind, logits, batch["teacher"], settings.temperature)  # [B]
        hard = self.example_losses(logits, batch["label"]) * batch["labelled"]  # [B]
        return mixed(settings, tf.reduce_sum(soft * weight), tf.reduce_sum(hard * weight))


@dataclasses.dataclass(frozen=True)
class DistilledTagging(TaggingTask):
    """A tagger that learns from a teacher, too: word by word."""

    teacher: Teacher

    terms = ("soft_loss", "hard_loss")

    def training_data(self) -> batches.Examples:
        """Windows of texts with and without tags.

        Targets beside those of tagging: `taught` float32 [M, W], 1 where the teacher knows the
        word, and `teacher` float32 [M, W, C], its logits. Parts of words (task.split_words) are
        learnt from labels alone.
        """
        sources = unlabelled_sources(self.run.distillation)
        more = [
            tagging.read_pieces(self.tokenizer, read_tagged(source, self.run.data, False))
            for source in sources
        ]
        known = self.text("train")
        every = [known, *(dataclasses.replace(each, tags=None) for each in more)]
        texts = [[word.encode() for word in words] for each in every for words in each.words()]
        logits = self.teacher.logits(texts, self.run.train.eval_batch_size)  # [R, C]
        parts = [self.learnt(known), *(self.cut(each) for each in every[1:])]
        ends = np.cumsum([each.num_words for each in every])[:-1]
        of_parts = np.split(logits, ends)
        windows = tagging.joined([taught(*both) for both in zip(parts, of_parts, strict=True)])
        return TaughtExamples.of(windows, self.teacher)

    def term_weights(self, batch: Features) -> tf.Tensor:
        """Words that the teacher knows, and those with a label: float32 [2]."""
        soft = batch["taught"] * batch["weight"][:, tf.newaxis]  # [B, W]
        return tf.stack([tf.reduce_sum(soft), tf.reduce_sum(word_weights(batch))])

    def term_sums(self, model: tf.Module, batch: Features, seed: tf.Tensor) -> tf.Tensor:
        """Soft and hard losses summed over the words, float32 [2]."""
        settings = self.run.distillation
        logits = decided_logits(model(batch, training=True, seed=seed), batch)  # [B, W, C]
        soft = soft_losses("class", logits, batch["teacher"], settings.temperature)  # [B, W]
        soft *= batch["taught"] * batch["weight"][:, tf.newaxis]
        return mixed(settings, tf.reduce_sum(soft), tf.reduce_sum(word_losses(logits, batch)))


@dataclasses.dataclass(frozen=True)
class TaughtExamples(batches.Examples):
    """Examples with a teacher's logits, known by the teacher and not by the last bits of these.

    A run that goes on elsewhere, without its cache, computes them again with other rounding.
    """

    checksum: str = ""  # of the teacher

    @classmethod
    def of(cls, examples: batches.Examples, teacher: Teacher) -> TaughtExamples:
        """The examples, whose teacher is this one."""
        return cls(**vars(examples), checksum=teacher.fingerprint())

    def fingerprint(self) -> int:
        """A checksum of tokens, labels and teacher."""
        targets = {name: value for name, value in self.targets.items() if name != "teacher"}
        known = batches.Examples(self.token_ids, self.segment_ids, self.row_splits, targets)
        return zlib.crc32(self.checksum.encode(), known.fingerprint())


STUDENTS = {"classification": DistilledClassification, "tagging": DistilledTagging}


def taught(examples: TaggedExamples, logits: np.ndarray) -> batches.Examples:
    """The windows with the teacher's logits of their words [R, C] as targets."""
    grid = examples.targets["first_pieces"]  # [M, W]
    targets = {
        "first_pieces": grid,
        "word_labels": examples.targets.get("word_labels", np.zeros_like(grid)),
        "taught": np.zeros(grid.shape, np.float32),
        "teacher": np.zeros([*grid.shape, logits.shape[1]], np.float32),
    }
    of_words = logits[examples.words]  # [D, C]
    is_first = np.diff(examples.words, prepend=-1) != 0  # of the parts of a word
    known = np.flatnonzero(np.isfinite(of_words).all(axis=1) & is_first)
    places = (examples.windows[known], examples.slots[known])
    targets["taught"][places] = 1.0
    targets["teacher"][places] = of_words[known]
    return batches.Examples(examples.token_ids, examples.segment_ids, examples.row_splits, targets)


# ---------------------------------------------------------------------------------- how they meet


def with_teacher(task: Task, home: str, accelerator: Accelerator) -> Task:
    """The task with the teacher that its run names; without one, the task as it is.

    Args:
        task: of a run that is to be trained.
        home: the folder of the run; the teacher's logits are kept there unless the run says where.
        accelerator: what the teacher runs on, as the student does.

    Raises:
        ValueError: a setting cannot work, or the teacher is not one for this student.
    """
    settings = task.run.distillation
    check_settings(settings)
    if not settings.teacher:
        return task
    name = task.run.task.name
    if name not in STUDENTS:
        raise ValueError(
            f"config.distillation.teacher={settings.teacher!r}: only {' and '.join(STUDENTS)} "
            f"learn from a teacher, not config.task.name={name!r}."
        )
    given = open_teacher(settings.teacher, name)
    kind, names = labels_of(task)
    kind_there, names_there = labels_of(given)
    if kind != kind_there or set(names) != set(names_there):
        raise ValueError(
            f"config.distillation.teacher={settings.teacher!r} answers {kind_there}: "
            f"{classification.shown(names_there) or 'scores'}; but the student learns {kind}: "
            f"{classification.shown(names) or 'scores'}. Both must have the same labels."
        )
    columns = [names_there.index(label) for label in names] if names else [0]
    cache = settings.cache or os.path.join(home, CACHE_FOLDER)
    teacher = Teacher(settings.teacher, given, np.array(columns), cache, accelerator)
    return STUDENTS[name](**vars(task), teacher=teacher)


def check_settings(settings: DistillationConfig) -> None:
    """Raises ValueError for numbers out of range, and for texts without a teacher to read them."""
    if not 0.0 < settings.temperature < math.inf:
        raise ValueError(
            f"config.distillation.temperature={settings.temperature} must be above 0; 1 takes the "
            "teacher's probabilities as they are, and 2 to 5 make them softer."
        )
    if not 0.0 <= settings.alpha <= 1.0:
        raise ValueError(
            f"config.distillation.alpha={settings.alpha} must be from 0 (labels alone) to 1 (the "
            "teacher alone)."
        )
    if settings.unlabelled and not settings.teacher:
        raise ValueError(
            f"config.distillation.unlabelled={settings.unlabelled!r} needs a teacher; name its run "
            "folder in config.distillation.teacher."
        )


def unlabelled_sources(settings: DistillationConfig) -> list[str]:
    """The files of texts without labels."""
    return [source.strip() for source in settings.unlabelled.split(",") if source.strip()]
