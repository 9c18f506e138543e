"""Labels: inferred, encoded, saved, and refused."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from bert_tf.data.text import LIST_MARK, TextExamples
from bert_tf.tasks.classification import Labels


def examples_of(*labels: str, source: str = "dev.tsv") -> TextExamples:
    lines = list(range(2, len(labels) + 2))
    return TextExamples([b"text"] * len(labels), None, list(labels), None, source, lines)


def listed(*labels: str) -> str:
    return "".join(LIST_MARK + label for label in labels)


UNLABELLED = TextExamples([b"text"], None, None, None, "test.tsv", [2])


def test_classes_are_sorted() -> None:
    labels = Labels.infer("class", examples_of("neutral", "entailment", "neutral", "Other"))
    assert labels.names == ("Other", "entailment", "neutral")
    assert labels.num_outputs == 3
    encoded = labels.encode(examples_of("neutral", "Other"))
    assert encoded.dtype == np.int32
    np.testing.assert_array_equal(encoded, [2, 0])


def test_numbers_are_sorted_by_value() -> None:
    assert Labels.infer("class", examples_of("10", "2", "-1", "2.5")).names == (
        "-1",
        "2",
        "2.5",
        "10",
    )


def test_multilabel_text_and_lists() -> None:
    examples = examples_of("b; a", listed("c;d", "a"), "", listed(), "b;b; ")
    labels = Labels.infer("multilabel", examples, ";")
    assert labels.names == ("a", "b", "c;d")
    encoded = labels.encode(examples)
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, [[1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]])


def test_scores() -> None:
    labels = Labels.infer("regression", examples_of("0", "2.50", "-1e1"))
    assert labels == Labels("regression")
    assert labels.num_outputs == 1
    encoded = labels.encode(examples_of("0", "2.50", "-1e1"))
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded, [0.0, 2.5, -10.0])


@pytest.mark.parametrize("score", ["nan", "inf", "-inf", "1e39", "1,5", "", "high", listed("1")])
def test_scores_that_are_no_finite_numbers(score: str) -> None:
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: .* is not a finite number"):
        Labels.infer("regression", examples_of("1", score))


def test_unknown_label() -> None:
    labels = Labels("class", ("negative", "positive"))
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: label 'postive' is unknown") as error:
        labels.encode(examples_of("positive", "postive"))
    assert "Did you mean 'positive'?" in str(error.value)
    assert "trained with 'negative', 'positive'." in str(error.value)
    with pytest.raises(ValueError, match="label 'new' is unknown"):
        Labels("multilabel", ("old",)).encode(examples_of("old,new"))


def test_missing_label() -> None:
    with pytest.raises(ValueError, match=r"dev\.tsv, line 3: the label is missing"):
        Labels.infer("class", examples_of("a", "", "b"))


def test_lists_need_the_multilabel_kind() -> None:
    with pytest.raises(ValueError, match=r"line 2: the label is the list \['a', 'b'\]; set"):
        Labels.infer("class", examples_of(listed("a", "b"), "c"))


@pytest.mark.parametrize("kind", ["class", "multilabel", "regression"])
def test_text_without_labels(kind: str) -> None:
    with pytest.raises(ValueError, match=r"test\.tsv has no labels"):
        Labels.infer(kind, UNLABELLED)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"all 2 examples have the label 'a', and a classifier"):
        Labels.infer("class", examples_of("a", "a"))


def test_multilabel_without_any_label_is_refused() -> None:
    with pytest.raises(ValueError, match="has no label on any of 2 examples"):
        Labels.infer("multilabel", examples_of("", " , "))


def test_suspiciously_many_labels_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="absl"):
        Labels.infer("class", examples_of(*"aabb"))
        assert not caplog.text
        Labels.infer("class", examples_of(*(f"text {number}" for number in range(30))))
    assert "30 different labels in 30 examples" in caplog.text


@pytest.mark.parametrize(
    ("values", "part"),
    [
        (("classes", ("a", "b")), "must be one of class, multilabel, regression"),
        (("class", ("a", "a")), "must differ"),
        (("class", ()), "cannot be named"),
        (("regression", ("a",)), "cannot be named"),
        (("multilabel", ("a",), ""), "label_separator is empty"),
    ],
)
def test_impossible_labels(values: tuple, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        Labels(*values)


@pytest.mark.parametrize(
    "labels",
    [Labels("class", ("ä\u2028", "b")), Labels("multilabel", ("a",), "|"), Labels("regression")],
)
def test_saved_and_loaded(tmp_path: pathlib.Path, labels: Labels) -> None:
    path = str(tmp_path / "labels.json")
    labels.save(path)
    assert Labels.load(path) == labels
    assert [file.name for file in tmp_path.iterdir()] == ["labels.json"]


@pytest.mark.parametrize("content", ["{}", '{"kind": "class", "names": 3, "separator": ","}'])
def test_a_file_that_holds_no_labels(tmp_path: pathlib.Path, content: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"labels\.json does not describe labels"):
        Labels.load(str(path))
