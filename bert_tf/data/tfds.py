"""Rows of TensorFlow Datasets: a dict per example, column name -> value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

TFDS_PREFIX = "tfds:"

Row = dict[str, Any]  # column name -> value


def tfds_rows(source: str, data_dir: str) -> Iterator[tuple[int, Row]]:
    """Records of `tfds:NAME/SPLIT`, with the names of classes; a class of -1 (none) is no value."""
    name, _, split = source.removeprefix(TFDS_PREFIX).rpartition("/")
    builder = tfds_builder(source, name, data_dir)
    try:
        builder.download_and_prepare()
        records = builder.as_dataset(split=split).as_numpy_iterator()
    except Exception as error:  # a data set's own code and its download can fail in any way
        splits = ", ".join(sorted(builder.info.splits)) or "unknown before it is downloaded"
        raise ValueError(
            f"{source}: split {split!r} of {name!r} cannot be read from {builder.data_dir} "
            f"({one_line(error)}). Its splits: {splits}."
        ) from error
    features = builder.info.features
    if not hasattr(features, "keys"):
        raise ValueError(f"{source} has no named columns; only data sets of dicts can be read.")
    for number, record in enumerate(records, start=1):
        row = {column: tfds_value(value, features[column]) for column, value in record.items()}
        yield number, {column: value for column, value in row.items() if value is not None}


def tfds_builder(source: str, name: str, data_dir: str) -> Any:  # noqa: ANN401 - imported only here
    """The builder of a data set; raises ValueError where the package or the data set is missing."""
    if not name:
        raise ValueError(
            f"{source!r} names no data set and split; write {TFDS_PREFIX}NAME/SPLIT, for example "
            f"{TFDS_PREFIX}glue/sst2/train."
        )
    try:
        import tensorflow_datasets
    except ImportError:
        raise ValueError(
            f"{source} needs TensorFlow Datasets: run `pip install tensorflow-datasets`, or name a "
            "TSV, CSV or JSONL file."
        ) from None
    try:
        return tensorflow_datasets.builder(name, data_dir=data_dir or None)
    except Exception as error:  # unknown name, or a builder that cannot be made
        raise ValueError(
            f"{source}: {name!r} is no data set of TFDS ({one_line(error)})."
        ) from error


def one_line(error: Exception) -> str:
    """The error's message without its line breaks."""
    return " ".join(str(error).split())


def tfds_value(value: Any, feature: Any) -> Any:  # noqa: ANN401 - any feature of any data set
    """The value as JSON would hold it; None where a class is not known."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.ndarray):
        return [tfds_value(part, getattr(feature, "feature", None)) for part in value]
    if hasattr(feature, "int2str"):
        return feature.int2str(value) if value >= 0 else None
    return value.item() if isinstance(value, np.generic) else value
