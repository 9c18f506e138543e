"""One model, one answer: whichever way a model of the table runs, it computes the same numbers.

Every model and every task stands in CASES; every way to run one in WAYS. Weights are strong and
the same each time.
Legend: B batch, S sequence, P masked positions, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy_bert
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf import checkpoints, conversion, heads
from bert_tf.checkpoints import Checkpoint
from bert_tf.config import BertConfig, DataConfig, PartConfig, RunConfig, TaskConfig
from bert_tf.data import mixture
from bert_tf.distribution import cpu_strategy
from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.export import saved_model
from bert_tf.layouts import Layout, PackedLayout, PaddedLayout, UnpaddedLayout
from bert_tf.restore import OpenedRun
from bert_tf.tasks import (
    TASKS,
    answers_of,
    feature_tagger,
    pretraining,
    question_answering,
)
from bert_tf.tasks import classification as classification_task
from bert_tf.tasks import tagging as tagging_task
from bert_tf.tasks.answer_spans import best_spans
from bert_tf.tasks.classification import METRICS, ClassificationTask, Labels
from bert_tf.tasks.contract import Task
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.tasks.tagging import TaggingTask, Tags
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

Arrays = dict[str, np.ndarray]
Tensors = dict[str, tf.Tensor]

TOLERANCE = 1e-5  # float32
CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=32,
    max_position_embeddings=20,
)
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(chr(ord("!") + n) for n in range(55))]
LENGTHS = np.array([12, 7, 1, 5])
MASK = (np.arange(12) < LENGTHS[:, None]).astype(np.int32)  # [B, S]
# No piece of its own but for [CLS] in front: what a client of a served model may send.
TOKEN_IDS = np.random.default_rng(0).integers(5, 60, size=MASK.shape).astype(np.int32)
TOKEN_IDS[:, 0] = 2
FEATURES = {
    "token_ids": TOKEN_IDS * MASK,
    "segment_ids": (np.arange(12) >= np.array([[5], [3], [12], [2]])) * MASK,
    "mask": MASK,
    "masked_positions": np.array([[1, 5, 11], [2, 3, 6], [0, 0, 0], [4, 1, 0]], np.int32),  # [B, P]
    "cls_positions": np.zeros([4, 1], np.int32),  # [B, G]
    "starts_from": np.array([3, 2, 0, 1]),  # [B]
    "starts_to": np.array([11, 4, 0, 4]),
}
# The first row as three sequences, the second as two.
PACKED = FEATURES | {
    "mask": np.array(
        [[1] * 5 + [2] * 4 + [3] * 3, [1] * 4 + [2] * 3 + [0] * 5, *MASK[2:].tolist()]
    ),
    "cls_positions": np.array([[0, 5, 9], [0, 4, 0], [0, 0, 0], [0, 0, 0]], np.int32),
}


# --------------------------------------------------------------------------------------- the models


class EncoderModel(tf.Module):
    """Everything that the encoder answers; positions of padding are 0, as no user reads them."""

    inputs = ("token_ids", "segment_ids", "mask")

    def __init__(self, layout: type[Layout] = PaddedLayout) -> None:
        super().__init__()
        self.encoder = BertEncoder(CONFIG, layout)

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        output = self.encoder(*(features[name] for name in self.inputs))
        real = tf.cast(features["mask"], tf.float32)[..., tf.newaxis]  # [B, S, 1]
        grids = {f"layer_{index}": grid * real for index, grid in enumerate(output.layers)}
        return grids | {
            "embeddings": output.embeddings * real,
            "sequence": output.sequence * real,
            "pooled": output.pooled,
        }


class PretrainingModel(tf.Module):
    """Encoder with one or both heads of pre-training."""

    inputs = ("token_ids", "segment_ids", "mask", "masked_positions", "cls_positions")

    def __init__(self, next_sentence: bool = True, packed: bool = False) -> None:
        super().__init__()
        layout = PackedLayout if packed else PaddedLayout
        self.packed = packed
        self.model = pretraining.PretrainingModel(CONFIG, next_sentence, layout)

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        return self.model(features)


class SpanModel(tf.Module):
    """Scores of pieces and of spans; those of padding are 0."""

    inputs = ("token_ids", "segment_ids", "mask", "starts_from", "starts_to")

    def __init__(self) -> None:
        super().__init__()
        self.model = question_answering.SpanModel(BertEncoder(CONFIG))

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        logits = self.model(features)  # [B, S, 2]
        spans = best_spans(logits, features, longest=4, count=3)
        real = tf.cast(features["mask"], tf.float32)[..., tf.newaxis]  # [B, S, 1]
        scores = ("span_score", "span_mass", "null_logits")
        return {"logits": logits * real} | {name: spans[name] for name in scores}


class TaskModel(tf.Module):
    """What a task predicts."""

    inputs = ("token_ids", "segment_ids", "mask")

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.build_model()
        self.predict = task.predict

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        return self.predict(self.model, {name: features[name] for name in self.inputs})


class TaggingModel(TaskModel):
    """The tag of every piece, as the `ids` signature gives them; padding has logits of 0."""

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        columns = tf.tile(tf.range(MASK.shape[1])[tf.newaxis], [len(MASK), 1])
        rows = tf.shape(features["token_ids"])[0]
        given = {name: features[name] for name in self.inputs}
        outputs = self.predict(self.model, given | {"first_pieces": columns[:rows]})
        real = tf.cast(features["mask"], tf.float32)[..., tf.newaxis]  # [B, S, 1]
        logits = outputs["logits"] * real
        return {"logits": logits, "probabilities": tf.nn.softmax(logits)}


class ChoiceModel(TaskModel):
    """The score of every choice, as the `ids` signature gives them: two rows are an example."""

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        columns = MASK.shape[1]
        given = {name: tf.reshape(features[name], [-1, 2, columns]) for name in self.inputs}
        return {"scores": tf.reshape(self.predict(self.model, given)["logits"], [-1])}


class EmbeddingModel(TaskModel):
    """The vector of each text."""

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        return {"embedding": self.model({name: features[name] for name in self.inputs})}


class SeveralModel(TaskModel):
    """What the one of several tasks predicts that reads the lower layer."""

    def __call__(self, features: Mapping[str, tf.Tensor]) -> Tensors:
        given = {name: features[name] for name in self.inputs}
        return self.predict(self.model, given | {mixture.MARK + "low": given["token_ids"][:, 0]})


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "vocab.txt"
        path.write_text("\n".join(PIECES) + "\n")
        return Tokenizer(str(path))


def classification(labels: Labels, text_b: str = "") -> ClassificationTask:
    run = RunConfig(data=DataConfig(max_seq_length=12, text_b=text_b), task=TaskConfig())
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, kind=labels.kind))
    return ClassificationTask(run, CONFIG, tokenizer(), labels)


def tagging(feature_layers: int = 0) -> TaggingTask:
    settings = TaskConfig(name="tagging", feature_layers=feature_layers)
    run = RunConfig(data=DataConfig(max_seq_length=12), task=settings)
    return TaggingTask(run, CONFIG, tokenizer(), Tags(("O", "B-a", "I-a"), True, "O"))


def multiple_choice() -> MultipleChoiceTask:
    run = RunConfig(data=DataConfig(max_seq_length=12), task=TaskConfig(name="multiple_choice"))
    return MultipleChoiceTask(run, CONFIG, tokenizer())


def dual_encoder() -> DualEncoderTask:
    run = RunConfig(data=DataConfig(max_seq_length=12), task=TaskConfig(name="dual_encoder"))
    return DualEncoderTask(run, CONFIG, tokenizer())


def several() -> MultiTask:
    low = PartConfig(data=DataConfig(max_seq_length=12), layer=1, shortcut=True)
    run = RunConfig(task=TaskConfig(name="multi_task"), tasks={"low": low, "top": PartConfig()})
    part = classification(Labels("class", ("bad", "fair", "good")))
    parts = {name: dataclasses.replace(part, run=run.part(name)) for name in run.tasks}
    return MultiTask(run, CONFIG, tokenizer(), parts)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, or the task that makes it."""

    build: Callable[[], Any] | None = None
    task: str = ""  # a key of TASKS
    make_task: Callable[[], Task] | None = None
    make_model: Callable[[Any], Any] = TaskModel
    static_shapes: bool = True  # whether XLA can compile it
    signature: str = "ids"  # of its export

    def model(self) -> Any:
        """A model with fresh weights."""
        return self.build() if self.build else self.make_model(self.make_task())  # type: ignore[misc]


CASES = {
    "encoder, padded rows": Case(EncoderModel),
    "encoder, unpadded rows": Case(lambda: EncoderModel(UnpaddedLayout), static_shapes=False),
    "masked LM, next sentence": Case(PretrainingModel, task="pretraining"),
    "masked LM, next sentence, packed rows": Case(
        lambda: PretrainingModel(packed=True), task="pretraining"
    ),
    "spans": Case(SpanModel, task="question_answering"),
    "masked LM alone": Case(lambda: PretrainingModel(False), task="pretraining"),
    "one sentence": Case(
        task="classification",
        make_task=lambda: classification(Labels("class", ("bad", "fair", "good"))),
    ),
    "a pair": Case(
        task="classification",
        make_task=lambda: classification(Labels("class", ("no", "yes")), text_b="other"),
    ),
    "multi-label": Case(
        task="classification",
        make_task=lambda: classification(Labels("multilabel", ("a", "b", "c", "d"))),
    ),
    "regression": Case(
        task="classification", make_task=lambda: classification(Labels("regression"))
    ),
    "choices": Case(task="multiple_choice", make_task=multiple_choice, make_model=ChoiceModel),
    "one of several tasks": Case(
        task="multi_task", make_task=several, make_model=SeveralModel, signature="low_ids"
    ),
    "tagging": Case(task="tagging", make_task=tagging, make_model=TaggingModel),
    "tagging by features": Case(
        task="tagging",
        make_task=lambda: tagging(feature_layers=2),
        make_model=TaggingModel,
        static_shapes=False,  # XLA gives the same, but takes long to compile the LSTMs
    ),
    "sentence embeddings": Case(
        task="dual_encoder", make_task=dual_encoder, make_model=EmbeddingModel
    ),
}


# ----------------------------------------------------------------------------------------- the ways


def as_graph(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    return numpy(tf.function(model, autograph=False)(tensors(model)))


def under_xla(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    return numpy(tf.function(model, autograph=False, jit_compile=True)(tensors(model)))


def as_saved_model(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    """Saved with free sizes; a task by its `ids` signature, as `bert_tf.export` makes it."""
    path = str(folder / "saved_model")
    if case.make_task:
        task = case.make_task()
        exported = saved_model.float32_model(OpenedRun(task.run, task, model.model, {}, "a test"))
        signature = answers_of(task, "be exported").signatures(exported)[case.signature]
        served = saved_model.Served(exported, task.tokenizer)
    else:
        specs = {
            name: tf.TensorSpec([None] * value.shape.rank, value.dtype, name)
            for name, value in tensors(model).items()
        }

        @tf.function(autograph=False)
        def serve(**features: tf.Tensor) -> Tensors:
            return model(features)

        signature = serve.get_concrete_function(**specs)
        served = tf.Module()
        served.weights = variables_by_name(model)
    tf.saved_model.save(served, path, {"answer": signature})
    outputs = numpy(tf.saved_model.load(path).signatures["answer"](**tensors(model)))
    if case.make_task and "score" in outputs:
        outputs["probabilities"] = outputs.pop("score")[:, None]  # [B, 1]
    return {name: value for name, value in outputs.items() if name not in ("label", "labels")}


def from_tf1(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    return from_checkpoint(case, model, folder, conversion.write_tf1)


def from_hugging_face(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    return from_checkpoint(case, model, folder, conversion.write_hugging_face)


def from_checkpoint(
    case: Case, model: Any, folder: pathlib.Path, write: Callable[[str, Checkpoint], None]
) -> Arrays:
    """Written, read, and given to a model of other weights."""
    weights = {name: variable.numpy() for name, variable in variables_by_name(model).items()}
    made = Checkpoint(CONFIG, weights, None, True, True, "a test", "tf1", None)
    write(str(folder / "checkpoint"), made)
    other = case.model()
    found = checkpoints.read_checkpoint(str(folder / "checkpoint"))
    assert found.config == CONFIG
    report = assign(variables_by_name(other), found.weights, "a test")
    assert not report.fresh
    assert not report.unused
    return numpy(other(tensors(model)))


def on_two_replicas(case: Case, model: Any, folder: pathlib.Path) -> Arrays:
    """Each replica has half of the rows."""
    strategy = cpu_strategy(2)
    with strategy.scope():
        mirrored = case.model()
    set_weights(mirrored)
    inputs = tensors(mirrored)
    half = len(MASK) // 2

    def rows_of(context: tf.distribute.ValueContext) -> Tensors:
        first = context.replica_id_in_sync_group * half
        return {name: value[first : first + half] for name, value in inputs.items()}

    @tf.function(autograph=False)
    def step(features: Tensors) -> Tensors:
        return strategy.run(mirrored, args=(features,))

    outputs = step(strategy.experimental_distribute_values_from_function(rows_of))
    return {
        name: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
        for name, value in outputs.items()
    }


WAYS = {
    "graph": as_graph,
    "XLA": under_xla,
    "SavedModel": as_saved_model,
    "TF1 checkpoint": from_tf1,
    "Hugging Face folder": from_hugging_face,
    "two replicas": on_two_replicas,
}


# ---------------------------------------------------------------------------------------- the tests


@dataclasses.dataclass(frozen=True)
class Reference:
    """A model with its weights, and what it answers eagerly."""

    model: Any
    outputs: Arrays


@pytest.fixture(scope="module")
def references() -> dict[str, Reference]:
    made = {}
    for name, case in CASES.items():
        model = case.model()
        set_weights(model)
        made[name] = Reference(model, numpy(model(tensors(model))))
    return made


def set_weights(model: Any) -> None:
    variables = variables_by_name(model)
    shapes = {name: tuple(variable.shape) for name, variable in sorted(variables.items())}
    assign(variables, numpy_bert.random_weights(shapes), "random weights")


def tensors(model: Any) -> Tensors:
    features = PACKED if getattr(model, "packed", False) else FEATURES
    return {name: tf.constant(features[name], tf.int32) for name in model.inputs}


def numpy(outputs: Mapping[str, tf.Tensor]) -> Arrays:
    return {name: value.numpy() for name, value in outputs.items()}


@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name, case in CASES.items()
        for way in WAYS
        if case.static_shapes or way != "XLA"
    ],
)
def test_every_way_gives_the_same_numbers(
    references: dict[str, Reference], tmp_path: pathlib.Path, name: str, way: str
) -> None:
    reference = references[name]
    outputs = WAYS[way](CASES[name], reference.model, tmp_path)
    assert outputs.keys() == reference.outputs.keys()
    for key, expected in reference.outputs.items():
        assert np.ptp(expected) > 0.05, "answers must differ for this test to mean much"
        np.testing.assert_allclose(
            outputs[key], expected, rtol=0.0, atol=TOLERANCE, err_msg=f"{name}, {way}: {key}"
        )


def test_padded_and_unpadded_rows_give_the_same_numbers(references: dict[str, Reference]) -> None:
    padded = references["encoder, padded rows"].outputs
    unpadded = references["encoder, unpadded rows"].outputs
    for key, expected in padded.items():
        np.testing.assert_allclose(unpadded[key], expected, rtol=0.0, atol=TOLERANCE, err_msg=key)


def test_every_task_is_in_the_table() -> None:
    assert {case.task for case in CASES.values() if case.task} == set(TASKS)


def test_every_kind_of_classification_is_in_the_table(references: dict[str, Reference]) -> None:
    tasks = [case.make_task() for case in CASES.values() if case.task == "classification"]  # type: ignore[misc]
    assert {task.labels.kind for task in tasks} == set(METRICS)
    assert {bool(task.run.data.text_b) for task in tasks} == {False, True}


def test_every_head_is_in_the_table(references: dict[str, Reference]) -> None:
    every_head = {
        value
        for module in (
            heads,
            classification_task,
            question_answering,
            tagging_task,
            feature_tagger,
        )
        for name, value in vars(module).items()
        if name.endswith("Head")
        and inspect.isclass(value)
        and issubclass(value, keras.layers.Layer)
    }
    parts = [part for reference in references.values() for part in reference.model.submodules]
    assert every_head == {type(part) for part in parts} & every_head
    assert len(every_head) >= 4
