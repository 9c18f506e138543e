from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

import bert_tf
from bert_tf import run_folder
from bert_tf.checkpoints import load, read_pretrained
from bert_tf.config import BertConfig, ModelConfig, RunConfig, write_json
from bert_tf.encoder import variables_by_name
from bert_tf.layouts import Layout, PaddedLayout, UnpaddedLayout
from bert_tf.run_folder import Progress
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import read_tensors
from tests import tiny_checkpoint

GOLDENS = pathlib.Path(__file__).parent / "goldens" / "hf"
TINY = GOLDENS / "tiny_pretraining"
LAYOUTS = [PaddedLayout, UnpaddedLayout]


def close(actual: object, expected: object) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0.0, atol=1e-5)


def weights_of(encoder: tf.Module) -> dict[str, np.ndarray]:
    return {name: variable.numpy() for name, variable in variables_by_name(encoder).items()}


# ----------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("ending", ["", "/", "/bert_model.ckpt", "/bert_model.ckpt.index"])
def test_a_checkpoint_of_the_original_release(ending: str) -> None:
    encoder = load(f"{tiny_checkpoint.GOLDEN}{ending}")
    assert encoder.config == tiny_checkpoint.CONFIG
    expected = tiny_checkpoint.weights("BertModel")
    found = weights_of(encoder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert encoder.tokenizer.lower_case
    assert encoder.tokenizer(tf.constant(["A b"])).to_list() == [[5, 6]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_hugging_face(layout: type[Layout]) -> None:
    golden = np.load(GOLDENS / "tiny.npz")
    encoder = load(str(TINY), layout)
    output = encoder(golden["token_ids"], golden["segment_ids"], golden["mask"])
    real = golden["mask"] > 0
    close(output.embeddings.numpy()[real], golden["hidden_states"][0][real])
    for layer, expected in zip(output.layers, golden["hidden_states"][1:], strict=True):
        close(layer.numpy()[real], expected[real])
    close(output.sequence.numpy()[real], golden["sequence"][real])
    close(output.pooled, golden["pooled"])


def test_a_classifier_of_hugging_face_gives_its_encoder() -> None:
    golden = np.load(GOLDENS / "tiny.npz")
    path = str(GOLDENS / "tiny_classifier")
    encoder = load(path)
    output = encoder(golden["token_ids"], golden["segment_ids"], golden["mask"])
    head = read_pretrained(ModelConfig(init_checkpoint=path)).weights
    logits = output.pooled.numpy() @ head["output_weights"].T + head["output_bias"]
    close(logits, golden["classifier_logits"])


def test_the_package_has_it_by_name() -> None:
    encoder = bert_tf.load(str(TINY))
    assert encoder.config == BertConfig.from_file(str(TINY / "config.json"))
    assert encoder.tokenizer.vocab_size == encoder.config.vocab_size == 120


def write_run(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """A run folder of a cased model with weights of its own, and newer ones with slots."""
    config = BertConfig.from_file(str(TINY / "config.json"))
    write_json(str(folder / "run.json"), RunConfig().to_dict())
    write_json(str(folder / "bert_config.json"), config.to_dict())
    Tokenizer(str(TINY / "vocab.txt"), lower_case=False).save(str(folder))
    source = weights_of(load(str(TINY)))
    best = {name: value + np.float32(0.25) for name, value in source.items()}
    slots = {f"{name}/adam_m": value for name, value in source.items()}
    run_folder.write_step(str(folder / "best"), Progress(step=3), best, keep=1)
    run_folder.write_step(str(folder / "checkpoints"), Progress(step=9), source | slots, keep=1)
    return best


def test_a_run(tmp_path: pathlib.Path) -> None:
    best = write_run(tmp_path)
    encoder = load(str(tmp_path))
    for name, value in weights_of(encoder).items():
        np.testing.assert_array_equal(value, best[name], err_msg=name)
    assert not encoder.tokenizer.lower_case
    newest = load(str(tmp_path / "checkpoints/step-00000009/model.ckpt"))
    saved = read_tensors(str(tmp_path / "checkpoints/step-00000009/model.ckpt"))
    for name, value in weights_of(newest).items():
        np.testing.assert_array_equal(value, saved[name], err_msg=name)


def test_the_first_layers_alone() -> None:
    whole = read_pretrained(ModelConfig(init_checkpoint=str(TINY)))
    pretrained = read_pretrained(ModelConfig(init_checkpoint=str(TINY), num_layers=1))
    assert whole.config.num_hidden_layers == 2
    assert pretrained.config.num_hidden_layers == 1
    upper = {name for name in whole.weights if name.startswith("bert/encoder/layer_1/")}
    assert len(upper) == 16
    assert pretrained.weights.keys() == whole.weights.keys() - upper
    all_layers = read_pretrained(ModelConfig(init_checkpoint=str(TINY), num_layers=2))
    assert all_layers.weights.keys() == whole.weights.keys()
    for count in (-1, 3):
        with pytest.raises(ValueError, match=f"num_layers={count} must be from 1 to 2"):
            read_pretrained(ModelConfig(init_checkpoint=str(TINY), num_layers=count))


# ------------------------------------------------------------------------------- what may be absent


def copy_of(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    shutil.copytree(source, target)
    return target


def test_without_a_vocabulary_there_is_no_tokenizer(tmp_path: pathlib.Path) -> None:
    folder = copy_of(TINY, tmp_path / "model")
    (folder / "vocab.txt").unlink()
    assert load(str(folder)).tokenizer is None


def test_without_a_config_it_is_asked_for(tmp_path: pathlib.Path) -> None:
    folder = copy_of(tiny_checkpoint.GOLDEN, tmp_path / "model")
    (folder / "bert_config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(ValueError, match=r"has no bert_config\.json beside it; name one with"):
        load(str(folder))
    model = ModelConfig(str(folder), bert_config=str(tmp_path / "elsewhere.json"))
    assert read_pretrained(model).config == tiny_checkpoint.CONFIG


def test_nothing_is_there(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"There is no checkpoint at .*absent"):
        load(str(tmp_path / "absent"))


def test_weights_without_a_layer_are_refused(tmp_path: pathlib.Path) -> None:
    folder = copy_of(TINY, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="layer_2"):
        load(str(folder))


# ------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize("path", [str(TINY), str(tiny_checkpoint.GOLDEN)])
def test_another_casing_than_the_checkpoints_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"lower_case=false but .* trained with lower_case=true"):
        read_pretrained(ModelConfig(path, lower_case="false"))
    tokenizer = read_pretrained(ModelConfig(path, lower_case="true")).tokenizer
    assert tokenizer is not None
    assert tokenizer.lower_case


def test_casing_of_a_model_that_does_not_tell(tmp_path: pathlib.Path) -> None:
    folder = copy_of(tiny_checkpoint.GOLDEN, tmp_path / "some_model")
    for asked, lower_case in (("auto", True), ("true", True), ("false", False)):
        tokenizer = read_pretrained(ModelConfig(str(folder), lower_case=asked)).tokenizer
        assert tokenizer is not None
        assert tokenizer.lower_case is lower_case
        assert tokenizer.strip_accents is lower_case
    kept = read_pretrained(ModelConfig(str(folder), strip_accents="false")).tokenizer
    assert kept is not None
    assert (kept.lower_case, kept.strip_accents) == (True, False)


@pytest.mark.parametrize("checkpoint", [str(TINY), ""])
@pytest.mark.parametrize("field", ["lower_case", "strip_accents"])
def test_an_unknown_casing_is_refused(checkpoint: str, field: str) -> None:
    files = {"bert_config": str(TINY / "config.json"), "vocab_file": str(TINY / "vocab.txt")}
    model = ModelConfig(checkpoint, **files, **{field: "yes"})
    with pytest.raises(ValueError, match=rf"config\.model\.{field}='yes' must be 'auto', 'true'"):
        read_pretrained(model)


def test_a_vocabulary_of_another_model_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vocab.txt"
    tiny_checkpoint.write_vocab(path, 31)
    with pytest.raises(ValueError, match=r"31 pieces, .* has 30 rows"):
        read_pretrained(ModelConfig(str(tiny_checkpoint.GOLDEN), vocab_file=str(path)))


@pytest.mark.parametrize("field", ["bert_config", "vocab_file"])
def test_random_weights_need_a_shape_and_a_vocabulary(field: str) -> None:
    files = {"bert_config": str(TINY / "config.json"), "vocab_file": str(TINY / "vocab.txt")}
    start = read_pretrained(ModelConfig(**files, hidden_dropout=0.3))
    assert start.weights == {}
    assert start.config.hidden_dropout_prob == 0.3
    assert start.config.attention_probs_dropout_prob == 0.1
    assert start.tokenizer is not None
    with pytest.raises(ValueError, match=rf"config\.model\.{field} is empty"):
        read_pretrained(ModelConfig(**(files | {field: ""})))


# ------------------------------------------------------------------------------------------- MiniLM


@pytest.mark.parametrize("layout", LAYOUTS)
def test_minilm_computes_what_transformers_computes(minilm: str, layout: type[Layout]) -> None:
    golden = np.load(GOLDENS / "minilm.npz")
    encoder = load(minilm, layout)
    inputs = [golden[name] for name in ("token_ids", "segment_ids", "mask")]
    output = encoder(*inputs)
    rows = np.arange(len(golden["positions"]))[:, None]
    close(output.sequence.numpy()[rows, golden["positions"]], golden["padded_sequence"])
    close(output.pooled, golden["padded_pooled"])
    layers = [output.embeddings, *output.layers]
    cls_by_layer = np.stack([layer.numpy()[:, 0] for layer in layers], axis=1)  # [B, L + 1, H]
    close(cls_by_layer, golden["padded_cls_by_layer"])
    for row, length in enumerate(golden["mask"].sum(axis=1)):
        alone = encoder(*(values[row : row + 1, :length] for values in inputs))
        sequence = alone.sequence.numpy()[0, golden["positions"][row]]
        close(sequence, golden["alone_sequence"][row])
        close(alone.pooled[0], golden["alone_pooled"][row])


def test_minilm_tokenizes_as_transformers_does(minilm: str) -> None:
    golden = np.load(GOLDENS / "minilm.npz")
    tokenizer = load(minilm).tokenizer
    width = golden["mask"].shape[1]
    for row, (first, second) in enumerate(
        zip(golden["first_texts"], golden["second_texts"], strict=True)
    ):
        pieces = [tokenizer(tf.constant([str(text)])) for text in (first, second)]
        packed = tokenizer.pack(pieces[0], pieces[1] if second else None, width)
        length = golden["mask"][row].sum()
        assert packed.token_ids.to_list() == [golden["token_ids"][row, :length].tolist()]
        assert packed.segment_ids.to_list() == [golden["segment_ids"][row, :length].tolist()]
