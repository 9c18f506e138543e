from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf
import tiny_checkpoint as tiny

from bert_tf import hugging_face
from bert_tf.config import BertConfig

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hf"
Tensors = dict[str, np.ndarray]


def by_hand(weights: Tensors) -> Tensors:
    """The names of transformers' BertForPreTraining, by rules instead of the package's table."""
    tensors = {}
    for name, weight in weights.items():
        renamed = name.replace("/", ".").replace("layer_", "layer.")
        for ending in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            renamed = renamed.replace(f".{ending}", f".{ending}.weight")
        renamed = renamed.replace(".gamma", ".weight").replace(".beta", ".bias")
        renamed = renamed.replace("output_weights", "weight").replace("output_bias", "bias")
        tensors[renamed.replace(".kernel", ".weight")] = (
            weight.T.copy() if name.endswith("kernel") else weight
        )
    return tensors


def assert_same(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert tensor.dtype == np.float32
        assert tensor.flags.c_contiguous
        np.testing.assert_array_equal(tensor, expected[name], err_msg=name)


# ----------------------------------------------------------------------------------------- names


def test_names_and_orientation() -> None:
    weights = tiny.weights()
    assert_same(hugging_face.to_original(by_hand(weights), "x"), weights)
    assert_same(hugging_face.from_original(weights), by_hand(weights))


def test_classifier_is_not_transposed() -> None:
    weights = tiny.weights("BertForSequenceClassification")
    tensors = hugging_face.from_original(weights)
    np.testing.assert_array_equal(tensors["classifier.weight"], weights["output_weights"])
    np.testing.assert_array_equal(tensors["classifier.bias"], weights["output_bias"])


@pytest.mark.parametrize("model", tiny.MODELS)
def test_there_and_back_again(model: str) -> None:
    weights = tiny.weights(model)
    tensors = hugging_face.from_original(weights)
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())
    assert_same(hugging_face.to_original(tensors, "x"), weights)


def test_a_bare_encoder_has_no_prefix() -> None:
    names = hugging_face.from_original(tiny.weights("BertModel"))
    assert "embeddings.word_embeddings.weight" in names
    assert not any(name.startswith("bert.") for name in names)


def test_older_spellings_buffers_and_tied_copies() -> None:
    weights = tiny.weights()
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in by_hand(weights).items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in tensors
    tensors["bert.embeddings.position_ids"] = np.arange(12)[np.newaxis]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
    assert_same(hugging_face.to_original(tensors, "x"), weights)


def test_buffers_without_prefix_are_left_out() -> None:
    weights = tiny.weights("BertModel")
    tensors = hugging_face.from_original(weights)
    tensors["embeddings.position_ids"] = np.arange(12)[np.newaxis]
    tensors["embeddings.token_type_ids"] = np.zeros([1, 12], np.int64)
    assert_same(hugging_face.to_original(tensors, "x"), weights)


def test_the_bias_of_the_decoder_alone_is_the_output_bias() -> None:
    tensors = by_hand(tiny.weights())
    tensors["cls.predictions.decoder.bias"] = tensors.pop("cls.predictions.bias")
    assert_same(hugging_face.to_original(tensors, "x"), tiny.weights())


@pytest.mark.parametrize(
    ("copy", "shape"),
    [("cls.predictions.decoder.weight", (30, 8)), ("cls.predictions.decoder.bias", (30,))],
)
def test_an_untied_decoder_is_refused(copy: str, shape: tuple[int, ...]) -> None:
    tensors = by_hand(tiny.weights()) | {copy: np.ones(shape, np.float32)}
    with pytest.raises(ValueError, match=f"x.safetensors: {copy} is not a copy"):
        hugging_face.to_original(tensors, "x.safetensors")


def test_an_unknown_tensor_keeps_its_name_both_ways() -> None:
    extra = {"linear.weight": tiny.value("linear", (4, 8))}
    weights = tiny.weights() | extra
    assert_same(hugging_face.to_original(by_hand(tiny.weights()) | extra, "x"), weights)
    assert "linear.weight" in hugging_face.from_original(weights)


def test_quantised_weights_are_refused() -> None:
    tensors = by_hand(tiny.weights()) | {"bert.pooler.dense.weight": np.ones([8, 8], np.int8)}
    with pytest.raises(ValueError, match=r"bert\.pooler\.dense\.weight is stored as int8"):
        hugging_face.to_original(tensors, "x")


# ----------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", [np.float16, tf.bfloat16.as_numpy_dtype, np.float64])
def test_other_types_become_float32(tmp_path: pathlib.Path, kind: type) -> None:
    tensors: Tensors = {
        name: tensor.astype(kind) for name, tensor in by_hand(tiny.weights()).items()
    }
    safetensors.numpy.save_file(tensors, str(tmp_path / "model.safetensors"))
    assert_same(hugging_face.read_weights(str(tmp_path)), tiny.weights())


def write_shards(folder: pathlib.Path) -> dict[str, str]:
    tensors = by_hand(tiny.weights())
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:20], names[20:]), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        safetensors.numpy.save_file({name: tensors[name] for name in part}, str(folder / file))
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: pathlib.Path, weight_map: dict[str, str]) -> None:
    content = json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(content)


def test_shards(tmp_path: pathlib.Path) -> None:
    write_shards(tmp_path)
    assert_same(hugging_face.read_weights(str(tmp_path)), tiny.weights())


def test_a_missing_shard_is_named(tmp_path: pathlib.Path) -> None:
    write_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors does not exist"):
        hugging_face.read_weights(str(tmp_path))


def test_a_tensor_that_no_shard_has_is_named(tmp_path: pathlib.Path) -> None:
    weight_map = write_shards(tmp_path)
    write_index(tmp_path, weight_map | {"classifier.bias": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"its files lack: classifier\.bias"):
        hugging_face.read_weights(str(tmp_path))


@pytest.mark.parametrize("file", ["../other.safetensors", "/etc/passwd", 3])
def test_shards_lie_in_their_folder(tmp_path: pathlib.Path, file: str) -> None:
    write_index(tmp_path, {"classifier.bias": file})
    with pytest.raises(ValueError, match="no weight_map"):
        hugging_face.read_weights(str(tmp_path))


@pytest.mark.parametrize("size", [0, 5, 100, -1])
def test_cut_files_are_a_value_error(tmp_path: pathlib.Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    hugging_face.write_safetensors(str(path), by_hand(tiny.weights()))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="not a whole safetensors file") as caught:
        hugging_face.read_weights(str(tmp_path))
    assert str(path) in str(caught.value)


def test_a_pickle_by_the_name_of_safetensors_is_a_value_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        hugging_face.read_weights(str(tmp_path))


def test_an_exotic_type_is_named(tmp_path: pathlib.Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    header += b" " * (-len(header) % 8)
    content = len(header).to_bytes(8, "little") + header + b"\0\0"
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="a has the type F8_E4M3"):
        hugging_face.read_weights(str(tmp_path))


def test_files_say_pt_as_transformers_demands(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "model.safetensors")
    hugging_face.write_safetensors(path, by_hand(tiny.weights()))
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert_same(safetensors.numpy.load_file(path), by_hand(tiny.weights()))


@pytest.mark.parametrize("folder", ["tiny_pretraining", "tiny_classifier"])
def test_folders_saved_by_transformers(folder: str) -> None:
    weights = hugging_face.read_weights(str(GOLDENS / folder))
    stored = safetensors.numpy.load_file(str(GOLDENS / folder / "model.safetensors"))
    assert_same(hugging_face.from_original(weights), stored)
    kernel = weights["bert/encoder/layer_1/intermediate/dense/kernel"]
    assert kernel.shape == (32, 64)
    np.testing.assert_array_equal(
        kernel.T, stored["bert.encoder.layer.1.intermediate.dense.weight"]
    )


# --------------------------------------------------------------------------- configuration, labels


@pytest.mark.parametrize("model", tiny.MODELS)
def test_architecture_follows_from_the_heads(model: str) -> None:
    values = hugging_face.config_values(tiny.CONFIG, tiny.weights(model), None)
    assert values["architectures"] == [model]
    assert values["model_type"] == "bert"
    assert ("id2label" in values) == (model == "BertForSequenceClassification")
    assert BertConfig.from_dict(values) == tiny.CONFIG


def write_config(folder: pathlib.Path, id2label: object) -> Tensors:
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": id2label}))
    return tiny.weights("BertForSequenceClassification")


def test_labels_there_and_back_again(tmp_path: pathlib.Path) -> None:
    weights = tiny.weights("BertForSequenceClassification")
    labels = ("schlecht", "gut", "größer")
    values = hugging_face.config_values(tiny.CONFIG, weights, labels)
    assert values["label2id"] == {"schlecht": 0, "gut": 1, "größer": 2}
    write_config(tmp_path, values["id2label"])
    assert hugging_face.read_labels(str(tmp_path), weights) == labels


@pytest.mark.parametrize("id2label", [None, {}, {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}])
def test_placeholders_are_no_labels(tmp_path: pathlib.Path, id2label: object) -> None:
    weights = write_config(tmp_path, id2label)
    assert hugging_face.read_labels(str(tmp_path), weights) is None


def test_labels_of_a_model_without_classifier_mean_nothing(tmp_path: pathlib.Path) -> None:
    write_config(tmp_path, {"0": "a", "1": "b", "2": "c"})
    assert hugging_face.read_labels(str(tmp_path), tiny.weights()) is None


@pytest.mark.parametrize("id2label", [{"0": "a", "1": "b"}, {"1": "a", "2": "b", "3": "c"}, ["a"]])
def test_labels_that_do_not_fit_the_classifier(tmp_path: pathlib.Path, id2label: object) -> None:
    weights = write_config(tmp_path, id2label)
    with pytest.raises(ValueError, match="must name the classes 0 to 2"):
        hugging_face.read_labels(str(tmp_path), weights)


# --------------------------------------------------------------------------------------- tokenizer


def write_tokenizer(folder: pathlib.Path, vocab: object, kind: str = "WordPiece") -> None:
    content = {
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": True},
        "model": {"type": kind, "vocab": vocab},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def test_vocabulary_of_tokenizer_json(tmp_path: pathlib.Path) -> None:
    write_tokenizer(tmp_path, {"[UNK]": 1, "##é": 2, "[PAD]": 0})
    path = hugging_face.vocabulary_file(str(tmp_path))
    assert path is not None
    assert pathlib.Path(path).read_bytes() == "[PAD]\n[UNK]\n##é\n".encode()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tokenizer.json"]


def test_vocabulary_with_holes_is_refused(tmp_path: pathlib.Path) -> None:
    write_tokenizer(tmp_path, {"[PAD]": 0, "[UNK]": 2})
    with pytest.raises(ValueError, match=r"tokenizer\.json: the ids"):
        hugging_face.vocabulary_file(str(tmp_path))


def test_no_vocabulary(tmp_path: pathlib.Path) -> None:
    assert hugging_face.vocabulary_file(str(tmp_path)) is None
    write_tokenizer(tmp_path, {"a": 0}, kind="BPE")
    assert hugging_face.vocabulary_file(str(tmp_path)) is None


def test_tokenizer_config_goes_before_the_normalizer(tmp_path: pathlib.Path) -> None:
    assert hugging_face.tokenizer_settings(str(tmp_path)) == {}
    write_tokenizer(tmp_path, {"[PAD]": 0})
    settings = hugging_face.tokenizer_settings(str(tmp_path))
    assert settings == {"do_lower_case": False, "strip_accents": True}
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    settings = hugging_face.tokenizer_settings(str(tmp_path))
    assert settings == {"do_lower_case": True, "strip_accents": True}
