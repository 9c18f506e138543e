"""What all scripts share: how far a job is."""

from __future__ import annotations

import sys

import pytest

from bert_tf import command_line
from bert_tf.command_line import Progress, progress_bar, progress_line


def test_progress_tells_speed_and_time_left() -> None:
    line = progress_line(30_000, 100_000, "texts", seconds=75.0)
    assert line == " 30,000 of 100,000 texts,    400/s,   2:55 left"
    assert len(progress_line(1, 100_000, "texts", 1.0)) >= len(line)
    assert progress_bar(1, 3) == "[" + "#" * 10 + "." * 20 + "]"


def test_a_terminal_has_a_bar_that_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(command_line, "BAR_SECONDS", 0.0)
    progress = Progress(4, "texts")
    for done in (1, 2, 1):
        progress.add(done)
    shown = capsys.readouterr().err
    lines = shown.split("\r")[1:]
    assert [line.split()[1] for line in lines] == ["1", "3", "4"]
    assert lines[-1].startswith("[" + "#" * 30 + "]")
    assert shown.count("\n") == 1
    assert shown.endswith("\n")
