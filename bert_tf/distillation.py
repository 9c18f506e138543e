"""Distillation: a student learns what a teacher answers (Hinton et al. 2015; Turc et al. 2019).

The teacher is another run of this package: of the same task, with the same labels, and with a model
and a vocabulary of its own. Before training it reads all texts once, those without labels
(`config.distillation.unlabelled`) too, and its logits are kept in the run folder:

```
teacher/teacher.json                 which teacher read which texts
teacher/logits-00002-of-00005.npy    float32 [R, C]: a row for each text, or for each word (tagging)
```
A run that goes on, and the next seed, find them there; a pass that is killed goes on with the
missing files. Another teacher, or other texts, are noticed and refused.

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
import hashlib
import io
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import restore, run_folder
from bert_tf.config import DistillationConfig, read_json, write_json
from bert_tf.data import batches, tagging, text
from bert_tf.data.conll import TaggedSource, Words, read_tagged
from bert_tf.data.tagging import TaggedExamples
from bert_tf.data.text import TextExamples
from bert_tf.distribution import Accelerator
from bert_tf.tasks import classification
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Features, Task
from bert_tf.tasks.tagging import TaggingTask, decided_logits, word_losses, word_weights
from bert_tf.training import Evaluator

CACHE_FOLDER = "teacher"
CACHE_FILE = "teacher.json"
TEXTS_PER_FILE = 4096  # of logits: what a killed pass loses at most
BLOCK_BYTES = 1 << 22  # read at once
# Beside the weights, what decides a teacher's answers.
TEACHER_FILES = ("bert_config.json", "vocab.txt", "tokenizer_config.json", "labels.json")

Text = Sequence[bytes]  # one or two segments, or the words of a text


# -------------------------------------------------------------------------------------- the teacher


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained run whose logits a student learns, and where these are kept."""

    folder: str
    task: Task
    columns: np.ndarray  # int [C], the teacher's output for each output of the student
    cache: str
    accelerator: Accelerator

    def logits(self, texts: Sequence[Text], eval_batch_size: int) -> np.ndarray:
        """What the teacher says of all texts, from the cache as far as it is there.

        Returns:
            float32 [R, C], in the student's order of labels; NaN for words that the teacher cannot
            see, such as a lone zero-width space.

        Raises:
            ValueError: the cache is of another teacher or of other texts, or cannot be read; or
                the teacher's outputs are no numbers.
        """
        self.claim_cache(texts)
        count = -(-len(texts) // TEXTS_PER_FILE)
        name = os.path.join(self.cache, "logits-{:05d}-of-{:05d}.npy")
        paths = [name.format(number, count) for number in range(count)]
        # Looked up once: the workers of several machines must agree on what to compute together.
        missing = [number for number, path in enumerate(paths) if not tf.io.gfile.exists(path)]
        parts = {n: read_array(path) for n, path in enumerate(paths) if n not in missing}
        there = f"{count - len(missing)} of {count} files of logits are in {self.cache}"
        logging.info("The teacher %s reads %d texts: %s.", self.folder, len(texts), there)
        evaluator = self.evaluator(eval_batch_size) if missing else None
        began = time.monotonic()
        for done, number in enumerate(missing, start=1):
            of_part = texts[number * TEXTS_PER_FILE : (number + 1) * TEXTS_PER_FILE]
            parts[number] = READERS[self.task.run.task.name](self.task, evaluator, of_part)
            if self.accelerator.is_chief:
                write_array(paths[number], parts[number])
            left = (time.monotonic() - began) / done * (len(missing) - done)
            logging.info("Teacher: file %d of %d, %.0f s left.", done, len(missing), left)
        return np.concatenate([parts[number] for number in range(count)])[:, self.columns]

    def evaluator(self, eval_batch_size: int) -> Evaluator:
        """The teacher's model on the student's devices."""
        with self.accelerator.strategy.scope():
            opened = restore.open_run(self.folder, self.accelerator.layout)
        train = dataclasses.replace(opened.run.train, eval_batch_size=eval_batch_size)
        run = dataclasses.replace(opened.run, train=train)
        return Evaluator(run, self.accelerator, opened.task, opened.model)

    def claim_cache(self, texts: Sequence[Text]) -> None:
        """Says in the cache what it is of; raises ValueError where it is of something else."""
        now = {"teacher": self.fingerprint(), "texts": fingerprint_of(texts), "count": len(texts)}
        path = os.path.join(self.cache, CACHE_FILE)
        if tf.io.gfile.exists(path):
            before = read_json(path)
            if before.get("teacher") != now["teacher"]:
                other = f"another teacher than {self.folder} is now"
            elif before != now:
                other = f"{before.get('count')} other texts than the {len(texts)} of this run"
            else:
                return
            raise ValueError(
                f"{self.cache} holds logits for {other}. Restore what has changed; or, to begin "
                "anew, remove that folder or name another one in config.distillation.cache, and "
                "take a new --workdir where training had begun."
            )
        if self.accelerator.is_chief:
            tf.io.gfile.makedirs(self.cache)
            write_json(path, now)

    def fingerprint(self) -> str:
        """A checksum of the teacher's weights and of all else that decides its answers."""
        step_folder = restore.trained_step(self.folder)
        weights = sorted(n for n in tf.io.gfile.listdir(step_folder) if n.startswith("model.ckpt"))
        paths = [os.path.join(step_folder, name) for name in weights]
        paths += [os.path.join(self.folder, name) for name in TEACHER_FILES]
        data = self.task.run.data
        digest = hashlib.sha256(f"{data.max_seq_length} {data.window_stride}".encode())
        for path in paths:
            with tf.io.gfile.GFile(path, "rb") as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
        return digest.hexdigest()


def fingerprint_of(texts: Sequence[Text]) -> str:
    """A checksum of the texts and their order."""
    digest = hashlib.sha256()
    for parts in texts:
        digest.update(f"{len(parts)}:{','.join(str(len(part)) for part in parts)};".encode())
        digest.update(b"".join(parts))
    return digest.hexdigest()


def write_array(path: str, array: np.ndarray) -> None:
    """Writes a `.npy` file, whole or not at all."""
    with tf.io.gfile.GFile(path + ".tmp", "wb") as file:
        np.save(file, array, allow_pickle=False)
    tf.io.gfile.rename(path + ".tmp", path, overwrite=True)


def read_array(path: str) -> np.ndarray:
    """Reads a `.npy` file; raises ValueError naming it."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            return np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (tf.errors.OpError, OSError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); remove it, and the teacher computes it again."
        ) from None


def finite(logits: np.ndarray) -> np.ndarray:
    """The logits; raises ValueError where the teacher has diverged."""
    if not np.isfinite(logits).all():
        raise ValueError(
            "the teacher's outputs are not finite numbers; take one that has not diverged, or "
            "--config.runtime.dtype=float32."
        )
    return logits.astype(np.float32)


def read_texts(task: ClassificationTask, evaluator: Evaluator, texts: Sequence[Text]) -> np.ndarray:
    """A classifier's logits of texts, float32 [E, C]."""
    first, *second = zip(*texts, strict=True)
    examples = task.tokenize(
        TextExamples(list(first), list(second[0]) if second else None, None, None, "texts", [])
    )
    return finite(evaluator.predict(examples)["logits"])


def read_words(task: TaggingTask, evaluator: Evaluator, texts: Sequence[Text]) -> np.ndarray:
    """A tagger's logits of all words of the texts, float32 [R, C]; NaN where one vanishes."""
    # Words are the student's, whatever pieces the teacher's vocabulary makes of them.
    words = [Words([word.decode() for word in each], None, 0) for each in texts if each]
    logits = np.full([sum(map(len, texts)), len(task.tags.names)], np.nan, np.float32)
    if words:
        given = tagging.of_words(task.tokenizer, TaggedSource("texts", words, []))
        examples = task.cut(given)
        outputs = evaluator.predict(examples)["logits"]  # [M, W, C]
        logits[examples.words] = finite(outputs[examples.windows, examples.slots])
    return logits


READERS: dict[str, Callable[[Any, Any, Sequence[Text]], np.ndarray]] = {
    "classification": read_texts,
    "tagging": read_words,
}


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
        more = [
            text.read_examples(source, text.columns_of(data), data.data_dir, require_labels=False)
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
        return batches.tokenize(self.tokenizer, joined, data.max_seq_length, targets)

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
        return tagging.joined([taught(*both) for both in zip(parts, of_parts, strict=True)])

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


def open_teacher(folder: str, name: str) -> Task:
    """The task of a teacher's run; raises ValueError where it is none of the task `name`."""
    if not tf.io.gfile.exists(os.path.join(folder, "run.json")):
        raise ValueError(
            f"config.distillation.teacher={folder!r} is not the folder of a run (it has no "
            f"run.json); train the teacher first: scripts/train.py --workdir={folder}."
        )
    run = run_folder.read_run(folder)
    if run.task.name != name:
        raise ValueError(
            f"config.distillation.teacher={folder!r} is a run of the task {run.task.name!r}, the "
            f"student of {name!r}; both must be of the same task."
        )
    restore.trained_step(folder)
    return restore.read_task(run, folder)


def labels_of(task: Task) -> tuple[str, tuple[str, ...]]:
    """What a task's outputs stand for: the kind, and the names in their order."""
    if isinstance(task, TaggingTask):
        return "tags", task.tags.names
    assert isinstance(task, ClassificationTask)
    return task.labels.kind, task.labels.names


def unlabelled_sources(settings: DistillationConfig) -> list[str]:
    """The files of texts without labels."""
    return [source.strip() for source in settings.unlabelled.split(",") if source.strip()]
