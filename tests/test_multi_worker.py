"""Several processes train one model: real ones on this machine, over its loopback network."""

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import rendezvous, runner
from bert_tf.config import RunConfig
from bert_tf.data import service
from bert_tf.distribution import Accelerator, own_task
from bert_tf.run_folder import check_same_step
from tests.test_training import final_tensors
from tests.tiny_run import on_cpu, run_tiny, tiny_run

ROOT = pathlib.Path(__file__).parent.parent
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}  # replicas draw their own dropout
SECONDS = 300


def run_of(folder: pathlib.Path, **train: int) -> RunConfig:
    """SGD: it does not turn the last bits of a sum into whole steps, as Adam does.

    A batch has 96 tokens at most, fewer than the table of words has rows (120): workers send the
    rows of its gradient. That of positions (40) they send whole.
    """
    sizes = {"steps": 12, "save_every": 4, "eval_every": 6, "steps_per_loop": 2}
    return tiny_run(
        folder,
        model={"num_layers": 1} | STILL,
        task={"dropout": 0.0},
        optimizer={"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0},
        runtime={"dtype": "float32"},
        train={"global_batch_size": 4, "log_every": 4, "eval_batch_size": 8} | sizes | train,
    )


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        return listening.getsockname()[1]


def start(
    folder: pathlib.Path, script: str, of_each: Sequence[Sequence[str]], of: int = 0
) -> list[subprocess.Popen[str]]:
    """A process of a script for each of these arguments; the first of a cluster of `of`."""
    addresses = [f"localhost:{free_port()}" for _ in range(max(of, len(of_each)))]
    workers = []
    for index, arguments in enumerate(of_each):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        variables = {"PYTHONPATH": str(ROOT), "TF_CONFIG": json.dumps(task)}
        with (folder / f"worker-{index}.log").open("w") as log:
            workers.append(
                subprocess.Popen(
                    [sys.executable, str(ROOT / "scripts" / script), *arguments],
                    env=os.environ | variables,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    return workers


def start_workers(
    folder: pathlib.Path,
    run: RunConfig,
    workdirs: Sequence[pathlib.Path],
    more: Sequence[str] = (),
    of: int = 0,
) -> list[subprocess.Popen[str]]:
    """One process of scripts/train.py for each of these folders of the run."""
    recipe = folder / "recipe.py"
    recipe.write_text(
        "from bert_tf.command_line import recipe\n"
        "from bert_tf.config import RunConfig\n"
        "def get_config():\n"
        f"    return recipe(RunConfig.from_dict({run.to_dict()!r}))\n"
    )
    each = [[f"--config={recipe}", f"--workdir={workdir}", *more] for workdir in workdirs]
    return start(folder, "train.py", each, of)


def codes_of(workers: Sequence[subprocess.Popen[str]]) -> list[int]:
    try:
        return [worker.wait(SECONDS) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()


def must_end_well(folder: pathlib.Path, workers: Sequence[subprocess.Popen[str]]) -> None:
    codes = codes_of(workers)
    assert codes == [0] * len(codes), (folder / "worker-1.log").read_text()[-3000:]


def train_on(count: int, folder: pathlib.Path, run: RunConfig, name: str) -> None:
    must_end_well(folder, start_workers(folder, run, [folder / name] * count))


def stop(
    folder: pathlib.Path, run: RunConfig, name: str, victim: int, number: signal.Signals
) -> list[int]:
    """Sends a signal to one of two workers once something is saved; returns their exit codes."""
    workers = start_workers(folder, run, [folder / name] * 2)
    until = time.monotonic() + SECONDS
    while not list((folder / name / "checkpoints").glob("step-*[0-9]")):
        assert time.monotonic() < until, (folder / "worker-0.log").read_text()[-3000:]
        time.sleep(0.05)
    workers[victim].send_signal(number)
    return codes_of(workers)


def lines_of(workdir: pathlib.Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder of a run in one process, beside its data."""
    folder = tmp_path_factory.mktemp("alone")
    run_tiny(run_of(folder), folder / "run")
    return folder


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_are_one(tmp_path: pathlib.Path, alone: pathlib.Path, count: int) -> None:
    train_on(count, tmp_path, run_of(alone), "run")
    together, expected = final_tensors(tmp_path / "run"), final_tensors(alone / "run")
    assert together.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(together[name], value, rtol=0, atol=1e-6, err_msg=name)
    for line, other in zip(lines_of(tmp_path / "run"), lines_of(alone / "run"), strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    assert not list((tmp_path / "run").rglob("*.tmp"))


@pytest.mark.slow
def test_only_the_chief_writes(tmp_path: pathlib.Path, alone: pathlib.Path) -> None:
    workers = start_workers(tmp_path, run_of(alone), [tmp_path / "chief", tmp_path / "other"])
    assert codes_of(workers) == [0, 0]
    assert (tmp_path / "chief/checkpoints/step-00000012").exists()
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_several_seeds_evaluation_and_predictions(
    tmp_path: pathlib.Path, alone: pathlib.Path
) -> None:
    run, workdir = run_of(alone, steps=4), tmp_path / "run"
    workers = start_workers(tmp_path, run, [workdir] * 2, more=["--restarts=2"])
    must_end_well(tmp_path, workers)
    assert {path.name for path in workdir.iterdir()} == {
        *("seed-1", "seed-2", "restarts.json", "best", "run.json", "bert_config.json"),
        *("vocab.txt", "tokenizer_config.json", "labels.json"),
    }
    restarts = json.loads((workdir / "restarts.json").read_text())
    assert [each["seed"] for each in restarts["runs"]] == [1, 2]
    arguments = [f"--workdir={workdir}"]
    must_end_well(tmp_path, start(tmp_path, "evaluate.py", [arguments] * 2))
    measured = json.loads((workdir / "eval_dev.json").read_text())
    best = next(e for e in restarts["runs"] if e["seed"] == restarts["best_seed"])
    assert measured["accuracy"] == best["accuracy"]
    assert measured["loss"] == pytest.approx(best["loss"], abs=1e-6)
    folders = [tmp_path / "chief", tmp_path / "other"]
    each = [[*arguments, f"--output={folder}"] for folder in folders]
    must_end_well(tmp_path, start(tmp_path, "predict.py", each))
    assert len((folders[0] / "predictions.jsonl").read_text().splitlines()) == measured["examples"]
    assert not folders[1].exists()


@pytest.mark.slow
def test_a_student_of_two_processes(tmp_path: pathlib.Path, alone: pathlib.Path) -> None:
    values = run_of(alone, steps=4).to_dict()
    values["distillation"]["teacher"] = str(alone / "run")
    run = RunConfig.from_dict(values)
    train_on(2, tmp_path, run, "together")
    runner.train_once(run, str(tmp_path / "one"), on_cpu(), str(tmp_path / "one"))
    for name in ("together", "one"):
        names = sorted(path.name for path in (tmp_path / name / "teacher").iterdir())
        assert names == ["logits-00000-of-00001.npy", "teacher.json"]
    together, expected = final_tensors(tmp_path / "together"), final_tensors(tmp_path / "one")
    for name, value in expected.items():
        np.testing.assert_allclose(together[name], value, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_sigterm_ends_the_wait_for_others(tmp_path: pathlib.Path, alone: pathlib.Path) -> None:
    (worker,) = start_workers(tmp_path, run_of(alone), [tmp_path / "run"], of=2)
    log, until = tmp_path / "worker-0.log", time.monotonic() + SECONDS
    while "waiting until all are there" not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    time.sleep(1)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(10) == -signal.SIGTERM


@pytest.mark.slow
def test_a_worker_that_does_not_come_is_named(
    tmp_path: pathlib.Path, alone: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rendezvous.LIMIT_VARIABLE, "1")
    assert codes_of(start_workers(tmp_path, run_of(alone), [tmp_path / "run"], of=2)) == [1]
    last = (tmp_path / "worker-0.log").read_text().splitlines()[-1]
    assert re.match(r"error: no answer from localhost:\d+ within 1 s", last)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_sigterm_to_one_saves_and_stops_all(
    tmp_path: pathlib.Path, alone: pathlib.Path, victim: int
) -> None:
    run = run_of(alone, steps=120, eval_every=0, log_every=40)
    assert stop(tmp_path, run, "run", victim, signal.SIGTERM) == [143, 143]
    for index in (0, 1):
        assert "SIGTERM: saved at step" in (tmp_path / f"worker-{index}.log").read_text()
    goes_on_as_if_never_stopped(tmp_path, run)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_all_and_the_job_goes_on(
    tmp_path: pathlib.Path, alone: pathlib.Path, victim: int
) -> None:
    run = run_of(alone, steps=120, eval_every=0, log_every=40)
    codes = stop(tmp_path, run, "run", victim, signal.SIGKILL)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 75
    assert "another worker stopped" in (tmp_path / f"worker-{1 - victim}.log").read_text()
    goes_on_as_if_never_stopped(tmp_path, run)


def goes_on_as_if_never_stopped(tmp_path: pathlib.Path, run: RunConfig) -> None:
    train_on(2, tmp_path, run, "run")
    train_on(2, tmp_path, run, "whole")
    same_bits(tmp_path / "run", tmp_path / "whole")


def same_bits(one: pathlib.Path, other: pathlib.Path) -> None:
    tensors, expected = final_tensors(one), final_tensors(other)
    for name, value in expected.items():
        np.testing.assert_array_equal(tensors[name], value, err_msg=name)
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()


# ---------------------------------------------------------------------------------- data service


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A running service."""
    made = tf.data.experimental.service
    dispatcher = made.DispatchServer()
    host = dispatcher.target.split("://")[1]
    worker = made.WorkerServer(made.WorkerConfig(dispatcher_address=host))
    yield dispatcher.target
    del worker


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_service_hands_out_the_same_batches(
    tmp_path: pathlib.Path, alone: pathlib.Path, address: str, replicas: int
) -> None:
    data = {"service": address, "max_seq_length": 24}
    files = {name: str(alone / f"{name}.jsonl") for name in ("train", "dev", "test")}
    values = run_of(alone).to_dict()
    values["data"] |= files | data
    run_tiny(RunConfig.from_dict(values), tmp_path / "served", replicas)
    if replicas == 1:
        same_bits(tmp_path / "served", alone / "run")
    else:
        run_tiny(run_of(alone), tmp_path / "run", replicas)
        same_bits(tmp_path / "served", tmp_path / "run")


@pytest.mark.slow
def test_two_processes_read_from_a_service(tmp_path: pathlib.Path, alone: pathlib.Path) -> None:
    port = free_port()
    server = subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "scripts/data_service.py"),
            f"--port={port}",
            "--host=localhost",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        values = run_of(alone).to_dict()
        values["data"]["service"] = f"grpc://localhost:{port}"
        train_on(2, tmp_path, RunConfig.from_dict(values), "served")
    finally:
        server.kill()
        server.wait()
    train_on(2, tmp_path, run_of(alone), "run")
    same_bits(tmp_path / "served", tmp_path / "run")


def test_an_address_that_is_none() -> None:
    batches = tf.data.Dataset.from_tensors({"x": tf.zeros([2])})
    with pytest.raises(ValueError, match=r"data\.service='here' is no address; write grpc://HOST"):
        service.from_service(batches, on_cpu(), "here")


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("cluster", "task", "message"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 2), "task is worker 2, but the cluster has worker"),
        ({"worker": ["a:1"]}, ("chief", 0), "task is chief 0, but"),
        ({"worker": ["a:1"], "ps": ["b:1"]}, ("worker", 0), "it must have worker"),
        ({}, ("worker", 0), "cluster has nobody"),
        ({"worker": ["a:1", "a:1"]}, ("worker", 0), "two workers have one address"),
        ({"worker": ["a:1", "b"]}, ("worker", 0), "b; every worker needs an address"),
    ],
)
def test_clusters_that_cannot_work(
    cluster: dict[str, list[str]], task: tuple[str, int], message: str
) -> None:
    described = {"cluster": cluster, "task": {"type": task[0], "index": task[1]}}
    with pytest.raises(ValueError, match=message):
        own_task(described)


def test_the_chief_comes_first() -> None:
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"]}
    task = {"type": "worker", "index": 1}
    assert own_task({"cluster": cluster, "task": task}) == ("worker", 2, ["a:1", "b:1", "c:1"])


def test_folders_that_are_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "numbers_of_workers", lambda self, step: [step, 0])
    with pytest.raises(ValueError, match=r"different steps in --workdir=here: 8, 0\. It must be"):
        check_same_step(on_cpu(), 8, "here")
