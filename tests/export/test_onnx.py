from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig, RunConfig, TaskConfig
from bert_tf.export import onnx as onnx_export
from bert_tf.export import saved_model
from bert_tf.export.onnx import export_onnx
from bert_tf.export.onnx_heads import HEADS
from bert_tf.kernels import ACTIVATIONS
from bert_tf.restore import OpenedRun
from bert_tf.tasks import ANSWERS, answers_of, serving
from bert_tf.tasks.multi_task_answers import signature_name
from bert_tf.tasks.pretraining import PretrainingTask
from tests.test_conformance import CONFIG, tagging, tokenizer
from tests.tiny_exports import (
    SINGLE,
    Arrays,
    answers,
    opened_run,
    random_rows,
    several,
    three_classes,
)

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TOLERANCE = 1e-5
SIZES = ((1, 1), (1, 7), (3, 1), (4, 12), (2, CONFIG.max_position_embeddings))  # N, S


def session(folder: str | pathlib.Path, name: str = "model") -> Any:
    return onnxruntime.InferenceSession(
        os.path.join(folder, f"{name}.onnx"), providers=["CPUExecutionProvider"]
    )


def ask(model: Any, rows: Arrays) -> Arrays:
    names = [output.name for output in model.get_outputs()]
    return dict(zip(names, model.run(names, rows), strict=True))


@pytest.fixture
def ids_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signatures for strings are not traced: that takes long."""
    monkeypatch.setattr(serving, "strings_signature", lambda *unused, **also_unused: None)


def assert_same_answers(model: Any, signature: Any) -> None:
    """The numbers of the SavedModel's signature, for batches of any size."""
    spread = 0.0
    for size in SIZES:
        rows = random_rows(*size)
        expected, outputs = answers(signature, rows), ask(model, rows)
        assert outputs.keys() == expected.keys()
        for name, value in expected.items():
            assert outputs[name].dtype == np.float32
            assert outputs[name].shape == value.shape
            # Logits of padding are about MASKED_SCORE: how much, depends on the layout.
            actual, value = np.maximum(outputs[name], -99), np.maximum(value, -99)
            np.testing.assert_allclose(actual, value, rtol=0, atol=TOLERANCE, err_msg=name)
            spread = max(spread, np.ptp(value))
    assert spread > 0.05, "answers must differ for this test to mean much"


@pytest.mark.usefixtures("ids_alone")
@pytest.mark.parametrize("name", [*SINGLE, "tags by features"])
def test_answers_are_those_of_the_saved_model(name: str, tmp_path: pathlib.Path) -> None:
    opened = opened_run(tagging(2) if name == "tags by features" else SINGLE[name]())
    folder = export_onnx(opened, str(tmp_path / "out"))
    model = saved_model.float32_model(opened)
    signatures = answers_of(opened.task, "be exported").signatures(model)
    assert_same_answers(session(folder), signatures["ids"])


@pytest.mark.usefixtures("ids_alone")
def test_each_of_several_tasks_has_a_model(tmp_path: pathlib.Path) -> None:
    layers = {"classes": (0, False), "classes_low": (1, True), "tags": (0, True)}
    opened = opened_run(several(**layers, questions_low=(1, False)))
    folder = export_onnx(opened, str(tmp_path / "out"))
    signatures = answers_of(opened.task, "be exported").signatures(opened.model)
    for name in opened.task.parts:
        assert_same_answers(session(folder, name), signatures[signature_name(name, "ids")])
    sizes = {name: os.path.getsize(f"{folder}/{name}.onnx") for name in opened.task.parts}
    assert sizes["classes_low"] < sizes["classes"], "a lower head needs fewer layers"


def test_every_task_that_answers_has_a_head() -> None:
    assert HEADS.keys() == ANSWERS.keys() - {"multi_task"}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str, tmp_path: pathlib.Path) -> None:
    config = dataclasses.replace(CONFIG, hidden_act=activation, layer_norm_eps=1e-3)
    opened = opened_run(dataclasses.replace(three_classes(), config=config))
    model = session(export_onnx(opened, str(tmp_path / "out")))
    rows = random_rows(4, 12)
    features = {name: tf.constant(grid, tf.int32) for name, grid in rows.items()}
    expected = opened.model(features).numpy()
    np.testing.assert_allclose(ask(model, rows)["logits"], expected, rtol=0, atol=TOLERANCE)


def test_the_mask_is_taken_as_it_is(tmp_path: pathlib.Path) -> None:
    """What TF Serving would have padded: a run of [CLS] that the mask calls real."""
    opened = opened_run(three_classes())
    model = session(export_onnx(opened, str(tmp_path / "out")))
    rows = random_rows(1, 8)
    rows["token_ids"][:, 5:] = tokenizer().cls_id
    features = {name: tf.constant(grid, tf.int32) for name, grid in rows.items()}
    expected = opened.model(features).numpy()
    np.testing.assert_allclose(ask(model, rows)["logits"], expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("onnx") / "out"
    return pathlib.Path(export_onnx(opened_run(three_classes()), str(folder)))


def test_files(exported: pathlib.Path) -> None:
    assert sorted(os.listdir(exported)) == [
        "README.md",
        "model.onnx",
        "model_card.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    card = json.loads((exported / "model_card.json").read_text())
    assert card["labels"] == ["bad", "fair", "good"]
    assert card["signatures"] == {
        "model.onnx": {
            "inputs": dict.fromkeys(("token_ids", "segment_ids", "mask"), "int64 [None, None]"),
            "outputs": {"logits": "float32 [None, 3]", "probabilities": "float32 [None, 3]"},
        }
    }
    readme = (exported / "README.md").read_text()
    assert 'library_name: "onnx"' in readme
    assert "tokenizer.enable_truncation(12)" in readme


def test_the_graph_is_checked_and_plain(exported: pathlib.Path) -> None:
    onnx.checker.check_model(str(exported / "model.onnx"), full_check=True)
    model = onnx.load(exported / "model.onnx")
    assert {opset.domain for opset in model.opset_import} == {""}
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"If", "Loop", "Scan", "Dropout"}
    assert {"Gelu", "LayerNormalization", "Softmax"} <= operators, "runtimes fuse around these"
    assert all(
        dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim
    )
    # Each weight once: the last layer at [CLS] alone, and nothing that nobody reads.
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read


def test_weights_of_a_large_model_lie_beside_it(
    exported: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 10_000)
    folder = export_onnx(opened_run(three_classes()), str(tmp_path / "out"))
    assert os.path.getsize(f"{folder}/model.onnx") < os.path.getsize(f"{folder}/model.onnx.data")
    onnx.checker.check_model(f"{folder}/model.onnx", full_check=True)
    rows = random_rows(3, 9)
    outputs, expected = ask(session(folder), rows), ask(session(exported), rows)
    np.testing.assert_array_equal(outputs["logits"], expected["logits"])


# ------------------------------------------------------------------------------------------- errors


def test_pretraining_has_nothing_to_answer(tmp_path: pathlib.Path) -> None:
    task = PretrainingTask(RunConfig(task=TaskConfig(name="pretraining")), CONFIG, tokenizer())
    opened = OpenedRun(task.run, task, tf.Module(), {}, "a test")
    with pytest.raises(ValueError, match="cannot be exported"):
        export_onnx(opened, str(tmp_path / "out"))


def test_without_the_package_nothing_is_left(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[onnx\]'"):
        export_onnx(opened_run(three_classes()), str(tmp_path / "out"))
    assert not os.listdir(tmp_path)


def test_a_folder_with_something_in_it_is_refused(exported: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="exists already"):
        export_onnx(opened_run(three_classes()), str(exported))


def test_a_model_without_layers(tmp_path: pathlib.Path) -> None:
    config: BertConfig = dataclasses.replace(CONFIG, num_hidden_layers=0)
    opened = opened_run(dataclasses.replace(three_classes(), config=config))
    model = session(export_onnx(opened, str(tmp_path / "out")))
    rows = random_rows(2, 3)
    features = {name: tf.constant(grid, tf.int32) for name, grid in rows.items()}
    expected = opened.model(features).numpy()
    np.testing.assert_allclose(ask(model, rows)["logits"], expected, rtol=0, atol=TOLERANCE)
