from __future__ import annotations

import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.checkpoints import read_checkpoint
from bert_tf.config import RunConfig, TaskConfig
from bert_tf.encoder import variables_by_name
from bert_tf.export.hugging_face import ARCHITECTURES, export_hugging_face
from bert_tf.export.tokenizer_files import write_tokenizer
from bert_tf.restore import OpenedRun
from bert_tf.tasks import TASKS
from bert_tf.tasks.contract import Task
from bert_tf.tasks.pretraining import PretrainingTask
from bert_tf.tokenization import Tokenizer
from tests.test_conformance import CONFIG, tagging, tokenizer
from tests.tiny_exports import SINGLE, Arrays, opened_run, random_rows, several

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "tokenization"
TOLERANCE = 1e-4


def pretraining(next_sentence: bool) -> Task:
    run = RunConfig(task=TaskConfig(name="pretraining", next_sentence=next_sentence))
    return PretrainingTask(run, CONFIG, tokenizer())


EXPECTED: dict[str, dict[str, Any]] = {
    "classes": {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {"0": "bad", "1": "fair", "2": "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2},
        "classifier_dropout": 0.1,
    },
    "several labels": {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "multi_label_classification",
        "id2label": {"0": "a", "1": "b", "2": "c", "3": "d"},
    },
    "scores": {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "regression",
        "id2label": {"0": "LABEL_0"},  # as transformers writes it: a class has as many as outputs
    },
    "tags": {
        "architectures": ["BertForTokenClassification"],
        "id2label": {"0": "O", "1": "B-a", "2": "I-a"},
        "classifier_dropout": 0.1,
    },
    "questions": {"architectures": ["BertForQuestionAnswering"]},
    "choices": {"architectures": ["BertForMultipleChoice"], "classifier_dropout": 0.1},
    "mean vectors": {"architectures": ["BertModel"]},
    "highest vectors": {"architectures": ["BertModel"]},
    "vectors of [CLS]": {"architectures": ["BertModel"]},
    "masked words and next sentence": {"architectures": ["BertForPreTraining"]},
    "masked words": {"architectures": ["BertForMaskedLM"]},
}
MAKERS = SINGLE | {
    "masked words and next sentence": lambda: pretraining(True),
    "masked words": lambda: pretraining(False),
}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[OpenedRun, str]]:
    """Every kind of run, and its folder."""
    place = tmp_path_factory.mktemp("hf")
    runs = {name: opened_run(make()) for name, make in MAKERS.items()}
    return {
        name: (opened, export_hugging_face(opened, str(place / name)))
        for name, opened in runs.items()
    }


# ---------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("name", MAKERS)
def test_config(name: str, exports: dict[str, tuple[OpenedRun, str]]) -> None:
    values = json.loads(pathlib.Path(exports[name][1], "config.json").read_text())
    assert {key: values[key] for key in EXPECTED[name]} == EXPECTED[name]
    assert ("problem_type" in values) == ("problem_type" in EXPECTED[name])
    assert values["hidden_act"] == "gelu_pytorch_tanh"  # CONFIG has the original release's


@pytest.mark.parametrize("name", MAKERS)
def test_our_own_reader_finds_the_same_weights(
    name: str, exports: dict[str, tuple[OpenedRun, str]]
) -> None:
    opened, folder = exports[name]
    found = read_checkpoint(folder)
    expected = variables_by_name(opened.model)
    assert found.weights.keys() == expected.keys()
    for key, weight in found.weights.items():
        np.testing.assert_array_equal(weight, expected[key], err_msg=key)
    assert found.config == CONFIG
    assert (found.lower_case, found.strip_accents) == (True, True)
    assert Tokenizer.load(folder).vocab == tokenizer().vocab


def test_every_task_has_a_class() -> None:
    assert ARCHITECTURES.keys() == TASKS.keys() - {"multi_task"}


def logits_of_torch(folder: str, rows: Arrays) -> dict[str, np.ndarray]:
    """What transformers answers, with the class that `config.json` names."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (name,) = json.loads(pathlib.Path(folder, "config.json").read_text())["architectures"]
    model = getattr(transformers, name).from_pretrained(folder).eval()
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(rows["token_ids"]),
            token_type_ids=torch.tensor(rows["segment_ids"]),
            attention_mask=torch.tensor(rows["mask"]),
        )
    return {key: value.numpy() for key, value in outputs.items()}


def features_of(rows: Arrays) -> dict[str, tf.Tensor]:
    return {name: tf.constant(grid, tf.int32) for name, grid in rows.items()}


@pytest.mark.parametrize("name", ["classes", "several labels", "scores", "tags", "questions"])
def test_logits_of_transformers(name: str, exports: dict[str, tuple[OpenedRun, str]]) -> None:
    opened, folder = exports[name]
    rows = random_rows(4, 12)
    found, expected = logits_of_torch(folder, rows), opened.model(features_of(rows)).numpy()
    if name == "questions":
        actual = np.stack([found["start_logits"], found["end_logits"]], axis=-1)
    else:
        actual = found["logits"]
    if actual.ndim == 3:
        actual, expected = (grid * rows["mask"][..., np.newaxis] for grid in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_choices_of_transformers(exports: dict[str, tuple[OpenedRun, str]]) -> None:
    opened, folder = exports["choices"]
    rows = {name: grid.reshape(2, 3, -1) for name, grid in random_rows(6, 12).items()}  # [B, C, S]
    expected = opened.model(features_of(rows)).numpy()
    actual = logits_of_torch(folder, rows)["logits"]
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


def test_masked_words_of_transformers(exports: dict[str, tuple[OpenedRun, str]]) -> None:
    rows = random_rows(4, 12)
    everywhere = tf.tile(tf.range(12)[tf.newaxis], [4, 1])
    places = {"masked_positions": everywhere, "cls_positions": tf.zeros([4, 1], tf.int32)}
    real = rows["mask"][..., np.newaxis]
    for name, key in (
        ("masked words and next sentence", "prediction_logits"),
        ("masked words", "logits"),
    ):
        opened, folder = exports[name]
        found, expected = logits_of_torch(folder, rows), opened.model(features_of(rows) | places)
        np.testing.assert_allclose(
            found[key] * real, expected["masked_lm"] * real, rtol=0, atol=TOLERANCE
        )
        if "next_sentence" in expected:
            actual = found["seq_relationship_logits"]
            np.testing.assert_allclose(
                actual, expected["next_sentence"][:, 0], rtol=0, atol=TOLERANCE
            )


# ------------------------------------------------------------------------------------ several tasks


def test_each_of_several_tasks_is_a_folder(tmp_path: pathlib.Path) -> None:
    tasks = several(classes=(0, False), classes_low=(1, False), tags_low=(1, False))
    opened = opened_run(tasks)
    folder = export_hugging_face(opened, str(tmp_path / "out"))
    assert sorted(os.listdir(folder)) == ["classes", "classes_low", "tags_low"]
    rows = random_rows(3, 9)
    for name, part in opened.model.parts.items():
        own = f"{folder}/{name}"
        found = read_checkpoint(own)
        assert found.config is not None
        assert found.config.num_hidden_layers == tasks.layer(name)
        assert ("bert/pooler/dense/kernel" in found.weights) == name.startswith("classes")
        alone = opened_run(tasks.parts[name]).model if tasks.layer(name) == 2 else None
        if alone is not None:
            for key, variable in variables_by_name(alone).items():
                variable.assign(found.weights[key])
            np.testing.assert_allclose(alone(features_of(rows)), part(features_of(rows)), atol=1e-6)
        assert f"{tasks.layer(name)} layers" in pathlib.Path(own, "README.md").read_text()


def test_several_tasks_in_transformers(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("transformers")
    tasks = several(classes=(0, False), classes_low=(1, False), tags_low=(1, False))
    opened = opened_run(tasks)
    folder = export_hugging_face(opened, str(tmp_path / "out"))
    rows = random_rows(4, 12)
    for name, part in opened.model.parts.items():
        actual = logits_of_torch(f"{folder}/{name}", rows)["logits"]
        expected = part(features_of(rows)).numpy()
        if actual.ndim == 3:
            actual, expected = (grid * rows["mask"][..., np.newaxis] for grid in (actual, expected))
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE, err_msg=name)


# ------------------------------------------------------------------------------------- what cannot


def test_what_transformers_has_no_class_for(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match=r"BiLSTM .*\(config\.task\.feature_layers=2\)"):
        export_hugging_face(opened_run(tagging(2)), str(tmp_path / "out"))
    opened = opened_run(several(classes=(0, False), tags_low=(1, True)))
    with pytest.raises(ValueError, match=r"config\.tasks\.tags_low\.shortcut=True"):
        export_hugging_face(opened, str(tmp_path / "out"))
    assert not os.listdir(tmp_path)


def test_a_folder_with_something_in_it_is_refused(
    exports: dict[str, tuple[OpenedRun, str]],
) -> None:
    opened, folder = exports["classes"]
    with pytest.raises(ValueError, match="exists already"):
        export_hugging_face(opened, folder)


# ---------------------------------------------------------------------------- sentence-transformers


@pytest.mark.parametrize(
    ("name", "mode", "modules"),
    [
        ("mean vectors", "pooling_mode_mean_tokens", ["Transformer", "Pooling", "Normalize"]),
        ("highest vectors", "pooling_mode_max_tokens", ["Transformer", "Pooling"]),
        ("vectors of [CLS]", "pooling_mode_cls_token", ["Transformer", "Pooling", "Normalize"]),
    ],
)
def test_files_of_sentence_transformers(
    name: str, mode: str, modules: list[str], exports: dict[str, tuple[OpenedRun, str]]
) -> None:
    folder = pathlib.Path(exports[name][1])
    rows = json.loads((folder / "modules.json").read_text())
    assert [row["type"].split(".")[-1] for row in rows] == modules
    pooling = json.loads((folder / rows[1]["path"] / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == CONFIG.hidden_size
    assert [key for key, value in pooling.items() if value is True] == [mode]
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    assert settings["max_seq_length"] == 12


@pytest.mark.parametrize("name", ["mean vectors", "highest vectors", "vectors of [CLS]"])
def test_vectors_of_sentence_transformers(
    name: str, exports: dict[str, tuple[OpenedRun, str]]
) -> None:
    library = pytest.importorskip("sentence_transformers")
    opened, folder = exports[name]
    texts = ["a b c", "?", "x " * 50]
    packed = tokenizer().pack(tokenizer()(tf.constant(texts)), None, 12)
    features = {
        "token_ids": packed.token_ids.to_tensor(),
        "segment_ids": packed.segment_ids.to_tensor(),
        "mask": tf.ones_like(packed.token_ids).to_tensor(),
    }
    actual = library.SentenceTransformer(folder, device="cpu").encode(texts)
    np.testing.assert_allclose(actual, opened.model(features), rtol=0, atol=TOLERANCE)


# --------------------------------------------------------------------------------------- tokenizer

# What the tokenizers library takes otherwise: a capital sigma that ends a word, special pieces
# written in a text, characters newer than its Unicode, and private ones, which vanish there.
OTHERWISE = re.compile(r"Σ\b|\[MASK\]|[\u08ce\u2e4e\ue000-\uf8ff\U000f0000-\U0010ffff]")
NASTY = [
    "",
    " \t\n",
    "a" * 100,
    "a" * 101,
    "a" * 200,
    "a" * 201,
    "e\u0301\u0327",
    "nul \x00 \ufffd",
]


def fast_tokenizer(own: Tokenizer, folder: pathlib.Path) -> Any:
    library = pytest.importorskip("tokenizers")
    write_tokenizer(str(folder), own, 64)
    return library.Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("vocab", "lower_case"), [("uncased", True), ("cased", False)])
def test_tokenizer_json_gives_the_goldens(
    vocab: str, lower_case: bool, tmp_path: pathlib.Path
) -> None:
    fast = fast_tokenizer(Tokenizer(str(GOLDENS / f"{vocab}.txt"), lower_case), tmp_path)
    lines = (GOLDENS / "goldens.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if not OTHERWISE.search(row["text"])]
    assert len(rows) > 0.98 * len(lines)
    for row in rows:
        found = fast.encode(row["text"], add_special_tokens=False).tokens
        assert found == row[vocab].split(), ascii(row["text"])


@pytest.mark.parametrize("lower_case", [True, False])
@pytest.mark.parametrize("strip_accents", [True, False])
def test_tokenizer_json_gives_our_ids(
    lower_case: bool, strip_accents: bool, tmp_path: pathlib.Path
) -> None:
    own = Tokenizer(str(GOLDENS / "cased.txt"), lower_case, strip_accents)
    fast = fast_tokenizer(own, tmp_path)
    lines = (GOLDENS / "goldens.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in lines[:200]] + NASTY
    texts = [text for text in texts if not OTHERWISE.search(text)]
    packed = own.pack(own(tf.constant(texts)), None, 1000)
    assert [row.ids for row in fast.encode_batch(texts)] == packed.token_ids.to_list()
    pairs = [(first, second) for first, second in zip(texts, texts[::-1], strict=True) if second]
    packed = own.pack(*(own(tf.constant(column)) for column in zip(*pairs, strict=True)), 1000)
    for row, pair, token_ids, segment_ids in zip(
        fast.encode_batch(pairs),
        pairs,
        packed.token_ids.to_list(),
        packed.segment_ids.to_list(),
        strict=True,
    ):
        if (
            row.ids[-2:] == [own.sep_id] * 2
        ):  # no pieces: no second segment here, an empty one there
            row_ids, row_segments = row.ids[:-1], row.type_ids[:-1]
        else:
            row_ids, row_segments = row.ids, row.type_ids
        assert (row_ids, row_segments) == (token_ids, segment_ids), ascii(pair)


def test_lines_without_a_piece_keep_their_numbers(tmp_path: pathlib.Path) -> None:
    lines = ["[PAD]", "", "[UNK]", "[CLS]", "", "[SEP]", "[MASK]", "a", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines) + "\n")
    own = Tokenizer(str(tmp_path / "vocab.txt"))
    fast = fast_tokenizer(own, tmp_path / "out")
    assert fast.encode("ab c").ids == [3, 7, 8, 2, 5]
    assert fast.get_vocab_size() == len(lines)
    assert fast.id_to_token(0) == "[PAD]"


def test_clients_cut_where_the_run_did(exports: dict[str, tuple[OpenedRun, str]]) -> None:
    settings = json.loads(pathlib.Path(exports["classes"][1], "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 12
    assert settings["tokenizer_class"] == "BertTokenizer"
