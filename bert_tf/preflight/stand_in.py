"""A recipe's task and the shapes of its batches, without its data.

Nothing of the data is in a compiled step but a few numbers: how many classes there are, how wide a
batch is. Here they are given, so that a recipe can be compiled before anything is downloaded. A
test holds the shapes equal to those that the real pipelines of all tasks hand out.
Legend: B batch, S sequence, W words of a row, C classes, P masked positions, G sequences of a row.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import glue, token_shards
from bert_tf.data.mixture import MARK
from bert_tf.distillation import STUDENTS
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.contract import Task
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.tasks.pretraining import PretrainingTask
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tasks.tagging import TaggingTask, Tags
from bert_tf.teacher import Teacher
from bert_tf.tokenization import Tokenizer

Specs = dict[str, tf.TensorSpec]
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a")


def stand_in(run: RunConfig, config: BertConfig, num_classes: int) -> Task:
    """The task of a recipe, with made-up labels where they would come from the data.

    Raises:
        ValueError: a setting does not fit, or the recipe's task is none.
    """
    task = plain_task(run, config, num_classes, made_up_tokenizer())
    if not run.distillation.teacher:
        return task
    columns = np.arange(num_classes)
    teacher = Teacher(run.distillation.teacher, task, columns, "", None)  # type: ignore[arg-type]
    return STUDENTS[run.task.name](**vars(task), teacher=teacher)


def plain_task(run: RunConfig, config: BertConfig, num_classes: int, tokenizer: Tokenizer) -> Task:
    """The task without its teacher."""
    names = tuple(f"label-{number}" for number in range(num_classes))
    if run.task.name == "classification":
        table = glue.GLUE.get(run.task.glue)
        kind, found = (table.kind, table.labels) if table else (run.task.kind, names)
        labels = Labels(kind, () if kind == "regression" else found)
        return ClassificationTask(run, config, tokenizer, labels)
    if run.task.name == "tagging":
        return TaggingTask(run, config, tokenizer, Tags(names, spans=False, fallback=names[0]))
    if run.task.name == "multi_task":
        return MultiTask.of_parts(
            run,
            config,
            tokenizer,
            lambda name, _: plain_task(run.part(name), config, num_classes, tokenizer),  # type: ignore[arg-type, return-value]
        )
    return OTHERS[run.task.name].from_data(run, config, tokenizer)


OTHERS: dict[str, type[Task]] = {
    "dual_encoder": DualEncoderTask,
    "multiple_choice": MultipleChoiceTask,
    "pretraining": PretrainingTask,
    "question_answering": QuestionAnsweringTask,
}


def made_up_tokenizer() -> Tokenizer:
    """A vocabulary without words: no step on the device reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "vocab.txt")
        with open(path, "w") as file:
            file.write("\n".join(SPECIAL_PIECES) + "\n")
        return Tokenizer(path)


# --------------------------------------------------------------------------------------- batches


class Size(NamedTuple):
    """Of a batch."""

    batch: int  # B
    width: int  # S
    classes: int  # C, or choices, where the data say how many


def parts_of(task: Task) -> dict[str, Task]:
    """Each of several tasks by its name; a task alone has the name ""."""
    return dict(task.parts) if isinstance(task, MultiTask) else {"": task}


def features(task: Task, name: str, size: Size, is_training: bool = True) -> Specs:
    """What a batch of the task has, to train on or to be measured; `name` as in `parts_of`.

    Where it depends on the data the most is taken: a tagger decides S - 2 words in each row.
    """
    kind = task.run.task.name
    specs = TARGETS[kind](task, size)
    if task.run.distillation.teacher and is_training:
        specs |= TAUGHT[kind](specs, size.classes)
    sequences = [SEQUENCES[kind](task, size)] if kind in SEQUENCES else []
    rows = tf.TensorSpec([size.batch, *sequences, size.width], tf.int32)
    is_streamed = kind == "pretraining" and is_training  # then rows have no numbers
    return {
        **dict.fromkeys(("token_ids", "segment_ids", "mask"), rows),
        "weight": tf.TensorSpec([size.batch], tf.float32),
        **({} if is_streamed else {"example": tf.TensorSpec([size.batch], tf.int64)}),
        **specs,
        **({MARK + name: tf.TensorSpec([size.batch], tf.int32)} if name else {}),
    }


def label(task: Task, size: Size) -> Specs:
    """Of a classifier: a class, 0 or 1 for each of C classes, or a score."""
    assert isinstance(task, ClassificationTask)
    if task.labels.kind == "multilabel":
        return {"label": tf.TensorSpec([size.batch, len(task.labels.names)], tf.float32)}
    dtype = tf.float32 if task.labels.kind == "regression" else tf.int32
    return {"label": tf.TensorSpec([size.batch], dtype)}


def words(task: Task, size: Size) -> Specs:
    """Of a tagger: the places of the words [B, W], and their labels."""
    spec = tf.TensorSpec([size.batch, size.width - 2], tf.int32)
    return {"first_pieces": spec, "word_labels": spec}


def spans(task: Task, size: Size) -> Specs:
    """Of question answering: where answers may start, and where the right one is."""
    names = ("starts_from", "starts_to", "start", "end")
    return dict.fromkeys(names, tf.TensorSpec([size.batch], tf.int32))


def text_ids(task: Task, size: Size) -> Specs:
    """Of a dual encoder: equal numbers for equal texts [B, K]."""
    return {"text_ids": tf.TensorSpec([size.batch, texts_of(task, size)], tf.int32)}


def choice(task: Task, size: Size) -> Specs:
    """Of multiple choice: the right one."""
    return {"label": tf.TensorSpec([size.batch], tf.int32)}


def masked_words(task: Task, size: Size) -> Specs:
    """Of pre-training: masked positions [B, P], and pairs of segments [B, G]."""
    assert isinstance(task, PretrainingTask)
    recipe, settings = task.recipe(), task.run.task
    is_shards = task.run.data.train.endswith(token_shards.ENDING)
    positions = recipe.row_predictions if is_shards else settings.max_predictions_per_seq
    pairs = settings.packed_sequences
    return {
        f"{name}_{kind}": tf.TensorSpec([size.batch, count], dtype)
        for name, kind, count, dtype in (
            ("masked", "positions", positions, tf.int32),
            ("masked", "ids", positions, tf.int32),
            ("masked", "weights", positions, tf.float32),
            ("cls", "positions", pairs, tf.int32),
            ("next_sentence", "labels", pairs, tf.int32),
            ("next_sentence", "weights", pairs, tf.float32),
        )
    }


def taught_label(specs: Specs, classes: int) -> Specs:
    """What the teacher says of a text, [B, C]."""
    batch = specs["label"].shape[0]
    return {
        "labelled": tf.TensorSpec([batch], tf.float32),
        "teacher": tf.TensorSpec([batch, classes], tf.float32),
    }


def taught_words(specs: Specs, classes: int) -> Specs:
    """What the teacher says of words, [B, W, C]."""
    shape = specs["first_pieces"].shape
    return {
        "taught": tf.TensorSpec(shape, tf.float32),
        "teacher": tf.TensorSpec([*shape, classes], tf.float32),
    }


def texts_of(task: Task, size: Size) -> int:
    """Texts of one example of a dual encoder: a pair, and perhaps one that does not belong."""
    return 3 if task.run.data.negative else 2


TARGETS: dict[str, Callable[[Task, Size], Specs]] = {
    "classification": label,
    "dual_encoder": text_ids,
    "multiple_choice": choice,
    "pretraining": masked_words,
    "question_answering": spans,
    "tagging": words,
}
TAUGHT = {"classification": taught_label, "tagging": taught_words}
# Where an example is several sequences: how many.
SEQUENCES: dict[str, Callable[[Task, Size], int]] = {
    "dual_encoder": texts_of,
    "multiple_choice": lambda task, size: size.classes,
}
