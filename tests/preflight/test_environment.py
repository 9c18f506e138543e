"""The compiler's environment: where it is, and what is said where it cannot be made."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from bert_tf.preflight import environment


def test_other_pins_have_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    one = environment.folder("cache")
    monkeypatch.setattr(environment, "PINS", ("jax==0.0",))
    assert environment.folder("cache") != one
    assert one.parent == pathlib.Path("cache")


def test_a_package_that_pip_does_not_find(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        message = "WARNING: slow\nERROR: No matching distribution found for jax==0.8.1\n"
        return subprocess.CompletedProcess(command, 1, "", message)

    monkeypatch.setattr(environment.venv, "create", lambda place, **_: place.mkdir())
    monkeypatch.setattr(environment.subprocess, "run", run)
    with pytest.raises(ValueError, match=r"No matching distribution found for jax==0\.8\.1"):
        environment.make(str(tmp_path))
    assert not environment.is_made(str(tmp_path)), "it is made anew the next time"


def test_other_systems_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment.sys, "platform", "darwin")
    with pytest.raises(ValueError, match=r"Linux and Python 3\.10 to 3\.12.*darwin"):
        environment.make("cache")


def test_a_folder_that_cannot_be_written(tmp_path: pathlib.Path) -> None:
    if sys.platform != "linux" or not (3, 10) <= sys.version_info[:2] < (3, 13):
        pytest.skip("the compiler does not come for this system")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cannot be made .*--cache"):
        environment.make(str(tmp_path / "file"))
