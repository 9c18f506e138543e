"""The nine GLUE tasks (Wang et al., 2018): their official files, and BERT's settings for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from bert_tf.data.text import Columns, TextExamples, read_examples

# Paper, section 4.1: "batch size of 32 and fine-tune for 3 epochs", the best of these rates on dev.
BATCH_SIZE = 32
EPOCHS = 3.0
LEARNING_RATES = (5e-5, 4e-5, 3e-5, 2e-5)

SPLITS = ("train", "dev", "test", "dev_mismatched", "test_mismatched")  # the last two: MNLI
FILES: dict[str, tuple[str, ...]] = {
    "train": ("train.tsv",),
    "dev": ("dev.tsv",),
    "test": ("test.tsv",),
}
SENTENCES = Columns("sentence1", "sentence2", "label", "index", exact=False)


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task; dicts are keyed by split."""

    folder: str
    kind: str  # "class" or "regression"
    labels: tuple[str, ...]  # by number, in the order of the original release
    metrics: tuple[str, ...]  # of `bert_tf.metrics`; the first chooses the best checkpoint
    columns: Columns  # of train and dev
    submissions: dict[str, str]  # file names that the GLUE server expects
    paper_scores: dict[str, float]  # BERT-base on the GLUE server: first metric x 100, Table 1
    files: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: FILES)
    test_columns: Columns | None = None  # where they differ
    batch_size: int = BATCH_SIZE
    epochs: float = EPOCHS
    learning_rates: tuple[float, ...] = LEARNING_RATES


GLUE = {
    "cola": GlueTask(
        folder="CoLA",
        kind="class",
        labels=("0", "1"),
        metrics=("matthews", "accuracy"),
        columns=Columns("3", label="1", header=False, exact=False),
        test_columns=Columns("sentence", index="index", exact=False),
        submissions={"test": "CoLA.tsv"},
        paper_scores={"test": 52.1},
    ),
    "sst2": GlueTask(
        folder="SST-2",
        kind="class",
        labels=("0", "1"),
        metrics=("accuracy",),
        columns=Columns("sentence", label="label", index="index", exact=False),
        submissions={"test": "SST-2.tsv"},
        paper_scores={"test": 93.5},
    ),
    "mrpc": GlueTask(
        folder="MRPC",
        kind="class",
        labels=("0", "1"),
        metrics=("f1", "accuracy"),
        columns=Columns("#1 String", "#2 String", "Quality", "index", exact=False),
        files={
            "train": ("train.tsv", "msr_paraphrase_train.txt"),
            "dev": ("dev.tsv",),
            "test": ("test.tsv", "msr_paraphrase_test.txt"),
        },
        submissions={"test": "MRPC.tsv"},
        paper_scores={"test": 88.9},
    ),
    "stsb": GlueTask(
        folder="STS-B",
        kind="regression",
        labels=(),
        metrics=("spearman", "pearson"),
        columns=Columns("sentence1", "sentence2", "score", "index", exact=False),
        submissions={"test": "STS-B.tsv"},
        paper_scores={"test": 85.8},
    ),
    "qqp": GlueTask(
        folder="QQP",
        kind="class",
        labels=("0", "1"),
        metrics=("f1", "accuracy"),
        # Some questions hold a line break, which leaves two lines with too few columns each.
        columns=Columns(
            "question1", "question2", "is_duplicate", "id", exact=False, skip_short_rows=True
        ),
        test_columns=Columns("question1", "question2", index="id", exact=False),
        submissions={"test": "QQP.tsv"},
        paper_scores={"test": 71.2},
    ),
    "mnli": GlueTask(
        folder="MNLI",
        kind="class",
        labels=("contradiction", "entailment", "neutral"),
        metrics=("accuracy",),
        columns=Columns("sentence1", "sentence2", "gold_label", "index", exact=False),
        files={
            "train": ("train.tsv",),
            "dev": ("dev_matched.tsv",),
            "dev_mismatched": ("dev_mismatched.tsv",),
            "test": ("test_matched.tsv",),
            "test_mismatched": ("test_mismatched.tsv",),
        },
        submissions={"test": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
        paper_scores={"test": 84.6, "test_mismatched": 83.4},
    ),
    "qnli": GlueTask(
        folder="QNLI",
        kind="class",
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        columns=Columns("question", "sentence", "label", "index", exact=False),
        submissions={"test": "QNLI.tsv"},
        paper_scores={"test": 90.5},
    ),
    "rte": GlueTask(
        folder="RTE",
        kind="class",
        labels=("entailment", "not_entailment"),
        metrics=("accuracy",),
        columns=SENTENCES,
        submissions={"test": "RTE.tsv"},
        paper_scores={"test": 66.4},
    ),
    "wnli": GlueTask(
        folder="WNLI",
        kind="class",
        labels=("0", "1"),
        metrics=("accuracy",),
        columns=SENTENCES,
        submissions={"test": "WNLI.tsv"},
        paper_scores={},  # left out by the paper: the dev set contradicts the training set
    ),
}


def read_split(task: GlueTask, data_dir: str, split: str) -> TextExamples:
    """Reads a split from the folder of all tasks (`glue_data`) or of this task.

    Args:
        task: a value of GLUE.
        data_dir: the folder.
        split: "train", "dev" or "test"; MNLI has "dev_mismatched" and "test_mismatched" too.

    Raises:
        ValueError: no such split or file, or its contents are not those of the task.
    """
    if split not in task.files:
        raise ValueError(f"{task.folder} has no split {split!r}, only {', '.join(task.files)}.")
    columns = task.columns
    if split.startswith("test"):
        columns = task.test_columns or task.columns
    path = find_file(task, data_dir, split)
    return read_examples(path, columns, require_labels=not split.startswith("test"))


def find_file(task: GlueTask, data_dir: str, split: str) -> str:
    """The path of a split; raises ValueError naming the places where it was looked for."""
    folders = (tf.io.gfile.join(data_dir, task.folder), data_dir)
    names = task.files[split]
    paths = [tf.io.gfile.join(folder, name) for folder in folders for name in names]
    for path in paths:
        if tf.io.gfile.exists(path):
            return path
    raise ValueError(
        f"The {split} split of {task.folder} is not at {' or '.join(paths)}; set "
        "config.data.data_dir to the folder with the official GLUE files."
    )


def submission_lines(
    ids: Sequence[str] | None, predicted_labels: Sequence[str | float | list[str]]
) -> list[str]:
    """The predictions of a test split as the GLUE server wants them, header included.

    Args:
        ids: the file's own numbers; None counts from 0.
        predicted_labels: label names, or scores for STS-B (clipped to [0, 5], 3 decimals).

    Raises:
        ValueError: as many ids as predictions are needed, and finite scores.
    """
    ids = [str(number) for number in range(len(predicted_labels))] if ids is None else ids
    if len(ids) != len(predicted_labels):
        raise ValueError(f"{len(predicted_labels)} predictions for {len(ids)} examples.")
    predictions = [official(label) for label in predicted_labels]
    rows = [f"{i}\t{prediction}" for i, prediction in zip(ids, predictions, strict=True)]
    return ["index\tprediction", *rows]


def official(label: str | float | list[str]) -> str:
    """A prediction as the GLUE server reads it."""
    if isinstance(label, str | list):  # GLUE has no multi-label task
        return str(label)
    if not np.isfinite(label):
        raise ValueError(f"the score {label} of a prediction is not a finite number.")
    return f"{min(max(float(label), 0.0), 5.0):.3f}"
