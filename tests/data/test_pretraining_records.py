"""Records are streamed in an order that the step alone decides, each one once an epoch."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import pretraining
from bert_tf.data.files import find_files
from bert_tf.data.pretraining import Records, RecordShape, read_examples, read_shape
from tests.tiny_records import (
    LENGTH,
    PREDICTIONS,
    VOCABULARY,
    Arrays,
    feature,
    tiny_records,
    write_records,
)

RUN = RunConfig.from_dict({"data": {"max_seq_length": LENGTH}, "task": {"name": "pretraining"}})
CONFIG = BertConfig(vocab_size=VOCABULARY, hidden_size=8, num_attention_heads=2)
SHAPE = RecordShape(LENGTH, PREDICTIONS, True)
COUNTS = (23, 1, 40)  # records of the three files


def numbered(count: int, first: int) -> Arrays:
    """Records that know their number: it is spelt in two masked ids of weight 0."""
    records = tiny_records(count, seed=first)
    numbers = first + np.arange(count)
    records["masked_lm_ids"][:, -2:] = np.stack([numbers // 100, numbers % 100], axis=1)
    return records


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Arrays]:
    folder = tmp_path_factory.mktemp("corpus")
    parts = []
    for number, count in enumerate(COUNTS):
        parts.append(numbered(count, sum(COUNTS[:number])))
        write_records(folder / f"part-{number}.tfrecord", parts[-1])
    files = find_files(f"{folder}/part-[01]*,{folder}/part-2.tfrecord", "config.data.train")
    return files, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def index(corpus: tuple[tuple[str, ...], Arrays]) -> Records:
    """Blocks of 4 records, windows of 3 blocks: many of both in 64 records."""
    return Records.index(corpus[0], SHAPE, CONFIG, block_records=4, window_blocks=3)


def numbers_of(batches: tf.data.Dataset, steps: int) -> np.ndarray:
    """Numbers of the records of some batches, [steps, B]."""
    taken = [batch["masked_ids"][:, -2:] for batch in batches.take(steps).as_numpy_iterator()]
    return np.stack([100 * pair[:, 0] + pair[:, 1] for pair in taken])


def test_blocks_are_where_the_index_says(corpus: tuple[tuple[str, ...], Arrays]) -> None:
    records = index(corpus)
    assert len(records) == sum(COUNTS)
    assert records.block_records.tolist() == [4] * 5 + [3, 1] + [4] * 10
    assert records.block_file.tolist() == [0] * 6 + [1] + [2] * 10
    assert records.block_offset[[0, 6, 7]].tolist() == [0, 0, 0]
    assert (np.diff(records.block_offset[7:]) > 4 * 16).all()


def test_every_record_comes_once_an_epoch_and_whole(
    corpus: tuple[tuple[str, ...], Arrays],
) -> None:
    records, arrays = index(corpus), corpus[1]
    batches = records.dataset(8, seed=3)
    epochs = numbers_of(batches, 24).reshape(3, -1)  # 8 steps of 8 are one epoch
    for epoch in epochs:
        assert sorted(epoch) == list(range(64))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])
    batch = next(iter(batches.as_numpy_iterator()))
    own = numbers_of(batches, 1)[0]
    for theirs, ours in (pretraining.OF_TOKENS | pretraining.OF_MASKED).items():
        assert np.array_equal(batch[ours], arrays[theirs][own]), ours
    assert np.array_equal(batch["next_sentence_labels"], arrays["next_sentence_labels"][own])
    assert batch["next_sentence_weights"].tolist() == [[1.0]] * 8
    assert batch["cls_positions"].tolist() == [[0]] * 8
    assert batch["weight"].tolist() == [1.0] * 8


def test_epochs_follow_without_a_gap(corpus: tuple[tuple[str, ...], Arrays]) -> None:
    """Batches of 10 in 64 records: the seventh has the end of an epoch and the start of another."""
    whole = numbers_of(index(corpus).dataset(10, seed=0), 32).reshape(-1)
    for epoch in range(5):
        assert sorted(whole[64 * epoch : 64 * (epoch + 1)]) == list(range(64))


@pytest.mark.parametrize("step", [1, 6, 7, 13, 30])
def test_a_stream_begins_at_any_step(corpus: tuple[tuple[str, ...], Arrays], step: int) -> None:
    records = index(corpus)
    whole = numbers_of(records.dataset(10, seed=5), step + 8)
    assert np.array_equal(numbers_of(records.dataset(10, seed=5, first_step=step), 8), whole[step:])


def test_neighbours_are_parted(corpus: tuple[tuple[str, ...], Arrays]) -> None:
    order = numbers_of(index(corpus).dataset(64, seed=1), 1)[0]
    assert (np.diff(order) == 1).sum() < 8  # of 63; about one is expected within a window
    other = numbers_of(index(corpus).dataset(64, seed=2), 1)[0]
    assert not np.array_equal(order, other)
    # Blocks as well: with windows alone the first 12 records would come first.
    assert sorted(order[:12]) != list(range(12))


def test_all_shapes_are_static(corpus: tuple[tuple[str, ...], Arrays]) -> None:
    for name, spec in index(corpus).dataset(8, seed=0).element_spec.items():
        assert spec.shape.is_fully_defined(), name


def test_held_out_records_in_memory(corpus: tuple[tuple[str, ...], Arrays]) -> None:
    files, arrays = corpus
    examples = read_examples(files, read_shape(files, RUN, CONFIG), CONFIG)
    assert np.array_equal(examples.lengths, arrays["input_mask"].sum(axis=1))
    real = arrays["input_mask"].astype(bool)
    assert np.array_equal(examples.token_ids, arrays["input_ids"][real])
    assert np.array_equal(examples.segment_ids, arrays["segment_ids"][real])
    assert np.array_equal(examples.targets["masked_ids"], arrays["masked_lm_ids"])
    assert np.array_equal(examples.targets["masked_weights"], arrays["masked_lm_weights"])
    labels = arrays["next_sentence_labels"]
    assert np.array_equal(examples.targets["next_sentence_labels"], labels)


def test_fingerprints_differ(
    tmp_path: pathlib.Path, corpus: tuple[tuple[str, ...], Arrays]
) -> None:
    records = index(corpus)
    assert records.fingerprint() == index(corpus).fingerprint()
    fewer = Records.index(corpus[0][:2], SHAPE, CONFIG, 4, 3)
    assert fewer.fingerprint() != records.fingerprint()
    write_records(tmp_path / "other.tfrecord", numbered(23, 7))
    other = Records.index((str(tmp_path / "other.tfrecord"), corpus[0][1]), SHAPE, CONFIG, 4, 3)
    assert other.fingerprint() != fewer.fingerprint()


# --------------------------------------------------------------------------------------- bad files


def cut_off(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip_a_bit(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, flip_a_bit])
def test_a_damaged_file_is_named_before_the_first_step(
    tmp_path: pathlib.Path, damage: Callable[[pathlib.Path], None]
) -> None:
    for number in range(3):
        write_records(tmp_path / f"{number}.tfrecord", tiny_records(5))
    damage(tmp_path / "1.tfrecord")
    files = find_files(str(tmp_path / "*"), "config.data.train")
    with pytest.raises(ValueError, match=r"1\.tfrecord is not a whole TFRecord file"):
        Records.index(files, SHAPE, CONFIG)
    with pytest.raises(ValueError, match=r"1\.tfrecord is not a whole TFRecord file"):
        read_examples(files, SHAPE, CONFIG)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", 120, r"1\.tfrecord: token_ids has the value 120.*from 0 to 119"),
        ("masked_lm_ids", -3, r"1\.tfrecord: masked_ids has the value -3"),
        ("masked_lm_positions", 16, r"1\.tfrecord: masked_positions has the value 16"),
        ("segment_ids", 2, r"1\.tfrecord: segment_ids has the value 2"),
    ],
)
def test_every_record_is_checked_before_the_first_step(
    tmp_path: pathlib.Path, name: str, value: int, message: str
) -> None:
    for number in range(3):
        records = tiny_records(9)
        records[name][7, 2] = value if number == 1 else records[name][7, 2]
        write_records(tmp_path / f"{number}.tfrecord", records)
    files = find_files(str(tmp_path / "*"), "config.data.train")
    with pytest.raises(ValueError, match=message):
        Records.index(files, read_shape(files, RUN, CONFIG), CONFIG, block_records=2)


def test_a_later_record_of_another_form_is_found(tmp_path: pathlib.Path) -> None:
    write_records(tmp_path / "0.tfrecord", tiny_records(5))
    with tf.io.TFRecordWriter(str(tmp_path / "1.tfrecord")) as writer:
        for record in tf.data.TFRecordDataset(str(tmp_path / "0.tfrecord")).as_numpy_iterator():
            writer.write(record)
        writer.write(b"")
    files = find_files(str(tmp_path / "*"), "config.data.train")
    with pytest.raises(ValueError, match=r"1\.tfrecord is not a whole TFRecord file.*input_ids"):
        Records.index(files, SHAPE, CONFIG)


def changed(**changes: Any) -> Arrays:
    """Six records with some features replaced; None leaves one out."""
    records = tiny_records(6) | changes
    return {name: values for name, values in records.items() if values is not None}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (changed(input_mask=None), "have no input_mask"),
        (changed(next_sentence_labels=None), r"or set config\.task\.next_sentence=False"),
        (changed(masked_lm_weights=np.ones([6, 4], np.int64)), "have no masked_lm_weights"),
        (changed(segment_ids=np.zeros([6, 15], np.int64)), "segment_ids has 15 values, not 16"),
        (changed(input_ids=np.full([6, 16], 120)), r"token_ids has the value 120.*vocab_size"),
        (changed(segment_ids=np.full([6, 16], 2)), r"segment_ids has the value 2"),
        (changed(masked_lm_positions=np.full([6, 4], 16)), "masked_positions has the value 16"),
        (changed(masked_lm_ids=np.full([6, 4], -1)), "masked_ids has the value -1"),
        (changed(input_mask=np.arange(16) % 2 + np.zeros([6, 1], np.int64)), "ones followed by"),
        ({name: values[:0] for name, values in changed().items()}, "holds no record"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_records_that_cannot_be_used(tmp_path: pathlib.Path, records: Arrays, message: str) -> None:
    write_records(tmp_path / "a.tfrecord", records)
    with pytest.raises(ValueError, match=message):
        read_shape((str(tmp_path / "a.tfrecord"),), RUN, CONFIG)


def test_files_must_agree(tmp_path: pathlib.Path) -> None:
    write_records(tmp_path / "a.tfrecord", tiny_records(2))
    short = {
        name: values[:, :3] if name.startswith("masked_lm") else values
        for name, values in tiny_records(2).items()
    }
    write_records(tmp_path / "b.tfrecord", short)
    with pytest.raises(ValueError, match=r"b\.tfrecord has 3 masked positions.*has 4"):
        read_shape((str(tmp_path / "a.tfrecord"), str(tmp_path / "b.tfrecord")), RUN, CONFIG)


def test_something_else_in_a_record(tmp_path: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(tmp_path / "a.tfrecord")) as writer:
        writer.write(b"\xff\xff not an example")
    with pytest.raises(ValueError, match=r"the first record is no tf\.train\.Example"):
        read_shape((str(tmp_path / "a.tfrecord"),), RUN, CONFIG)


def test_masked_words_alone_need_no_next_sentence(tmp_path: pathlib.Path) -> None:
    write_records(tmp_path / "a.tfrecord", changed(next_sentence_labels=None))
    alone = dataclasses.replace(RUN, task=dataclasses.replace(RUN.task, next_sentence=False))
    shape = read_shape((str(tmp_path / "a.tfrecord"),), alone, CONFIG)
    assert shape == RecordShape(LENGTH, PREDICTIONS, False)
    batch = shape.parse(tf.constant([pretraining.first_record(str(tmp_path / "a.tfrecord"))]))
    assert batch["next_sentence_weights"].numpy().tolist() == [[0.0]]
    assert feature(np.ones(1)).float_list.value == [1.0]
