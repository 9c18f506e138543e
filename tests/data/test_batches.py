"""Tokenized examples cut into batches: every token in its place, resumed and shared exactly."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.data import batches
from bert_tf.data.batches import Batch, Examples, dataset
from bert_tf.data.text import TextExamples

WIDTHS = (8, 16)


class Packed(NamedTuple):
    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor


class ByteTokenizer:
    """Each byte is a token; 1 begins, 2 ends a segment."""

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        characters = tf.strings.bytes_split(text)
        codes = tf.io.decode_raw(characters.values, tf.uint8)[:, 0]
        return characters.with_values(tf.cast(codes, tf.int32))

    def pack(self, a: tf.RaggedTensor, b: tf.RaggedTensor | None, max_seq_length: int) -> Packed:
        begin, end = tf.fill([a.nrows(), 1], 1), tf.fill([a.nrows(), 1], 2)
        first = tf.concat([begin, a, end], axis=1)
        second = tf.concat([b, end], axis=1) if b is not None else a[:, :0]
        token_ids = tf.concat([first, second], axis=1)[:, :max_seq_length]
        segment_ids = tf.concat([tf.zeros_like(first), tf.ones_like(second)], axis=1)
        return Packed(token_ids, segment_ids[:, :max_seq_length])


def texts_of(text_a: list[bytes], text_b: list[bytes] | None = None) -> TextExamples:
    return TextExamples(text_a, text_b, None, None, "a.tsv", list(range(len(text_a))))


@pytest.fixture(scope="module")
def examples() -> Examples:
    random = np.random.default_rng(2)
    lengths = random.integers(3, 17, 37)
    row_splits = np.concatenate([[0], np.cumsum(lengths)])
    return Examples(
        random.integers(1, 1000, row_splits[-1]).astype(np.int32),
        random.integers(0, 2, row_splits[-1]).astype(np.int32),
        row_splits,
        {
            "label": np.arange(1, 38, dtype=np.int32),
            "labels": random.random([37, 3]).astype(np.float32),
            "flag": np.ones([37, 2, 2], bool),
        },
    )


def expected(examples: Examples, batch: Batch) -> dict[str, np.ndarray]:
    """The batch, by the plainest loop."""
    shape = (len(batch.rows), batch.width)
    out = {name: np.zeros(shape, np.int32) for name in ("token_ids", "segment_ids", "mask")}
    out["weight"] = np.zeros(shape[0], np.float32)
    out["example"] = batch.rows
    for name, values in examples.targets.items():
        out[name] = np.zeros((shape[0], *values.shape[1:]), values.dtype)
    for place, row in enumerate(batch.rows):
        if row >= 0:
            start, stop = examples.row_splits[row : row + 2]
            out["token_ids"][place, : stop - start] = examples.token_ids[start:stop]
            out["segment_ids"][place, : stop - start] = examples.segment_ids[start:stop]
            out["mask"][place, : stop - start] = 1
            out["weight"][place] = 1.0
            for name, values in examples.targets.items():
                out[name][place] = values[row]
    return out


def assert_equal(actual: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    assert set(actual) == set(wanted)
    for name, values in wanted.items():
        assert actual[name].dtype == values.dtype, name
        np.testing.assert_array_equal(actual[name], values, err_msg=name)


def numpy_batches(data: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    return data.as_numpy_iterator()


@pytest.mark.parametrize("window", [1, 3])
def test_batches_hold_what_was_planned(examples: Examples, window: int) -> None:
    plan = batches.training_plan(examples.lengths, 4, WIDTHS, 1, window, 25)
    made = list(numpy_batches(dataset(examples, plan, static=False)))
    assert len(made) == 25
    for batch, actual in zip(plan, made, strict=True):
        assert_equal(actual, expected(examples, batch))
    assert len({batch.width for batch in plan}) == 2
    assert any((batch.rows < 0).any() for batch in plan)


def test_evaluation_counts_every_example_once(examples: Examples) -> None:
    plan = batches.evaluation_plan(examples.lengths, 8, WIDTHS)
    made = list(numpy_batches(dataset(examples, plan, static=False)))
    seen = np.concatenate([batch["example"][batch["weight"] == 1] for batch in made])
    assert sorted(seen) == list(range(37))
    assert sum(batch["weight"].sum() for batch in made) == 37
    assert sum(batch["mask"].sum() for batch in made) == examples.row_splits[-1]
    padding = {name: values[-3:] for name, values in made[-1].items()}
    assert padding.pop("example").tolist() == [-1, -1, -1]
    assert not any(values.any() for values in padding.values())


def test_shapes_are_dynamic_in_width_only(examples: Examples) -> None:
    spec = dataset(
        examples, batches.evaluation_plan(examples.lengths, 8, WIDTHS), False
    ).element_spec
    assert spec["token_ids"].shape.as_list() == [8, None]
    assert spec["weight"].shape.as_list() == [8]
    assert spec["labels"].shape.as_list() == [8, 3]


def test_static_shapes(examples: Examples) -> None:
    plan = batches.evaluation_plan(examples.lengths, 8, WIDTHS)
    groups = batches.by_width(plan)
    assert len(groups) == 2
    for width, group in groups.items():
        data = dataset(examples, group, static=True)
        assert all(spec.shape.is_fully_defined() for spec in data.element_spec.values())
        assert data.element_spec["mask"].shape.as_list() == [8, width]
        for batch, actual in zip(group, numpy_batches(data), strict=True):
            assert_equal(actual, expected(examples, batch))
    with pytest.raises(ValueError, match=r"static shape cannot have the widths \[8, 16\]"):
        dataset(examples, plan, static=True)


def test_batches_without_targets(examples: Examples) -> None:
    unlabelled = Examples(examples.token_ids, examples.segment_ids, examples.row_splits, {})
    plan = batches.evaluation_plan(examples.lengths, 8, WIDTHS)
    made = next(numpy_batches(dataset(unlabelled, plan, static=False)))
    assert set(made) == {"token_ids", "segment_ids", "mask", "weight", "example"}


@pytest.mark.parametrize("step", [1, 9, 10, 23])
def test_a_resumed_run_gets_the_same_batches(examples: Examples, step: int) -> None:
    def plan() -> batches.TrainingPlan:  # 10 steps an epoch
        return batches.training_plan(examples.lengths, 4, WIDTHS, seed=7, window=3, steps=25)

    whole = list(numpy_batches(dataset(examples, plan(), static=False)))
    rest = list(numpy_batches(dataset(examples, plan()[step:], static=False)))
    assert len(rest) == 25 - step
    for actual, wanted in zip(rest, whole[step:], strict=True):
        assert_equal(actual, wanted)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_rows_of_each_global_batch(
    examples: Examples, replicas: int, static: bool
) -> None:
    strategy = tf.distribute.MirroredStrategy([f"CPU:{device}" for device in range(replicas)])
    plan = batches.training_plan(examples.lengths, 8, (16,) if static else WIDTHS, 1, 3, 12)
    data = strategy.experimental_distribute_dataset(dataset(examples, plan, static))
    width = 16 if static else None
    assert data.element_spec["mask"]._component_specs[0].shape.as_list() == [8 // replicas, width]
    for number, element in enumerate(data):
        joined = {}
        for name, value in element.items():
            parts = strategy.experimental_local_results(value)
            assert [len(part) for part in parts] == [8 // replicas] * replicas
            joined[name] = np.concatenate([part.numpy() for part in parts])
        assert_equal(joined, expected(examples, plan[number]))
    assert number == 11


def test_two_workers_share_the_rows_of_each_global_batch(examples: Examples) -> None:
    """What `MultiWorkerMirroredStrategy` does on each of its machines."""
    from tensorflow.python.data.experimental.ops import distribute
    from tensorflow.python.distribute import input_ops

    plan = batches.training_plan(examples.lengths, 8, WIDTHS, 1, 3, 12)
    shares = []
    for worker in range(2):
        data = dataset(examples, plan, static=False)
        assert int(distribute.compute_batch_size(data)) == 8
        sizes = distribute.batch_sizes_for_worker(8, 2, 1, worker)
        data = data.rebatch(sizes)
        data = input_ops.auto_shard_dataset(data, 2, worker, num_replicas_in_sync=2)
        shares.append(list(numpy_batches(data)))
    for number, parts in enumerate(zip(*shares, strict=True)):
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(joined, expected(examples, plan[number]))
    assert number == 11


def test_one_trace_for_all_widths(examples: Examples) -> None:
    plan = batches.training_plan(examples.lengths, 4, WIDTHS, 1, 3, 25)
    data = dataset(examples, plan, static=False)

    @tf.function(input_signature=[data.element_spec])
    def tokens(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.reduce_sum(batch["mask"])

    total = sum(int(tokens(batch)) for batch in data)
    assert tokens.experimental_get_tracing_count() == 1
    assert total == sum(expected(examples, batch)["mask"].sum() for batch in plan)


def test_the_graph_holds_no_python(examples: Examples) -> None:
    """Such operations run in the process that made them only: not on a TPU host, not restored."""
    data = dataset(examples, batches.evaluation_plan(examples.lengths, 8, WIDTHS), static=False)
    graph = tf.compat.v1.GraphDef.FromString(data._as_serialized_graph().numpy())
    functions = [node.op for function in graph.library.function for node in function.node_def]
    operations = {node.op for node in graph.node} | set(functions)
    assert "GatherV2" in operations
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless", "GeneratorDataset"} & operations


@pytest.mark.parametrize("paired", [False, True])
def test_tokenizing_in_chunks(monkeypatch: pytest.MonkeyPatch, paired: bool) -> None:
    text_a = [bytes([65 + n % 26]) * (n % 13) + b"\xff\0" for n in range(23)]
    text_b = [b"second" * (n % 2) for n in range(23)] if paired else None
    targets = {"label": np.arange(23)}
    whole = batches.tokenize(ByteTokenizer(), texts_of(text_a, text_b), 16, targets)
    monkeypatch.setattr(batches, "LINES_PER_CHUNK", 5)
    chunked = batches.tokenize(ByteTokenizer(), texts_of(text_a, text_b), 16, targets)
    for name in ("token_ids", "segment_ids", "row_splits"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(chunked, name))
    assert (whole.token_ids.dtype, whole.row_splits.dtype) == (np.int32, np.int64)
    assert whole.targets is targets
    for number, first in enumerate(text_a):
        second = [*text_b[number], 2] if text_b else []
        row = slice(*whole.row_splits[number : number + 2])
        assert whole.token_ids[row].tolist() == [1, *first, 2, *second][:16]
        assert whole.segment_ids[row].tolist() == ([0] * (len(first) + 2) + [1] * len(second))[:16]
    np.testing.assert_array_equal(whole.lengths, np.diff(whole.row_splits))


@pytest.mark.slow  # loads the tokenizer's Unicode tables
def test_the_tokenizer_of_the_project(tmp_path: pathlib.Path) -> None:
    tokenization = pytest.importorskip("bert_tf.tokenization")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film", "##s", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer = tokenization.Tokenizer(str(tmp_path / "vocab.txt"))
    texts = texts_of([b"Good films", b"bad"], [b"film", b"bad bad bad"])
    made = batches.tokenize(tokenizer, texts, 6, {})
    rows = [made.token_ids[made.row_splits[n] : made.row_splits[n + 1]].tolist() for n in range(2)]
    assert rows == [[2, 5, 6, 3, 6, 3], [2, 8, 3, 8, 8, 3]]


def test_arrays_that_do_not_belong_together() -> None:
    ids = np.ones(5, np.int32)
    with pytest.raises(ValueError, match=r"row_splits end at \[4, 5\]"):
        Examples(ids, ids, np.array([0, 2, 4]), {})
    with pytest.raises(ValueError, match="Target 'label' has 3 rows, not 2"):
        Examples(ids, ids, np.array([0, 2, 5]), {"label": np.zeros(3)})


def test_batches_of_no_or_several_sizes(examples: Examples) -> None:
    with pytest.raises(ValueError, match="must all have one size, not none at all"):
        dataset(examples, [], static=False)
    uneven = [Batch(16, np.arange(2)), Batch(16, np.arange(3))]
    with pytest.raises(ValueError, match=r"must all have one size, not \[2, 3\]"):
        dataset(examples, uneven, static=False)
