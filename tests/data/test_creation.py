"""Files of instances: the same bytes however they were made, and none that is half there."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import random
from typing import Any

import numpy as np
import pytest

from bert_tf.data import creation
from bert_tf.data.creation import CreationConfig, create_pretraining_data
from bert_tf.data.instances import InstanceConfig
from tests.tiny_records import read_instances

WORDS = ["cat", "dog", "sat", "ran", "the", "mat", "##s", "##ed", "."]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_inputs(folder: pathlib.Path, documents: int = 40) -> CreationConfig:
    """Three files of text, and a vocabulary; eight shards."""
    rng = random.Random(3)
    (folder / "vocab.txt").write_text("\n".join(SPECIAL + WORDS) + "\n")
    endings = ["", "s", "ed", "."]
    for name in "abc":
        text = []
        for _ in range(documents):
            for _ in range(rng.randrange(2, 12)):
                words = [rng.choice(WORDS[:6]) + rng.choice(endings) for _ in range(7)]
                text.append(" ".join(words))
            text.append("")
        (folder / f"{name}.txt").write_text("\n".join(text))
    size = sum(path.stat().st_size for path in folder.glob("?.txt"))
    return CreationConfig(
        input_file=f"{folder}/?.txt",
        output_file=f"{folder}/out/x.tfrecord",
        vocab_file=f"{folder}/vocab.txt",
        shard_bytes=size // 8,
        instances=InstanceConfig(max_seq_length=32, max_predictions_per_seq=5, dupe_factor=2),
    )


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CreationConfig:
    """Inputs whose output was made in one process."""
    config = write_inputs(tmp_path_factory.mktemp("creation"))
    create_pretraining_data(config, processes=1)
    return config


@pytest.fixture(scope="module")
def output(config: CreationConfig) -> pathlib.Path:
    return pathlib.Path(config.output_file).parent


def elsewhere(config: CreationConfig, folder: pathlib.Path, **changes: Any) -> CreationConfig:
    return dataclasses.replace(config, output_file=f"{folder}/out/x.tfrecord", **changes)


def test_files_hold_the_instances_of_the_text(output: pathlib.Path) -> None:
    names = [f"x-{shard:05d}-of-00008.tfrecord" for shard in range(8)]
    assert sorted(contents(output)) == [*names, "x.json"]
    lengths, known = [], {2, 3, 4, *range(5, 14)}
    for name in names:
        features = read_instances(str(output / name))
        ids, mask = features["input_ids"], features["input_mask"]
        assert ids.shape[1] == 32
        assert features["masked_lm_ids"].shape[1] == 5
        assert (ids[:, 0] == 2).all()
        labels = features["masked_lm_ids"][features["masked_lm_weights"] > 0]
        assert set(labels.tolist()) <= known
        lengths += mask.sum(axis=1).tolist()
    assert len(lengths) > 500
    assert max(lengths) == 32


def test_records_without_pairs_have_no_label(
    config: CreationConfig, tmp_path: pathlib.Path
) -> None:
    """So that a run with next sentences refuses them."""
    instances = dataclasses.replace(config.instances, next_sentence=False)
    create_pretraining_data(elsewhere(config, tmp_path, instances=instances), processes=1)
    features = read_instances(str(tmp_path / "out" / "x-00003-of-00008.tfrecord"))
    assert "next_sentence_labels" not in features
    assert not features["segment_ids"].any()


def test_instances_of_a_shard_are_shuffled(output: pathlib.Path) -> None:
    """Else the short instances of one pass would stand side by side."""
    features = read_instances(str(output / "x-00003-of-00008.tfrecord"))
    labels = features["next_sentence_labels"]
    lengths = features["input_mask"].sum(axis=1)
    order = np.argsort(np.random.default_rng(0).random(len(lengths)))

    def roughness(values: np.ndarray) -> float:
        return float(np.abs(np.diff(values)).mean())

    assert roughness(lengths) > 0.7 * roughness(lengths[order])
    assert 0.3 < labels.mean() < 0.8


def test_two_processes_write_the_same_bytes(
    config: CreationConfig, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    again = elsewhere(config, tmp_path)
    amount = create_pretraining_data(again, processes=2)
    assert contents(tmp_path / "out") == contents(output)
    sizes = [os.path.getsize(path) for path in pathlib.Path(output).parent.glob("?.txt")]
    assert amount.text_bytes == sum(sizes)
    assert amount.instances > 500
    assert 5 * amount.instances < amount.tokens <= 32 * amount.instances


def test_a_stopped_run_goes_on(
    config: CreationConfig,
    output: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = elsewhere(config, tmp_path)
    serialize, calls = creation.serialize, []

    def stop_in_the_fourth(chunk: Any) -> Any:
        calls.append(chunk)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return serialize(chunk)

    monkeypatch.setattr(creation, "serialize", stop_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        create_pretraining_data(again, processes=1)
    there = contents(tmp_path / "out")
    assert sum(name.startswith("x-") for name in there) == 3
    assert ".x-00003-of-00008.tfrecord.tmp" in there
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("x-*")}
    monkeypatch.setattr(creation, "serialize", serialize)
    create_pretraining_data(again, processes=1)
    assert contents(tmp_path / "out") == contents(output)
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert create_pretraining_data(again, processes=1).instances == 0


def test_other_seed_other_bytes(
    config: CreationConfig, output: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    create_pretraining_data(elsewhere(config, tmp_path, random_seed=1), processes=1)
    mine, theirs = contents(tmp_path / "out"), contents(output)
    assert mine.keys() == theirs.keys()
    assert all(mine[name] != theirs[name] for name in mine)
    records = [theirs[name] for name in theirs if name.startswith("x-")]
    assert len(set(records)) == 8


def test_other_settings_are_refused(config: CreationConfig, output: pathlib.Path) -> None:
    before = contents(output)
    changes: dict[str, Any] = {
        "random_seed=12345 there and 5 here": {"random_seed": 5},
        "lower_case=True there and False here": {"lower_case": False},
        "blank_lines=1 there and 0 here": {"blank_lines": 0},
        "dupe_factor=2 there and 10 here": {"instances": InstanceConfig()},
        "num_shards=8 there and 4 here": {"shard_bytes": config.shard_bytes * 2},
        "input_bytes=": {"input_file": config.input_file.replace("?", "a")},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            create_pretraining_data(dataclasses.replace(config, **change), processes=1)
    assert contents(output) == before


def test_files_of_unknown_origin_are_refused(
    config: CreationConfig, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x-00000-of-00008.tfrecord").write_bytes(b"")
    with pytest.raises(ValueError, match=r"are there, but not .*x\.json"):
        create_pretraining_data(elsewhere(config, tmp_path), processes=1)


def test_mistakes_are_found_before_anything_is_written(
    config: CreationConfig, tmp_path: pathlib.Path
) -> None:
    changes: dict[str, Any] = {
        "vocabulary .* is not a file": {"vocab_file": "none.txt"},
        "--input_file: no file matches": {"input_file": f"{tmp_path}/none*.txt"},
        "max_seq_length=3": {"instances": InstanceConfig(max_seq_length=3)},
        "random_seed=-1": {"random_seed": -1},
    }
    for message, change in changes.items():
        with pytest.raises(ValueError, match=message):
            create_pretraining_data(elsewhere(config, tmp_path, **change), processes=1)
    for name in ("a,b", ".tfrecord", "folder/"):
        with pytest.raises(ValueError, match="must be one name"):
            create_pretraining_data(dataclasses.replace(config, output_file=name), processes=1)
    with pytest.raises(ValueError, match="processes=0"):
        create_pretraining_data(config, processes=0)
    assert list(tmp_path.iterdir()) == []


def test_one_document_in_all_is_refused(config: CreationConfig, tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat .\nthe dog ran .\n")
    single = elsewhere(config, tmp_path, input_file=f"{tmp_path}/a.txt", shard_bytes=1 << 20)
    with pytest.raises(ValueError, match="single document"):
        create_pretraining_data(single, processes=1)
