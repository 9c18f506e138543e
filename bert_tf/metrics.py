"""What the papers and the GLUE server report, by scikit-learn and SciPy.

Legend: E examples, C classes. Class labels are int [E], multi-label ones 0 or 1 [E, C], scores [E].
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import scipy.stats
import sklearn.metrics
from absl import logging

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of examples that are right: the class [E], or every label of [E, C]."""
    return float(sklearn.metrics.accuracy_score(labels, predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of class 1 where 0 and 1 are the only classes (MRPC, QQP), else the mean over classes."""
    if labels.ndim == 1 and max(labels.max(), predictions.max()) <= 1:
        return f1_score(labels, predictions, "binary")
    return f1_score(labels, predictions, "macro")


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Unweighted mean of the F1 of every class or label that occurs."""
    return f1_score(labels, predictions, "macro")


def micro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """F1 of all decisions counted together."""
    return f1_score(labels, predictions, "micro")


def f1_score(labels: np.ndarray, predictions: np.ndarray, average: str) -> float:
    """F1; a class that is neither there nor predicted counts 0, as in scikit-learn's default."""
    score = sklearn.metrics.f1_score(labels, predictions, average=average, zero_division=0.0)
    return float(score)


def matthews(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation (CoLA); 0 where only one class is there or predicted."""
    return float(sklearn.metrics.matthews_corrcoef(labels, predictions))


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Linear correlation (STS-B); 0 where it is not defined."""
    return correlation(scipy.stats.pearsonr, labels, predictions)


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Rank correlation (STS-B); 0 where it is not defined."""
    return correlation(scipy.stats.spearmanr, labels, predictions)


def correlation(
    function: Callable[..., tuple[float, float]], labels: np.ndarray, predictions: np.ndarray
) -> float:
    """The correlation, or 0 with a logged warning where one side is constant."""
    # In float64: the sums of squares of thousands of float32 scores lose digits.
    labels, predictions = labels.astype(np.float64), predictions.astype(np.float64)
    if min(np.ptp(labels), np.ptp(predictions)) == 0:
        constant = "labels" if np.ptp(labels) == 0 else "predictions"
        logging.warning("All %s are equal: the correlation is not defined, 0 is used.", constant)
        return 0.0
    value = float(function(labels, predictions)[0])
    return value if math.isfinite(value) else 0.0


def mean_squared_error(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean of squared differences."""
    return float(sklearn.metrics.mean_squared_error(labels, predictions))


METRICS: dict[str, Metric] = {
    "accuracy": accuracy,
    "subset_accuracy": accuracy,  # its name where an example has several labels
    "f1": f1,
    "macro_f1": macro_f1,
    "micro_f1": micro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "mean_squared_error": mean_squared_error,
}


def compute(
    names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray
) -> dict[str, float]:
    """The named metrics of predictions, both [E] or [E, C].

    Raises:
        ValueError: unknown names, different shapes, no examples, or predictions that are not
            finite.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"Unknown metrics {unknown}; choose from {', '.join(METRICS)}.")
    if labels.shape != predictions.shape or not len(labels):
        raise ValueError(
            f"Labels {list(labels.shape)} and predictions {list(predictions.shape)} must have one "
            "shape and at least one example."
        )
    if not np.isfinite(predictions).all():
        count = int((~np.isfinite(predictions)).sum())
        raise ValueError(
            f"{count} of {predictions.size} predictions are not finite numbers; the model has "
            "diverged: lower the learning rate, or train in float32."
        )
    with warnings_logged():
        return {name: METRICS[name](labels, predictions) for name in names}


@contextmanager
def warnings_logged() -> Iterator[None]:
    """Logs what the libraries warn of (a constant prediction, say), once each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for message in dict.fromkeys(str(warning.message) for warning in caught):
        logging.warning("%s", message)
