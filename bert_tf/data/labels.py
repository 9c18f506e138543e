"""Labels of classification and regression: learnt from the training file, saved with the model."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from absl import logging

from bert_tf.config import read_json, write_json
from bert_tf.data.rows import did_you_mean, shorten
from bert_tf.data.text import LIST_MARK, TextExamples

KINDS = ("class", "multilabel", "regression")
LARGEST_SCORE = float(np.finfo(np.float32).max)
SHOWN_LABELS = 20  # named in a message


@dataclasses.dataclass(frozen=True)
class Labels:
    """What a model's outputs stand for; C labels."""

    kind: str  # "class" (exactly one), "multilabel" (any number of them) or "regression" (a score)
    names: tuple[str, ...] = ()  # by output number; empty for regression
    separator: str = ","  # between the labels of one example (multilabel)

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown kind and for names that do not fit it."""
        if self.kind not in KINDS:
            raise ValueError(f"config.task.kind={self.kind!r} must be one of {', '.join(KINDS)}.")
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"Labels must differ: {shown(self.names)}.")
        if (self.kind == "regression") == bool(self.names):
            raise ValueError(f"Labels of kind {self.kind!r} cannot be named {list(self.names)}.")
        if self.kind == "multilabel" and not self.separator:
            raise ValueError("config.data.label_separator is empty; multi-label text needs one.")

    @classmethod
    def infer(cls, kind: str, examples: TextExamples, separator: str = ",") -> Labels:
        """Takes the labels of the training examples, in sorted order (numbers by value).

        Raises:
            ValueError: no labels, a missing one, a single class, or scores that are not numbers.
        """
        if kind == "regression":
            labels = cls(kind, (), separator)
            labels.encode(examples)
            return labels
        names = {name for parts in parse(kind, examples, separator) for name in parts}
        if kind == "class" and len(names) < 2:
            raise ValueError(
                f"{examples.source}: all {len(examples)} examples have the label {shown(names)}, "
                "and a classifier needs at least 2; is config.data.label the right column?"
            )
        if not names:
            raise ValueError(f"{examples.source} has no label on any of {len(examples)} examples.")
        if len(names) > max(SHOWN_LABELS, len(examples) // 2):
            logging.warning(
                "%s: %d different labels in %d examples; is config.data.label the right column?",
                examples.source,
                len(names),
                len(examples),
            )
        return cls(kind, sorted_names(names), separator)

    @property
    def num_outputs(self) -> int:
        """Outputs of the model: C, or 1 for regression."""
        return len(self.names) or 1

    def encode(self, examples: TextExamples) -> np.ndarray:
        """Numbers for the labels of all examples.

        Returns:
            class: int32 [E]; multilabel: float32 [E, C] of 0 and 1; regression: float32 [E].

        Raises:
            ValueError: a label is missing, unknown, or no finite number (regression).
        """
        if self.kind == "regression":
            labels = given_labels(examples)
            return np.array(
                [score(examples, e, label) for e, label in enumerate(labels)], np.float32
            )
        numbers = {name: number for number, name in enumerate(self.names)}
        parsed = parse(self.kind, examples, self.separator)
        for example, parts in enumerate(parsed):
            for name in parts:
                if name not in numbers:
                    raise ValueError(self.unknown(examples.where(example), name))
        if self.kind == "class":
            return np.array([numbers[name] for (name,) in parsed], np.int32)
        encoded = np.zeros([len(examples), len(self.names)], np.float32)
        for example, parts in enumerate(parsed):
            encoded[example, [numbers[name] for name in parts]] = 1.0
        return encoded

    def unknown(self, where: str, name: str) -> str:
        """The message for a label that training has not seen."""
        return (
            f"{where}: label {shorten(name)} is unknown.{did_you_mean(name, self.names)} The model "
            f"was trained with {shown(self.names)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self) | {"names": list(self.names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Labels:
        """The inverse of `to_dict`; raises ValueError where it is none."""
        try:
            return cls(values["kind"], tuple(values["names"]), values["separator"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"kind, names and separator are needed: {error!r}.") from None

    def save(self, path: str) -> None:
        """Writes `labels.json`."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str) -> Labels:
        """Reads `labels.json`; raises ValueError naming the file."""
        values = read_json(path)
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path} does not describe labels: {error}") from None


def given_labels(examples: TextExamples) -> list[str]:
    """The labels, or ValueError where the file has none."""
    if examples.labels is None:
        raise ValueError(
            f"{examples.source} has no labels; name their column in config.data.label."
        )
    return examples.labels


def parse(kind: str, examples: TextExamples, separator: str) -> list[list[str]]:
    """The labels of each example: exactly one for "class", any number for "multilabel".

    Raises:
        ValueError: an example of kind "class" has none, or a JSON list of them.
    """
    labels = given_labels(examples)
    if kind == "multilabel":
        return [split_labels(label, separator) for label in labels]
    for example, label in enumerate(labels):
        if not label:
            raise ValueError(f"{examples.where(example)}: the label is missing; add it.")
        if label.startswith(LIST_MARK):
            raise ValueError(
                f"{examples.where(example)}: the label is the list {split_labels(label, '')}; set "
                "config.task.kind=multilabel, or give each example a single label."
            )
    return [[label] for label in labels]


def split_labels(label: str, separator: str) -> list[str]:
    """The labels of a JSON list, or of text with separators; without empty and repeated ones."""
    parts = label[1:].split(LIST_MARK) if label.startswith(LIST_MARK) else label.split(separator)
    return list(dict.fromkeys(part.strip() for part in parts if part.strip()))


def score(examples: TextExamples, example: int, label: str) -> float:
    """A finite number, or ValueError naming the line."""
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST_SCORE:  # true for nan, too
        raise ValueError(
            f"{examples.where(example)}: {shorten(label)} is not a finite number, which a score "
            "(config.task.kind=regression) must be."
        )
    return value


def sorted_names(names: set[str]) -> tuple[str, ...]:
    """By value where all are numbers ("2" before "10"), else by code points."""
    try:
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    except ValueError:
        return tuple(sorted(names))


def shown(names: tuple[str, ...] | set[str]) -> str:
    """The first names, for a message."""
    listed = sorted_names(set(names))
    more = f" and {len(listed) - SHOWN_LABELS} more" if len(listed) > SHOWN_LABELS else ""
    return ", ".join(shorten(name) for name in listed[:SHOWN_LABELS]) + more
