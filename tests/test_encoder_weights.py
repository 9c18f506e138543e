"""The encoder's weights: names, sizes of the published models, fresh values."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tiny_encoder import MASK, TOKEN_IDS, assert_close, make_config, make_encoder

from bert_tf.config import BertConfig
from bert_tf.encoder import BertEncoder, variables_by_name

# --- names, sizes and fresh weights --------------------------------------------------------------

LAYER_SHAPES = {
    "attention/self/query/kernel": (16, 16),
    "attention/self/query/bias": (16,),
    "attention/self/key/kernel": (16, 16),
    "attention/self/key/bias": (16,),
    "attention/self/value/kernel": (16, 16),
    "attention/self/value/bias": (16,),
    "attention/output/dense/kernel": (16, 16),
    "attention/output/dense/bias": (16,),
    "attention/output/LayerNorm/gamma": (16,),
    "attention/output/LayerNorm/beta": (16,),
    "intermediate/dense/kernel": (16, 32),
    "intermediate/dense/bias": (32,),
    "output/dense/kernel": (32, 16),
    "output/dense/bias": (16,),
    "output/LayerNorm/gamma": (16,),
    "output/LayerNorm/beta": (16,),
}


def test_names_of_the_original_release() -> None:
    expected = {
        "bert/embeddings/word_embeddings": (60, 16),
        "bert/embeddings/token_type_embeddings": (2, 16),
        "bert/embeddings/position_embeddings": (20, 16),
        "bert/embeddings/LayerNorm/gamma": (16,),
        "bert/embeddings/LayerNorm/beta": (16,),
        "bert/pooler/dense/kernel": (16, 16),
        "bert/pooler/dense/bias": (16,),
    }
    for layer in range(2):
        for name, shape in LAYER_SHAPES.items():
            expected[f"bert/encoder/layer_{layer}/{name}"] = shape
    variables = variables_by_name(BertEncoder(make_config()))
    assert {name: tuple(v.shape) for name, v in variables.items()} == expected


def test_names_do_not_depend_on_where_an_encoder_is_built() -> None:
    class Tagger(keras.Model):
        def build(self, input_shape: tf.TensorShape) -> None:
            self.encoder = BertEncoder(make_config())
            super().build(input_shape)

        def call(self, token_ids: tf.Tensor) -> tf.Tensor:
            return self.encoder(token_ids).sequence

    model = Tagger(name="tagger")
    model(TOKEN_IDS)
    with tf.name_scope("outer"):
        inside = BertEncoder(make_config())
    names = set(variables_by_name(BertEncoder(make_config())))
    assert set(variables_by_name(model.encoder)) == names
    assert set(variables_by_name(inside)) == names


def test_keras_functional_model() -> None:
    encoder = make_encoder(make_config())
    token_ids, mask = keras.Input([None], dtype=tf.int32), keras.Input([None], dtype=tf.int32)
    model = keras.Model([token_ids, mask], encoder(token_ids, mask=mask).pooled)
    expected = encoder(TOKEN_IDS, mask=MASK).pooled
    assert_close(model([TOKEN_IDS, MASK]), expected, 1e-6)
    assert len(model.trainable_variables) == len(encoder.trainable_variables)


def test_fresh_weights() -> None:
    config = BertConfig(vocab_size=2000, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    for name, variable in variables_by_name(BertEncoder(config)).items():
        values = variable.numpy()
        if name.endswith(("kernel", "embeddings")):
            assert np.abs(values).max() <= 2 * config.initializer_range, name
            # A normal cut at two standard deviations has 0.88 of the spread.
            if values.size > 1000:
                assert abs(values.std() / config.initializer_range - 0.88) < 0.03, name
        else:
            np.testing.assert_array_equal(values, float(name.endswith("gamma")), err_msg=name)


# Weights of the encoder with its pooler. Sizes of the original release: "Well-Read Students Learn
# Better" (arXiv 1908.08962) has heads of 64 units, a feed-forward of 4 H and 30,522 pieces.
# fmt: off
PARAMETERS = {
    # (L, H): number                      # also known as
    (2, 128): 4_385_920,                  # tiny
    (4, 128): 4_782_464,
    (6, 128): 5_179_008,
    (8, 128): 5_575_552,
    (10, 128): 5_972_096,
    (12, 128): 6_368_640,
    (2, 256): 9_591_040,
    (4, 256): 11_170_560,                 # mini
    (6, 256): 12_750_080,
    (8, 256): 14_329_600,
    (10, 256): 15_909_120,
    (12, 256): 17_488_640,
    (2, 512): 22_458_880,
    (4, 512): 28_763_648,                 # small
    (6, 512): 35_068_416,
    (8, 512): 41_373_184,                 # medium
    (10, 512): 47_677_952,
    (12, 512): 53_982_720,
    (2, 768): 38_603_520,
    (4, 768): 52_779_264,
    (6, 768): 66_955_008,
    (8, 768): 81_130_752,
    (10, 768): 95_306_496,
    (12, 768): 109_482_240,               # base
    (24, 1024): 335_141_888,              # large
}
# fmt: on


def published_config(layers: int, hidden: int) -> BertConfig:
    return BertConfig(
        vocab_size=30522,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )


@pytest.mark.parametrize(("layers", "hidden"), PARAMETERS)
def test_parameters_in_closed_form(layers: int, hidden: int) -> None:
    tables = (30522 + 512 + 2) * hidden
    norm = 2 * hidden
    attention = 4 * (hidden * hidden + hidden)
    feed_forward = (hidden * 4 * hidden + 4 * hidden) + (4 * hidden * hidden + hidden)
    pooler = hidden * hidden + hidden
    total = tables + norm + layers * (attention + feed_forward + 2 * norm) + pooler
    assert total == PARAMETERS[layers, hidden]


@pytest.mark.parametrize(("layers", "hidden"), [(2, 128), (4, 256), (4, 512), (12, 768)])
def test_parameters_as_built(layers: int, hidden: int) -> None:
    assert count_parameters(published_config(layers, hidden)) == PARAMETERS[layers, hidden]


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "hidden"), PARAMETERS)
def test_parameters_as_built_in_every_size(layers: int, hidden: int) -> None:
    assert count_parameters(published_config(layers, hidden)) == PARAMETERS[layers, hidden]


def count_parameters(config: BertConfig) -> int:
    with tf.Graph().as_default():  # initial values are operations here, which nobody runs
        variables = variables_by_name(BertEncoder(config)).values()
        return sum(variable.shape.num_elements() for variable in variables)


def test_every_published_size_is_in_the_table() -> None:
    small = {(layers, hidden) for layers in range(2, 13, 2) for hidden in (128, 256, 512, 768)}
    assert set(PARAMETERS) == small | {(24, 1024)}
