"""scripts/load_test.py: what it measures, and what it refuses."""

from __future__ import annotations

import json
import pathlib

import pytest

from tests.export.conftest import Exports
from tests.served_models import TEXTS
from tests.test_scripts import ok, run_script

FLAGS = ("--seconds=0.4", "--batch_timeout_micros=20000", "--num_batch_threads=1")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("load") / "texts.txt"
    path.write_text("".join(f"{text.decode(errors='ignore')}\n" for text in TEXTS))
    return str(path)


def test_batching_joins_requests(exports: Exports, tmp_path: pathlib.Path, texts: str) -> None:
    folder = exports("classification", "saved_model").folder.parent  # of all versions
    output = tmp_path / "load.json"
    flags = (*FLAGS, f"--input={texts}", f"--output={output}", "--clients=1,6")
    outcome = ok(run_script("load_test", f"--saved_model={folder}", *flags))
    written = json.loads(output.read_text())
    assert written["settings"]["batch_timeout_micros"] == 20_000
    figures = written["figures"]
    assert [(each["batching"], each["clients"]) for each in figures] == [
        ("off", 1),
        ("on", 1),
        ("off", 6),
        ("on", 6),
    ]
    for each in figures:
        assert each["requests"] >= each["clients"]
        assert 0 < each["p50_ms"] <= each["p95_ms"] <= each["p99_ms"]
        assert each["cpu_ms"] > 0
    off, on = figures[2:]
    assert off["batch_size"] == 1
    assert 2 < on["batch_size"] <= 6, "six clients who wait for one another"
    assert figures[1]["p50_ms"] > 20, "one client waits in vain for others"
    header, *rows = outcome.stdout.splitlines()
    assert header.split()[:3] == ["batching", "clients", "requests"]
    assert [row.split()[0] for row in rows] == ["off", "on"] * 2


def test_a_full_batch_does_not_wait(exports: Exports, tmp_path: pathlib.Path, texts: str) -> None:
    folder = exports("classification", "saved_model").folder
    flags = ("--batch_timeout_micros=2000000", "--max_batch_size=2", "--allowed_batch_sizes=2")
    given = (*FLAGS[:1], *flags, f"--input={texts}", "--clients=2", f"--output={tmp_path / 'a'}")
    ok(run_script("load_test", f"--saved_model={folder}", *given))
    _, on = json.loads((tmp_path / "a").read_text())["figures"]
    assert on["batch_size"] == pytest.approx(2, abs=0.5)
    assert on["p50_ms"] < 1000, "the last one alone waits, when the other client has stopped"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--clients=0", "--clients=0 must be numbers from 1"),
        ("--allowed_batch_sizes=4,2,32", "must rise and end with --max_batch_size=32"),
        ("--allowed_batch_sizes=2,4", "must rise and end with --max_batch_size=32"),
        ("--signature=embed", "--signature=embed: the model has serving_default, ids"),
        ("--signature=ids", "--signature=ids: its inputs are not one text each"),
        ("--saved_model=/nowhere", "--saved_model=/nowhere holds no export"),
        ("--input=/dev/null", "/dev/null is empty"),
    ],
)
def test_mistakes_are_explained(exports: Exports, texts: str, flag: str, message: str) -> None:
    folder = exports("classification", "saved_model").folder
    outcome = run_script("load_test", f"--saved_model={folder}", f"--input={texts}", flag)
    assert outcome.code == 1
    assert message in outcome.stderr


def test_signatures_of_several_inputs_have_columns(
    exports: Exports, tmp_path: pathlib.Path
) -> None:
    folder = exports("multi_task", "saved_model").folder
    (tmp_path / "in").write_text("the house is red\twhich house\nonly one\n")
    flags = (f"--saved_model={folder}", f"--input={tmp_path / 'in'}", "--signature=answers")
    outcome = run_script("load_test", *flags)
    assert "line 2 has 1 texts; the signature takes context, question, with tabs" in outcome.stderr
