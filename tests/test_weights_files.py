from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tiny_checkpoint as tiny

from bert_tf.weights import find_prefix, read_tensors, read_weights, write_tensors

GOLDEN_PREFIX = str(tiny.GOLDEN / "bert_model.ckpt")
DATA = ".data-00000-of-00001"


def write_tiny(folder: pathlib.Path, name: str = "model.ckpt") -> str:
    prefix = str(folder / name)
    write_tensors(prefix, tiny.weights())
    return prefix


def test_weights_of_a_tf1_saver_without_slots_and_step() -> None:
    weights = read_weights(GOLDEN_PREFIX)
    expected = tiny.weights()
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, expected[name])


def test_tensors_of_a_tf1_saver_with_slots_and_step() -> None:
    tensors = read_tensors(GOLDEN_PREFIX)
    assert len(tensors) == 3 * len(tiny.weights()) + 1
    assert tensors["global_step"] == 20
    assert tensors["global_step"].dtype == np.int64
    slot = "bert/pooler/dense/kernel/adam_v"
    np.testing.assert_array_equal(tensors[slot], tiny.value(slot, (8, 8)))


def test_written_tensors_come_back_with_their_types(tmp_path: pathlib.Path) -> None:
    tensors: dict[str, Any] = {
        "output_weights": tiny.value("output_weights", (3, 8)),
        "output_weights/lamb_m": tiny.value("m", (3, 8)),
        "global_step": np.int64(2**40),
        "good_steps": np.int32(3),
        "loss_scale": np.float32(1024),
        "half": np.array([0.5, 1], np.float16),
    }
    prefix = str(tmp_path / "model.ckpt")
    write_tensors(prefix, tensors)
    assert sorted(os.listdir(tmp_path)) == ["model.ckpt" + DATA, "model.ckpt.index"]
    back = read_tensors(prefix)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        np.testing.assert_array_equal(back[name], tensor)
    weights = read_weights(prefix)
    assert weights.keys() == {"output_weights", "half"}
    assert weights["half"].dtype == np.float32


def test_the_savers_of_tf1_restore_what_was_written(tmp_path: pathlib.Path) -> None:
    prefix = write_tiny(tmp_path)
    expected = tiny.weights()
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {
            name: v1.get_variable(name, initializer=np.zeros_like(weight), use_resource=False)
            for name, weight in expected.items()
        }
        v1.train.Saver(variables).restore(session, prefix)
        restored = session.run(variables)
    for name, weight in expected.items():
        np.testing.assert_array_equal(restored[name], weight)


def test_writing_over_a_save_replaces_it(tmp_path: pathlib.Path) -> None:
    prefix = write_tiny(tmp_path)
    write_tensors(prefix, {"output_bias": np.array([1, 2], np.float32)})
    assert read_tensors(prefix).keys() == {"output_bias"}


def test_unwritable_place_is_a_value_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    prefix = str(tmp_path / "file" / "model.ckpt")
    with pytest.raises(ValueError, match="cannot be written") as caught:
        write_tensors(prefix, tiny.weights())
    assert prefix in str(caught.value)


def damage(prefix: str, how: str) -> None:
    data, index = pathlib.Path(prefix + DATA), pathlib.Path(prefix + ".index")
    file = data if "data" in how else index
    content = file.read_bytes()
    if how.startswith("no "):
        file.unlink()
    elif how.startswith("short "):
        file.write_bytes(content[: len(content) // 2])
    elif how.startswith("empty "):
        file.write_bytes(b"")
    else:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


@pytest.mark.parametrize(
    "how",
    [
        f"{kind} {file}"
        for kind in ("no", "short", "empty", "flipped")
        for file in ("data", "index")
    ],
)
def test_damaged_files_are_a_value_error(tmp_path: pathlib.Path, how: str) -> None:
    prefix = write_tiny(tmp_path)
    damage(prefix, how)
    for read in (read_weights, read_tensors):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            read(prefix)
        assert prefix in str(caught.value)
        assert caught.value.__cause__ is None
        assert "function_node" not in str(caught.value)


def test_find_the_only_checkpoint_of_a_folder(tmp_path: pathlib.Path) -> None:
    prefix = write_tiny(tmp_path, "any_name.ckpt-7")
    assert find_prefix(str(tmp_path)) == prefix


def test_several_checkpoints_need_a_checkpoint_file(tmp_path: pathlib.Path) -> None:
    write_tiny(tmp_path, "model.ckpt-1")
    write_tiny(tmp_path, "model.ckpt-2")
    with pytest.raises(ValueError, match=r"\(model.ckpt-1, model.ckpt-2\)"):
        find_prefix(str(tmp_path))
    state = tmp_path / "checkpoint"
    # Written on another machine, with its path.
    state.write_text('model_checkpoint_path: "/home/elsewhere/run/model.ckpt-1"\n')
    assert find_prefix(str(tmp_path)) == str(tmp_path / "model.ckpt-1")
    state.write_text('model_checkpoint_path: "model.ckpt-3"\n')
    with pytest.raises(ValueError, match="several checkpoints"):
        find_prefix(str(tmp_path))


def test_no_checkpoint_in_a_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no TF1 checkpoint"):
        find_prefix(str(tmp_path))
