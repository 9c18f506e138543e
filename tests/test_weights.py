from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tiny_checkpoint as tiny

from bert_tf import heads
from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.tasks.classification import ClassificationHead
from bert_tf.weights import assign, check_shapes, count_layers, expected_shapes, weight_table

ALL_SHAPES = {name: shape for shapes in tiny.MODELS.values() for name, shape in shapes.items()}


def variables_of(weights: dict[str, np.ndarray]) -> dict[str, tf.Variable]:
    return {name: tf.Variable(np.zeros_like(weight)) for name, weight in weights.items()}


def test_table_has_the_names_and_shapes_of_the_original_release() -> None:
    expected = expected_shapes(tiny.CONFIG)
    free = {"output_weights": (None, 8), "output_bias": (None,)}
    assert expected == ALL_SHAPES | free


def test_table_has_every_variable_of_the_model() -> None:
    layers = (
        BertEncoder(tiny.CONFIG),
        heads.MaskedLMHead(tiny.CONFIG),
        heads.NextSentenceHead(tiny.CONFIG),
        ClassificationHead(3, tiny.CONFIG, 0.1),
    )
    shapes = {
        name: tuple(variable.shape)
        for layer in layers
        for name, variable in variables_by_name(layer).items()
    }
    assert shapes == {n: shape for n, shape in ALL_SHAPES.items() if n not in tiny.SQUAD_SHAPES}


def test_hugging_face_names_are_unique() -> None:
    table = weight_table(12)
    assert len({row.hugging_face for row in table}) == len({row.original for row in table})
    assert len(table) == 5 + 12 * 16 + 2 + 11


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bert/encoder/layer_11/output/dense/bias", 12),
        ("bert.encoder.layer.3.output.dense.bias", 4),
        ("bert/pooler/dense/bias", 0),
        ("other/encoder/layer_3/output/dense/bias", 0),
    ],
)
def test_count_layers(name: str, layers: int) -> None:
    assert count_layers([name, "bert/embeddings/word_embeddings"]) == layers


@pytest.mark.parametrize("model", tiny.MODELS)
def test_check_shapes_passes_every_kind_of_model(model: str) -> None:
    check_shapes(tiny.weights(model), tiny.CONFIG, "x.ckpt", "c.json")


def test_check_shapes_lists_all_faults_at_once() -> None:
    weights = tiny.weights()
    del weights["bert/encoder/layer_0/output/dense/bias"]
    weights["bert/embeddings/position_embeddings"] = np.zeros([13, 8], np.float32)
    weights["bert/encoder/layer_2/output/dense/bias"] = np.zeros([8], np.float32)
    weights["cls/predictions/output_bias"] = np.zeros([30, 1], np.float32)
    with pytest.raises(ValueError, match="another shape") as caught:
        check_shapes(weights, tiny.CONFIG, "x.ckpt", "c.json")
    message = str(caught.value)
    for fault in (
        "x.ckpt",
        "c.json",
        "bert/encoder/layer_0/output/dense/bias is missing",
        "bert/embeddings/position_embeddings is [13, 8], not [12, 8]",
        "bert/encoder/layer_2/output/dense/bias is not part of it",
        "cls/predictions/output_bias is [30, 1], not [30]",
    ):
        assert fault in message


def test_check_shapes_shortens_long_lists() -> None:
    weights = {"bert/embeddings/word_embeddings": np.zeros([30, 8], np.float32)}
    with pytest.raises(ValueError, match=r"; and 24 more\."):  # 5 + 2 * 16 - 1 - 12 shown
        check_shapes(weights, tiny.CONFIG, "x.ckpt", "c.json")


def test_assign_gives_every_variable_its_weight() -> None:
    weights = tiny.weights()
    variables = variables_of(weights)
    report = assign(variables, weights, "x.ckpt")
    assert set(report.assigned) == set(weights)
    assert report.fresh == report.unused == ()
    for name, variable in variables.items():
        np.testing.assert_array_equal(variable.numpy(), weights[name])


def test_assign_leaves_optional_heads_fresh_and_reports_unused_ones() -> None:
    weights = tiny.weights("BertForMaskedLM")
    variables = variables_of(tiny.weights("BertForSequenceClassification"))
    variables["output_weights"].assign(np.full([3, 8], 7.0))
    report = assign(
        variables, weights, "x.ckpt", optional=("output_weights", "output_bias", "bert/pooler")
    )
    assert set(report.fresh) == {*tiny.CLASSIFIER_SHAPES, *tiny.POOLER_SHAPES}
    assert set(report.unused) == set(tiny.MASKED_LM_SHAPES)
    assert set(report.assigned) == set(tiny.ENCODER_SHAPES)
    np.testing.assert_array_equal(variables["output_weights"].numpy(), np.full([3, 8], 7.0))


def test_assign_takes_an_optional_head_that_is_there() -> None:
    weights = tiny.weights("BertForSequenceClassification")
    variables = variables_of(weights)
    report = assign(variables, weights, "x.ckpt", optional=("output_weights", "output_bias"))
    assert report.fresh == ()
    np.testing.assert_array_equal(variables["output_bias"].numpy(), weights["output_bias"])


def test_assign_does_without_the_pooler_of_a_checkpoint() -> None:
    variables = variables_of({n: w for n, w in tiny.weights().items() if "pooler" not in n})
    report = assign(variables, tiny.weights(), "x.ckpt")
    assert set(report.unused) == set(tiny.POOLER_SHAPES)


def test_assign_lists_all_faults_and_changes_nothing() -> None:
    variables = variables_of(tiny.weights("BertForSequenceClassification"))
    weights = tiny.weights("BertModel")
    del weights["bert/embeddings/LayerNorm/beta"]
    weights["bert/encoder/layer_2/output/dense/bias"] = np.ones([8], np.float32)
    weights["bert/pooler/dense/bias"] = np.ones([9], np.float32)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        assign(variables, weights, "x.ckpt", optional=("output_bias",))
    message = str(caught.value)
    for fault in (
        "x.ckpt",
        "output_weights is not in the checkpoint",
        "bert/embeddings/LayerNorm/beta is not in the checkpoint",
        "bert/encoder/layer_2/output/dense/bias [8] is not in the model",
        "bert/pooler/dense/bias is [9] in the checkpoint and [8] in the model",
    ):
        assert fault in message
    assert "output_bias is not" not in message
    assert all(not variable.numpy().any() for variable in variables.values())


def test_assign_reaches_every_replica() -> None:
    weights = tiny.weights()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variables = variables_of(weights)
    assign(variables, weights, "x.ckpt")
    for name, variable in variables.items():
        copies = strategy.experimental_local_results(variable)
        assert len(copies) == 2
        for copy in copies:
            np.testing.assert_array_equal(copy.numpy(), weights[name])


def test_assign_converts_to_the_type_of_the_variable() -> None:
    variables = {
        "output_bias": tf.Variable(tf.zeros([3], tf.bfloat16)),
        "global_step": tf.Variable(np.int64(0)),
    }
    weights = {"output_bias": np.array([1, 2.5, -3], np.float32), "global_step": np.array(20)}
    assign(variables, weights, "x.ckpt")
    assert variables["output_bias"].numpy().tolist() == [1, 2.5, -3]
    assert variables["global_step"].numpy() == 20
