"""Heads: their numbers, names, dtypes and what they do not compute."""

from __future__ import annotations

import math

import numpy as np
import numpy_bert
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf.config import ACTIVATIONS, BertConfig
from bert_tf.encoder import OutputLayer, variables_by_name
from bert_tf.heads import (
    MaskedLMHead,
    NextSentenceHead,
    masked_lm_loss,
)
from bert_tf.tasks.classification import ClassificationHead

BATCH, LENGTH, MASKED, VOCABULARY, HIDDEN = 2, 16, 3, 50, 8
POSITIONS = np.array([[1, 5, 15], [2, 2, 0]], np.int32)


def make_config(activation: str = "gelu") -> BertConfig:
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_attention_heads=2,
        intermediate_size=16,
        hidden_act=activation,
    )


def randomize(head: keras.layers.Layer) -> numpy_bert.Weights:
    variables = variables_by_name(head)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    weights = numpy_bert.random_weights(shapes)
    for name, variable in variables.items():
        variable.assign(weights[name])
    return weights


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def mixed_policy(request: pytest.FixtureRequest) -> object:
    keras.mixed_precision.set_global_policy(request.param)
    yield request.param
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masked_lm_equals_numpy(activation: str) -> None:
    head = MaskedLMHead(make_config(activation))
    weights = randomize(head)
    sequence, table = normal(BATCH, LENGTH, HIDDEN), normal(VOCABULARY, HIDDEN, seed=1)
    weights["bert/embeddings/word_embeddings"] = table
    shape = numpy_bert.Shape(layers=0, heads=2, activation=activation)
    expected = numpy_bert.masked_lm_logits(
        {name: array.astype(np.float64) for name, array in weights.items()},
        shape,
        sequence.astype(np.float64),
        POSITIONS,
    )
    actual = head(tf.constant(sequence), tf.constant(POSITIONS), tf.constant(table))
    assert actual.shape == [BATCH, MASKED, VOCABULARY]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [[BATCH, MASKED], [None, None]], ids=["static", "dynamic"])
def test_masked_lm_gathers_before_the_vocabulary(shape: list[int | None]) -> None:
    """The product with the vocabulary has one row for each masked position, not for each token."""
    head = MaskedLMHead(make_config())
    table = tf.Variable(normal(VOCABULARY, HIDDEN))

    @tf.function(
        input_signature=[
            tf.TensorSpec([BATCH, LENGTH, HIDDEN], tf.float32),
            tf.TensorSpec(shape, tf.int32),
        ]
    )
    def logits(sequence: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        return head(sequence, positions, table)

    concrete = logits.get_concrete_function()
    assert concrete.outputs[0].shape.as_list() == [*shape, VOCABULARY]
    tensors = [tensor for op in concrete.graph.get_operations() for tensor in op.outputs]
    wide = [tensor.shape.as_list() for tensor in tensors if tensor.shape.rank]
    wide = [sizes for sizes in wide if sizes[-1] == VOCABULARY]
    rows = {math.prod(sizes[:-1]) if None not in sizes else None for sizes in wide}
    assert rows - {1} == ({BATCH * MASKED} if None not in shape else {None})
    # No product is over all the tokens either.
    products = [op for op in concrete.graph.get_operations() if op.type == "MatMul"]
    assert len(products) == 2
    assert all(op.outputs[0].shape[0] != BATCH * LENGTH for op in products)
    assert logits(normal(BATCH, LENGTH, HIDDEN), POSITIONS).shape == [BATCH, MASKED, VOCABULARY]


def test_masked_lm_loss() -> None:
    logits, ids = normal(BATCH, MASKED, VOCABULARY), np.array([[3, 4, 5], [6, 0, 0]])
    weights = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    log_probs = numpy_bert.log_softmax(logits.astype(np.float64))
    losses = -np.take_along_axis(log_probs, ids[..., None], axis=-1)[..., 0]
    expected = (losses * weights).sum() / (weights.sum() + 1e-5)
    actual = masked_lm_loss(tf.constant(logits), tf.constant(ids), tf.constant(weights))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_masked_lm_loss_without_masked_positions_is_zero() -> None:
    logits = tf.constant(normal(BATCH, MASKED, VOCABULARY))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = masked_lm_loss(logits, tf.constant(POSITIONS), tf.zeros([BATCH, MASKED]))
    assert loss == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, logits), tf.zeros_like(logits))


def test_next_sentence_equals_numpy() -> None:
    head = NextSentenceHead(make_config())
    weights, pooled = randomize(head), normal(BATCH, HIDDEN)
    expected = numpy_bert.output_logits(weights, "cls/seq_relationship/", pooled)
    np.testing.assert_allclose(head(tf.constant(pooled)), expected, rtol=0, atol=1e-6)


def test_classification_equals_numpy() -> None:
    head = ClassificationHead(5, make_config(), dropout=0.5)
    weights, pooled = randomize(head), normal(BATCH, HIDDEN)
    expected = numpy_bert.output_logits(weights, "", pooled)
    np.testing.assert_allclose(head(tf.constant(pooled)), expected, rtol=0, atol=1e-6)


def test_classification_dropout() -> None:
    head = ClassificationHead(5, make_config(), dropout=0.5)
    randomize(head)
    pooled = tf.constant(normal(BATCH, HIDDEN))
    dropped = head(pooled, tf.constant([1, 2]))
    np.testing.assert_array_equal(dropped, head(pooled, tf.constant([1, 2])))
    assert np.abs(dropped - head(pooled)).max() > 1e-3
    assert np.abs(dropped - head(pooled, tf.constant([1, 3]))).max() > 1e-3
    # The mean of many is the output without dropout, within five standard errors.
    samples = head(tf.tile(pooled[:1], [10_000, 1]), tf.constant([1, 2])).numpy()
    error = samples.std(axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(axis=0) - head(pooled)[0]) < 5 * error)


def test_names_of_the_original_release() -> None:
    config = make_config()
    assert list(variables_by_name(ClassificationHead(3, config, 0.1))) == [
        "output_weights",
        "output_bias",
    ]
    assert list(variables_by_name(NextSentenceHead(config))) == [
        "cls/seq_relationship/output_weights",
        "cls/seq_relationship/output_bias",
    ]
    assert set(variables_by_name(MaskedLMHead(config))) == {
        "cls/predictions/transform/dense/kernel",
        "cls/predictions/transform/dense/bias",
        "cls/predictions/transform/LayerNorm/beta",
        "cls/predictions/transform/LayerNorm/gamma",
        "cls/predictions/output_bias",
    }


def test_fresh_weights() -> None:
    config = make_config()
    layer = OutputLayer(400, config)
    assert abs(np.std(layer.output_weights) - 0.88 * config.initializer_range) < 0.001
    assert np.abs(layer.output_weights).max() <= 2 * config.initializer_range
    np.testing.assert_array_equal(layer.output_bias, np.zeros(400))


@pytest.mark.parametrize("mixed_policy", ["mixed_bfloat16", "mixed_float16"], indirect=True)
def test_logits_are_float32_under_mixed_precision(mixed_policy: str) -> None:
    config, half = make_config(), tf.as_dtype(mixed_policy.removeprefix("mixed_"))
    masked_lm = MaskedLMHead(config)
    next_sentence, classifier = NextSentenceHead(config), ClassificationHead(3, config, 0.1)
    sequence = tf.cast(normal(BATCH, LENGTH, HIDDEN), half)
    table = tf.Variable(normal(VOCABULARY, HIDDEN))
    with tf.GradientTape() as tape:
        logits = [
            masked_lm(sequence, POSITIONS, table),
            next_sentence(sequence[:, 0]),
            classifier(sequence[:, 0], tf.constant([1, 2])),
        ]
        loss = sum(tf.reduce_sum(part**2) for part in logits)
    assert [part.dtype for part in logits] == [tf.float32] * 3
    heads = (masked_lm, next_sentence, classifier)
    variables = [table, *(v for head in heads for v in head.trainable_variables)]
    assert all(variable.dtype == tf.float32 for variable in variables)
    gradients = tape.gradient(loss, variables)
    assert all(gradient.dtype == tf.float32 for gradient in gradients)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
