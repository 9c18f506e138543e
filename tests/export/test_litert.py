from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import test_conformance as conformance

from bert_tf.config import BertConfig, DataConfig, RunConfig, TaskConfig
from bert_tf.export import litert, saved_model
from bert_tf.layouts import PaddedLayout, UnpaddedLayout
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.contract import Task
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tokenization import Tokenizer

# TensorFlow's own interpreter is the same code as that of ai-edge-litert, which TensorFlow tells
# its users to install instead.
pytestmark = pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")

Arrays = dict[str, np.ndarray]

ROOT = pathlib.Path(__file__).parent.parent.parent
TOLERANCE = 1e-5  # float32
INT8_TOLERANCE = 0.05  # of probabilities
INPUTS = ("token_ids", "segment_ids", "mask")
FEATURES = {name: conformance.FEATURES[name] for name in INPUTS}
# Matrices of 1,024 numbers and more: smaller ones stay float32 in every file.
CONFIG = dataclasses.replace(
    conformance.CONFIG, hidden_size=32, intermediate_size=64, num_hidden_layers=1
)


def classification(config: BertConfig = CONFIG) -> ClassificationTask:
    run = RunConfig(data=DataConfig(max_seq_length=12))
    labels = Labels("class", ("bad", "fair", "good"))
    return ClassificationTask(run, config, conformance.tokenizer(), labels)


def opened_run(task: Task) -> OpenedRun:
    model = task.build_model()
    conformance.set_weights(model)
    return OpenedRun(task.run, task, model, {"accuracy": 0.5}, "runs/x/best/step-00000040")


@dataclasses.dataclass
class Exported:
    """A run and what came out of it."""

    opened: OpenedRun
    folder: pathlib.Path

    def ask(self, file: str, features: Mapping[str, np.ndarray], signature: str = "ids") -> Arrays:
        return runner(self.folder / file, signature)(**features)

    def expected(self, features: Mapping[str, np.ndarray]) -> Arrays:
        """What the model itself answers."""
        return conformance.numpy(
            self.opened.task.predict(
                self.opened.model, {name: tf.constant(grid) for name, grid in features.items()}
            )
        )


def runner(path: pathlib.Path, signature: str = "ids") -> Any:
    return tf.lite.Interpreter(str(path)).get_signature_runner(signature)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    opened = opened_run(classification())
    folder = tmp_path_factory.mktemp("export") / "litert"
    assert litert.export_litert(opened, str(folder)) == str(folder)
    return Exported(opened, folder)


def operations(path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The names of a file's operations."""
    capsys.readouterr()
    tf.lite.experimental.Analyzer.analyze(str(path))
    return set(re.findall(r"Op#\d+ (\S+)\(", capsys.readouterr().out))


# ------------------------------------------------------------------------------------------ answers


def test_float32_gives_the_numbers_of_the_model(exported: Exported) -> None:
    expected = exported.expected(FEATURES)
    outputs = exported.ask("model_float32.tflite", FEATURES)
    assert outputs.keys() == {"probabilities", "logits"}
    assert np.ptp(expected["logits"], axis=0).min() > 0.1, "answers must differ to mean much"
    for name, value in outputs.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("file", list(litert.FILES))
def test_one_interpreter_takes_every_size(exported: Exported, file: str) -> None:
    answer = runner(exported.folder / file)
    # The last bit of a sum, which the padding moves, may move a row by a step of int8.
    tolerance = INT8_TOLERANCE if file == "model_int8.tflite" else TOLERANCE
    together = answer(**FEATURES)["probabilities"]
    for number, length in enumerate(conformance.LENGTHS):  # 12, 7, 1, 5: shorter and longer again
        alone = {name: grid[number : number + 1, :length] for name, grid in FEATURES.items()}
        probabilities = answer(**alone)["probabilities"]
        np.testing.assert_allclose(probabilities[0], together[number], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(answer(**FEATURES)["probabilities"], together)


def test_int8_is_small_and_close(exported: Exported) -> None:
    expected = exported.expected(FEATURES)["probabilities"]
    probabilities = exported.ask("model_int8.tflite", FEATURES)["probabilities"]
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=INT8_TOLERANCE)
    assert np.abs(probabilities - expected).max() > TOLERANCE, "nothing was made int8"
    sizes = {name: (exported.folder / name).stat().st_size for name in litert.FILES}
    assert sizes["model_int8.tflite"] < sizes["model_float32.tflite"]


def test_int8_has_a_scale_for_each_output(exported: Exported) -> None:
    interpreter = tf.lite.Interpreter(str(exported.folder / "model_int8.tflite"))
    interpreter.allocate_tensors()
    found = sorted(
        (tuple(tensor["shape"]), len(tensor["quantization_parameters"]["scales"]))
        for tensor in interpreter.get_tensor_details()
        if tensor["dtype"] == np.int8 and tensor["quantization_parameters"]["scales"].size
    )
    hidden, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    square = ((hidden, hidden), hidden)  # query, key, value, attention's output, pooler
    words = ((CONFIG.vocab_size, hidden), 1)
    feed_forward = [((inner, hidden), inner), ((hidden, inner), hidden)]
    assert [each for each in found if each[0][0] > 1] == sorted(
        [*[square] * 5, *feed_forward, words]
    )


@pytest.mark.parametrize("file", list(litert.FILES))
def test_a_plain_interpreter_has_every_operation(
    exported: Exported, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    found = operations(exported.folder / file, capsys)
    assert {"FULLY_CONNECTED", "BATCH_MATMUL", "GELU", "SOFTMAX"} <= found
    assert not [name for name in found if name.startswith(("Flex", "CUSTOM"))]


def test_ids_that_the_model_lacks_are_errors(exported: Exported) -> None:
    answer = runner(exported.folder / "model_float32.tflite")
    for name, limit in (
        ("token_ids", CONFIG.vocab_size),
        ("segment_ids", CONFIG.type_vocab_size),
    ):
        with pytest.raises(RuntimeError, match="out of bounds"):
            answer(**FEATURES | {name: np.full_like(FEATURES[name], limit)})
    one = np.ones([1, CONFIG.max_position_embeddings + 1], np.int32)
    with pytest.raises(RuntimeError, match="failed to"):
        answer(token_ids=one, segment_ids=one, mask=one)
    last = {name: grid[:, : CONFIG.max_position_embeddings] for name, grid in FEATURES.items()}
    assert np.isfinite(answer(**last)["logits"]).all()


# ---------------------------------------------------------------------------------- what is written


def test_files_beside_the_models(exported: Exported) -> None:
    names = {path.name for path in exported.folder.iterdir()}
    assert names >= {*litert.FILES, "model_card.json", "vocab.txt", "tokenizer_config.json"}
    card = json.loads((exported.folder / "model_card.json").read_text("utf-8"))
    assert card["labels"] == ["bad", "fair", "good"]
    assert card["max_seq_length"] == 12
    assert card["signatures"] == {
        "ids": {
            "inputs": dict.fromkeys(INPUTS, "int32 [None, None]"),
            "outputs": {"logits": "float32 [None, 3]", "probabilities": "float32 [None, 3]"},
        }
    }
    tokenizer = Tokenizer.load(str(exported.folder))
    assert tokenizer.vocab == exported.opened.task.tokenizer.vocab


def test_a_folder_with_something_in_it_is_refused(exported: Exported) -> None:
    with pytest.raises(ValueError, match="exists already"):
        litert.export_litert(exported.opened, str(exported.folder))


def test_a_tagger_with_lstms_is_refused(tmp_path: pathlib.Path) -> None:
    opened = opened_run(conformance.tagging(feature_layers=1))
    with pytest.raises(ValueError, match=r"feature_layers=1 has LSTMs.*SavedModel"):
        litert.export_litert(opened, str(tmp_path / "litert"))
    assert not list(tmp_path.iterdir())


def test_float32_model_has_the_layout_that_is_asked_for(exported: Exported) -> None:
    made = saved_model.float32_model(exported.opened, PaddedLayout)
    assert made.encoder.layout is PaddedLayout
    assert saved_model.float32_model(exported.opened).encoder.layout is UnpaddedLayout


# ---------------------------------------------------------------------------------------- all tasks


class AnswerModel(conformance.TaskModel):
    """The scores of every piece, as the `ids` signature of question answering gives them."""

    def __call__(self, features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        start, end = tf.unstack(self.model(features), axis=-1)
        return {"start_logits": start, "end_logits": end}


def question_answering() -> QuestionAnsweringTask:
    run = RunConfig(data=DataConfig(max_seq_length=12), task=TaskConfig(name="question_answering"))
    return QuestionAnsweringTask(run, conformance.CONFIG, conformance.tokenizer())


def embeddings_by_maximum() -> Task:
    task = conformance.dual_encoder()
    run = dataclasses.replace(task.run, task=dataclasses.replace(task.run.task, pooling="max"))
    return dataclasses.replace(task, run=run)


CASES = {
    name: case
    for name, case in conformance.CASES.items()
    if case.make_task and name != "tagging by features"
} | {
    "question answering": conformance.Case(make_task=question_answering, make_model=AnswerModel),
    "sentence embeddings by their maximum": conformance.Case(
        make_task=embeddings_by_maximum, make_model=conformance.EmbeddingModel
    ),
}
QUICK = ("tagging",)


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES],
)
def test_every_task(tmp_path: pathlib.Path, name: str) -> None:
    case = CASES[name]
    task, model = case.make_task(), case.model()  # type: ignore[misc]
    conformance.set_weights(model)
    opened = OpenedRun(task.run, task, model.model, {}, "a test")
    folder = pathlib.Path(litert.export_litert(opened, str(tmp_path / "litert")))
    outputs = runner(folder / "model_float32.tflite", case.signature)(**FEATURES)
    if "score" in outputs:
        outputs["probabilities"] = outputs.pop("score")[:, None]  # [B, 1]
    expected = conformance.numpy(model(conformance.tensors(model)))
    assert outputs.keys() - {"labels"} == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value, rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.slow
def test_several_tasks_share_one_encoder(tmp_path: pathlib.Path) -> None:
    wide = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=512)
    two = conformance.several()
    parts = {name: dataclasses.replace(part, config=wide) for name, part in two.parts.items()}
    two = dataclasses.replace(two, config=wide, parts=parts)
    sizes = []
    for name, task in (("one", classification(wide)), ("two", two)):
        folder = pathlib.Path(litert.export_litert(opened_run(task), str(tmp_path / name)))
        sizes.append((folder / "model_float32.tflite").stat().st_size)
    assert sizes[1] < 1.5 * sizes[0]
    signatures = tf.lite.Interpreter(str(tmp_path / "two/model_int8.tflite")).get_signature_list()
    assert signatures.keys() == {"low_ids", "top_ids"}


@pytest.mark.slow
def test_the_original_form_of_gelu_is_one_operation(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = opened_run(classification(dataclasses.replace(CONFIG, hidden_act="gelu_approximate")))
    made = Exported(opened, pathlib.Path(litert.export_litert(opened, str(tmp_path / "litert"))))
    assert "GELU" in operations(made.folder / "model_float32.tflite", capsys)
    logits = made.ask("model_float32.tflite", FEATURES)["logits"]
    np.testing.assert_allclose(logits, made.expected(FEATURES)["logits"], rtol=0, atol=TOLERANCE)


# ----------------------------------------------------------------------------- the script for users


def test_the_script_answers_as_the_model_does(exported: Exported, tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tokenizers")
    pytest.importorskip("ai_edge_litert")
    texts = ["$ % A", "& ' ( B C"]
    tokenizer = exported.opened.task.tokenizer
    packed = tokenizer.pack(tokenizer(texts), None, 12)
    features = {
        "token_ids": packed.token_ids.to_tensor().numpy(),
        "segment_ids": packed.segment_ids.to_tensor().numpy(),
        "mask": tf.ones_like(packed.token_ids).to_tensor().numpy(),
    }
    probabilities = exported.expected(features)["probabilities"]
    names = ("bad", "fair", "good")
    file = tmp_path / "dev.tsv"
    lines = [
        f"{text}\t{names[row.argmax()]}" for text, row in zip(texts, probabilities, strict=True)
    ]
    file.write_text("\n".join(["sentence\tlabel", *lines, "$\tbad"]) + "\n")
    script = [sys.executable, str(ROOT / "scripts/answer_litert.py"), f"--export={exported.folder}"]
    asked = subprocess.run(
        [*script, "--model=model_float32.tflite", f"--input={file}", *texts],
        capture_output=True,
        text=True,
        check=True,
    )
    measured, *answers = asked.stdout.splitlines()
    for line, row in zip(answers, probabilities, strict=True):
        label, probability = line.split()[:2]
        assert label == names[row.argmax()]
        assert float(probability) == pytest.approx(row.max(), abs=2e-3)
    assert "of 3 labels" in measured
    file.write_text("sentence\tlabel\n$\tworse\n")
    refused = subprocess.run([*script, f"--input={file}"], capture_output=True, text=True)
    assert refused.returncode
    assert "has the label 'worse', but the model bad, fair, good" in refused.stderr
