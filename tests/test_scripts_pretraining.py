"""scripts/create_pretraining_data.py as a user runs it."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.data.test_creation import contents, write_inputs

REPOSITORY = pathlib.Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "create_pretraining_data.py"
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}


def command(folder: pathlib.Path, output: str, *flags: str) -> list[str]:
    return [
        sys.executable,
        str(SCRIPT),
        f"--input_file={folder}/?.txt",
        f"--vocab_file={folder}/vocab.txt",
        f"--output_file={folder}/{output}/x.tfrecord",
        "--max_seq_length=32",
        "--max_predictions_per_seq=5",
        *flags,
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, check=False, timeout=600, env=ENVIRONMENT
    )


def tree(process: int) -> list[int]:
    """A process, its children, and theirs."""
    try:
        children = pathlib.Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return []
    return [process, *(number for child in children for number in tree(int(child)))]


def resident_mib(process: int) -> float:
    """Memory of a process, its children, and theirs; a page that they share counts once."""
    kib = 0
    for number in tree(process):
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{number}/smaps_rollup").read_text()
            kib += sum(int(size) for size in re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE))
    return kib / 1024


def test_files_are_made(tmp_path: pathlib.Path) -> None:
    write_inputs(tmp_path)
    done = run(
        command(tmp_path, "out", "--processes=1", "--do_whole_word_mask", "--shard_mib=0.005")
    )
    assert done.returncode == 0, done.stderr
    names = [name for name in contents(tmp_path / "out") if name.endswith(".tfrecord")]
    assert len(names) > 1
    assert f"shard {len(names)} of {len(names)}: " in done.stderr
    assert "instances/s" in done.stderr
    assert '"whole_words": "per_piece"' in (tmp_path / "out" / "x.json").read_text()


def test_a_mistake_is_told_in_one_paragraph(tmp_path: pathlib.Path) -> None:
    write_inputs(tmp_path)
    (tmp_path / "vocab.txt").unlink()
    done = run(command(tmp_path, "out"))
    assert done.returncode == 1
    assert "vocab.txt is not a file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_leaves_no_process(tmp_path: pathlib.Path) -> None:
    write_inputs(tmp_path, documents=200)
    flags = ("--processes=2", "--shard_mib=0.01", "--dupe_factor=20")
    whole = run(command(tmp_path, "whole", *flags))
    assert whole.returncode == 0, whole.stderr
    with subprocess.Popen(command(tmp_path, "out", *flags), env=ENVIRONMENT) as process:
        while not list((tmp_path / "out").glob("x-*")):
            assert process.poll() is None
            time.sleep(0.05)
        _, *workers = tree(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{worker}/exe") for worker in workers):
        assert time.monotonic() < deadline, "workers outlived the run"
        time.sleep(0.1)
    assert len(contents(tmp_path / "out")) < len(contents(tmp_path / "whole"))
    again = run(command(tmp_path, "out", *flags))
    assert again.returncode == 0, again.stderr
    assert "0 of them are there already" not in again.stderr
    there = contents(tmp_path / "out")
    assert {name: there[name] for name in there if not name.startswith(".")} == contents(
        tmp_path / "whole"
    )


@pytest.mark.slow
def test_beam_in_two_processes_writes_the_same_bytes(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("apache_beam", reason="apache-beam is not installed (extra `beam`)")
    write_inputs(tmp_path)
    one = run(command(tmp_path, "one", "--processes=1", "--shard_mib=0.005"))
    assert one.returncode == 0, one.stderr
    options = "--direct_num_workers=2 --direct_running_mode=multi_processing"
    flags = ("--runner=DirectRunner", f"--pipeline_options={options}", "--shard_mib=0.005")
    two = run(command(tmp_path, "two", *flags))
    assert two.returncode == 0, two.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    made = [
        line.split(" made ")[1]
        for line in (one.stderr + two.stderr).splitlines()
        if " made " in line
    ]
    assert len(made) == 2
    assert made[0] == made[1]


def test_flags_of_beam_and_of_processes_do_not_mix(tmp_path: pathlib.Path) -> None:
    write_inputs(tmp_path)
    for flags in (["--runner=DirectRunner", "--processes=2"], ["--pipeline_options=--a=b"]):
        done = run(command(tmp_path, "out", *flags))
        assert done.returncode == 1
        assert "error: --p" in done.stderr
        assert "--runner" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: pathlib.Path) -> None:
    """All processes together stay below 1 GiB, with two shards of text as with six."""
    write_inputs(tmp_path, documents=5000)
    text = (tmp_path / "a.txt").read_text()
    peaks = []
    for shards in (2, 6):
        (tmp_path / "a.txt").write_text(text * (shards * (4 << 20) // len(text)))
        arguments = command(tmp_path, f"out{shards}", "--processes=2", "--dupe_factor=1")
        peak = 0.0
        with subprocess.Popen(arguments, env=ENVIRONMENT) as process:
            while process.poll() is None:
                peak = max(peak, resident_mib(process.pid))
                time.sleep(0.2)
        assert process.returncode == 0
        assert len(contents(tmp_path / f"out{shards}")) > shards
        peaks.append(peak)
    assert max(peaks) < 1024, peaks
    assert peaks[1] < peaks[0] + 50, peaks
