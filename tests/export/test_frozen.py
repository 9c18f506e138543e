"""SavedModels with blocks of bfloat16 and of int8: near the float32 model, in the right form."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.export import frozen, saved_model
from bert_tf.layouts import UnpaddedLayout
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of, serving
from tests.test_conformance import CASES, CONFIG, FEATURES, Case, set_weights

TASK_CASES = {name: case for name, case in CASES.items() if case.make_task and case.signature}
# Of probabilities, logits and vectors whose size is about 1.
TOLERANCES = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.05}


def opened_run(case: Case) -> OpenedRun:
    """A run of the case with the weights that the conformance table uses."""
    task = case.make_task()  # type: ignore[misc]
    model = task.build_model()
    set_weights(model)
    return OpenedRun(task.run, task, model, {}, "a test")


def frozen_model(opened: OpenedRun, dtype: str) -> tf.Module:
    model = saved_model.float32_model(opened, frozen.Float32Layout)
    frozen.freeze(model, dtype)
    return model


def ids_answers(opened: OpenedRun, model: tf.Module, signature: str) -> dict[str, np.ndarray]:
    """Numbers that a signature of token ids answers to `FEATURES`."""
    answer = answers_of(opened.task, "be exported").ids_answers(model)[signature]
    grids = [tf.TensorSpec([None, None], tf.int32)] * 3

    @tf.function(input_signature=grids, autograph=False)
    def numbers(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = answer(dict(zip(serving.IDS_INPUTS, inputs, strict=True)))
        return {name: value for name, value in outputs.items() if value.dtype.is_floating}

    outputs = numbers(*(FEATURES[name] for name in serving.IDS_INPUTS))
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.mark.parametrize("dtype", frozen.DTYPES)
@pytest.mark.parametrize("name", ["one sentence", "tagging", "one of several tasks", "choices"])
def test_answers_are_near_those_of_float32(name: str, dtype: str) -> None:
    case = TASK_CASES[name]
    opened = opened_run(case)
    expected = ids_answers(opened, saved_model.float32_model(opened), case.signature)
    found = ids_answers(opened, frozen_model(opened, dtype), case.signature)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert np.ptp(values) > 0.05, "answers must differ for this test to mean much"
        np.testing.assert_allclose(found[key], values, rtol=0.05, atol=TOLERANCES[dtype])
        assert np.abs(found[key] - values).max() > 1e-6, "it is float32 still"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", frozen.DTYPES)
@pytest.mark.parametrize("name", TASK_CASES)
def test_every_task_can_be_frozen(name: str, dtype: str) -> None:
    test_answers_are_near_those_of_float32(name, dtype)


@pytest.mark.parametrize("cls_only", [False, True])
def test_in_float32_a_frozen_encoder_is_the_same(cls_only: bool) -> None:
    """The formulas alone, without what fewer bits lose; masks with holes, and without a token."""
    opened = opened_run(TASK_CASES["one sentence"])
    encoder = saved_model.float32_model(opened, UnpaddedLayout).encoder
    other = frozen_model(opened, "float32").encoder
    grids = [tf.TensorSpec([None, None], tf.int32)] * 3

    def traced(encoder: BertEncoder) -> Any:
        return tf.function(
            lambda *inputs: encoder(*inputs, cls_only=cls_only), grids, autograph=False
        )

    reference, function = traced(encoder), traced(other)
    rng = np.random.default_rng(3)
    for shape in ((3, 7), (1, 1), (0, 4)):
        token_ids = rng.integers(0, CONFIG.vocab_size, shape)
        segment_ids = rng.integers(0, 2, shape)
        holes = rng.integers(0, 2, shape)
        holes[:, -1:] = 1
        nothing, first = np.zeros(shape), np.zeros(shape)
        first[:, :1] = 1
        for mask, same in ((np.ones(shape), None), (holes, None), (nothing, first)):
            inputs = [tf.constant(grid, tf.int32) for grid in (token_ids, segment_ids, mask)]
            found = function(*inputs)
            expected = reference(
                *inputs[:2], inputs[2] if same is None else tf.constant(same, tf.int32)
            )
            for one, two in zip(expected.layers, found.layers, strict=True):
                np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
            np.testing.assert_allclose(found.pooled, expected.pooled, rtol=0, atol=1e-5)


def in_a_graph(
    rows: np.ndarray, weights: frozen.Weights, columns: slice = frozen.EVERY_COLUMN
) -> np.ndarray:
    """By an operation of its own, as oneDNN keeps the kernel for each."""
    product = frozen.Int8Product(weights)
    return tf.function(lambda: product(rows, columns=columns), autograph=False)().numpy()


def test_channels_and_rows_of_very_different_size() -> None:
    """What made plain 8-bit products useless: a few channels, or rows, larger than all others."""
    rng = np.random.default_rng(5)
    kernel, bias = rng.normal(size=[64, 32]).astype(np.float32), rng.normal(size=[32])
    bias = bias.astype(np.float32)
    gamma = np.where(np.arange(64) % 16 == 0, 30.0, 0.3).astype(np.float32)
    norm = frozen.Norm(gamma, np.zeros(64, np.float32), 1e-12)
    x = (rng.normal(size=[9, 64]) * gamma).astype(np.float32)
    by_channel = frozen.Weights(kernel / gamma[:, np.newaxis], bias, norm)
    sizes = 10.0 ** np.arange(-4, 5)[:, np.newaxis]
    for weights, rows in (
        (by_channel, x),
        (frozen.Weights(kernel, bias, None), (x / gamma * sizes).astype(np.float32)),
        (frozen.Weights(kernel, bias, None), np.zeros([9, 64], np.float32)),
    ):
        found = in_a_graph(rows, weights)
        expected = rows @ weights.kernel + bias
        scale = np.abs(rows @ weights.kernel).max(axis=-1, keepdims=True) + 1e-6
        np.testing.assert_allclose((found - expected) / scale, 0, atol=0.03)


def test_columns_of_a_product() -> None:
    rng = np.random.default_rng(6)
    kernel, bias = (rng.normal(size=size).astype(np.float32) for size in ([64, 48], [48]))
    norm = frozen.Norm(np.ones(64, np.float32), np.zeros(64, np.float32), 1e-12)
    rows = rng.normal(size=[9, 64]).astype(np.float32)
    for before in (None, norm):
        weights = frozen.Weights(kernel, bias, before)
        parts = [in_a_graph(rows, weights, part) for part in (slice(None, 16), slice(16, None))]
        whole = in_a_graph(rows, weights)
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=0, atol=1e-5)


def test_weights_are_stored_once_for_all_signatures(tmp_path: pathlib.Path) -> None:
    case = TASK_CASES["one of several tasks"]
    opened = opened_run(case)
    folder = frozen.export_frozen(opened, str(tmp_path / "int8"), "int8")
    names = tf.train.list_variables(f"{folder}/variables/variables")
    reader = tf.train.load_checkpoint(f"{folder}/variables/variables")
    dtypes = reader.get_variable_to_dtype_map()
    stored = sum(int(np.prod(shape)) for name, shape in names if dtypes[name] == tf.qint8)
    blocks = opened.model.encoder.blocks
    weights = sum(
        int(np.prod(variable.shape))
        for block in blocks
        for variable in block.trainable_variables
        if variable.shape.rank == 2
    )
    assert stored == weights  # one byte each, of four signatures
    loaded = tf.saved_model.load(folder)
    kernels = [name for name in loaded.weights if "/layer_" in name and name.endswith("/kernel")]
    assert not kernels, "weights of blocks are of 8 bits, and not of 32 as well"
    assert set(loaded.weights) < set(variables_by_name(opened.model))
    expected = ids_answers(opened, saved_model.float32_model(opened), case.signature)
    inputs = {name: tf.constant(FEATURES[name], tf.int32) for name in serving.IDS_INPUTS}
    outputs = loaded.signatures[case.signature](**inputs)
    for key, values in expected.items():
        np.testing.assert_allclose(outputs[key], values, rtol=0.05, atol=0.05)


def test_one_operation_for_each_product(tmp_path: pathlib.Path) -> None:
    """In int8: four of a block, and five of the last one, whose query is of [CLS] alone."""
    opened = opened_run(TASK_CASES["one sentence"])
    folder = frozen.export_frozen(opened, str(tmp_path / "int8"), "int8")
    content = (pathlib.Path(folder) / "saved_model.pb").read_bytes()
    saved = saved_model_pb2.SavedModel.FromString(content)
    functions = saved.meta_graphs[0].graph_def.library.function
    ops = [node.op for function in functions for node in function.node_def]
    assert ops.count("_QuantizedMatMul") == 4 * (CONFIG.num_hidden_layers - 1) + 5


def test_the_run_itself_keeps_its_weights() -> None:
    opened = opened_run(TASK_CASES["one sentence"])
    before = variables_by_name(opened.model).keys()
    frozen_model(opened, "int8")
    assert variables_by_name(dataclasses.replace(opened).model).keys() == before
