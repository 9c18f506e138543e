from __future__ import annotations

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tiny_checkpoint as tiny

from bert_tf.checkpoints import (
    read_checkpoint,
)
from bert_tf.config import BertConfig, write_json
from bert_tf.weights import write_tensors

HUGGING_FACE_GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hf"


def copy_golden(folder: pathlib.Path) -> pathlib.Path:
    shutil.copytree(tiny.GOLDEN, folder)
    return folder


def write_run(folder: pathlib.Path, *places: str) -> pathlib.Path:
    """A run folder; the weight `bert/pooler/dense/bias` is 1, 2, ... in the places given."""
    folder.mkdir()
    write_json(str(folder / "run.json"), {})
    write_json(str(folder / "bert_config.json"), tiny.CONFIG.to_dict())
    write_json(str(folder / "tokenizer_config.json"), {"do_lower_case": True})
    tiny.write_vocab(folder / "vocab.txt")
    for number, place in enumerate(places, start=1):
        tensors = tiny.weights("BertForSequenceClassification")
        tensors["bert/pooler/dense/bias"] = np.full([8], number, np.float32)
        tensors["bert/pooler/dense/bias/adam_m"] = np.ones([8], np.float32)
        tensors["global_step"] = np.int64(number)
        tensors["loss_scale"] = np.float32(1024)
        (folder / place).mkdir(parents=True, exist_ok=True)
        write_tensors(str(folder / place / "model.ckpt"), tensors)
    return folder


# --------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "/",
        "/bert_model.ckpt",
        "/bert_model.ckpt.index",
        "/bert_model.ckpt.data-00000-of-00001",
    ],
)
def test_a_folder_of_the_original_release(ending: str) -> None:
    checkpoint = read_checkpoint(f"{tiny.GOLDEN}{ending}")
    assert checkpoint.config == tiny.CONFIG  # whose activation is the tanh form
    assert checkpoint.kind == "tf1"
    assert checkpoint.source == str(tiny.GOLDEN / "bert_model.ckpt")
    assert checkpoint.vocab_file == str(tiny.GOLDEN / "vocab.txt")
    assert checkpoint.lower_case is True  # uncased_L-...
    assert checkpoint.strip_accents is None
    assert checkpoint.labels is None
    assert checkpoint.weights.keys() == tiny.weights().keys()
    for name, weight in checkpoint.weights.items():
        np.testing.assert_array_equal(weight, tiny.weights()[name])


@pytest.mark.parametrize(
    ("name", "lower_case"),
    [
        ("uncased_L-24_H-1024_A-16", True),
        ("wwm_uncased_L-24_H-1024_A-16", True),
        ("multilingual_L-12_H-768_A-12", True),
        ("chinese_L-12_H-768_A-12", True),
        ("cased_L-12_H-768_A-12", False),
        ("wwm_cased_L-24_H-1024_A-16", False),
        ("multi_cased_L-12_H-768_A-12", False),
        ("my_uncased_model", None),
    ],
)
def test_casing_by_the_name_of_the_folder(
    tmp_path: pathlib.Path, name: str, lower_case: bool | None
) -> None:
    assert read_checkpoint(str(copy_golden(tmp_path / name))).lower_case is lower_case


def test_casing_by_a_relative_path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy_golden(tmp_path / "cased_L-12_H-768_A-12"))
    for path in ("bert_model.ckpt", "."):
        checkpoint = read_checkpoint(path)
        assert checkpoint.lower_case is False
        assert checkpoint.config == tiny.CONFIG


def test_tokenizer_config_goes_before_the_name_of_the_folder(tmp_path: pathlib.Path) -> None:
    folder = copy_golden(tmp_path / "uncased_L-2_H-8_A-2")
    settings = {"do_lower_case": False, "strip_accents": True}
    write_json(str(folder / "tokenizer_config.json"), settings)
    checkpoint = read_checkpoint(str(folder))
    assert (checkpoint.lower_case, checkpoint.strip_accents) == (False, True)
    write_json(str(folder / "tokenizer_config.json"), {"do_lower_case": "yes"})
    with pytest.raises(ValueError, match="do_lower_case is 'yes', not true or false"):
        read_checkpoint(str(folder))


def test_a_bare_prefix(tmp_path: pathlib.Path) -> None:
    write_tensors(str(tmp_path / "x.ckpt"), tiny.weights())
    checkpoint = read_checkpoint(str(tmp_path / "x.ckpt"))
    assert checkpoint.config is checkpoint.vocab_file is checkpoint.lower_case is None
    assert checkpoint.weights.keys() == tiny.weights().keys()


@pytest.mark.parametrize("ending", ["", "/model.safetensors"])
def test_a_folder_of_hugging_face(ending: str) -> None:
    folder = HUGGING_FACE_GOLDENS / "tiny_classifier"
    checkpoint = read_checkpoint(f"{folder}{ending}")
    assert checkpoint.kind == "hugging_face"
    assert checkpoint.config == BertConfig(
        vocab_size=120,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_act="gelu",
        max_position_embeddings=40,
    )
    assert checkpoint.weights["output_weights"].shape == (3, 32)
    assert checkpoint.lower_case is True
    assert checkpoint.labels is None  # LABEL_0, LABEL_1, LABEL_2 are no names
    assert checkpoint.vocab_file == str(folder / "vocab.txt")


def test_a_folder_of_hugging_face_needs_its_config(tmp_path: pathlib.Path) -> None:
    shutil.copytree(HUGGING_FACE_GOLDENS / "tiny_classifier", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"config\.json does not exist"):
        read_checkpoint(str(tmp_path / "hf"))


def test_another_architecture_of_hugging_face(tmp_path: pathlib.Path) -> None:
    shutil.copytree(HUGGING_FACE_GOLDENS / "tiny_classifier", tmp_path / "hf")
    write_json(str(tmp_path / "hf" / "config.json"), {"model_type": "roberta"})
    with pytest.raises(ValueError, match=r"config\.json does not describe a BERT: .*'roberta'"):
        read_checkpoint(str(tmp_path / "hf"))


@pytest.mark.parametrize(
    ("places", "taken"),
    [
        (["checkpoints/step-00000009"], 1),
        (["checkpoints/step-00000009", "checkpoints/step-00000010"], 2),
        (["checkpoints/step-99999999", "checkpoints/step-100000000"], 2),
        (["best", "checkpoints/step-00000010"], 1),
        (["best/step-00000008", "best/step-00000009", "checkpoints/step-00000010"], 2),
        (["checkpoints/step-00000009", "checkpoints/step-00000010.tmp"], 1),
    ],
)
def test_a_run_gives_its_best_else_its_newest_weights(
    tmp_path: pathlib.Path, places: list[str], taken: int
) -> None:
    run = write_run(tmp_path / "run", *places)
    checkpoint = read_checkpoint(str(run))
    assert checkpoint.kind == "run"
    assert checkpoint.config == tiny.CONFIG
    assert checkpoint.lower_case is True
    assert checkpoint.vocab_file == str(run / "vocab.txt")
    assert checkpoint.source == str(run / places[taken - 1] / "model.ckpt")
    assert checkpoint.weights["bert/pooler/dense/bias"].tolist() == [taken] * 8
    assert checkpoint.weights.keys() == tiny.weights("BertForSequenceClassification").keys()


def test_an_unfinished_step_of_a_run_is_passed_over(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", "checkpoints/step-00000001", "checkpoints/step-00000002")
    (run / "checkpoints/step-00000002/model.ckpt.index").unlink()
    assert read_checkpoint(str(run)).source.endswith("step-00000001/model.ckpt")


def test_one_step_of_a_run_finds_what_lies_above(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", "best", "checkpoints/step-00000002")
    write_json(str(run / "labels.json"), {"names": ["a", "b", "c"]})
    for path, number in (("best", 1), ("checkpoints/step-00000002", 2)):
        for ending in ("", "/model.ckpt"):
            checkpoint = read_checkpoint(f"{run}/{path}{ending}")
            assert checkpoint.kind == "run"
            assert checkpoint.config == tiny.CONFIG
            assert checkpoint.labels == ("a", "b", "c")
            assert checkpoint.weights["bert/pooler/dense/bias"].tolist() == [number] * 8


def test_a_run_without_weights(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match="has saved no weights yet"):
        read_checkpoint(str(run))


def test_labels_of_a_run(tmp_path: pathlib.Path) -> None:
    run = write_run(tmp_path / "run", "best")
    write_json(str(run / "labels.json"), {"kind": "class", "names": ["a", "b"], "separator": ","})
    with pytest.raises(ValueError, match=r"has 3 outputs, but 2 labels lie beside it \(a, b\)"):
        read_checkpoint(str(run))
    write_json(str(run / "labels.json"), {"names": "abc"})
    with pytest.raises(ValueError, match=r"labels\.json must hold"):
        read_checkpoint(str(run))
    write_json(str(run / "labels.json"), {"names": []})  # of a regression
    assert read_checkpoint(str(run)).labels is None


def test_nothing_at_the_path(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="There is no checkpoint at"):
        read_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no checkpoint") as caught:
        read_checkpoint(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "tf_model.h5"])
def test_pickles_are_not_read(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"\x80\x02}.")
    with pytest.raises(ValueError, match=f"only as {name}.*safetensors first"):
        read_checkpoint(str(tmp_path))


def test_what_cannot_be_opened_is_a_value_error(tmp_path: pathlib.Path) -> None:
    folder = copy_golden(tmp_path / "model")
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        read_checkpoint(str(folder))


# -------------------------------------------------------------------------------------- checking


def test_a_configuration_of_another_shape(tmp_path: pathlib.Path) -> None:
    folder = copy_golden(tmp_path / "model")
    config = dataclasses.replace(tiny.CONFIG, vocab_size=31, num_hidden_layers=3)
    write_json(str(folder / "bert_config.json"), config.to_dict())
    with pytest.raises(ValueError, match="weights of another shape") as caught:
        read_checkpoint(str(folder))
    message = str(caught.value)
    assert str(folder / "bert_model.ckpt") in message
    assert str(folder / "bert_config.json") in message
    assert "bert/embeddings/word_embeddings is [30, 8], not [31, 8]" in message
    assert "bert/encoder/layer_2/attention/self/query/kernel is missing" in message


def test_the_vocabulary_of_another_model(tmp_path: pathlib.Path) -> None:
    folder = copy_golden(tmp_path / "model")
    tiny.write_vocab(folder / "vocab.txt", pieces=31)
    with pytest.raises(ValueError, match=r"has 31 pieces, the word embeddings .* only 30 rows"):
        read_checkpoint(str(folder))


@pytest.mark.parametrize("last", ["\n", ""])
def test_a_vocabulary_may_be_shorter_than_the_embedding(
    tmp_path: pathlib.Path, last: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_golden(tmp_path / "model")
    read_checkpoint(str(folder))
    assert caplog.text == ""
    (folder / "vocab.txt").write_text("[PAD]\n\n[UNK]" + last, encoding="utf-8")
    read_checkpoint(str(folder))
    assert "3 pieces, 30 embedding rows" in caplog.text


def test_spaces_around_cjk_that_a_model_does_without(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_golden(tmp_path / "model")
    write_json(str(folder / "tokenizer_config.json"), {"tokenize_chinese_chars": False})
    read_checkpoint(str(folder))
    assert "tokenize_chinese_chars" in caplog.text


def test_an_object_based_checkpoint_of_tf2(tmp_path: pathlib.Path) -> None:
    tf.train.Checkpoint(kernel=tf.Variable(tf.ones([2]))).write(str(tmp_path / "ckpt"))
    with pytest.raises(ValueError, match="holds no BERT") as caught:
        read_checkpoint(str(tmp_path))
    assert "kernel/.ATTRIBUTES/VARIABLE_VALUE" in str(caught.value)
