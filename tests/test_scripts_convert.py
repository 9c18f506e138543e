"""scripts/convert_checkpoint.py as a user runs it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import tiny_checkpoint as tiny

from bert_tf.checkpoints import read_checkpoint
from bert_tf.config import write_json
from bert_tf.weights import write_tensors

REPOSITORY = pathlib.Path(__file__).parents[1]
SCRIPT = REPOSITORY / "scripts" / "convert_checkpoint.py"


def convert(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2", "PATH": "/usr/bin:/bin"},
    )


def test_flags_give_what_a_bare_prefix_lacks(tmp_path: pathlib.Path) -> None:
    write_tensors(str(tmp_path / "x.ckpt"), tiny.weights("BertForSequenceClassification"))
    write_json(str(tmp_path / "c.json"), tiny.CONFIG.to_dict())
    tiny.write_vocab(tmp_path / "v.txt")
    run = convert(
        f"--input={tmp_path}/x.ckpt",
        f"--output={tmp_path}/out",
        "--format=hf",
        f"--bert_config={tmp_path}/c.json",
        f"--vocab_file={tmp_path}/v.txt",
        "--lower_case=false",
    )
    assert run.returncode == 0, run.stderr
    checkpoint = read_checkpoint(str(tmp_path / "out"))
    assert checkpoint.config == tiny.CONFIG
    assert checkpoint.lower_case is False
    assert checkpoint.vocab_file == str(tmp_path / "out" / "vocab.txt")
    assert "41 weights" in run.stderr  # 5 + 2 * 16, pooler and classifier
    assert "must know" not in run.stderr


def test_a_mistake_is_told_in_one_paragraph(tmp_path: pathlib.Path) -> None:
    run = convert(
        f"--input={tiny.GOLDEN}", f"--output={tmp_path}/out", "--format=hf", "--lower_case=false"
    )
    assert run.returncode == 1
    assert "lower_case=true; leave the flag out" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
