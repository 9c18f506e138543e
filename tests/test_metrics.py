"""Metrics against values worked by hand, and against scikit-learn and SciPy themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from bert_tf.metrics import METRICS, compute

# 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
BINARY = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
BINARY_PREDICTED = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
CLASSES = np.array([0, 0, 1, 2])
CLASSES_PREDICTED = np.array([0, 1, 1, 1])
SETS = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)
SETS_PREDICTED = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.int32)


def value(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    return compute((name,), labels, predictions)[name]


def test_binary_metrics_by_hand() -> None:
    metrics = compute(("accuracy", "f1", "matthews"), BINARY, BINARY_PREDICTED)
    assert metrics["accuracy"] == pytest.approx(7 / 10)
    assert metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metrics["matthews"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_f1_of_several_classes_by_hand() -> None:
    # Class 0: 2*1/(2*1+1); class 1: 2*1/(2*1+2); class 2: never predicted.
    assert value("f1", CLASSES, CLASSES_PREDICTED) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value("macro_f1", CLASSES, CLASSES_PREDICTED) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert value("micro_f1", CLASSES, CLASSES_PREDICTED) == pytest.approx(2 / 4)
    # The macro F1 of two classes is not the F1 of class 1.
    assert value("macro_f1", BINARY, BINARY_PREDICTED) == pytest.approx((2 / 3 + 8 / 11) / 2)


def test_sets_of_labels_by_hand() -> None:
    names = ("subset_accuracy", "accuracy", "micro_f1", "macro_f1")
    metrics = compute(names, SETS, SETS_PREDICTED)
    assert metrics["subset_accuracy"] == metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["micro_f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_scores_by_hand() -> None:
    labels, predictions = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 10.0])
    metrics = compute(("pearson", "spearman", "mean_squared_error"), labels, predictions)
    assert metrics["pearson"] == pytest.approx(13 / math.sqrt(5 * 50))
    assert metrics["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert metrics["mean_squared_error"] == pytest.approx((0 + 1 + 1 + 36) / 4)


def test_against_the_libraries() -> None:
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 4, 500), random.integers(0, 4, 500)
    expected = sklearn.metrics.matthews_corrcoef(labels, predictions)
    assert value("matthews", labels, predictions) == pytest.approx(expected)
    expected = sklearn.metrics.f1_score(labels, predictions, average="macro")
    assert value("f1", labels, predictions) == pytest.approx(expected)
    scores = random.normal(size=500).round(1)  # with ties
    guesses = scores + random.normal(size=500)
    expected = scipy.stats.spearmanr(scores, guesses)[0]
    assert value("spearman", scores, guesses) == pytest.approx(expected)
    expected = scipy.stats.pearsonr(scores, guesses)[0]
    assert value("pearson", scores, guesses) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("constant", ["labels", "predictions"])
def test_undefined_correlation_is_zero_and_logged(
    name: str, constant: str, caplog: pytest.LogCaptureFixture
) -> None:
    varied, equal = np.array([1.0, 2.0, 3.0], np.float32), np.full(3, 2.5, np.float32)
    pair = (equal, varied) if constant == "labels" else (varied, equal)
    with caplog.at_level("WARNING", logger="absl"):
        assert value(name, *pair) == 0.0
    assert f"All {constant} are equal" in caplog.text


def test_correlation_of_one_example_is_zero() -> None:
    assert value("pearson", np.array([1.0]), np.array([2.0])) == 0.0


def test_nearly_constant_predictions_only_log(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.array([1.0, 2.0, 3.0])
    with caplog.at_level("WARNING", logger="absl"):
        score = value("pearson", labels, 1.0 + labels * np.finfo(np.float64).eps * 4)
    assert math.isfinite(score)
    assert "constant" in caplog.text


def test_one_class_only() -> None:
    ones = np.ones(4, np.int32)
    assert compute(("matthews", "accuracy", "f1"), ones, ones) == {
        "matthews": 0.0,
        "accuracy": 1.0,
        "f1": 1.0,
    }
    zeros = np.zeros(4, np.int32)
    assert compute(("matthews", "f1"), zeros, zeros) == {"matthews": 0.0, "f1": 0.0}
    assert value("f1", BINARY, np.zeros_like(BINARY)) == 0.0


def test_every_metric_is_a_plain_float() -> None:
    for name in METRICS:
        assert type(value(name, BINARY, BINARY_PREDICTED)) is float


def test_what_cannot_be_computed() -> None:
    with pytest.raises(ValueError, match=r"Unknown metrics \['f2'\]; choose from accuracy"):
        compute(("f2",), BINARY, BINARY_PREDICTED)
    with pytest.raises(ValueError, match=r"Labels \[10\] and predictions \[3\]"):
        compute(("f1",), BINARY, BINARY[:3])
    with pytest.raises(ValueError, match="at least one example"):
        compute(("f1",), BINARY[:0], BINARY[:0])
    with pytest.raises(ValueError, match="2 of 3 predictions are not finite"):
        compute(("pearson",), np.arange(3.0), np.array([1.0, np.nan, np.inf]))
