"""A teacher for distillation: another run, whose logits of all texts are computed once and kept.

```
teacher/teacher.json                 which teacher read which texts
teacher/logits-00002-of-00005.npy    float32 [R, C]: a row for each text, or for each word (tagging)
```
A run that goes on, and the next seed, find them there; a pass that is killed goes on with the
missing files. Another teacher, or other texts, are noticed and refused.

Legend: E texts, R rows of logits (texts, or words), C classes, M windows, W words of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import restore, run_folder
from bert_tf.config import read_json, write_json
from bert_tf.data import tagging
from bert_tf.data.conll import TaggedSource, Words
from bert_tf.data.text import TextExamples
from bert_tf.distribution import Accelerator
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Task
from bert_tf.tasks.tagging import TaggingTask
from bert_tf.training import Evaluator

CACHE_FILE = "teacher.json"
TEXTS_PER_FILE = 4096  # of logits: what a killed pass loses at most
BLOCK_BYTES = 1 << 22  # read at once
# Beside the weights, what decides a teacher's answers.
TEACHER_FILES = ("bert_config.json", "vocab.txt", "tokenizer_config.json", "labels.json")

Text = Sequence[bytes]  # one or two segments, or the words of a text


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
        counts = self.accelerator.numbers_of_workers(len(missing))
        if len(set(counts)) > 1:
            raise ValueError(
                f"of {count} files of logits the workers lack {', '.join(map(str, counts))} in "
                f"{self.cache}. It must be one folder that all of them see, on gs:// or other "
                "shared storage."
            )
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
            with run_folder.writing(self.cache):
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
    with run_folder.writing(path):
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
        # As wide as any window can be: one graph for all files.
        examples = tagging.widened(task.cut(given), task.run.data.max_seq_length)
        outputs = evaluator.predict(examples)["logits"]  # [M, W, C]
        logits[examples.words] = finite(outputs[examples.windows, examples.slots])
    return logits


READERS: dict[str, Callable[[Any, Any, Sequence[Text]], np.ndarray]] = {
    "classification": read_texts,
    "tagging": read_words,
}


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
