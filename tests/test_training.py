"""The loop: it learns, any split of the batch gives the same update, and a resumed run is exact."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf import run_folder, training, weights
from bert_tf.checkpoints import Pretrained
from bert_tf.data import batches
from bert_tf.distribution import Preempted
from bert_tf.training import Loop, NonFiniteLoss
from tests.tiny_run import run_tiny, tiny_run, write_reviews

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def final_tensors(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    newest = run_folder.newest_step(str(workdir / "checkpoints"))
    assert newest is not None
    return weights.read_tensors(newest + "/model.ckpt")


def without_dropout(folder: pathlib.Path, **changes: dict) -> run_folder.RunConfig:
    run = tiny_run(folder, **changes)
    model = dataclasses.replace(run.model, **NO_DROPOUT)
    return dataclasses.replace(run, model=model, task=dataclasses.replace(run.task, dropout=0.0))


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the process "die" before the steps that follow `step`, with nothing cleaned up."""
    advance = Loop.advance

    def dying(self: Loop, feed: batches.Feed) -> None:
        if self.state.progress.step >= step:
            raise KeyboardInterrupt
        advance(self, feed)

    monkeypatch.setattr(Loop, "advance", dying)


def test_a_tiny_model_learns_its_data(tmp_path: pathlib.Path) -> None:
    train = {"steps": 90, "log_every": 30, "save_every": 90}
    run = without_dropout(tmp_path, train=train, optimizer={"learning_rate": 3e-3})
    metrics = run_tiny(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.3 < losses[0]
    assert metrics["accuracy"] >= 0.8
    assert metrics["step"] == 90


def test_pretrained_weights_are_not_kept_beside_the_model(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    start = training.start

    def watched(*arguments: Any) -> run_folder.TrainingState:
        pretrained = next(each for each in arguments if isinstance(each, Pretrained))
        before = len(pretrained.weights)
        state = start(*arguments)
        held.append((before > 0, len(pretrained.weights)))
        return state

    monkeypatch.setattr(training, "start", watched)
    run_tiny(tiny_run(tmp_path), tmp_path / "run")
    assert held == [(True, 0)]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, np.ndarray]]:
    """Weights after a few steps on one replica without accumulation, by optimizer."""
    cache: dict[str, dict[str, np.ndarray]] = {}

    def weights(optimizer: str) -> dict[str, np.ndarray]:
        if optimizer not in cache:
            folder = tmp_path_factory.mktemp(optimizer)
            run_tiny(split_run(folder, optimizer, 1), folder / "run")
            cache[optimizer] = final_tensors(folder / "run")
        return cache[optimizer]

    return weights


def split_run(folder: pathlib.Path, optimizer: str, accumulation: int) -> run_folder.RunConfig:
    steps = 5 if optimizer == "sgd" else 1
    return without_dropout(
        folder,
        optimizer={"name": optimizer, "learning_rate": 0.05, "warmup_proportion": 0.0},
        train={"steps": steps, "accumulation": accumulation, "eval_batch_size": 8},
    )


@pytest.mark.parametrize(
    ("optimizer", "replicas", "accumulation"),
    [
        ("sgd", 2, 2),
        pytest.param("adamw", 2, 1, marks=pytest.mark.slow),
        # Each replica is traced again, so the others wait for a run with time.
        pytest.param("sgd", 1, 4, marks=pytest.mark.slow),
        pytest.param("sgd", 1, 2, marks=pytest.mark.slow),
        pytest.param("sgd", 4, 1, marks=pytest.mark.slow),
        pytest.param("adamw", 2, 2, marks=pytest.mark.slow),
        pytest.param("adamw", 4, 1, marks=pytest.mark.slow),
    ],
)
def test_replicas_and_accumulation_give_the_same_update(
    tmp_path: pathlib.Path,
    reference: Callable[[str], dict[str, np.ndarray]],
    optimizer: str,
    replicas: int,
    accumulation: int,
) -> None:
    run_tiny(split_run(tmp_path, optimizer, accumulation), tmp_path / "run", replicas)
    tensors, expected = final_tensors(tmp_path / "run"), reference(optimizer)
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        # Adam turns the rounding of a gradient near 0 into a whole step, so weights of AdamW say
        # nothing; its first moment after one step is the clipped gradient itself, times 0.1.
        if optimizer == "sgd" or name.endswith("/adam_m"):
            np.testing.assert_allclose(tensors[name], value, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    "died_at",
    [
        5,
        pytest.param(8, marks=pytest.mark.slow),
        pytest.param(3, marks=pytest.mark.slow),
        pytest.param(10, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, died_at: int
) -> None:
    run = tiny_run(tmp_path, train={"eval_every": 4})
    run_tiny(run, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(died_at, patch)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(run, tmp_path / "killed")
    run_tiny(run, tmp_path / "killed")
    whole, killed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert "bert/embeddings/word_embeddings/adam_v" in whole
    for name, value in whole.items():
        assert np.array_equal(value, killed[name]), name
    for name in ("metrics.jsonl", "run.json"):
        texts = [(tmp_path / run / name).read_text() for run in ("whole", "killed")]
        assert texts[0] == texts[1]


def test_seeds_decide(tmp_path: pathlib.Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_tiny(tiny_run(tmp_path, train={"steps": 3, "seed": seed}), tmp_path / name)
    a, b, c = (final_tensors(tmp_path / name) for name in "abc")
    kernel = "bert/encoder/layer_0/output/dense/kernel"
    assert np.array_equal(a[kernel], b[kernel])
    assert not np.array_equal(a[kernel], c[kernel])


def test_nothing_left_to_train(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path, train={"steps": 2})
    first = run_tiny(run, tmp_path / "run")
    said: list[str] = []
    monkeypatch.setattr(training.logging, "info", lambda text, *values: said.append(text % values))
    assert run_tiny(run, tmp_path / "run") == first
    assert any(line.startswith("Nothing left to train") for line in said)


def test_sigterm_saves_and_says_so(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path)
    advance = Loop.advance

    def terminate(self: Loop, feed: batches.Feed) -> None:
        came = self.state.progress.step >= 4
        self.sigterm_came = lambda: came
        advance(self, feed)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", terminate)
        with pytest.raises(Preempted, match="saved at step 5 of 12"):
            run_tiny(run, tmp_path / "run")
    run_tiny(run, tmp_path / "run")
    run_tiny(run, tmp_path / "whole")
    whole, stopped = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "run")
    assert all(np.array_equal(value, stopped[name]) for name, value in whole.items())


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: pathlib.Path) -> None:
    broken = {"learning_rate": 1e30, "clip_norm": 0.0, "name": "sgd", "warmup_proportion": 0.5}
    run = tiny_run(tmp_path, optimizer=broken, train={"save_every": 1, "steps_per_loop": 1})
    with pytest.raises(NonFiniteLoss, match=r"not finite at step \d+.*step-0000000"):
        run_tiny(run, tmp_path / "run")
    saved = final_tensors(tmp_path / "run")
    assert all(np.isfinite(value).all() for value in saved.values())


def test_early_stopping_and_the_best_weights(tmp_path: pathlib.Path) -> None:
    still = {"learning_rate": 0.0}  # the metric never changes: the first evaluation is the best
    train = {"steps": 40, "eval_every": 4, "early_stopping": 2}
    metrics = run_tiny(tiny_run(tmp_path, optimizer=still, train=train), tmp_path / "run")
    assert metrics["step"] == 4
    newest = run_folder.newest_step(str(tmp_path / "run/checkpoints"))
    assert newest is not None
    assert newest.endswith("step-00000012")
    assert [path.name for path in (tmp_path / "run/best").iterdir()] == ["step-00000004"]


def test_another_run_in_the_folder_is_refused(tmp_path: pathlib.Path) -> None:
    run_tiny(tiny_run(tmp_path, train={"steps": 2}), tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run: config\.train\.steps: 2 there, 3"):
        run_tiny(tiny_run(tmp_path, train={"steps": 3}), tmp_path / "run")


def test_fields_that_are_newer_than_a_run_have_their_defaults_there(tmp_path: pathlib.Path) -> None:
    run = tiny_run(tmp_path, model={"num_layers": 0})
    values = run.to_dict()
    del values["distillation"], values["train"]["keep_checkpoints"], values["model"]["num_layers"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    (tmp_path / "best/step-00000001").mkdir(parents=True)  # else there is nothing to protect
    run_folder.check_same_run(str(tmp_path), run)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, num_layers=2))
    with pytest.raises(
        ValueError, match=r"another run: config\.model\.num_layers: 0 there, 2 here"
    ):
        run_folder.check_same_run(str(tmp_path), other)


def test_other_data_are_refused_on_resuming(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(run, tmp_path / "run")
    write_reviews(tmp_path, train=64)
    with pytest.raises(ValueError, match="training data are not those"):
        run_tiny(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("train", {"global_batch_size": 10, "accumulation": 4}, "must be a multiple of"),
        ("train", {"log_every": 0}, r"config\.train\.log_every=0"),
        ("train", {"best_metric": "f2"}, r"best_metric='f2' is not measured; choose accuracy"),
        ("data", {"max_seq_length": 41}, r"max_position_embeddings=40"),
        ("data", {"train": ""}, r"config\.data\.train is empty"),
        ("model", {"lower_case": "false"}, "was trained with lower_case=true"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: pathlib.Path, section: str, fields: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_tiny(tiny_run(tmp_path, **{section: fields}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        run_tiny(tiny_run(tmp_path), tmp_path / "file" / "run")


def test_one_graph_serves_all_widths_and_counts(tmp_path: pathlib.Path) -> None:
    run = tiny_run(tmp_path, train={"steps": 4})
    loops: list[Loop] = []
    original = Loop.run_from

    def keep(self: Loop, examples: batches.Examples) -> None:
        loops.append(self)
        original(self, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "run_from", keep)
        run_tiny(run, tmp_path / "run")
    assert loops[0].train_steps.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("deterministic", [False, True])
def test_where_the_time_went_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, deterministic: bool
) -> None:
    clock = [0.0]
    monkeypatch.setattr(run_folder.time, "monotonic", lambda: clock[0])
    reporter = run_folder.Reporter(None, total_steps=20, step=0)

    def train_steps(iterator: object, count: tf.Tensor) -> dict[str, tf.Tensor]:
        clock[0] += 3.0
        return {"loss": tf.constant(1.0), "waited": tf.constant(np.nan if deterministic else 1.0)}

    sums = dict.fromkeys(run_folder.SUMS, 10.0)
    for between, shares in ((1.0, ("25%", "25%")), (2.0, ("40%", "20%"))):
        for _ in range(2):
            assert reporter.run(train_steps, None, 5) == {"loss": 1.0}
            clock[0] += between
        clock[0] += 7.0
        reporter.pause(7.0)  # as for an evaluation
        with caplog.at_level("INFO", "absl"):
            reporter.training(10, sums, {"loss": 1.0, "learning_rate": 0.1})
        no_data = "" if deterministic else f"  no data {shares[1]}"
        assert f"  between steps {shares[0]}{no_data}  ETA" in caplog.messages[-1]


@pytest.fixture
def _float16() -> Iterator[None]:
    keras.mixed_precision.set_global_policy("mixed_float16")
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("_float16")
def test_float16_with_loss_scaling(tmp_path: pathlib.Path) -> None:
    train = {"steps": 60, "log_every": 30, "save_every": 60}
    run = without_dropout(tmp_path, train=train, optimizer={"learning_rate": 3e-3})
    metrics = run_tiny(run, tmp_path / "run", dtype="float16")
    saved = final_tensors(tmp_path / "run")
    assert saved["loss_scale"] >= 1.0
    assert saved["bert/pooler/dense/kernel"].dtype == np.float32
    assert metrics["loss"] < 0.6
