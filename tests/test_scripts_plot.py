"""scripts/plot_metrics.py draws what a run measured."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "3", "PATH": "/usr/bin:/bin"}


def plot(*flags: str) -> subprocess.CompletedProcess[str]:
    script = str(REPOSITORY / "scripts" / "plot_metrics.py")
    return subprocess.run(
        [sys.executable, script, *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=ENVIRONMENT,
    )


def write_metrics(folder: pathlib.Path) -> None:
    folder.mkdir()
    lines: list[dict[str, float]] = [{"step": s, "loss": 1 / s, "learning_rate": s} for s in (1, 2)]
    lines.append({"step": 2, "eval/loss": 0.4, "eval/accuracy": 0.7})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_picture_of_two_runs(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    write_metrics(tmp_path / "a")
    write_metrics(tmp_path / "b")
    done = plot(f"--workdir={tmp_path}/a", f"--workdir={tmp_path}/b")
    assert done.returncode == 0, done.stderr
    picture = (tmp_path / "a" / "metrics.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "metrics.jsonl",
        "metrics.png",
    ]


def test_no_run_is_told_in_one_paragraph(tmp_path: pathlib.Path) -> None:
    done = plot(f"--workdir={tmp_path}/nothing")
    assert done.returncode == 1
    assert "metrics.jsonl does not exist" in done.stderr
    assert "Traceback" not in done.stderr
