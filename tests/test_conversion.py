from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable

import numpy as np
import pytest
import tiny_checkpoint as tiny

from bert_tf import conversion
from bert_tf.checkpoints import Checkpoint, read_checkpoint
from bert_tf.config import write_json
from bert_tf.conversion import write_hugging_face, write_tf1

HUGGING_FACE_GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hf"

Writer = Callable[[str, Checkpoint], None]
WRITERS = (write_tf1, write_hugging_face)


def tiny_checkpoint(folder: pathlib.Path, model: str = "BertForPreTraining") -> Checkpoint:
    """A checkpoint with everything known; its vocabulary is written into the folder."""
    folder.mkdir(exist_ok=True)
    tiny.write_vocab(folder / "vocab.txt")
    return Checkpoint(
        config=dataclasses.replace(tiny.CONFIG, hidden_act="gelu"),
        weights=tiny.weights(model),
        vocab_file=str(folder / "vocab.txt"),
        lower_case=False,
        strip_accents=True,
        source="here",
        kind="tf1",
        labels=("no", "maybe", "yes") if model == "BertForSequenceClassification" else None,
    )


def assert_same(actual: Checkpoint, expected: Checkpoint) -> None:
    assert actual.config == expected.config
    assert actual.lower_case == expected.lower_case
    assert actual.strip_accents == expected.strip_accents
    assert actual.labels == expected.labels
    assert actual.vocab_file is not None
    assert expected.vocab_file is not None
    vocabularies = [pathlib.Path(c.vocab_file or "").read_bytes() for c in (actual, expected)]
    assert vocabularies[0] == vocabularies[1]
    assert actual.weights.keys() == expected.weights.keys()
    for name, weight in actual.weights.items():
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, expected.weights[name], err_msg=name)


@pytest.mark.parametrize("model", tiny.MODELS)
@pytest.mark.parametrize("writers", [WRITERS, WRITERS[::-1]], ids=["tf1-hf-tf1", "hf-tf1-hf"])
def test_there_and_back_again(
    tmp_path: pathlib.Path, model: str, writers: tuple[Writer, Writer]
) -> None:
    original = tiny_checkpoint(tmp_path / "original", model)
    checkpoint = original
    for number, write in enumerate((*writers, writers[0])):
        write(str(tmp_path / str(number)), checkpoint)
        checkpoint = read_checkpoint(str(tmp_path / str(number)))
        assert_same(checkpoint, original)
    for name in os.listdir(tmp_path / "0"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.parametrize("folder", ["tiny_pretraining", "tiny_classifier"])
def test_a_folder_of_hugging_face_survives_tf1(tmp_path: pathlib.Path, folder: str) -> None:
    original = read_checkpoint(str(HUGGING_FACE_GOLDENS / folder))
    write_tf1(str(tmp_path / "tf1"), original)
    middle = read_checkpoint(str(tmp_path / "tf1"))
    assert_same(middle, original)
    write_hugging_face(str(tmp_path / "hf"), middle)
    assert_same(read_checkpoint(str(tmp_path / "hf")), original)
    before = json.loads((HUGGING_FACE_GOLDENS / folder / "config.json").read_text())
    after = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert {key: before[key] for key in after if key in before} == {
        key: after[key] for key in after if key in before
    }
    assert after["architectures"] == before["architectures"]


def test_the_original_release_survives_hugging_face(tmp_path: pathlib.Path) -> None:
    original = read_checkpoint(str(tiny.GOLDEN))
    write_hugging_face(str(tmp_path / "hf"), original)
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert values["hidden_act"] == "gelu_pytorch_tanh"
    write_tf1(str(tmp_path / "tf1"), read_checkpoint(str(tmp_path / "hf")))
    assert_same(read_checkpoint(str(tmp_path / "tf1")), original)


def test_files_of_the_original_release(tmp_path: pathlib.Path) -> None:
    write_tf1(str(tmp_path / "tf1"), tiny_checkpoint(tmp_path))
    assert sorted(os.listdir(tmp_path / "tf1")) == [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    config = json.loads((tmp_path / "tf1" / "bert_config.json").read_text())
    assert (config["hidden_act"], config["exact_gelu"]) == ("gelu", True)
    settings = json.loads((tmp_path / "tf1" / "tokenizer_config.json").read_text())
    assert settings["do_lower_case"] is False
    assert settings["model_max_length"] == 12


def test_a_tokenizer_that_is_only_in_tokenizer_json(tmp_path: pathlib.Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    write_hugging_face(str(tmp_path / "hf"), checkpoint)
    pieces = (tmp_path / "hf" / "vocab.txt").read_text(encoding="utf-8").split()
    (tmp_path / "hf" / "vocab.txt").unlink()
    model = {"type": "WordPiece", "vocab": {piece: i for i, piece in enumerate(pieces)}}
    write_json(str(tmp_path / "hf" / "tokenizer.json"), {"normalizer": None, "model": model})
    read = read_checkpoint(str(tmp_path / "hf"))
    assert_same(read, checkpoint)
    write_tf1(str(tmp_path / "tf1"), read)
    assert_same(read_checkpoint(str(tmp_path / "tf1")), checkpoint)


def test_what_is_unknown_stays_unsaid(tmp_path: pathlib.Path) -> None:
    checkpoint = dataclasses.replace(
        tiny_checkpoint(tmp_path), vocab_file=None, lower_case=None, strip_accents=None
    )
    for name, write in (("a", write_tf1), ("b", write_hugging_face)):
        write(str(tmp_path / name), checkpoint)
        read = read_checkpoint(str(tmp_path / name))
        assert read.vocab_file is read.lower_case is read.strip_accents is None


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_overwritten(tmp_path: pathlib.Path, write: Writer) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "original")
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    (full / "mine").write_text("x")
    empty.mkdir()
    with pytest.raises(ValueError, match="full exists already"):
        write(f"{full}/", checkpoint)
    assert os.listdir(full) == ["mine"]
    with pytest.raises(ValueError, match="mine exists already"):
        write(str(full / "mine"), checkpoint)
    write(str(empty), checkpoint)
    assert_same(read_checkpoint(str(empty)), checkpoint)
    assert sorted(os.listdir(tmp_path)) == ["empty", "full", "original"]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("error", [ValueError("full"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_behind(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, write: Writer, error: BaseException
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "original")

    def fail(*unused_arguments: object) -> None:
        raise error

    monkeypatch.setattr(conversion, "write_text_files", fail)
    with pytest.raises(type(error)):
        write(str(tmp_path / "new"), checkpoint)
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.parametrize("write", WRITERS)
def test_a_place_that_cannot_be_written(tmp_path: pathlib.Path, write: Writer) -> None:
    checkpoint = tiny_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="cannot be written"):
        write(str(tmp_path / "vocab.txt" / "new"), checkpoint)


@pytest.mark.parametrize("write", WRITERS)
def test_what_does_not_fit_together_is_not_written(tmp_path: pathlib.Path, write: Writer) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "BertForSequenceClassification")
    faults = {
        r"no bert_config\.json": {"config": None},
        "another shape": {"config": dataclasses.replace(tiny.CONFIG, hidden_size=16)},
        "3 outputs, but 1 labels": {"labels": ("a",)},
    }
    for message, change in faults.items():
        with pytest.raises(ValueError, match=message):
            write(str(tmp_path / "new"), dataclasses.replace(checkpoint, **change))
    assert os.listdir(tmp_path) == ["vocab.txt"]


def test_a_genuine_checkpoint_with_adam_slots(shared: pathlib.Path, tmp_path: pathlib.Path) -> None:
    folder = shared / "data" / "checkpoints" / "tf1_tiny_with_heads_and_adam"
    if not folder.is_dir():
        pytest.skip(f"a TF1 checkpoint with Adam slots not found at {folder}")
    original = read_checkpoint(str(folder))
    assert len(original.weights) == 5 + 2 * 16 + 2 + 5 + 2
    assert original.config is not None
    assert original.config.num_hidden_layers == 2
    write_hugging_face(str(tmp_path / "hf"), original)
    write_tf1(str(tmp_path / "tf1"), read_checkpoint(str(tmp_path / "hf")))
    assert_same(read_checkpoint(str(tmp_path / "tf1")), original)
