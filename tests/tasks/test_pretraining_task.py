"""Pre-training: losses, gradients, the same update however a batch is split, exact resume."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf import restore, run_folder, weights
from bert_tf.checkpoints import read_checkpoint, read_pretrained
from bert_tf.config import BertConfig, RunConfig
from bert_tf.data.batches import Examples
from bert_tf.data.token_shards import write_shard
from bert_tf.encoder import variables_by_name
from bert_tf.heads import masked_lm_loss
from bert_tf.layouts import UnpaddedLayout
from bert_tf.tasks import answers_of
from bert_tf.tasks.contract import Feed
from bert_tf.tasks.pretraining import PretrainingTask
from bert_tf.training import Loop, make_gradients, total_loss
from bert_tf.weights import assign
from tests.data.test_token_shards import shard
from tests.tiny_records import LENGTH, Arrays, tiny_records, write_records
from tests.tiny_run import CHECKPOINT, run_tiny

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "pretraining"
VALUES: dict[str, dict[str, Any]] = {
    "model": {
        "init_checkpoint": str(CHECKPOINT),
        "num_layers": 1,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "data": {"max_seq_length": LENGTH},
    "task": {"name": "pretraining"},
    "optimizer": {"learning_rate": 1e-3},
    "train": {
        "global_batch_size": 16,
        "steps": 12,
        "steps_per_loop": 3,
        "log_every": 4,
        "save_every": 5,
        "eval_batch_size": 8,
    },
}


def run_of(folder: pathlib.Path, **changes: dict[str, Any]) -> RunConfig:
    """A run on 50 records in two files, measured on 11."""
    if not (folder / "dev.tfrecord").exists():
        write_records(folder / "train-0.tfrecord", tiny_records(30, seed=1))
        write_records(folder / "train-1.tfrecord", tiny_records(20, seed=2))
        write_records(folder / "dev.tfrecord", tiny_records(11, seed=3))
    files = {"train": str(folder / "train-*.tfrecord"), "dev": str(folder / "dev.tfrecord")}
    values = {section: VALUES.get(section, {}) | changes.get(section, {}) for section in VALUES}
    values["data"] = files | values["data"]
    return RunConfig.from_dict(values)


def task_of(run: RunConfig, config: BertConfig | None = None) -> PretrainingTask:
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    return PretrainingTask.from_data(run, config or pretrained.config, pretrained.tokenizer)


def batch_of(records: Arrays) -> dict[str, tf.Tensor]:
    """The batch that the loop would get of these arrays."""
    return {
        "token_ids": tf.constant(records["input_ids"], tf.int32),
        "segment_ids": tf.constant(records["segment_ids"], tf.int32),
        "mask": tf.constant(records["input_mask"], tf.int32),
        "weight": tf.ones([len(records["input_ids"])]),
        "masked_positions": tf.constant(records["masked_lm_positions"], tf.int32),
        "masked_ids": tf.constant(records["masked_lm_ids"], tf.int32),
        "masked_weights": tf.constant(records["masked_lm_weights"], tf.float32),
        "cls_positions": tf.zeros([len(records["input_ids"]), 1], tf.int32),
        "next_sentence_labels": tf.constant(
            np.reshape(records["next_sentence_labels"], [-1, 1]), tf.int32
        ),
        "next_sentence_weights": tf.ones([len(records["input_ids"]), 1]),
    }


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


def final_tensors(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    newest = run_folder.newest_step(str(workdir / "checkpoints"))
    assert newest is not None
    return weights.read_tensors(newest + "/model.ckpt")


# ------------------------------------------------------------------------------------ the numbers


@pytest.mark.parametrize("layout", ["padded", "unpadded"])
def test_loss_and_gradients_are_those_of_the_original_release(
    tmp_path: pathlib.Path, layout: str
) -> None:
    config = BertConfig.from_file(str(GOLDENS / "bert_config.json"))
    model_config = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    task = task_of(run_of(tmp_path, model=model_config), config)
    quiet = dataclasses.replace(config, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    task = dataclasses.replace(task, config=quiet)
    model = task.build_model(UnpaddedLayout) if layout == "unpadded" else task.build_model()
    variables = variables_by_name(model)
    assign(variables, weights.read_weights(str(GOLDENS / "bert_model.ckpt")), "the golden")
    with np.load(GOLDENS / "forward.npz") as forward, np.load(GOLDENS / "gradients.npz") as golden:
        batch = batch_of(dict(forward))
        term_weights = task.term_weights(batch)
        gradients_of = make_gradients(task, model, accumulation=1)
        sums, gradients = gradients_of(batch, tf.constant([0, 1]), term_weights, tf.constant(1.0))
        words = forward["masked_lm_weights"].sum()
        np.testing.assert_allclose(term_weights, [words, words, 4.0, 4.0])
        loss = total_loss(task, sums, term_weights)
        np.testing.assert_allclose(loss, forward["loss"], rtol=1e-5)
        terms = dict(zip(task.terms, sums / term_weights, strict=True))
        np.testing.assert_allclose(terms["masked_lm_loss"], forward["mlm_loss"], rtol=1e-5)
        np.testing.assert_allclose(terms["next_sentence_loss"], forward["nsp_loss"], rtol=1e-5)
        assert set(variables) == set(golden.files)
        for name, gradient in zip(variables, gradients, strict=True):
            np.testing.assert_allclose(gradient, golden[name], atol=2e-6, err_msg=name)


def test_masked_words_alone(tmp_path: pathlib.Path) -> None:
    """No next-sentence head, no pooler, and the loss is that of the head's own formula."""
    task = task_of(run_of(tmp_path, task={"name": "pretraining", "next_sentence": False}))
    model = task.build_model()
    names = set(variables_by_name(model))
    assert not [name for name in names if "pooler" in name or "seq_relationship" in name]
    batch = batch_of(tiny_records(9))
    expected = masked_lm_loss(
        model(batch)["masked_lm"], batch["masked_ids"], batch["masked_weights"]
    )
    sums = task.term_sums(model, batch, tf.constant([0, 1]))
    assert sums.shape == [2]
    np.testing.assert_allclose(sums[0] / task.term_weights(batch)[0], expected, rtol=1e-5)
    assert task.metric_names == ("masked_lm_loss", "masked_lm_accuracy")


def test_metrics_counted_by_hand(tmp_path: pathlib.Path) -> None:
    """Logits that name the answers, for 3 of 5 masked words and 2 of 3 pairs; one row is none."""
    task = task_of(run_of(tmp_path))
    answers = np.array([[7, 8, 0], [9, 0, 0], [10, 11, 0], [12, 0, 0]], np.int32)
    masked = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]], np.float32)
    said = np.array([[7, 9, 0], [9, 0, 0], [10, 12, 0], [12, 0, 0]])  # two are wrong
    following = np.array([[[0.0, 1.0]], [[1.0, 0.0]], [[0.0, 1.0]], [[5.0, 0.0]]], np.float32)
    batch = {
        "masked_ids": tf.constant(answers),
        "masked_weights": tf.constant(masked),
        "weight": tf.constant([1.0, 1.0, 1.0, 0.0]),
        "next_sentence_labels": tf.constant([[1], [0], [0], [0]]),
        "next_sentence_weights": tf.ones([4, 1]),
    }
    logits = {
        "masked_lm": tf.one_hot(said, 120) * 3.0,
        "next_sentence": tf.constant(following),
    }
    outputs = task.predict(lambda features: logits, batch)
    rows = {name: value.numpy()[:3] for name, value in outputs.items()}  # as evaluation keeps them
    nothing = np.zeros(0, np.int32)
    metrics = task.metrics(rows, Examples(nothing, nothing, np.zeros(1, np.int64), {}))
    total = np.log(np.exp(3.0) + 119)
    right, wrong = total - 3.0, total
    assert metrics["masked_lm_accuracy"] == pytest.approx(3 / 5)
    assert metrics["masked_lm_loss"] == pytest.approx((3 * right + 2 * wrong) / 5, rel=1e-6)
    assert metrics["next_sentence_accuracy"] == pytest.approx(2 / 3)
    good, bad = np.log(1 + np.exp(-1.0)), np.log(1 + np.exp(1.0))
    assert metrics["next_sentence_loss"] == pytest.approx((2 * good + bad) / 3, rel=1e-6)
    assert metrics["loss"] == pytest.approx(
        metrics["masked_lm_loss"] + metrics["next_sentence_loss"]
    )
    assert set(metrics) == {*task.metric_names, "loss"}


# ---------------------------------------------------------------------------------------- the run


@pytest.fixture(scope="module")
def one_replica(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    folder = tmp_path_factory.mktemp("one")
    run_tiny(five_steps(folder, 1), folder / "run")
    return final_tensors(folder / "run")


def five_steps(folder: pathlib.Path, accumulation: int) -> RunConfig:
    optimizer = {"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0}
    train = VALUES["train"] | {"steps": 5, "accumulation": accumulation}
    return run_of(folder, optimizer=optimizer, train=train)


@pytest.mark.parametrize(("replicas", "accumulation"), [(2, 2), slow(1, 2), slow(2, 1)])
def test_replicas_and_accumulation_give_the_same_update(
    tmp_path: pathlib.Path,
    one_replica: dict[str, np.ndarray],
    replicas: int,
    accumulation: int,
) -> None:
    """Rows have 0 to 4 masked words, so a mean of means would differ."""
    run_tiny(five_steps(tmp_path, accumulation), tmp_path / "run", replicas)
    tensors = final_tensors(tmp_path / "run")
    assert tensors.keys() == one_replica.keys()
    for name, value in one_replica.items():
        np.testing.assert_allclose(tensors[name], value, atol=1e-6, err_msg=name)


def packed_run(folder: pathlib.Path, **changes: dict[str, Any]) -> RunConfig:
    """A run on token shards, with up to three sequences in a row."""
    for number in range(2):
        write_shard(str(folder / f"x-{number}.tokens.npz"), shard(number, documents=20))
    run = run_of(folder, task=VALUES["task"] | {"packed_sequences": 3}, **changes)
    data = dataclasses.replace(run.data, train=str(folder / "*.tokens.npz"))
    return dataclasses.replace(run, data=data)


def test_packed_rows_give_the_same_update_on_two_replicas(tmp_path: pathlib.Path) -> None:
    """Rows have one to three next-sentence labels, so a mean of means would differ."""
    optimizer = {"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0}
    for replicas, accumulation in ((1, 1), (2, 2)):
        train = VALUES["train"] | {"steps": 3, "accumulation": accumulation}
        run = packed_run(tmp_path, optimizer=optimizer, train=train)
        run_tiny(run, tmp_path / f"run{replicas}", replicas)
    one, two = final_tensors(tmp_path / "run1"), final_tensors(tmp_path / "run2")
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)
    line = json.loads((tmp_path / "run1/metrics.jsonl").read_text().splitlines()[0])
    assert {"masked_lm_accuracy", "next_sentence_accuracy"} <= set(line)


def test_packed_rows_in_bfloat16_with_recomputed_activations(tmp_path: pathlib.Path) -> None:
    model = VALUES["model"] | {"recompute": True}
    run = packed_run(tmp_path, model=model, train=VALUES["train"] | {"steps": 4})
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        run_tiny(run, tmp_path / "run", dtype="bfloat16")
    finally:
        keras.mixed_precision.set_global_policy("float32")
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert 0 < line["masked_lm_loss"] < 2 * np.log(120)


def test_records_are_not_packed(tmp_path: pathlib.Path) -> None:
    run = run_of(tmp_path, task=VALUES["task"] | {"packed_sequences": 3})
    with pytest.raises(ValueError, match=r"packed_sequences=3 is for token shards.*--form=tokens"):
        task_of(run).training_data()


@pytest.mark.parametrize(
    ("make_run", "died_at"), [slow(run_of, 5), slow(run_of, 8), (packed_run, 8)]
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    make_run: Callable[..., RunConfig],
    died_at: int,
) -> None:
    """With dropout, and over the ends of several epochs of 50 records or of packed rows."""
    run = make_run(
        tmp_path,
        model={"init_checkpoint": str(CHECKPOINT)},
        train=VALUES["train"] | {"eval_every": 4},
    )
    run_tiny(run, tmp_path / "whole")
    advance = Loop.advance

    def dying(self: Loop, feed: Feed) -> None:
        if self.state.progress.step >= died_at:
            raise KeyboardInterrupt
        advance(self, feed)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(run, tmp_path / "killed")
    run_tiny(run, tmp_path / "killed")
    whole, killed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert "cls/predictions/output_bias/adam_v" in whole
    for name, value in whole.items():
        assert np.array_equal(value, killed[name]), name
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "killed")]
    assert lines[0] == lines[1]
    assert "eval/masked_lm_accuracy" in lines[0]


def test_a_tiny_model_learns_and_its_folder_opens(tmp_path: pathlib.Path) -> None:
    write_records(tmp_path / "train-0.tfrecord", tiny_records(96, seed=5))
    write_records(tmp_path / "train-1.tfrecord", tiny_records(32, seed=6))
    write_records(tmp_path / "dev.tfrecord", tiny_records(40, seed=5))
    train = VALUES["train"] | {"steps": 200, "save_every": 200, "log_every": 50, "eval_every": 50}
    run = run_of(tmp_path, optimizer={"learning_rate": 3e-3}, train=train)
    metrics = run_tiny(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["masked_lm_accuracy"] > 0.5
    assert metrics["next_sentence_accuracy"] > 0.9
    logged = next(line for line in reversed(lines) if "loss" in line)
    assert logged["masked_lm_accuracy"] > 0.5
    assert logged["next_sentence_accuracy"] > 0.9
    total = logged["masked_lm_loss"] + logged["next_sentence_loss"]
    assert logged["loss"] == pytest.approx(total, rel=0.02)  # batches differ in masked words
    # The best weights are those of the lowest loss, and every reader of checkpoints reads them.
    measured = [line["eval/masked_lm_loss"] for line in lines if "eval/masked_lm_loss" in line]
    assert metrics["masked_lm_loss"] == min(measured)
    opened = restore.open_run(str(tmp_path / "run"))
    assert isinstance(opened.task, PretrainingTask)
    found = read_checkpoint(str(tmp_path / "run"))
    assert set(found.weights) == set(variables_by_name(opened.model))
    with pytest.raises(ValueError, match="'pretraining' cannot be exported: it has no labels"):
        answers_of(opened.task, "be exported")


def test_an_encoder_without_heads_gets_fresh_ones(tmp_path: pathlib.Path) -> None:
    classifier = CHECKPOINT.parent / "tiny_classifier"
    model = VALUES["model"] | {"init_checkpoint": str(classifier)}
    metrics = run_tiny(
        run_of(tmp_path, model=model, train=VALUES["train"] | {"steps": 1}), tmp_path / "run"
    )
    assert metrics["step"] == 1


def test_other_data_are_refused_on_resuming(tmp_path: pathlib.Path) -> None:
    run_tiny(run_of(tmp_path, train=VALUES["train"] | {"steps": 5}), tmp_path / "run")
    write_records(tmp_path / "train-1.tfrecord", tiny_records(20, seed=9))
    with pytest.raises(ValueError, match="training data are not those"):
        run_tiny(run_of(tmp_path, train=VALUES["train"] | {"steps": 5}), tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"max_seq_length": 41}, r"max_position_embeddings=40"),
        ("data", {"max_seq_length": 12}, r"records of 16 tokens.*set it to 16"),
        ("data", {"train": ""}, r"config\.data\.train is empty: name files"),
        ("data", {"dev": "/nowhere/*.tfrecord"}, r"no file matches '/nowhere/\*\.tfrecord'"),
        ("task", {"glue": "sst2"}, "is for config.task.name=classification"),
        ("train", {"best_metric": "accuracy"}, "is not measured; choose masked_lm_loss"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: pathlib.Path, section: str, fields: dict[str, Any], message: str
) -> None:
    run = run_of(tmp_path, **{section: VALUES[section] | fields})
    with pytest.raises(ValueError, match=message):
        run_tiny(run, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
