from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from bert_tf import run_folder
from bert_tf.config import BertConfig, DataConfig, RunConfig, write_json
from bert_tf.encoder import variables_by_name
from bert_tf.layouts import UnpaddedLayout
from bert_tf.restore import open_run
from bert_tf.run_folder import Progress
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tokenization import Tokenizer

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##ly"]
CONFIG = BertConfig(
    vocab_size=len(PIECES),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=16,
    hidden_act="gelu",
)
RUN = RunConfig(data=DataConfig(max_seq_length=12))
BEST = {"accuracy": 0.75, "loss": 0.5, "step": 20}


def start_run(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes a run folder that has saved no weights yet; returns weights that fit its model."""
    (workdir / "vocab_source.txt").write_text("\n".join(PIECES) + "\n")
    tokenizer = Tokenizer(str(workdir / "vocab_source.txt"), lower_case=False)
    task = ClassificationTask(RUN, CONFIG, tokenizer, Labels("class", ("no", "yes")))
    write_json(str(workdir / "run.json"), RUN.to_dict())
    write_json(str(workdir / "bert_config.json"), CONFIG.to_dict())
    tokenizer.save(str(workdir))
    task.save(str(workdir))
    rng = np.random.default_rng(3)
    shapes = {name: v.shape for name, v in variables_by_name(task.build_model()).items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def save(workdir: pathlib.Path, part: str, step: int, tensors: dict[str, np.ndarray]) -> None:
    progress = Progress(step=step, best=BEST if step else {})
    run_folder.write_step(str(workdir / part), progress, tensors, keep=9)


def weights_of(model: tf.Module) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in variables_by_name(model).items()}


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    collected: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: collected.append(text % args))
    return collected


def test_opens_everything_of_a_run(tmp_path: pathlib.Path, messages: list[str]) -> None:
    weights = start_run(tmp_path)
    save(tmp_path, "best", 20, weights)
    opened = open_run(str(tmp_path))
    assert opened.run == RUN
    assert opened.task.config == CONFIG
    assert opened.task.labels == Labels("class", ("no", "yes"))
    assert opened.task.tokenizer.vocab == tuple(PIECES)
    assert not opened.task.tokenizer.lower_case
    assert opened.metrics == BEST
    assert opened.weights_from == str(tmp_path / "best" / "step-00000020")
    found = weights_of(opened.model)
    assert found.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert not messages


def test_best_weights_win_over_newer_checkpoints(tmp_path: pathlib.Path) -> None:
    weights = start_run(tmp_path)
    save(tmp_path, "best", 10, weights)
    save(tmp_path, "best", 20, {name: value + 1 for name, value in weights.items()})
    save(tmp_path, "checkpoints", 30, {name: value + 2 for name, value in weights.items()})
    opened = open_run(str(tmp_path))
    assert opened.weights_from.endswith("best/step-00000020")
    np.testing.assert_array_equal(
        weights_of(opened.model)["output_bias"], weights["output_bias"] + 1
    )


def test_checkpoint_with_slots_serves_before_the_first_evaluation(
    tmp_path: pathlib.Path, messages: list[str]
) -> None:
    weights = start_run(tmp_path)
    slots = {f"{name}/adam_m": value + 5 for name, value in weights.items()}
    save(tmp_path, "checkpoints", 30, weights | slots | {"global_step": np.array(30)})
    opened = open_run(str(tmp_path))
    for name, value in weights_of(opened.model).items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)
    assert "no evaluation yet" in "".join(messages)


def test_layout_is_the_one_asked_for(tmp_path: pathlib.Path) -> None:
    save(tmp_path, "best", 20, start_run(tmp_path))
    padded, unpadded = open_run(str(tmp_path)), open_run(str(tmp_path), UnpaddedLayout)
    assert unpadded.model.encoder.layout is UnpaddedLayout
    batch = {
        "token_ids": tf.constant([[2, 5, 6, 8, 3], [2, 7, 3, 0, 0]]),
        "segment_ids": tf.zeros([2, 5], tf.int32),
        "mask": tf.constant([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
    }
    np.testing.assert_allclose(padded.model(batch), unpadded.model(batch), atol=1e-5)


def test_untrained_weights_warn(tmp_path: pathlib.Path, messages: list[str]) -> None:
    save(tmp_path, "best", 0, start_run(tmp_path))
    assert open_run(str(tmp_path)).metrics == {}
    assert "untrained" in "".join(messages)


def test_run_without_weights_is_an_error_with_a_remedy(tmp_path: pathlib.Path) -> None:
    start_run(tmp_path)
    (tmp_path / "best" / "step-00000020.tmp").mkdir(parents=True)  # killed while it was saved
    with pytest.raises(ValueError, match=r"no trained weights.*scripts/train\.py"):
        open_run(str(tmp_path))


def test_other_folder_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"not the folder of a run.*run\.json"):
        open_run(str(tmp_path))


def test_unknown_task_is_an_error(tmp_path: pathlib.Path) -> None:
    save(tmp_path, "best", 20, start_run(tmp_path))
    task = dataclasses.replace(RUN.task, name="parsing")
    write_json(str(tmp_path / "run.json"), dataclasses.replace(RUN, task=task).to_dict())
    with pytest.raises(ValueError, match=r"'parsing'.*classification"):
        open_run(str(tmp_path))


@pytest.mark.parametrize("name", ["bert_config.json", "tokenizer_config.json", "labels.json"])
def test_missing_file_is_named(tmp_path: pathlib.Path, name: str) -> None:
    save(tmp_path, "best", 20, start_run(tmp_path))
    os.remove(tmp_path / name)
    with pytest.raises(ValueError, match=name):
        open_run(str(tmp_path))


def test_damaged_weights_are_named(tmp_path: pathlib.Path) -> None:
    save(tmp_path, "best", 20, start_run(tmp_path))
    step = tmp_path / "best" / "step-00000020"
    (step / "model.ckpt.data-00000-of-00001").write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000020/model\.ckpt cannot be read"):
        open_run(str(tmp_path))


def test_weights_of_another_model_assign_nothing(tmp_path: pathlib.Path) -> None:
    weights = start_run(tmp_path)
    save(tmp_path, "best", 20, weights | {"output_bias": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r"output_bias is \[3\] in the checkpoint and \[2\]"):
        open_run(str(tmp_path))
