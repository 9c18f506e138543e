"""Bad input through the whole entry: one clear paragraph, and nothing that was saved is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from bert_tf import run_folder, runner, weights
from bert_tf.config import BertConfig, RunConfig
from tests.test_scripts import HERE, ROOT, run_script, write_recipe
from tests.tiny_run import CHECKPOINT, run_tiny, tiny_run, write_reviews

SPLITS = ("train.jsonl", "dev.jsonl", "test.jsonl")

# ml_collections loads recipes with it on every Python before 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def settings(folder: pathlib.Path, **changes: dict) -> RunConfig:
    """Those of the run that `earlier` trained, with changes."""
    train = {"steps": 2, "deterministic": False} | changes.pop("train", {})
    return tiny_run(folder, train=train, runtime=HERE, **changes)


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A finished run that must not be harmed, and the folder of its data."""

    folder: pathlib.Path
    workdir: pathlib.Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Earlier:
    folder = tmp_path_factory.mktemp("bad_input")
    runner.train(settings(folder), str(folder / "run"))
    return Earlier(folder, folder / "run")


@pytest.fixture
def earlier(trained: Earlier) -> Iterator[Earlier]:
    """The same run for every test; the data are made good again afterwards."""
    yield trained
    write_reviews(trained.folder)


def saved_files(workdir: pathlib.Path) -> dict[str, bytes]:
    """Everything that a run has saved by relative path."""
    if not workdir.is_dir():
        return {}
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file()
    }


def assert_refused(run: RunConfig, workdir: pathlib.Path, *parts: str) -> None:
    """The run ends in one paragraph that has all `parts`, and nothing was saved or lost."""
    before = saved_files(workdir)
    with pytest.raises(ValueError, match=r"\w") as caught:
        runner.train(run, str(workdir))
    message = str(caught.value)
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    assert "\n" not in message
    assert message.endswith((".", "?")), message
    after = saved_files(workdir)
    assert before.items() <= after.items(), "an earlier file was changed"
    new = after.keys() - before.keys()
    assert not [name for name in new if "checkpoints/" in name or "best/" in name]
    assert not [name for name in after if ".tmp" in name]


# ---------------------------------------------------------------------------------- before a step


def missing_file(folder: pathlib.Path) -> RunConfig:
    return settings(folder, data={"train": str(folder / "trian.jsonl")})


def wrong_delimiter(folder: pathlib.Path) -> RunConfig:
    (folder / "train.csv").write_text("text;label\nthe happy cat;good\nthe old dog;bad\n")
    return settings(folder, data={"train": str(folder / "train.csv")})


def missing_column(folder: pathlib.Path) -> RunConfig:
    return settings(folder, data={"label": "labels"})


def change_line(path: pathlib.Path, number: int, line: bytes) -> None:
    lines = path.read_bytes().split(b"\n")
    lines[number - 1] = line
    path.write_bytes(b"\n".join(lines))


def unknown_label(folder: pathlib.Path) -> RunConfig:
    line = json.dumps({"text": "the cat", "label": "goood"}).encode()
    change_line(folder / "dev.jsonl", 5, line)
    return settings(folder)


def empty_file(folder: pathlib.Path) -> RunConfig:
    (folder / "dev.jsonl").write_text("")
    return settings(folder)


def invalid_utf_8(folder: pathlib.Path) -> RunConfig:
    change_line(folder / "train.jsonl", 7, b'{"text": "caf\xe9", "label": "good"}')
    return settings(folder)


def another_vocabulary(folder: pathlib.Path) -> RunConfig:
    pieces = (CHECKPOINT / "vocab.txt").read_text()
    (folder / "longer.txt").write_text(pieces + "onemore\n")
    return settings(folder, model={"vocab_file": str(folder / "longer.txt")})


def another_shape(folder: pathlib.Path) -> RunConfig:
    config = BertConfig.from_file(str(CHECKPOINT / "config.json"))
    wider = dataclasses.replace(config, intermediate_size=128)
    (folder / "wider.json").write_text(json.dumps(wider.to_dict()))
    return settings(folder, model={"bert_config": str(folder / "wider.json")})


def too_long(folder: pathlib.Path) -> RunConfig:
    return settings(folder, data={"max_seq_length": 41})


def no_checkpoint(folder: pathlib.Path) -> RunConfig:
    return settings(folder, model={"init_checkpoint": str(folder / "nothing")})


def unknown_task(folder: pathlib.Path) -> RunConfig:
    return settings(folder, task={"name": "clasification"})


def unknown_optimizer(folder: pathlib.Path) -> RunConfig:
    return settings(folder, optimizer={"name": "adam"})


def uneven_batch(folder: pathlib.Path) -> RunConfig:
    return settings(folder, train={"global_batch_size": 10, "accumulation": 4})


@dataclasses.dataclass(frozen=True)
class Case:
    """Bad input and what its message must hold: file or field, value, limit, remedy."""

    prepare: Callable[[pathlib.Path], RunConfig]
    message: tuple[str, ...]
    same_run: bool = True  # False: in an earlier run's folder, its settings are refused first


CASES = {
    "missing file": Case(missing_file, ("trian.jsonl", "is not a file", "'train.jsonl'?")),
    "wrong delimiter": Case(
        wrong_delimiter, ("train.csv", "no column 'text'", "semicolon-separated", "save it with")
    ),
    "missing column": Case(
        missing_column,
        ("train.jsonl", "'labels'", "config.data.label", "'label'?", "columns are 'text', 'label'"),
    ),
    "unknown label in dev": Case(
        unknown_label,
        ("dev.jsonl, line 5", "'goood' is unknown", "'good'?", "trained with 'bad', 'good'"),
    ),
    "empty file": Case(empty_file, ("dev.jsonl is empty", "it must hold examples")),
    "invalid UTF-8": Case(invalid_utf_8, ("train.jsonl, line 7", "0xe9", "not UTF-8", "iconv")),
    "vocabulary of another size": Case(
        another_vocabulary, ("longer.txt", "121 pieces", "120 rows", "use the vocabulary")
    ),
    "config of another shape": Case(another_shape, ("wider.json", "128", "64")),
    "longer than the position table": Case(
        too_long, ("config.data.max_seq_length=41", "max_position_embeddings=40", "lower it")
    ),
    "no checkpoint": Case(no_checkpoint, ("no checkpoint at", "nothing", "Hugging Face folder")),
    "unknown task": Case(unknown_task, ("config.task.name='clasification'", "classification")),
    "unknown optimizer": Case(
        unknown_optimizer, ("optimizer.name", "'adam'", "'adamw'", "lamb"), same_run=False
    ),
    "batch that does not divide": Case(
        uneven_batch, ("config.train.global_batch_size=10", "multiple of", "accumulation 4")
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_in_a_new_folder(earlier: Earlier, tmp_path: pathlib.Path, name: str) -> None:
    run = CASES[name].prepare(earlier.folder)
    assert_refused(run, tmp_path / "run", *CASES[name].message)


@pytest.mark.parametrize("name", CASES)
def test_in_the_folder_of_a_run(earlier: Earlier, name: str) -> None:
    case = CASES[name]
    run = case.prepare(earlier.folder)
    assert_refused(run, earlier.workdir, *(case.message if case.same_run else ("another run",)))


def test_the_folder_of_another_run(earlier: Earlier) -> None:
    run = settings(earlier.folder, train={"steps": 3})
    parts = ("holds another run", "config.train.steps: 2 there, 3 here", "another --workdir")
    assert_refused(run, earlier.workdir, str(earlier.workdir), *parts)


def test_a_folder_that_cannot_be_written(earlier: Earlier, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    parts = (f"--workdir={workdir}", "cannot be written", "is not a directory", "choose a folder")
    assert_refused(settings(earlier.folder), workdir, *parts)
    assert (tmp_path / "file").read_text() == ""


def test_after_bad_input_other_settings_may_follow(
    earlier: Earlier, tmp_path: pathlib.Path
) -> None:
    """A run that was refused before its first step does not lock its folder."""
    bad = settings(earlier.folder, data={"dev": str(earlier.folder / "dve.jsonl")})
    assert_refused(bad, tmp_path / "run", "dve.jsonl is not a file")
    good = settings(earlier.folder, train={"steps": 1})
    assert runner.train(good, str(tmp_path / "run"))["step"] == 1


def test_a_text_of_100_000_words(tmp_path: pathlib.Path) -> None:
    run = settings(tmp_path, train={"steps": 1})
    for name in SPLITS:
        line = {"text": "the cat sat " * 33_334 + "unhappy", "label": "bad"}
        change_line(tmp_path / name, 1, json.dumps(line).encode())
    metrics = runner.train(run, str(tmp_path / "run"))
    assert np.isfinite(metrics["loss"])
    session = runner.open_session(str(tmp_path / "run"))
    texts = session.opened.task.texts("test")
    assert len(texts.text_a[0].split()) > 100_000
    examples = session.opened.task.tokenize(texts)
    assert examples.lengths[0] == run.data.max_seq_length
    outputs = session.evaluator.predict(examples)
    assert outputs["probabilities"].shape == (len(texts), 2)
    assert np.isfinite(outputs["probabilities"]).all()


# ------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        # Lazily: TensorBoard's writer still has its file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full(tmp_path: pathlib.Path, small_disk: pathlib.Path) -> None:
    run = tiny_run(tmp_path, train={"steps": 6, "save_every": 1, "keep_checkpoints": 9})
    with pytest.raises(ValueError, match=r"step \d could not be saved in") as caught:
        run_tiny(run, small_disk / "run")
    message = str(caught.value)
    assert "\n" not in message
    assert "run the same command again" in message
    steps = run_folder.step_folders(str(small_disk / "run/checkpoints"))
    assert steps, "the disk must take one step for this test to mean much"
    assert steps[-1] in message
    for step in steps:
        tensors = weights.read_tensors(f"{step}/model.ckpt")
        assert all(np.isfinite(value).all() for value in tensors.values())
        assert run_folder.read_progress(step).step == int(step[-8:])
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert run_tiny(run, small_disk / "run")["step"] == 6


# ------------------------------------------------------------------------------------------ flags


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        ("--config.train.stepz=3", ("config.train.stepz", "Did you mean config.train.steps?")),
        ("--config.optimzer.name=lamb", ("config.optimzer.name", "config.optimizer.name?")),
        ("--config.train=3", ("config.train is no field", "config.train.global_batch_size")),
        ("--config.train.steps=many", ("config.train.steps=many", "int()", "'many'")),
        ("--config.train.epochs=1,5", ("config.train.epochs=1,5", "float")),
        ("--wrokdir=x", ("wrokdir", "Did you mean: workdir")),
        ("--config=no_recipe.py", ("--config=no_recipe.py", "is not a file", "configs/")),
        ("--restarts=0", ("--restarts=0", "at least 1")),
        ("--accelerator=npu", ("--accelerator='npu'", "auto, cpu, gpu, tpu, multi_worker")),
        ("more", ("'more'", "--name=value")),
    ],
)
def test_flags(tmp_path: pathlib.Path, flag: str, parts: tuple[str, ...]) -> None:
    recipe = write_recipe(tmp_path, settings(tmp_path))
    outcome = run_script("train", recipe, f"--workdir={tmp_path / 'run'}", flag)
    assert outcome.code == 1
    assert outcome.stdout == ""
    errors = [line for line in outcome.stderr.splitlines() if not is_log_line(line)]
    assert len(errors) == 1, outcome.stderr
    assert errors[0].startswith("error: ")
    for part in parts:
        assert part in errors[0]
    assert not (tmp_path / "run").exists()


def is_log_line(line: str) -> bool:
    # TensorFlow 2.19 and 2.21 write notices of their own, whatever TF_CPP_MIN_LOG_LEVEL says.
    return bool(re.match(r"\d\d:\d\d:\d\d |[EIW]\d{4} |WARNING: All log messages before", line))


def test_a_process_ends_with_one_paragraph(tmp_path: pathlib.Path) -> None:
    run = settings(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    recipe = write_recipe(tmp_path, run)
    process = subprocess.run(
        [sys.executable, str(ROOT / "scripts/train.py"), recipe, f"--workdir={tmp_path / 'run'}"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 1
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    *logs, error = process.stderr.splitlines()
    assert all(is_log_line(line) for line in logs), logs
    assert error.startswith("error: ")
    assert "train.jsonl is not a file." in error
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / "run").iterdir())
