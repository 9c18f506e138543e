"""The scripts, one after the other, as a user calls them; and killed, and told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import logging as python_logging
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
from absl import flags, logging

from bert_tf import run_folder, runner
from bert_tf.config import RunConfig
from bert_tf.weights import read_tensors
from tests.tiny_run import tiny_run

ROOT = pathlib.Path(__file__).parent.parent
# Settings that change nothing outside of one run: tests share their process.
HERE = {"accelerator": "cpu", "dtype": "float32"}

# ml_collections loads recipes with it on every Python before 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


def run_script(name: str, *arguments: str) -> Outcome:
    """Runs `scripts/NAME.py` in this process, with flags and logging as they were afterwards."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", [f"scripts/{name}.py", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        loaded(name) as script,
    ):
        try:
            if name == "answer":  # argparse: it needs nothing but TensorFlow
                script.main()
            else:
                script.command_line.run_script(script.main)
        except SystemExit as stop:
            code = stop.code
    if isinstance(code, str):  # sys.exit(message)
        err.write(code)
        code = 1
    return Outcome(int(code or 0), out.getvalue(), err.getvalue())  # type: ignore[call-overload]


@contextlib.contextmanager
def loaded(name: str) -> Iterator[object]:
    """The module of a script; its flags are gone at the end, since scripts share their names."""
    before, verbosity = set(flags.FLAGS), logging.get_verbosity()
    root = python_logging.getLogger()
    handlers, level = list(root.handlers), root.level
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        for flag in set(flags.FLAGS) - before:
            if flag in flags.FLAGS:
                delattr(flags.FLAGS, flag)
        logging.set_verbosity(verbosity)
        root.handlers[:] = handlers
        root.setLevel(level)


def write_recipe(folder: pathlib.Path, run: RunConfig) -> str:
    """A recipe file for a run; returns the flag that names it."""
    path = folder / "recipe.py"
    path.write_text(
        "from bert_tf.command_line import recipe\nfrom bert_tf.config import RunConfig\n\n\n"
        f"def get_config():\n    return recipe(RunConfig.from_dict({run.to_dict()!r}))\n"
    )
    return f"--config={path}"


def ok(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.stderr
    return outcome


def read_lines(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ------------------------------------------------------------------------------ one after the other


@dataclasses.dataclass(frozen=True)
class Trained:
    folder: pathlib.Path
    workdir: pathlib.Path

    def flag(self) -> str:
        return f"--workdir={self.workdir}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two short runs of different seeds."""
    folder = tmp_path_factory.mktemp("scripts")
    run = tiny_run(folder, train={"deterministic": False}, runtime=HERE)
    flag = write_recipe(folder, run)
    workdir = folder / "run"
    settings = ["--config.train.steps=6", "--config.optimizer.learning_rate=3e-3"]
    ok(run_script("train", flag, f"--workdir={workdir}", "--restarts=2", *settings))
    return Trained(folder, workdir)


def test_restarts_keep_the_best(trained: Trained) -> None:
    summary = json.loads((trained.workdir / "restarts.json").read_text())
    runs = summary["runs"]
    assert [run["seed"] for run in runs] == [1, 2]
    for name in ("accuracy", "loss"):
        values = [run[name] for run in runs]
        assert summary["mean"][name] == pytest.approx(np.mean(values))
        assert summary["standard_deviation"][name] == pytest.approx(np.std(values, ddof=1))
    assert runs[0]["loss"] != runs[1]["loss"]
    best = max(runs, key=lambda run: run["accuracy"])
    assert summary["best_seed"] == best["seed"]
    source = trained.workdir / f"seed-{best['seed']}"
    for part in ("best/step-00000006/model.ckpt.index", "run.json", "labels.json", "vocab.txt"):
        assert (trained.workdir / part).read_bytes() == (source / part).read_bytes(), part
    saved = json.loads((source / "run.json").read_text())
    assert saved["train"]["steps"] == 6, "flags win over the recipe"
    assert saved["optimizer"]["learning_rate"] == 3e-3


@pytest.mark.parametrize(("chosen", "seed"), [("accuracy", 4), ("loss", 3)])
def test_lower_is_better_for_a_loss(tmp_path: pathlib.Path, chosen: str, seed: int) -> None:
    results: list[dict[str, float]] = [
        {"seed": 3, "accuracy": 0.5, "loss": 0.1, "step": 2},
        {"seed": 4, "accuracy": 0.9, "loss": 0.7, "step": 2},
    ]
    for number in (3, 4):
        weights = {"number": np.float32(number)}
        folder = str(tmp_path / f"seed-{number}/best")
        run_folder.write_step(folder, run_folder.Progress(step=2), weights, keep=1)
    assert runner.keep_best(str(tmp_path), results, chosen, is_chief=True)["seed"] == seed
    assert json.loads((tmp_path / "restarts.json").read_text())["best_seed"] == seed
    copied = read_tensors(str(tmp_path / "best/step-00000002/model.ckpt"))
    assert copied["number"] == seed


def test_predictions_that_cannot_be_written_are_an_error_before_any_work(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_script("predict", trained.flag(), f"--output={tmp_path}/file/predictions")
    assert outcome.code == 1
    assert "cannot be written" in outcome.stderr
    assert "Weights of step" not in outcome.stderr


def test_evaluate_measures_what_training_measured(trained: Trained) -> None:
    outcome = ok(run_script("evaluate", trained.flag()))
    measured = json.loads((trained.workdir / "eval_dev.json").read_text())
    best = json.loads((trained.workdir / "restarts.json").read_text())["runs"]
    assert measured["accuracy"] == max(run["accuracy"] for run in best)
    assert measured["examples"] == 22
    assert f"accuracy: {measured['accuracy']:.4f}" in outcome.stdout
    assert "on 22 examples, with the weights of " in outcome.stdout
    assert "best/step-00000006" in outcome.stdout


def test_evaluate_takes_another_file(trained: Trained) -> None:
    train = trained.folder / "train.jsonl"
    outcome = ok(run_script("evaluate", trained.flag(), f"--input={train}"))
    assert "on 96 examples" in outcome.stdout
    before = set(trained.workdir.iterdir())
    unlabelled = trained.folder / "unlabelled.jsonl"
    unlabelled.write_text('{"text": "the happy cat"}\n')
    outcome = run_script("evaluate", trained.flag(), "--split=test", f"--input={unlabelled}")
    assert outcome.code == 1
    assert "unlabelled.jsonl has no labels to measure against" in outcome.stderr
    assert set(trained.workdir.iterdir()) == before


def test_predict_labels_every_line_in_order(trained: Trained) -> None:
    source = trained.folder / "mine.jsonl"
    test = trained.folder / "test.jsonl"
    texts = [{"text": line["text"]} for line in read_lines(test)]  # without labels
    source.write_text("".join(json.dumps(line) + "\n" for line in texts))
    output = trained.folder / "predictions"
    arguments = [trained.flag(), f"--output={output}"]
    outcome = ok(run_script("predict", *arguments, f"--input={source}"))
    assert "22 predictions in " in outcome.stdout
    mine = read_lines(output / "predictions.jsonl")
    ok(run_script("predict", *arguments))
    assert read_lines(output / "predictions.jsonl") == mine, "the labels of a file change nothing"
    assert len(mine) == 22
    for line in mine:
        probabilities = line["probabilities"]
        assert list(probabilities) == ["bad", "good"]
        assert sum(probabilities.values()) == pytest.approx(1.0, abs=1e-5)
        assert line["label"] == max(probabilities, key=probabilities.get)
    assert [path.name for path in output.iterdir()] == ["predictions.jsonl"]


def test_what_is_exported_answers_as_predict_does(trained: Trained) -> None:
    outcome = ok(run_script("export", trained.flag()))
    assert "tensorflow/serving:" in outcome.stdout
    output = trained.folder / "to_compare"
    ok(run_script("predict", trained.flag(), f"--output={output}", "--split=dev"))
    texts = [line["text"] for line in read_lines(trained.folder / "dev.jsonl")]
    expected = read_lines(output / "predictions.jsonl")
    saved_model = f"--saved_model={trained.workdir / 'export'}"
    outcome = ok(run_script("answer", saved_model, *texts))
    lines = outcome.stdout.splitlines()
    assert len(lines) == len(texts)
    for line, text, prediction in zip(lines, texts, expected, strict=True):
        label, probability, sentence = line.split(maxsplit=2)
        assert (label, sentence) == (prediction["label"], text)
        largest = max(prediction["probabilities"].values())
        assert float(probability) == pytest.approx(largest, abs=6e-4)


# --------------------------------------------------------------------------------------------- GLUE


@pytest.fixture(scope="module")
def glue_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run on a folder like that of SST-2."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "SST-2").mkdir()
    rows = [f"the cat is {('old', 'happy')[n % 2]}\t{n % 2}" for n in range(32)]
    for name in ("train", "dev"):
        lines = ["sentence\tlabel", *rows]
        (folder / "SST-2" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    tests = [f"{n}\t{('red', 'old', 'happy')[n % 3]} book" for n in range(7)]
    (folder / "SST-2/test.tsv").write_text("\n".join(["index\tsentence", *tests]) + "\n")
    run = tiny_run(
        folder,
        data={"train": "", "dev": "", "test": "", "data_dir": str(folder), "max_seq_length": 12},
        task={"glue": "sst2"},
        train={"steps": 2, "deterministic": False},
        runtime=HERE,
    )
    workdir = folder / "run"
    ok(run_script("train", write_recipe(folder, run), f"--workdir={workdir}"))
    return Trained(folder, workdir)


def test_the_submission_is_what_the_glue_server_reads(glue_run: Trained) -> None:
    output = glue_run.folder / "submission"
    ok(run_script("predict", glue_run.flag(), f"--output={output}"))
    assert sorted(path.name for path in output.iterdir()) == ["SST-2.tsv", "predictions.jsonl"]
    header, *rows = (output / "SST-2.tsv").read_text().splitlines()
    assert header == "index\tprediction"
    labels = [line["label"] for line in read_lines(output / "predictions.jsonl")]
    assert rows == [f"{number}\t{label}" for number, label in enumerate(labels)]
    assert len(rows) == 7
    assert set(labels) <= {"0", "1"}


def test_a_file_of_ones_own_is_no_submission(glue_run: Trained) -> None:
    """It has the columns of the recipe, not those of a GLUE folder."""
    source, output = glue_run.folder / "mine.jsonl", glue_run.folder / "mine"
    source.write_text('{"text": "the red book"}\n{"text": "the old cat"}\n')
    ok(run_script("predict", glue_run.flag(), f"--output={output}", f"--input={source}"))
    assert [path.name for path in output.iterdir()] == ["predictions.jsonl"]
    assert len(read_lines(output / "predictions.jsonl")) == 2


# ------------------------------------------------------------------------------------ as processes


def start(name: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(name: str, *arguments: str) -> Outcome:
    process = start(name, *arguments)
    stdout, stderr = process.communicate(timeout=600)
    return Outcome(process.returncode, stdout, stderr)


def slow_recipe(folder: pathlib.Path) -> str:
    """Many short steps, saved often, so that a signal finds every kind of moment."""
    train = {"steps": 60, "steps_per_loop": 2, "save_every": 6, "log_every": 4, "eval_every": 10}
    return write_recipe(folder, tiny_run(folder, train=train, runtime=HERE))


def wait_for_step(process: subprocess.Popen[str], workdir: pathlib.Path) -> None:
    """Until a new step was saved, or the process has ended."""
    before = run_folder.newest_step(str(workdir / "checkpoints"))
    limit = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < limit:
        if run_folder.newest_step(str(workdir / "checkpoints")) != before:
            return
        time.sleep(0.02)
    raise AssertionError(f"no step was saved: {process.communicate()[1][-2000:]}")


def assert_same_results(one: pathlib.Path, other: pathlib.Path) -> None:
    """Weights, slots and measurements, bit for bit."""
    for part in ("checkpoints", "best"):
        folders = [run_folder.newest_step(str(workdir / part)) for workdir in (one, other)]
        assert pathlib.Path(folders[0] or "").name == pathlib.Path(folders[1] or "").name
        first, second = (read_tensors(f"{folder}/model.ckpt") for folder in folders)
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert np.array_equal(value, second[name]), name
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@dataclasses.dataclass(frozen=True)
class Whole:
    """A run that nobody stopped."""

    recipe: str
    workdir: pathlib.Path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("processes")
    recipe = slow_recipe(folder)
    ok(finish("train", recipe, f"--workdir={folder / 'whole'}"))
    return Whole(recipe, folder / "whole")


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_bits(whole: Whole, tmp_path: pathlib.Path) -> None:
    flag, killed = whole.recipe, tmp_path / "killed"
    seed = random.SystemRandom().randrange(1 << 30)
    moments = random.Random(seed)
    for _ in range(2):
        process = start("train", flag, f"--workdir={killed}")
        wait_for_step(process, killed)
        time.sleep(moments.uniform(0.0, 0.5))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"it was too fast for seed {seed}"
    ok(finish("train", flag, f"--workdir={killed}"))
    assert_same_results(whole.workdir, killed)
    assert not list(killed.rglob("*.tmp*")), f"left behind with seed {seed}"


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(whole: Whole, tmp_path: pathlib.Path) -> None:
    flag, stopped = whole.recipe, tmp_path / "stopped"
    process = start("train", flag, f"--workdir={stopped}")
    wait_for_step(process, stopped)
    process.terminate()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "SIGTERM: saved at step" in stderr
    assert "the same command goes on from there" in stderr
    assert "Traceback" not in stderr
    outcome = ok(finish("train", flag, f"--workdir={stopped}"))
    assert "Resumed from" in outcome.stderr
    assert_same_results(whole.workdir, stopped)


@pytest.mark.slow
def test_the_whole_chain_as_processes(tmp_path: pathlib.Path) -> None:
    run = tiny_run(tmp_path, train={"steps": 4}, runtime=HERE)
    workdir = f"--workdir={tmp_path / 'run'}"
    output = tmp_path / "predictions"
    ok(finish("train", write_recipe(tmp_path, run), workdir))
    assert "accuracy: " in ok(finish("evaluate", workdir)).stdout
    ok(finish("predict", workdir, f"--output={output}"))
    assert len(read_lines(output / "predictions.jsonl")) == 22
    ok(finish("export", workdir))
    answer = ok(finish("answer", f"--saved_model={tmp_path / 'run/export'}", "a happy cat", "old"))
    assert len(answer.stdout.splitlines()) == 2
