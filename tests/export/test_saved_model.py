from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

import bert_tf
from bert_tf import run_folder
from bert_tf.config import BertConfig, DataConfig, ModelConfig, RunConfig, TaskConfig, write_json
from bert_tf.encoder import variables_by_name
from bert_tf.export import saved_model, warmup
from bert_tf.restore import OpenedRun
from bert_tf.tasks import serving
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.classification_answers import graph_answers
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

Arrays = dict[str, np.ndarray]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a and bad but cafe dull film fine good it never not of plot slow so story the was with"
SUFFIXES = ["##" + letter for letter in "abcdefghijklmnopqrstuvwxyz"]
PIECES = SPECIAL + WORDS.split() + [".", ",", "!", "…", "映", "画", "-", "s", "t"] + SUFFIXES
POSITIONS = 24
CONFIG = BertConfig(
    vocab_size=len(PIECES),
    hidden_size=32,
    num_hidden_layers=1,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=POSITIONS,
)
MAX_LENGTH = 20
LABELS = {
    "class": Labels("class", ("negative", "neutral", "positive")),
    "pair": Labels("class", ("no", "yes")),
    "multilabel": Labels("multilabel", ("comedy", "drama", "crime", "war"), "; "),
    "regression": Labels("regression"),
}
TEXTS = [
    b"the film was fine",
    b"bad",
    b"a slow story, but so good! it was never dull and not bad. the plot was with a cafe",
    "Café … 映画".encode(),
    b"unknownword %% the plot",
    b"",
    b" \t\n",
    b"\xff\xfe broken \xc3 utf-8",
    b"nul \x00 and \x00",
    b"word " * 10_000,
    b"x" * 5_000,
]


def random_weights(shapes: Mapping[str, Sequence[int]]) -> Arrays:
    """Weights whose answers differ much between texts, with embeddings as small as real ones."""
    rng = np.random.default_rng(7)
    scales = {"embeddings": 0.02, "gamma": 0.5}
    weights = {}
    for name, shape in shapes.items():
        scale = next((value for part, value in scales.items() if part in name), 0.3)
        center = 1.0 if name.endswith("gamma") else 0.0
        weights[name] = rng.normal(center, scale, shape).astype(np.float32)
    return weights


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return Tokenizer(str(path))


def open_like(kind: str, tokenizer: Tokenizer) -> OpenedRun:
    """A run of one kind, as `restore.open_run` would return it."""
    labels = LABELS[kind]
    data = DataConfig(
        max_seq_length=MAX_LENGTH,
        text_b="other" if kind == "pair" else "",
        label_separator=labels.separator,
    )
    model = ModelConfig(recompute=kind == "pair")
    run = RunConfig(model=model, data=data, task=TaskConfig(kind=labels.kind))
    return opened_run(ClassificationTask(run, CONFIG, tokenizer, labels))


def opened_run(task: ClassificationTask) -> OpenedRun:
    model = task.build_model()
    variables = variables_by_name(model)
    weights = random_weights({name: variable.shape for name, variable in variables.items()})
    assign(variables, weights, "random weights")
    metrics = {"accuracy": 0.875, "step": 40}
    return OpenedRun(task.run, task, model, metrics, "runs/x/best/step-00000040")


@dataclasses.dataclass
class Exported:
    """A run and what came out of it."""

    opened: OpenedRun
    folder: str
    loaded: tf.Module

    @functools.cached_property
    def expected(self) -> np.ndarray:
        """Logits [N, C] of `TEXTS`."""
        return eager_logits(self.opened, rows_of(self.opened, TEXTS))

    def ask(self, *texts: Sequence[bytes]) -> Arrays:
        names = ("text",) if len(texts) == 1 else ("text_a", "text_b")
        inputs = {
            name: tf.constant(each, tf.string) for name, each in zip(names, texts, strict=True)
        }
        return numpy(self.loaded.signatures["serving_default"](**inputs))

    def ask_ids(self, *columns: np.ndarray) -> Arrays:
        inputs = {
            name: tf.constant(column, tf.int32)
            for name, column in zip(serving.IDS_INPUTS, columns, strict=True)
        }
        return numpy(self.loaded.signatures["ids"](**inputs))


def numpy(outputs: Mapping[str, tf.Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="module")
def exports(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    made = {}
    for kind in ("class", "pair"):
        opened = open_like(kind, tokenizer)
        folder = saved_model.export_saved_model(opened, str(tmp_path_factory.mktemp(kind)))
        made[kind] = Exported(opened, folder, tf.saved_model.load(folder))
    return made


def rows_of(opened: OpenedRun, *texts: Iterable[bytes]) -> list[tuple[list[int], list[int]]]:
    """Token ids and segment ids of each text, in plain Python but for the words themselves."""
    tokenizer = opened.task.tokenizer
    token_ids = [tokenizer(tf.constant(list(each), tf.string)) for each in texts]
    second = token_ids[1] if len(texts) == 2 else None
    packed = tokenizer.pack(token_ids[0], second, MAX_LENGTH)
    return list(zip(packed.token_ids.to_list(), packed.segment_ids.to_list(), strict=True))


def eager_logits(opened: OpenedRun, rows: Sequence[tuple[list[int], list[int]]]) -> np.ndarray:
    """Logits [N, C] of one example at a time, eagerly, without any padding."""
    return np.concatenate(
        [
            opened.model(
                {
                    "token_ids": tf.constant([token_ids]),
                    "segment_ids": tf.constant([segment_ids]),
                    "mask": tf.ones([1, len(token_ids)], tf.int32),
                }
            ).numpy()
            for token_ids, segment_ids in rows
        ]
    )


def padded(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[np.ndarray, ...]:
    """Rows as a client pads them: `token_ids`, `segment_ids`, `mask` [N, S]."""
    longest = max(len(token_ids) for token_ids, _ in rows)
    fill = lambda values: values + [0] * (longest - len(values))  # noqa: E731
    return (
        np.array([fill(token_ids) for token_ids, _ in rows]),
        np.array([fill(segment_ids) for _, segment_ids in rows]),
        np.array([fill([1] * len(token_ids)) for token_ids, _ in rows]),
    )


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------ answers


def test_answers_to_strings_are_those_of_the_eager_model(exports: dict[str, Exported]) -> None:
    one = exports["class"]
    expected = one.expected
    outputs = one.ask(TEXTS)
    close(outputs["logits"], expected)
    close(outputs["probabilities"], tf.nn.softmax(expected).numpy())
    names = [name.encode() for name in LABELS["class"].names]
    assert outputs["label"].tolist() == [names[c] for c in expected.argmax(axis=-1)]
    assert outputs.keys() == {"label", "probabilities", "logits"}
    assert np.ptp(expected, axis=0).min() > 0.1, "texts must differ for this test to mean much"


def test_answers_do_not_depend_on_the_batch(exports: dict[str, Exported]) -> None:
    together = exports["class"].ask(TEXTS)
    for number, text in enumerate(TEXTS):
        alone = exports["class"].ask([text])
        close(alone["logits"], together["logits"][number : number + 1])
        assert alone["label"][0] == together["label"][number]
    backwards = exports["class"].ask(TEXTS[::-1])
    close(backwards["logits"][::-1], together["logits"])


def test_text_is_cut_at_the_length_of_the_run(exports: dict[str, Exported]) -> None:
    words = [b"good " * (MAX_LENGTH - 2), b"good " * (MAX_LENGTH - 3)]
    outputs = exports["class"].ask([words[0], words[0] + b"bad film", words[1]])
    close(outputs["logits"][1], outputs["logits"][0])
    assert np.abs(outputs["logits"][2] - outputs["logits"][0]).max() > 1e-3


def test_no_texts_have_no_answers(exports: dict[str, Exported]) -> None:
    for outputs in (exports["class"].ask([]), exports["pair"].ask([], [])):
        assert outputs["logits"].shape in {(0, 3), (0, 2)}
        assert {len(value) for value in outputs.values()} == {0}


def test_no_ids_have_no_answers(exports: dict[str, Exported]) -> None:
    for shape in ((0, 0), (0, 5)):
        outputs = exports["class"].ask_ids(*[np.zeros(shape)] * 3)
        assert outputs["logits"].shape == (0, 3)


def test_pairs(exports: dict[str, Exported]) -> None:
    one = exports["pair"]
    others = TEXTS[3:] + TEXTS[:3]
    rows = rows_of(one.opened, TEXTS, others)
    assert {tuple(sorted(set(segments))) for _, segments in rows} == {(0,), (0, 1)}
    outputs = one.ask(TEXTS, others)
    close(outputs["logits"], eager_logits(one.opened, rows))
    assert set(outputs["label"]) <= {b"no", b"yes"}
    close(one.ask_ids(*padded(rows))["logits"], outputs["logits"])
    halves = [padded(rows[:1]), padded(rows[1:])]
    close(one.ask_ids(*serving_pad(halves))["logits"], outputs["logits"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="text_a and text_b differ in number"):
        one.ask(TEXTS[:2], TEXTS[:1])


def answer(kind: str, tokenizer: Tokenizer, logits: np.ndarray) -> Arrays:
    """What a graph answers where the model says `logits` [N, C]."""
    task = open_like(kind, tokenizer).task

    @tf.function(input_signature=[tf.TensorSpec([None, logits.shape[1]])], autograph=False)
    def serve(logits: tf.Tensor) -> dict[str, tf.Tensor]:
        outputs = {"logits": logits, "probabilities": task.probabilities(logits)}
        return graph_answers(task.labels, outputs)

    return numpy(serve(tf.constant(logits, tf.float32)))


def test_regression_answers_a_score(tokenizer: Tokenizer) -> None:
    outputs = answer("regression", tokenizer, np.array([[0.25], [-7.5]]))
    assert outputs.keys() == {"score", "logits"}
    assert outputs["score"].tolist() == [0.25, -7.5]
    assert outputs["score"].dtype == np.float32
    assert answer("regression", tokenizer, np.zeros([0, 1]))["score"].shape == (0,)


def test_multilabel_answers_all_labels_above_one_half(tokenizer: Tokenizer) -> None:
    logits = np.array([[1, -1, 2, -3], [-1, -1, -2, 0], [0.1, 0.1, 0.1, 0.1]])
    outputs = answer("multilabel", tokenizer, logits)
    close(outputs["logits"], logits)
    close(outputs["probabilities"], 1 / (1 + np.exp(-logits)))
    assert outputs["labels"].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]
    assert outputs["label"].tolist() == [b"comedy; crime", b"", b"comedy; drama; crime; war"]
    nothing = answer("multilabel", tokenizer, np.zeros([0, 4]))
    assert {name: value.shape for name, value in nothing.items()} == {
        "label": (0,),
        "labels": (0, 4),
        "probabilities": (0, 4),
        "logits": (0, 4),
    }


# ---------------------------------------------------------------------------------------------- ids


def test_ids_and_strings_answer_alike(exports: dict[str, Exported]) -> None:
    one = exports["class"]
    outputs = one.ask_ids(*padded(rows_of(one.opened, TEXTS)))
    expected = one.ask(TEXTS)
    close(outputs["logits"], expected["logits"])
    assert outputs["label"].tolist() == expected["label"].tolist()


def serving_pad(requests: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """Joins requests as TF Serving's batching_util.h: each tensor padded with its first element."""
    longest = max(request[0].shape[1] for request in requests)
    return [
        np.concatenate(
            [
                np.pad(
                    tensor,
                    [(0, 0), (0, longest - tensor.shape[1])],
                    constant_values=tensor.flat[0],
                )
                for tensor in tensors
            ]
        )
        for tensors in zip(*requests, strict=True)
    ]


def test_padding_of_tf_serving_changes_nothing(exports: dict[str, Exported]) -> None:
    one = exports["class"]
    rows = rows_of(one.opened, TEXTS)
    # Requests of one row, and of several that the client itself has padded.
    requests = [padded(rows[:1]), padded(rows[1:3]), padded(rows[3:8]), padded(rows[8:])]
    token_ids, segment_ids, mask = serving_pad(requests)
    cls_id = one.opened.task.tokenizer.cls_id
    assert token_ids[0, -1] == cls_id, "the trap must be there for this test to mean much"
    assert mask[0, -1] == 1
    close(one.ask_ids(token_ids, segment_ids, mask)["logits"], one.expected)


def test_wider_batches_than_the_run_was_trained_with_are_allowed(
    exports: dict[str, Exported],
) -> None:
    rows = [([2] + [9] * (POSITIONS - 2) + [3], [0] * POSITIONS)]
    one = exports["class"]
    close(one.ask_ids(*padded(rows))["logits"], eager_logits(one.opened, rows))


def test_wrong_ids_are_refused_in_words(exports: dict[str, Exported]) -> None:
    ask = exports["class"].ask_ids
    ones = np.ones([2, 4], np.int32)
    refused: dict[str, list[np.ndarray]] = {
        f"longer than the {POSITIONS} positions": [np.ones([1, POSITIONS + 1])] * 3,
        "must have the same shape": [ones, ones[:, :3], ones],
        f"token_ids must be from 0 to {len(PIECES) - 1}": [ones * len(PIECES), ones, ones],
        "token_ids must be from 0": [-ones, ones, ones],
        "segment_ids must be from 0 to 1": [ones, ones * 2, ones],
        "mask must be from 0 to 1": [ones, ones, ones * 2],
        "have no columns": [np.zeros([2, 0])] * 3,
    }
    for message, columns in refused.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            ask(*columns)


# ----------------------------------------------------------------------------------------- numerics


def test_frozen_graph_keeps_the_epsilon_of_layer_norm(exports: dict[str, Exported]) -> None:
    """The graph optimizer knows a layer norm whose epsilon is 1e-3, and puts it where it may."""
    one = exports["class"]
    rows = rows_of(one.opened, TEXTS)
    expected = one.expected
    signature = one.loaded.signatures["ids"]
    frozen = convert_variables_to_constants_v2(signature)
    assert not frozen.variables
    by_name = dict(zip(serving.IDS_INPUTS, padded(rows), strict=True))
    places = [tensor.name.split(":")[0] for tensor in frozen.inputs]
    results = frozen(*(tf.constant(by_name[name], tf.int32) for name in places))
    logits = [value for value in results if value.shape == expected.shape]
    assert min(np.abs(value.numpy() - expected).max() for value in logits) < 1e-5

    wrong = dataclasses.replace(CONFIG, layer_norm_eps=1e-3)
    other = opened_run(dataclasses.replace(one.opened.task, config=wrong))
    assert np.abs(eager_logits(other, rows) - expected).max() > 1e-2


def test_runs_in_bfloat16_export_float32(tokenizer: Tokenizer) -> None:
    expected_run = open_like("class", tokenizer)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        opened = open_like("class", tokenizer)
        model = saved_model.float32_model(opened)
        assert keras.mixed_precision.global_policy().name == "mixed_bfloat16"
    finally:
        keras.mixed_precision.set_global_policy("float32")
    rows = rows_of(opened, TEXTS[:3])
    expected = eager_logits(expected_run, rows)
    assert np.abs(eager_logits(opened, rows) - expected).max() > 1e-4
    close(eager_logits(dataclasses.replace(opened, model=model), rows), expected)


# --------------------------------------------------------------------------------- what is written


def nodes(folder: str) -> Iterator[node_def_pb2.NodeDef]:
    """Every node of the graph and of its functions."""
    content = (pathlib.Path(folder) / "saved_model.pb").read_bytes()
    saved = saved_model_pb2.SavedModel.FromString(content)
    for meta_graph in saved.meta_graphs:
        yield from meta_graph.graph_def.node
        for function in meta_graph.graph_def.library.function:
            yield from function.node_def


def test_no_python_and_no_gradients_in_the_graph(exports: dict[str, Exported]) -> None:
    for one in exports.values():  # the run of pairs recomputes activations in its backward pass
        found = list(nodes(one.folder))
        assert len(found) > 500
        assert not {node.op for node in found} & {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
        assert not [node.name for node in found if "_gradient_op_type" in node.attr]


def test_signatures(exports: dict[str, Exported]) -> None:
    for kind, one in exports.items():
        signatures = one.loaded.signatures
        assert set(signatures) == {"serving_default", "ids"}
        _, inputs = signatures["serving_default"].structured_input_signature
        assert set(inputs) == ({"text_a", "text_b"} if kind == "pair" else {"text"})
        assert {(str(spec.shape), spec.dtype) for spec in inputs.values()} == {
            ("(None,)", tf.string)
        }
        _, inputs = signatures["ids"].structured_input_signature
        assert set(inputs) == set(serving.IDS_INPUTS)
        assert {(str(spec.shape), spec.dtype) for spec in inputs.values()} == {
            ("(None, None)", tf.int32)
        }


CLIENT = """
import json, sys
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

texts, ops = json.loads(sys.argv[2])
text_ops = [op for op in ops if op_def_registry.get(op) is None]
import tensorflow_text
model = tf.saved_model.load(sys.argv[1])
outputs = model.signatures["serving_default"](tf.constant(texts))
logits = outputs["logits"].numpy().tolist()
print(json.dumps({"text_ops": text_ops, "logits": logits, "modules": list(sys.modules)}))
"""


def test_loads_with_tensorflow_and_tensorflow_text_alone(
    exports: dict[str, Exported], tmp_path: pathlib.Path
) -> None:
    one = exports["class"]
    program = tmp_path / "client.py"
    program.write_text(CLIENT)
    texts = ["the film was fine", "Café … 映画"]
    ops = sorted({node.op for node in nodes(one.folder)})
    done = subprocess.run(
        [sys.executable, "-I", str(program), one.folder, json.dumps([texts, ops])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["text_ops"] == ["FastWordpieceTokenizeWithOffsets"]
    assert not {"bert_tf", "tf_keras"} & set(answer["modules"])
    close(np.array(answer["logits"]), one.ask([text.encode() for text in texts])["logits"])


def test_weights_keep_their_names(exports: dict[str, Exported]) -> None:
    one = exports["class"]
    expected = variables_by_name(one.opened.model)
    assert set(one.loaded.weights) == set(expected)
    for name, variable in expected.items():
        np.testing.assert_array_equal(one.loaded.weights[name], variable)


def test_versions_count_up(tmp_path: pathlib.Path) -> None:
    assert saved_model.next_version(str(tmp_path / "new")) == 1
    assert saved_model.next_version(str(tmp_path)) == 1
    for name in ("3", "10", "12.tmp-77", "notes", "0x20"):
        (tmp_path / name).mkdir()
    assert saved_model.next_version(str(tmp_path)) == 11


def test_nothing_half_written_has_a_number(
    exports: dict[str, Exported], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def interrupt(path: str, requests: object) -> None:
        seen.extend(entry.name for entry in tmp_path.iterdir())
        assert (pathlib.Path(path).parents[1] / "saved_model.pb").exists()
        raise KeyboardInterrupt

    (tmp_path / "1").mkdir()
    monkeypatch.setattr(warmup, "write_requests", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved_model.export_saved_model(exports["class"].opened, str(tmp_path))
    # What a killed process leaves behind is what was there at that moment.
    assert sorted(seen) == ["1", f"2.tmp-{os.getpid()}"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["1"]


def test_folder_that_cannot_be_written_is_an_error(
    exports: dict[str, Exported], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        saved_model.export_saved_model(exports["class"].opened, str(tmp_path / "file"))


def test_model_card(exports: dict[str, Exported]) -> None:
    one = exports["class"]
    card = json.loads((pathlib.Path(one.folder) / saved_model.MODEL_CARD).read_text())
    assert card["labels"] == list(LABELS["class"].names)
    assert card["max_seq_length"] == MAX_LENGTH
    assert card["lower_case"] is True
    assert card["metrics"] == {"accuracy": 0.875, "step": 40}
    assert card["versions"]["bert_tf"] == bert_tf.__version__
    assert card["versions"]["tensorflow"] == tf.__version__
    assert BertConfig.from_dict(card["bert_config"]) == CONFIG
    assert RunConfig.from_dict(card["run"]) == one.opened.run
    assert card["signatures"]["serving_default"] == {
        "inputs": {"text": "string [None]"},
        "outputs": {
            "label": "string [None]",
            "probabilities": "float32 [None, 3]",
            "logits": "float32 [None, 3]",
        },
    }
    assert card["signatures"]["ids"]["inputs"] == dict.fromkeys(
        serving.IDS_INPUTS, "int32 [None, None]"
    )


# ------------------------------------------------------------------------------------------ warm-up


def warmup_requests(folder: str) -> list[tuple[str, Arrays]]:
    """Signature and inputs of every request in a warm-up file; its format has a test of its own."""
    path = os.path.join(folder, "assets.extra", "tf_serving_warmup_requests")
    requests = []
    for record in tf.data.TFRecordDataset(path):
        log: Any = warmup.prediction_log_class().FromString(record.numpy())
        request = log.predict_log.request
        inputs = {entry.key: tf.make_ndarray(entry.value) for entry in request.inputs}
        requests.append((request.model_spec.signature_name, inputs))
    return requests


@pytest.mark.parametrize("kind", ["class", "pair"])
def test_warm_up_requests_can_be_replayed(exports: dict[str, Exported], kind: str) -> None:
    one = exports[kind]
    sizes = set()
    for name, inputs in warmup_requests(one.folder):
        outputs = one.loaded.signatures[name](
            **{key: tf.constant(values) for key, values in inputs.items()}
        )
        assert all(np.isfinite(outputs["logits"]).ravel())
        if name == "ids":
            sizes.add((name, *inputs["token_ids"].shape))
        else:
            rows = rows_of(one.opened, *inputs.values())
            (length,) = {len(token_ids) for token_ids, _ in rows}
            sizes.add((name, len(rows), length))
    shorter, longest = (15, 19) if kind == "pair" else (16, 20)  # pairs have an odd length
    assert sizes == {
        ("ids", 1, 16),
        ("ids", 1, 20),
        ("ids", 8, 16),
        ("ids", 8, 20),
        ("serving_default", 1, shorter),
        ("serving_default", 1, longest),
        ("serving_default", 8, shorter),
        ("serving_default", 8, longest),
    }


# ------------------------------------------------------------------------------------------- script


def run_script(*flags: str) -> subprocess.CompletedProcess[str]:
    root = pathlib.Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, str(root / "scripts" / "export.py"), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=False,
    )


@pytest.mark.slow
def test_script_exports_a_run_folder(exports: dict[str, Exported], tmp_path: pathlib.Path) -> None:
    one = exports["class"]
    workdir = tmp_path / "my_run"
    workdir.mkdir()
    write_json(str(workdir / "run.json"), one.opened.run.to_dict())
    write_json(str(workdir / "bert_config.json"), CONFIG.to_dict())
    one.opened.task.tokenizer.save(str(workdir))
    one.opened.task.save(str(workdir))
    tensors = {k: v.numpy() for k, v in variables_by_name(one.opened.model).items()}
    progress = run_folder.Progress(step=40, best=one.opened.metrics)
    run_folder.write_step(str(workdir / "best"), progress, tensors, keep=1)
    done = run_script(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    folder = workdir / "export" / "1"
    loaded = Exported(one.opened, str(folder), tf.saved_model.load(str(folder)))
    close(loaded.ask(TEXTS)["logits"], one.ask(TEXTS)["logits"])
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert f"{folder} ({size / 1e6:.1f} MB)" in done.stdout
    for part in (
        "text: string [None]",
        "probabilities: float32 [None, 3]",
        f"-v '{folder.parent}:/models/my_run' -e MODEL_NAME=my_run tensorflow/serving:",
        """-d '{"instances": [{"text": "some text"}]}' http://localhost:8501/v1/models/my_run:pred""",
    ):
        assert part in done.stdout


@pytest.mark.slow
def test_script_explains_mistakes_in_a_paragraph(tmp_path: pathlib.Path) -> None:
    done = run_script(f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert "is not the folder of a run" in done.stderr
    assert "Traceback" not in done.stderr
