"""The encoder's numbers: equality with NumPy, padding, shapes, compilation, replicas."""

from __future__ import annotations

import re

import numpy as np
import numpy_bert
import pytest
import tensorflow as tf
from tiny_encoder import (
    LENGTHS,
    MASK,
    SEED,
    SEGMENT_IDS,
    TOKEN_IDS,
    assert_close,
    encode,
    gradients,
    make_config,
    make_encoder,
    weights_of,
)

from bert_tf.config import ACTIVATIONS, BertConfig
from bert_tf.encoder import BertEncoder, EncoderOutput, variables_by_name
from bert_tf.layouts import Layout, PaddedLayout, UnpaddedLayout

LAYOUTS = pytest.mark.parametrize("layout", [PaddedLayout, UnpaddedLayout])


# --- numbers -------------------------------------------------------------------------------------


@LAYOUTS
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_numpy(activation: str, layout: type[Layout]) -> None:
    encoder = make_encoder(make_config(activation=activation), layout)
    weights = {name: array.astype(np.float64) for name, array in weights_of(encoder).items()}
    shape = numpy_bert.Shape(layers=2, heads=4, activation=activation)
    expected, pooled = numpy_bert.encode(weights, shape, TOKEN_IDS, SEGMENT_IDS, MASK)
    output = encode(encoder)
    for actual, layer in zip((output.embeddings, *output.layers), expected, strict=True):
        assert actual.shape == layer.shape
        assert_close(actual.numpy()[MASK > 0], layer[MASK > 0], 1e-5)
    assert_close(output.sequence, output.layers[-1], 0.0)
    assert_close(output.pooled, pooled, 1e-5)


def test_the_erf_and_the_tanh_form_differ() -> None:
    """So that the test above can tell one from the other."""
    exact = encode(make_encoder(make_config(activation="gelu"))).sequence
    approximate = encode(make_encoder(make_config(activation="gelu_approximate"))).sequence
    assert 5e-5 < np.abs(exact - approximate).max() < 1e-2


def test_defaults_of_segments_and_mask() -> None:
    encoder = make_encoder(make_config())
    given = encoder(TOKEN_IDS, np.zeros_like(MASK), np.ones_like(MASK))
    assert_close(encoder(TOKEN_IDS).sequence, given.sequence, 0.0)
    assert np.abs(given.sequence - encode(encoder).sequence).max() > 0.1


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_any_integer_type(dtype: type) -> None:
    encoder = make_encoder(make_config())
    output = encoder(TOKEN_IDS.astype(dtype), SEGMENT_IDS.astype(dtype), MASK.astype(dtype))
    assert_close(output.sequence, encode(encoder).sequence, 0.0)
    output = encoder(TOKEN_IDS.tolist(), tf.constant(SEGMENT_IDS, tf.int64), MASK > 0)
    assert_close(output.sequence, encode(encoder).sequence, 0.0)


def test_no_layers() -> None:
    config = BertConfig(vocab_size=60, hidden_size=16, num_attention_heads=4, num_hidden_layers=0)
    output = BertEncoder(config)(TOKEN_IDS)
    assert output.layers == ()
    assert_close(output.sequence, output.embeddings, 0.0)


# --- padding and shapes --------------------------------------------------------------------------


@LAYOUTS
def test_padding_changes_nothing(layout: type[Layout]) -> None:
    encoder = make_encoder(make_config(), layout)
    batch = encode(encoder)
    for row, length in enumerate(LENGTHS):
        alone = (TOKEN_IDS[row : row + 1, :length], SEGMENT_IDS[row : row + 1, :length])
        single = encoder(*alone)
        padded = encoder(
            *(np.pad(ids, [(0, 0), (0, 16 - length)]) for ids in alone),
            np.pad(np.ones([1, length], np.int32), [(0, 0), (0, 16 - length)]),
        )
        for output in (padded.sequence[0, :length], batch.sequence[row, :length]):
            assert_close(output, single.sequence[0], 2e-6)
        for output in (padded.pooled[0], batch.pooled[row]):
            assert_close(output, single.pooled[0], 2e-6)


def test_layouts_agree() -> None:
    padded, unpadded = (
        make_encoder(make_config(), each) for each in (PaddedLayout, UnpaddedLayout)
    )
    one, other = encode(padded), encode(unpadded)
    assert_close(one.sequence * MASK[..., None], other.sequence, 2e-6)
    assert_close(one.pooled, other.pooled, 2e-6)
    expected = gradients(padded)
    for training in (False, True):  # without dropout; gradients come another way
        for name, gradient in gradients(unpadded, training=training).items():
            scale = max(1.0, np.abs(expected[name]).max())
            np.testing.assert_allclose(
                gradient, expected[name], rtol=0, atol=3e-6 * scale, err_msg=name
            )


@LAYOUTS
def test_the_last_layer_at_cls_alone(layout: type[Layout]) -> None:
    """`cls_only` leaves out what `pooled` does not read, in value and gradient."""
    encoder = make_encoder(make_config(), layout)
    results = []
    for cls_only in (False, True):
        with tf.GradientTape() as tape:
            output = encode(encoder, cls_only=cls_only)
            loss = tf.reduce_sum(output.pooled * tf.range(16.0))
        weights = variables_by_name(encoder)
        results.append((output, tape.gradient(loss, weights)))
    (full, expected), (short, actual) = results
    assert short.sequence.shape == [3, 1, 16]
    assert_close(short.sequence, full.sequence[:, :1], 2e-6)
    assert_close(short.pooled, full.pooled, 2e-6)
    for name, gradient in expected.items():
        scale = max(1.0, np.abs(tf.convert_to_tensor(gradient)).max())
        assert_close(
            tf.convert_to_tensor(actual[name]), tf.convert_to_tensor(gradient), 3e-6 * scale
        )


@LAYOUTS
def test_an_example_of_padding_only(layout: type[Layout]) -> None:
    """Batches are filled up with such examples: they must be finite, and disturb no other."""
    encoder = make_encoder(make_config(dropout=0.1), layout)
    zeros = np.zeros([1, 12], np.int32)
    with tf.GradientTape() as tape:
        output = encoder(
            *(np.concatenate([array, zeros]) for array in (TOKEN_IDS, SEGMENT_IDS, MASK)),
            training=True,
            seed=SEED,
        )
        loss = tf.reduce_sum(output.sequence) + tf.reduce_sum(output.pooled)
    for values in (output.sequence, output.pooled, *tape.gradient(loss, encoder.weights)):
        assert np.isfinite(tf.convert_to_tensor(values)).all()
    nothing = encoder(zeros, zeros, zeros)
    assert np.isfinite(nothing.sequence).all()
    assert np.isfinite(nothing.pooled).all()


def test_static_shapes_stay_static() -> None:
    encoder = make_encoder(make_config(layers=1))
    spec = tf.TensorSpec([3, 12], tf.int32)
    function = tf.function(encoder.call, input_signature=[spec, spec, spec])
    output = function.get_concrete_function().structured_outputs
    assert output.sequence.shape.as_list() == [3, 12, 16]
    assert output.pooled.shape.as_list() == [3, 16]
    assert [layer.shape.as_list() for layer in output.layers] == [[3, 12, 16]]


@LAYOUTS
def test_unknown_shapes_take_one_trace(layout: type[Layout]) -> None:
    encoder = make_encoder(make_config(), layout)
    spec = tf.TensorSpec([None, None], tf.int32)
    function = tf.function(encoder.call, input_signature=[spec, spec, spec])
    expected = encode(encoder)
    assert_close(function(TOKEN_IDS, SEGMENT_IDS, MASK).sequence, expected.sequence, 2e-6)
    short = function(TOKEN_IDS[1:2, :7], SEGMENT_IDS[1:2, :7], MASK[1:2, :7])
    assert_close(short.sequence[0], expected.sequence[1, :7], 2e-6)
    assert function.experimental_get_tracing_count() == 1


def test_too_long_sequences_are_refused() -> None:
    encoder = BertEncoder(make_config())
    assert encoder(np.ones([1, 20], np.int32)).sequence.shape == [1, 20, 16]
    message = (
        "sequence length 21 exceeds the position table of this model "
        "(max_position_embeddings=20); shorten the sequences or load a model"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder(np.ones([1, 21], np.int32))


def test_xla_equals_eager() -> None:
    encoder = make_encoder(make_config(layers=1))

    def run() -> tuple[EncoderOutput, dict[str, tf.Tensor]]:
        return encode(encoder), gradients(encoder)

    output, expected = run()
    compiled_output, compiled = tf.function(run, jit_compile=True)()
    assert_close(compiled_output.sequence, output.sequence, 1e-5)
    assert_close(compiled_output.pooled, output.pooled, 1e-5)
    for name, gradient in compiled.items():
        scale = max(1.0, np.abs(expected[name]).max())
        np.testing.assert_allclose(
            gradient, expected[name], rtol=0, atol=1e-5 * scale, err_msg=name
        )


def test_dropout_under_xla() -> None:
    """Reproducible too, though its random numbers are XLA's own and not those of eager mode."""
    encoder = make_encoder(make_config(dropout=0.1, layers=0))
    call = tf.function(lambda seed: encode(encoder, training=True, seed=seed), jit_compile=True)
    first = call(SEED).sequence
    assert_close(first, call(SEED).sequence, 0.0)
    assert np.abs(first - call(SEED + 1).sequence).max() > 0.1
    assert np.abs(first - encode(encoder).sequence).max() > 0.1


def test_two_replicas_equal_one() -> None:
    expected = encode(make_encoder(make_config()))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        encoder = make_encoder(make_config())
    assert set(variables_by_name(encoder)) == set(weights_of(make_encoder(make_config())))
    outputs = strategy.run(tf.function(lambda: encode(encoder).sequence))
    for output in strategy.experimental_local_results(outputs):
        assert_close(output, expected.sequence, 2e-6)


@pytest.mark.parametrize("activation", ["gelu", "gelu_approximate"])
def test_the_activation_joins_the_product_before_it(activation: str) -> None:
    """What the graph optimizer makes of a block in inference, where it has oneDNN."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        encoder = BertEncoder(make_config(activation=activation), UnpaddedLayout)
        token_ids = tf.compat.v1.placeholder(tf.int32, [None, None])
        sequence = encoder(token_ids).sequence
        session.run(tf.compat.v1.global_variables_initializer())
        options = tf.compat.v1.RunOptions(output_partition_graphs=True)
        metadata = tf.compat.v1.RunMetadata()
        session.run(sequence, {token_ids: TOKEN_IDS}, options, metadata)
    nodes = [node for graph in metadata.partition_graphs for node in graph.node]
    if not any(node.op.startswith("_Mkl") for node in nodes):
        pytest.skip("this TensorFlow computes without oneDNN")
    joined = [list(node.attr["fused_ops"].list.s) for node in nodes if "fused_ops" in node.attr]
    name = b"GeluExact" if activation == "gelu" else b"GeluApproximate"
    assert sum(name in operations for operations in joined) == make_config().num_hidden_layers
