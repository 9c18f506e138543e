"""The original release's numbers: every output, loss and gradient of a small pre-training batch.

`goldens/pretraining/README.md` says how they were made.
"""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import kernels
from bert_tf.config import BertConfig, OptimizerConfig
from bert_tf.encoder import BertEncoder, EncoderOutput, variables_by_name
from bert_tf.heads import MaskedLMHead, NextSentenceHead, masked_lm_loss
from bert_tf.layouts import Layout, PaddedLayout, UnpaddedLayout
from bert_tf.optimization import Optimizer

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "pretraining"
TOLERANCE = 1e-5
Arrays = dict[str, np.ndarray]


class Model(NamedTuple):
    """An encoder with both pre-training heads and the original weights."""

    encoder: BertEncoder
    masked_lm: MaskedLMHead
    next_sentence: NextSentenceHead

    def variables(self) -> dict[str, tf.Variable]:
        named: dict[str, tf.Variable] = {}
        for part in self:
            named |= variables_by_name(part)
        return named


class Outputs(NamedTuple):
    """What a forward pass gives."""

    encoded: EncoderOutput
    masked_lm_logits: tf.Tensor  # [B, P, V]
    next_sentence_logits: tf.Tensor  # [B, 2]
    masked_lm_loss: tf.Tensor
    next_sentence_loss: tf.Tensor


def read_arrays(name: str) -> Arrays:
    with np.load(GOLDENS / name) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def batch() -> Arrays:
    """The inputs and outputs of `forward.npz`."""
    return read_arrays("forward.npz")


def build_model(layout: type[Layout] = PaddedLayout, recompute: bool = False) -> Model:
    config = BertConfig.from_file(str(GOLDENS / "bert_config.json"))
    encoder = BertEncoder(config, layout=layout, recompute=recompute)
    model = Model(encoder, MaskedLMHead(config), NextSentenceHead(config))
    checkpoint = tf.train.load_checkpoint(str(GOLDENS / "bert_model.ckpt"))
    variables = model.variables()
    assert set(variables) == set(checkpoint.get_variable_to_shape_map())
    for name, variable in variables.items():
        variable.assign(checkpoint.get_tensor(name))
    return model


def run(model: Model, batch: Arrays) -> Outputs:
    encoded = model.encoder(
        batch["input_ids"], batch["segment_ids"], batch["input_mask"], training=True
    )
    masked_lm_logits = model.masked_lm(
        encoded.sequence,
        batch["masked_lm_positions"],
        model.encoder.embeddings.word_embeddings,
    )
    next_sentence_logits = model.next_sentence(encoded.pooled)
    return Outputs(
        encoded,
        masked_lm_logits,
        next_sentence_logits,
        masked_lm_loss(masked_lm_logits, batch["masked_lm_ids"], batch["masked_lm_weights"]),
        tf.reduce_mean(
            kernels.softmax_cross_entropy(next_sentence_logits, batch["next_sentence_labels"])
        ),
    )


def outputs_and_gradients(model: Model, batch: Arrays) -> tuple[Outputs, dict[str, tf.Tensor]]:
    """The outputs and the dense gradients of the summed loss by name."""
    variables = model.variables()
    with tf.GradientTape() as tape:
        outputs = run(model, batch)
        loss = outputs.masked_lm_loss + outputs.next_sentence_loss
    gradients = tape.gradient(loss, list(variables.values()))
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return outputs, dict(zip(variables, dense, strict=True))


def assert_close(actual: object, expected: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=tolerance)


Case = tuple[type[Layout], Outputs, dict[str, tf.Tensor]]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((PaddedLayout, False), id="padded"),
        pytest.param((PaddedLayout, True), id="padded-recompute"),
        pytest.param((UnpaddedLayout, False), id="unpadded"),
        pytest.param((UnpaddedLayout, True), id="unpadded-recompute"),
    ],
)
def case(request: pytest.FixtureRequest, batch: Arrays) -> Case:
    """One way to compute the same numbers: its layout, outputs and gradients."""
    layout, recompute = request.param
    return layout, *outputs_and_gradients(build_model(layout, recompute), batch)


def test_encoder(case: Case, batch: Arrays) -> None:
    layout, outputs, _ = case
    # Without padding there is nothing to compare outside the mask.
    compared = batch["input_mask"] > (0 if layout is UnpaddedLayout else -1)
    assert 0 < batch["input_mask"].mean() < 1
    embeddings = np.asarray(outputs.encoded.embeddings)
    assert_close(embeddings[compared], batch["embedding_output"][compared])
    assert len(outputs.encoded.layers) == 3
    for index, layer in enumerate(outputs.encoded.layers):
        expected = batch[f"encoder_layer_{index}"][compared]
        assert_close(np.asarray(layer)[compared], expected)
    assert outputs.encoded.sequence is outputs.encoded.layers[-1]
    assert_close(outputs.encoded.pooled, batch["pooled_output"])


def test_heads_and_losses(case: Case, batch: Arrays) -> None:
    _, outputs, _ = case
    log_probs = tf.reshape(tf.nn.log_softmax(outputs.masked_lm_logits), [20, 120])
    # Positions that only fill up the row point at [CLS], which is a real token in both layouts.
    assert_close(log_probs, batch["mlm_log_probs"])
    losses = kernels.softmax_cross_entropy(outputs.masked_lm_logits, batch["masked_lm_ids"])
    assert_close(tf.reshape(losses, [20]), batch["mlm_example_loss"])
    assert_close(outputs.masked_lm_loss, batch["mlm_loss"])
    assert_close(tf.nn.log_softmax(outputs.next_sentence_logits), batch["nsp_log_probs"])
    assert_close(outputs.next_sentence_loss, batch["nsp_loss"])


def test_gradients(case: Case) -> None:
    _, _, gradients = case
    expected = read_arrays("gradients.npz")
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        if name.endswith("attention/self/key/bias"):
            # Zero in exact arithmetic: a key bias adds the same number to a whole row of scores,
            # and softmax does not see it. What the original has is rounding noise of 1e-8.
            assert_close(gradient, expected[name], tolerance=1e-7)
        else:
            largest = np.abs(expected[name]).max()
            assert largest > 1e-3
            np.testing.assert_allclose(
                gradient, expected[name], rtol=0.0, atol=TOLERANCE * largest, err_msg=name
            )


@pytest.mark.parametrize("layout", [PaddedLayout, UnpaddedLayout])
def test_twenty_steps_of_the_original_optimizer(layout: type[Layout], batch: Arrays) -> None:
    expected = read_arrays("training.npz")
    model = build_model(layout)
    variables = model.variables()
    steps = int(expected["num_train_steps"])
    config = OptimizerConfig(
        name="bert_adamw",
        learning_rate=float(expected["learning_rate"]),
        warmup_proportion=float(expected["num_warmup_steps"]) / steps,
        weight_decay=float(expected["weight_decay_rate"]),
        beta_1=float(expected["beta_1"]),
        beta_2=float(expected["beta_2"]),
        epsilon=float(expected["epsilon"]),
        clip_norm=float(expected["clip_norm"]),
    )
    optimizer = Optimizer(config, variables, steps, num_layers=3)
    # The stored run counted a step before it read the counter: its first update already has the
    # rate of step 1, its last the rate 0 of step 20.
    optimizer.step.assign(1)

    @tf.function
    def step() -> tf.Tensor:
        outputs, gradients = outputs_and_gradients(model, batch)
        optimizer.apply_gradients(list(gradients.values()))
        return outputs.masked_lm_loss + outputs.next_sentence_loss

    losses = [step().numpy() for _ in range(steps)]
    assert losses[0] > 6.0  # so that the comparison is of a run that learns
    assert losses[-1] < 0.7
    assert optimizer.step == steps + 1
    assert_close(losses, expected["losses"])
    for name, variable in variables.items():
        np.testing.assert_allclose(
            variable, expected[f"final/{name}"], rtol=0.0, atol=TOLERANCE, err_msg=name
        )
