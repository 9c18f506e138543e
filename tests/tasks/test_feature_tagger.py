"""Tagging by features: the encoder stays, the head reads its last layers."""

from __future__ import annotations

import collections
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import bert_tf
from bert_tf import restore, run_folder, weights
from bert_tf.config import BertConfig, OptimizerConfig, RunConfig
from bert_tf.layouts import PaddedLayout, UnpaddedLayout
from bert_tf.optimization import moving
from bert_tf.tasks.feature_tagger import LSTM
from bert_tf.tasks.tagging import TaggingTask
from bert_tf.tokenization import Tokenizer
from tests.tasks.test_tagging import sentences, tagging_run
from tests.tiny_run import CHECKPOINT, run_tiny

FEATURES = {
    "model": {"num_layers": 2},
    "task": {"name": "tagging", "feature_layers": 2},
    "optimizer": {"frozen": "bert/"},
}


def feature_run(folder: pathlib.Path, **changes: dict[str, Any]) -> RunConfig:
    values = {name: FEATURES.get(name, {}) | changes.get(name, {}) for name in FEATURES | changes}
    return tagging_run(folder, **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("features")
    train = {"steps": 60, "save_every": 60, "log_every": 10}
    rate = {"learning_rate": 1e-2, "frozen": "bert/"}
    run_tiny(feature_run(folder, train=train, optimizer=rate), folder / "run")
    return folder


def test_the_encoder_stays_and_the_head_learns(folder: pathlib.Path) -> None:
    newest = run_folder.newest_step(str(folder / "run/checkpoints"))
    saved = weights.read_tensors(f"{newest}/model.ckpt")
    start = bert_tf.checkpoints.read_checkpoint(str(CHECKPOINT)).weights
    encoder = [name for name in start if name.startswith(("bert/embeddings", "bert/encoder"))]
    assert len(encoder) > 30
    for name in encoder:
        assert np.array_equal(saved[name], start[name]), name
    assert not [name for name in saved if name.startswith("bert/") and "adam" in name]
    head = [name for name in saved if name.startswith("tagger/") and name.endswith("/adam_m")]
    assert len(head) == 14  # two layers of two directions with three weights each, and two
    assert all(saved[name].any() for name in head)
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    counts = collections.Counter(tag for words in sentences(0, 96) for _, tag in words)
    shares = np.array(list(counts.values())) / counts.total()
    assert losses[-1] < -(shares * np.log(shares)).sum() - 0.2, "no better than shares of tags"


def test_the_head_reads_the_last_layers_and_no_padding(folder: pathlib.Path) -> None:
    tokenizer = Tokenizer.load(str(CHECKPOINT))
    packed = tokenizer.pack(tokenizer(tf.constant(["the cat sat on the mat", "a dog"])), None, 16)
    features = {
        "token_ids": packed.token_ids.to_tensor(),
        "segment_ids": packed.segment_ids.to_tensor(),
        "mask": tf.ones_like(packed.token_ids).to_tensor(),
    }
    alone = {name: value[1:, :4] for name, value in features.items()}
    encoder = bert_tf.load(str(CHECKPOINT))
    layers = encoder(*features.values()).layers
    for layout in (PaddedLayout, UnpaddedLayout):
        model: Any = restore.open_run(str(folder / "run"), layout).model
        read = model.read(features).numpy()
        assert read.shape == (2, 8, 64)
        expected = np.concatenate([layers[-2], layers[-1]], axis=-1)
        real = features["mask"].numpy() > 0
        np.testing.assert_allclose(read[real], expected[real], atol=1e-5)
        np.testing.assert_allclose(model(features)[1, :4], model(alone)[0], atol=1e-5)


@pytest.mark.parametrize("backwards", [False, True])
def test_the_lstm_is_that_of_keras(backwards: bool) -> None:
    """Values, gradients, padding in front and behind; and the start of the bias."""
    ours = LSTM(5, 4, "ours", go_backwards=backwards)
    theirs = keras.layers.LSTM(4, return_sequences=True, go_backwards=backwards)
    rng = np.random.default_rng(7)
    x = tf.constant(rng.normal(size=[3, 6, 5]), tf.float32)
    mask = tf.constant([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]]) > 0
    theirs(x, mask=mask)
    np.testing.assert_array_equal(ours.bias, theirs.cell.bias)
    for variable, value in zip(theirs.weights, ours.weights, strict=True):
        variable.assign(value + 0.1)
        value.assign(variable)
    factor = tf.constant(rng.normal(size=[3, 6, 4]), tf.float32)
    results = []
    for layer in (lambda: ours(x, mask), lambda: theirs(x, mask=mask)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            states = layer()
            loss = tf.reduce_sum(states * factor)
        sources = [x, *(ours if not results else theirs).weights]
        results.append([states, *tape.gradient(loss, sources)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"frozen": ""}}, "optimizer.frozen is '': set it to \"bert/\""),
        ({"task": {"feature_layers": 3}}, "feature_layers=3 must be from 0 .none. to 2"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    run = feature_run(tmp_path, **changes)
    config = BertConfig.from_file(str(CHECKPOINT / "config.json"))
    with pytest.raises(ValueError, match=message):
        TaggingTask.from_data(run, config, Tokenizer.load(str(CHECKPOINT)))


def test_what_is_frozen_must_be_there_and_leave_something() -> None:
    variables = {"bert/a": tf.Variable(0.0), "head": tf.Variable(0.0)}
    assert list(moving(OptimizerConfig(frozen="bert/"), variables)) == ["head"]
    assert list(moving(OptimizerConfig(), variables)) == ["bert/a", "head"]
    with pytest.raises(ValueError, match="freezes 0 of 2 weights"):
        moving(OptimizerConfig(frozen="bret/"), variables)
    with pytest.raises(ValueError, match="freezes 1 of 1 weights"):
        moving(OptimizerConfig(frozen="bert/"), {"bert/a": variables["bert/a"]})
