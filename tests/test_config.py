"""Configurations: readers and writers of both layouts, and errors that name value and remedy."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest

from bert_tf.config import (
    ACTIVATIONS,
    BertConfig,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TrainConfig,
    read_json,
    write_json,
)

# As published: uncased_L-12_H-768_A-12/bert_config.json of the original release, and config.json of
# Hugging Face's bert-base-uncased.
ORIGINAL_BASE = {
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30522,
}
HUGGING_FACE_BASE = ORIGINAL_BASE | {
    "architectures": ["BertForMaskedLM"],
    "gradient_checkpointing": False,
    "layer_norm_eps": 1e-12,
    "model_type": "bert",
    "pad_token_id": 0,
    "position_embedding_type": "absolute",
    "transformers_version": "4.6.0.dev0",
    "use_cache": True,
}


def test_original_config() -> None:
    config = BertConfig.from_dict(ORIGINAL_BASE)
    assert config == BertConfig(vocab_size=30522)  # the defaults are those of base
    assert config.head_size == 64


def test_hugging_face_config() -> None:
    config = BertConfig.from_dict(HUGGING_FACE_BASE)
    assert config == BertConfig(vocab_size=30522, hidden_act="gelu")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"hidden_act": "gelu"}, "gelu_approximate"),  # the original's gelu() computes tanh
        ({}, "gelu_approximate"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_act": "tanh"}, "tanh"),
        ({"hidden_act": "gelu", "exact_gelu": True}, "gelu"),
        ({"hidden_act": "gelu", "exact_gelu": False}, "gelu_approximate"),
        ({"model_type": "bert", "hidden_act": "gelu"}, "gelu"),
        ({"model_type": "bert"}, "gelu"),
        ({"model_type": "bert", "hidden_act": "gelu_new"}, "gelu_approximate"),
        ({"model_type": "bert", "hidden_act": "gelu_pytorch_tanh"}, "gelu_approximate"),
        ({"model_type": "bert", "hidden_act": "relu"}, "relu"),
    ],
)
def test_meaning_of_gelu(values: dict[str, object], expected: str) -> None:
    assert BertConfig.from_dict({"vocab_size": 10, **values}).hidden_act == expected


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bert_config_round_trips(activation: str, tmp_path: pathlib.Path) -> None:
    config = BertConfig(
        vocab_size=99,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=40,
        hidden_act=activation,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        max_position_embeddings=17,
        type_vocab_size=5,
        initializer_range=0.05,
        layer_norm_eps=1e-7,
    )
    for values in (config.to_dict(), config.to_hugging_face()):
        path = tmp_path / "config.json"
        write_json(str(path), values)
        assert BertConfig.from_file(str(path)) == config
    # What the original release reads from it: its own keys, and a "gelu" it knows.
    assert set(ORIGINAL_BASE) <= set(config.to_dict())
    assert config.to_dict()["hidden_act"] in ("gelu", "relu", "tanh")
    assert config.to_hugging_face()["hidden_act"] in ("gelu", "gelu_pytorch_tanh", "relu", "tanh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "BertConfig.vocab_size=0 must be at least 1"),
        ({"num_hidden_layers": -1}, "BertConfig.num_hidden_layers=-1 must be at least 0"),
        ({"hidden_size": -8}, "BertConfig.hidden_size=-8 must be at least 1"),
        ({"num_attention_heads": 0}, "BertConfig.num_attention_heads=0 must be at least 1"),
        ({"intermediate_size": 0}, "BertConfig.intermediate_size=0 must be at least 1"),
        ({"max_position_embeddings": 0}, "max_position_embeddings=0 must be at least 1"),
        ({"type_vocab_size": 0}, "BertConfig.type_vocab_size=0 must be at least 1"),
        ({"num_attention_heads": 7}, "hidden_size=768 is not a multiple of num_attention_heads=7"),
        ({"hidden_act": "swish"}, "hidden_act='swish' is unknown; choose one of gelu, "),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob=1.0 must be in [0, 1)"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob=-0.1 must be in"),
    ],
)
def test_impossible_sizes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BertConfig.from_dict(ORIGINAL_BASE | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'; only 'bert' can be read"),
        ({"position_embedding_type": "relative_key"}, "'relative_key'; only 'absolute' is BERT's"),
        ({"is_decoder": True}, "only encoders can be read"),
        ({"add_cross_attention": True}, "only encoders can be read"),
        ({"hidden_act": "silu"}, "hidden_act='silu' is unknown"),
    ],
)
def test_other_architectures_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        BertConfig.from_dict(HUGGING_FACE_BASE | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[1, 2]", "must hold a JSON object, not a list"),
        ('{"hidden_size": 8}', "does not describe a BERT: .*vocab_size"),
        ('{"vocab_size": 8, "model_type": "t5"}', "does not describe a BERT: model_type is 't5'"),
        ('{"vocab_size": "8"}', "does not describe a BERT: .*vocab_size='8' must be int, not str"),
        (
            '{"vocab_size": 8, "hidden_size": 768.0}',
            "does not describe .*768.0 must be int, not float",
        ),
        (
            '{"vocab_size": 8, "hidden_act": null}',
            "does not describe .*hidden_act=None must be str",
        ),
    ],
)
def test_unreadable_file(content: str, message: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bert_config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {message}"):
        BertConfig.from_file(str(path))


def test_missing_file(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=f"{re.escape(path)} does not exist"):
        BertConfig.from_file(path)


def test_json_keeps_every_character_and_leaves_no_temporary_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "values.json"
    values = {"city": "Zürich 東京", "rate": 1e-05, "none": None}
    write_json(str(path), {"old": 1})
    write_json(str(path), values)
    assert read_json(str(path)) == values
    assert "東京" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["values.json"]


def test_run_config_round_trip() -> None:
    config = RunConfig(
        model=ModelConfig(recompute=True, vocab_file="vocab.txt"),
        data=DataConfig(train="train.tsv", max_seq_length=64),
        optimizer=OptimizerConfig(name="lamb", learning_rate=1e-4),
        train=TrainConfig(epochs=1.5, seed=7),
    )
    assert config != RunConfig()
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert RunConfig.from_dict({}) == RunConfig()


def test_part_of_a_run_config_keeps_the_other_defaults() -> None:
    config = RunConfig.from_dict({"optimizer": {"learning_rate": 3e-5}})
    assert config.optimizer == dataclasses.replace(OptimizerConfig(), learning_rate=3e-5)
    assert config.train == TrainConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimiser": {}}, "config.optimiser does not exist. Did you mean 'optimizer'?"),
        (
            {"optimizer": {"learning_rat": 1.0}},
            "config.optimizer.learning_rat does not exist. Did you mean 'learning_rate'?",
        ),
        ({"zzzz": 1}, "config.zzzz does not exist. Valid keys: model, data, task, optimizer, "),
        ({"train": {"seed": 1.5}}, "config.train.seed=1.5 must be int, not float"),
        ({"train": {"seed": True}}, "config.train.seed=True must be int, not bool"),
        ({"train": {"epochs": True}}, "config.train.epochs=True must be float, not bool"),
        # Written 1e-4, which YAML reads as a string.
        ({"optimizer": {"learning_rate": "1e-4"}}, "learning_rate='1e-4' must be float, not str"),
        ({"train": {"deterministic": 1}}, "config.train.deterministic=1 must be bool, not int"),
        ({"data": {"train": None}}, "config.data.train=None must be str, not NoneType"),
        ({"data": 3}, "config.data=3 must be DataConfig, not int"),
    ],
)
def test_wrong_keys_and_types(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RunConfig.from_dict(values)


def test_int_widens_to_float() -> None:
    epochs = RunConfig.from_dict({"train": {"epochs": 3}}).train.epochs
    assert epochs == 3.0
    assert isinstance(epochs, float)


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        BertConfig(vocab_size=8).vocab_size = 9  # type: ignore[misc]
