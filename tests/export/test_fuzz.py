"""Whatever strings come, answers are finite and well-formed, and do not depend on the batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.spans import to_iob2
from bert_tf.tasks.serving import IDS_INPUTS
from bert_tf.tokenization import Tokenizer
from tests.export.conftest import Exports
from tests.nasty_strings import huge_strings, long_texts, nasty_strings
from tests.served_models import (
    LABELS,
    PAIR_LABELS,
    TAGS,
    TOPICS,
    UNREPEATABLE,
    Arrays,
    Export,
    every_export,
)
from tests.tiny_run import CHECKPOINT

FEW, MANY = 300, 10_000  # strings for each signature
TOLERANCE = 1e-5
CHOICES = 3
PLACES = ("start", "end", "start_byte", "end_byte")  # of an answer
LARGE_BATCH = 1000


def string_signatures(export: Export) -> Iterator[tuple[str, list[str]]]:
    """Names of signatures that take strings, and of their inputs."""
    for signature, function in export.loaded.signatures.items():
        names = sorted(function.structured_input_signature[1])
        if names != sorted(IDS_INPUTS):
            yield signature, names


def columns(strings: Sequence[bytes], names: Sequence[str]) -> Arrays:
    """The strings [N] for each input, each time in another order; choices [N, C]."""

    def shuffled(*seed: int) -> np.ndarray:
        order = np.random.default_rng(seed).permutation(len(strings))
        return np.array([strings[row] for row in order], object)

    return {
        name: np.stack([shuffled(number, choice) for choice in range(CHOICES)], axis=1)
        if name == "choices"
        else shuffled(number)
        for number, name in enumerate(names)
    }


def rows_of(inputs: Arrays, rows: Any) -> Arrays:
    return {name: column[rows] for name, column in inputs.items()}


# --------------------------------------------------------------------------------- well-formedness


def check_label(names: Sequence[str], outputs: Arrays, inputs: Arrays) -> None:
    probabilities = outputs["probabilities"]
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=TOLERANCE)
    labels = [label.decode() for label in outputs["label"]]
    assert labels == [names[best] for best in probabilities.argmax(-1)]


def check_topics(outputs: Arrays, inputs: Arrays) -> None:
    np.testing.assert_array_equal(outputs["labels"], outputs["probabilities"] > 0.5)
    for label, row in zip(outputs["label"], outputs["labels"], strict=True):
        assert label.decode() == ",".join(TOPICS[c] for c in np.flatnonzero(row))


def check_tags(outputs: Arrays, inputs: Arrays) -> None:
    for row, raw in enumerate(inputs["text"]):
        text = raw.decode(errors="ignore").translate(replaced_code_points())
        count = outputs["num_words"][row]
        starts, ends = outputs["starts"][row, :count], outputs["ends"][row, :count]
        words = [word.decode() for word in outputs["words"][row, :count]]
        assert words == [text[start:end] for start, end in zip(starts, ends, strict=True)]
        assert (starts < ends).all()
        assert (ends[:-1] <= starts[1:]).all()
        assert {label.decode() for label in outputs["labels"][row, :count]} <= set(TAGS)
        scores = outputs["scores"][row]
        assert ((scores[:count] > 0) & (scores[:count] <= 1)).all()
        for padded in ("words", "labels", "scores", "starts", "ends"):
            assert not outputs[padded][row, count:].any()


@functools.cache
def replaced_code_points() -> dict[int, str]:
    """TensorFlow 2.19 encodes the code points that are no characters as U+FFFD; later ones none."""
    encoded = tf.strings.unicode_encode([0xFFFF], "UTF-8").numpy().decode()
    last_of_planes = [plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)]
    codes = [*range(0xFDD0, 0xFDF0), *last_of_planes]
    return {} if encoded == "\uffff" else dict.fromkeys(codes, encoded)


def check_allowed_tags(outputs: Arrays, inputs: Arrays) -> None:
    check_tags(outputs, inputs)
    for count, row in zip(outputs["num_words"], outputs["labels"], strict=True):
        tags = [label.decode() for label in row[:count]]
        assert tags == to_iob2(tags)


def check_answer(outputs: Arrays, inputs: Arrays) -> None:
    for row, context in enumerate(inputs["context"]):
        answer, score = outputs["answer"][row], outputs["score"][row]
        assert 0 <= score <= 1 + TOLERANCE
        start, end, start_byte, end_byte = (int(outputs[name][row]) for name in PLACES)
        if start == -1:
            assert (end, start_byte, end_byte, answer) == (-1, -1, -1, b"")
            continue
        assert 0 <= start < end
        assert answer == context[start_byte:end_byte] != b""
        assert answer.decode(errors="ignore") == context.decode(errors="ignore")[start:end]
    if "no_answer_probability" in outputs:
        assert (np.abs(outputs["no_answer_probability"] - 0.5) <= 0.5).all()


def check_choice(outputs: Arrays, inputs: Arrays) -> None:
    np.testing.assert_allclose(outputs["probabilities"].sum(-1), 1, atol=TOLERANCE)
    np.testing.assert_array_equal(outputs["label"], outputs["probabilities"].argmax(-1))
    rows = np.arange(len(outputs["label"]))
    assert outputs["choice"].tolist() == inputs["choices"][rows, outputs["label"]].tolist()


def check_embedding(outputs: Arrays, inputs: Arrays) -> None:
    np.testing.assert_allclose(np.linalg.norm(outputs["embedding"], axis=-1), 1, atol=TOLERANCE)


CHECKS: dict[tuple[str, str], Callable[[Arrays, Arrays], None]] = {
    ("classification", "serving_default"): functools.partial(check_label, LABELS),
    ("pair", "serving_default"): functools.partial(check_label, PAIR_LABELS),
    ("tagging", "serving_default"): check_tags,
    ("question_answering", "serving_default"): check_answer,
    ("multiple_choice", "serving_default"): check_choice,
    ("dual_encoder", "serving_default"): check_embedding,
    ("dual_encoder", "embed"): check_embedding,
    ("multi_task", "topics"): check_topics,
    ("multi_task", "names"): check_allowed_tags,
    ("multi_task", "answers"): check_answer,
}


def ask(export: Export, model: str, signature: str, inputs: Arrays) -> Arrays:
    """The answers, which are checked."""
    outputs = export.ask(signature, inputs)
    count = len(next(iter(inputs.values())))
    for name, value in outputs.items():
        assert len(value) == count, name
        assert value.dtype == object or np.isfinite(value).all(), name
    CHECKS[model, signature](outputs, inputs)
    return outputs


# ------------------------------------------------------------------------------------------ batches


def in_batches(export: Export, model: str, signature: str, inputs: Arrays, size: int) -> list[Any]:
    """The answers to each row, each cut to what is not padding."""
    count = len(next(iter(inputs.values())))
    answers = []
    for start in range(0, count, size):
        outputs = ask(export, model, signature, rows_of(inputs, slice(start, start + size)))
        answers += [own(outputs, row) for row in range(len(next(iter(outputs.values()))))]
    return answers


def own(outputs: Arrays, row: int) -> Arrays:
    """The answer to one row, without the columns that other texts need."""
    words = outputs["num_words"][row] if "num_words" in outputs else None
    return {
        name: value[row, :words] if value.ndim > 1 else value[row]
        for name, value in outputs.items()
    }


def differences(one: Arrays, other: Arrays) -> set[str]:
    """Outputs that are not the same, but for ties: of what is equally likely, either will do."""
    found = {name for name, value in one.items() if differ(value, other[name])}
    if found & {"label", "choice"} and is_tie(one["probabilities"]):
        found -= {"label", "choice"}
    # A text that repeats itself, or is nothing but unknown pieces, has equal windows.
    if found & {*PLACES} and pieces(one["answer"]) == pieces(other["answer"]):
        found -= {"answer", *PLACES}
    return found


def differ(value: np.ndarray, other: np.ndarray) -> bool:
    if np.asarray(value).dtype.kind != "f":
        return not np.array_equal(value, other)
    return np.shape(value) != np.shape(other) or np.abs(value - other).max(initial=0) > TOLERANCE


def pieces(answer: bytes) -> list[int]:
    return tokenizer()(tf.constant([answer])).to_list()[0]


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(CHECKPOINT))


def is_tie(probabilities: np.ndarray) -> bool:
    """Whether the two likeliest are equally likely, such as choices that are cut to one text."""
    second, first = np.sort(probabilities)[-2:]
    return first - second <= 2 * TOLERANCE


def fuzz(exports: Exports, model: str, form: str, count: int) -> None:
    export = exports(model, form)
    for seed, (signature, names) in enumerate(string_signatures(export)):
        inputs = columns(nasty_strings(count, seed), names)
        answers = in_batches(export, model, signature, inputs, 64)
        if form in UNREPEATABLE:
            continue
        order = np.random.default_rng(seed).permutation(count)
        again = in_batches(export, model, signature, rows_of(inputs, order), 37)
        alone = {
            row: own(ask(export, model, signature, rows_of(inputs, [row])), 0)
            for row in order[: count // 10]
        }
        for row, other in [*zip(order, again, strict=True), *alone.items()]:
            found = differences(answers[row], other)
            assert not found, f"{signature}: {rows_of(inputs, row)}"


@every_export
def test_few_strings(exports: Exports, model: str, form: str) -> None:
    fuzz(exports, model, form, FEW)


@pytest.mark.slow
@every_export
def test_many_strings(exports: Exports, model: str, form: str) -> None:
    fuzz(exports, model, form, MANY)


@every_export
def test_batches_of_none_and_of_many(exports: Exports, model: str, form: str) -> None:
    export = exports(model, form)
    for signature, names in string_signatures(export):
        for count in (0, LARGE_BATCH):
            ask(export, model, signature, columns(nasty_strings(count, 7), names))


@every_export
def test_megabytes(exports: Exports, model: str, form: str) -> None:
    ask_with(exports(model, form), model, huge_strings())


@pytest.mark.slow
@every_export
def test_megabytes_of_words(exports: Exports, model: str, form: str) -> None:
    ask_with(exports(model, form), model, long_texts())


def ask_with(export: Export, model: str, strings: Sequence[bytes]) -> None:
    """Each string in one of the inputs, all of them in one batch."""
    for signature, names in string_signatures(export):
        inputs = columns([b"the cat"] * len(strings), names)
        for row, string in enumerate(strings):
            inputs[names[row % len(names)]][row, ...] = string
        ask(export, model, signature, inputs)


@every_export
def test_inputs_of_other_sizes_are_refused(exports: Exports, model: str, form: str) -> None:
    export = exports(model, form)
    for signature, names in string_signatures(export):
        if len(names) == 1:
            continue
        for name in names:
            for counts in ((1, 2), (0, 1), (1, 0), (3, 2)):
                inputs = columns(nasty_strings(counts[0]), names)
                inputs[name] = columns(nasty_strings(counts[1]), names)[name]
                with pytest.raises(tf.errors.InvalidArgumentError, match="differ in number"):
                    export.ask(signature, inputs)


def test_strings_are_the_same_each_time() -> None:
    assert nasty_strings(500, 3) == nasty_strings(500, 3)
    assert nasty_strings(500, 3)[:-1] != nasty_strings(500, 4)[:-1]
    assert len(set(nasty_strings(500, 3))) > 450
