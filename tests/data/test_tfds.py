"""TensorFlow Datasets, on a small data set of our own."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bert_tf.data.text import LIST_MARK, Columns, read_examples

tfds = pytest.importorskip("tensorflow_datasets")

RECORDS = [
    ("gut / sehr", "pos", ["new", "old"]),
    ("schlecht", "neg", []),
    ("so so", "pos", ["old"]),
]


class BertTfTinyReviews(tfds.core.GeneratorBasedBuilder):
    """Three reviews."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = pathlib.Path(__file__).parent  # where it would look for a README

    def _info(self) -> Any:
        classes = tfds.features.ClassLabel(names=["neg", "pos"])
        tags = tfds.features.Sequence(tfds.features.ClassLabel(names=["new", "old"]))
        features = {
            "text": tfds.features.Text(),
            "label": classes,
            "tags": tags,
            "score": tfds.features.Scalar(np.float32),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {"train": self._generate_examples(True), "test": self._generate_examples(False)}

    def _generate_examples(self, labelled: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, (text, label, tags) in enumerate(RECORDS):
            label = label if labelled else -1
            yield number, {"text": text, "label": label, "tags": tags, "score": number / 2}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("tfds"))
    BertTfTinyReviews(data_dir=folder).download_and_prepare()
    return folder


def read(data_dir: str, split: str, label: str = "label", required: bool = True) -> Any:
    source = f"tfds:bert_tf_tiny_reviews/{split}"
    return read_examples(source, Columns("text", label=label), data_dir, required)


def test_classes_have_their_names(data_dir: str) -> None:
    examples = read(data_dir, "train")
    labels = dict(zip(examples.text_a, examples.labels, strict=True))
    assert labels == {text.encode(): label for text, label, _ in RECORDS}
    assert examples.lines == [1, 2, 3]
    assert examples.where(0) == "tfds:bert_tf_tiny_reviews/train, record 1"


def test_sequences_of_classes_and_numbers(data_dir: str) -> None:
    examples = read(data_dir, "train", label="tags")
    tags = dict(zip(examples.text_a, examples.labels, strict=True))
    assert tags[b"so so"] == f"{LIST_MARK}old"
    assert tags[b"gut / sehr"] == f"{LIST_MARK}new{LIST_MARK}old"
    assert tags[b"schlecht"] == ""
    assert sorted(read(data_dir, "train", label="score").labels) == ["0.0", "0.5", "1.0"]


def test_unknown_classes_are_no_labels(data_dir: str) -> None:
    assert read(data_dir, "test", required=False).labels is None
    with pytest.raises(ValueError, match=r"has no column 'label'"):
        read(data_dir, "test")


def test_slices_and_the_order_are_stable(data_dir: str) -> None:
    assert len(read(data_dir, "train[:2]")) == 2
    assert read(data_dir, "train") == read(data_dir, "train")


def test_unknown_split_column_and_data_set(data_dir: str) -> None:
    with pytest.raises(
        ValueError, match=r"'dev' of .* cannot be read .* Its splits: test, train\."
    ):
        read(data_dir, "dev")
    with pytest.raises(ValueError, match="Did you mean 'tags'"):
        read(data_dir, "train", label="tag")
    with pytest.raises(ValueError, match="'bert_tf_no_such_data' is no data set of TFDS"):
        read_examples("tfds:bert_tf_no_such_data/train", Columns("text"), data_dir)
