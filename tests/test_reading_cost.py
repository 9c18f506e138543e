"""How much of the package somebody reads who follows one fine-tuning run, and how much that may be.

Counted: the lines of the package that execute from opening the checkpoint to the last saved step
(import-time lines are not), and the files that they are in.
"""

from __future__ import annotations

import collections
import pathlib
import sys
import types
from typing import Any

import pytest

import bert_tf
from bert_tf.checkpoints import read_checkpoint
from bert_tf.conversion import write_tf1
from tests.tiny_run import CHECKPOINT, run_tiny, tiny_run

PACKAGE = str(pathlib.Path(bert_tf.__file__).parent)
MAX_LINES = 2500
MAX_FILES = 16


def test_one_fine_tuning_run_can_be_read(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    executed: dict[str, set[int]] = collections.defaultdict(set)

    def trace(frame: types.FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGE) or code.co_name == "<module>":
            return None
        executed[code.co_filename].add(frame.f_lineno)
        return trace

    # Weights in the form of the original release; a Hugging Face folder adds hugging_face.py.
    original = tmp_path / "original"
    write_tf1(str(original), read_checkpoint(str(CHECKPOINT)))
    run = tiny_run(tmp_path, train={"steps": 4}, model={"init_checkpoint": str(original)})
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run_tiny(run, tmp_path / "run")
    finally:
        sys.settrace(before)
    lines = sum(len(numbers) for numbers in executed.values())
    with capsys.disabled():
        print(f"\nreading cost of one fine-tuning run: {len(executed)} files, {lines:,} lines")
    names = sorted(pathlib.Path(name).relative_to(PACKAGE).as_posix() for name in executed)
    assert len(names) <= MAX_FILES, ", ".join(names)
    assert lines < MAX_LINES
    assert f"{PACKAGE}/encoder.py" in executed
    assert f"{PACKAGE}/training.py" in executed
