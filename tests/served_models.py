"""A tiny model of every task with random weights, and its exports, for the tests of serving."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy_bert
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from bert_tf.config import BertConfig, DataConfig, PartConfig, RunConfig, TaskConfig
from bert_tf.encoder import variables_by_name
from bert_tf.export import FORMATS
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.contract import Task
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.tasks.serving import IDS_INPUTS
from bert_tf.tasks.tagging import TaggingTask, Tags
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign
from tests.tiny_run import CHECKPOINT

Arrays = dict[str, np.ndarray]

POSITIONS = 40
MAX_LENGTH = 16
LABELS = ("bad", "fair", "good")
PAIR_LABELS = ("no", "yes")
TOPICS = ("comedy", "crime", "drama", "war")
TAGS = ("O", "B-person", "I-person", "B-place", "I-place")
DATA = DataConfig(max_seq_length=MAX_LENGTH, max_query_length=5, doc_stride=6, window_stride=5)


def classification() -> Task:
    return ClassificationTask(RunConfig(data=DATA), *shape(), Labels("class", LABELS))


def pair() -> Task:
    run = RunConfig(data=dataclasses.replace(DATA, text_b="other"))
    return ClassificationTask(run, *shape(), Labels("class", PAIR_LABELS))


def tagging() -> Task:
    run = RunConfig(data=DATA, task=TaskConfig("tagging"))
    return TaggingTask(run, *shape(), Tags(TAGS, True, "O"))


def question_answering() -> Task:
    settings = TaskConfig("question_answering", max_answer_length=4)
    return QuestionAnsweringTask(RunConfig(data=DATA, task=settings), *shape())


def multiple_choice() -> Task:
    data = dataclasses.replace(DATA, text_b="start")
    return MultipleChoiceTask(RunConfig(data=data, task=TaskConfig("multiple_choice")), *shape())


def dual_encoder() -> Task:
    return DualEncoderTask(RunConfig(data=DATA, task=TaskConfig("dual_encoder")), *shape())


def multi_task() -> Task:
    """What the others leave out: several labels, tags found by Viterbi, and no answer."""
    settings = {
        "topics": TaskConfig(kind="multilabel"),
        "names": TaskConfig("tagging", constrained=True),
        "answers": TaskConfig("question_answering", max_answer_length=4, no_answer=True),
    }
    tasks = {name: PartConfig(each, DATA, shortcut=True) for name, each in settings.items()}
    run = RunConfig(task=TaskConfig("multi_task"), tasks=tasks)
    topics = Labels("multilabel", TOPICS)
    parts: dict[str, Any] = {
        "topics": ClassificationTask(run.part("topics"), *shape(), topics),
        "names": TaggingTask(run.part("names"), *shape(), Tags(TAGS, True, "O")),
        "answers": QuestionAnsweringTask(run.part("answers"), *shape()),
    }
    return MultiTask(run, *shape(), parts)


MODELS: dict[str, Callable[[], Task]] = {
    "classification": classification,
    "pair": pair,
    "tagging": tagging,
    "question_answering": question_answering,
    "multiple_choice": multiple_choice,
    "dual_encoder": dual_encoder,
    "multi_task": multi_task,
}
# Exports that are a SavedModel with the signatures of the task: from a run to `folder/N`.
EXPORTS = {name: form.write for name, form in FORMATS.items() if form.is_served}
# What the quick tests ask: every kind of input, and of the tasks nearly all. The slow ones ask all.
QUICK = {
    ("classification", "saved_model"),
    ("multiple_choice", "saved_model"),
    ("multi_task", "saved_model"),
    ("classification", "saved_model_int8"),
}
# Models whose SavedModel the quick tests ask.
QUICK_MODELS = sorted(model for model, form in QUICK if form == "saved_model")
# Scales of 8-bit products follow from all rows of a request: answers move with their neighbours.
UNREPEATABLE = ("saved_model_int8",)


def in_forms(*forms: str) -> pytest.MarkDecorator:
    """Parametrizes a test with every model in these forms."""
    return pytest.mark.parametrize(
        ("model", "form"),
        [
            pytest.param(model, form, marks=() if (model, form) in QUICK else pytest.mark.slow)
            for form in forms
            for model in MODELS
        ],
    )


every_export = in_forms(*EXPORTS)
every_repeatable_export = in_forms(*(form for form in EXPORTS if form not in UNREPEATABLE))

TEXTS = [
    b"the cat sat on the mat",
    b"old",
    "Happy café; \u200b\u4e2d\u6587 unread".encode(),
    b"",
    b"nul \x00 and \xff broken \xc3",
    b"the red book was not new, the old house is blue. " * 4,
]
CHOICES = 3
LENGTHS = (3, 16, 7, 2)  # of rows of ids


def shape() -> tuple[BertConfig, Tokenizer]:
    """What all models have in common."""
    tokenizer = Tokenizer.load(str(CHECKPOINT))
    config = BertConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=POSITIONS,
    )
    return config, tokenizer


def opened(name: str) -> OpenedRun:
    """A model of `MODELS` as `restore.open_run` would return it."""
    task = MODELS[name]()
    model = task.build_model()
    variables = variables_by_name(model)
    shapes = {key: tuple(variable.shape) for key, variable in sorted(variables.items())}
    assign(variables, numpy_bert.random_weights(shapes), "random weights")
    return OpenedRun(task.run, task, model, {}, "random weights")


def nodes(graph: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    """Every node of a graph and of its functions."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def export(name: str, form: str, folder: pathlib.Path) -> str:
    """Exports a model of `MODELS` in a form of `EXPORTS`; returns the folder of the version."""
    return EXPORTS[form](opened(name), str(folder))


@dataclasses.dataclass(frozen=True)
class Export:
    """An exported model, and how to ask it in this process."""

    folder: pathlib.Path  # of the version
    loaded: Any

    def meta_graph(self) -> meta_graph_pb2.MetaGraphDef:
        """The graph and its signatures, as they were written."""
        content = (self.folder / "saved_model.pb").read_bytes()
        (meta_graph,) = saved_model_pb2.SavedModel.FromString(content).meta_graphs
        return meta_graph

    def ask(self, signature: str, inputs: Mapping[str, Any]) -> Arrays:
        """The answers of a signature."""
        function = self.loaded.signatures[signature]
        _, specs = function.structured_input_signature
        given = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
        return {key: value.numpy() for key, value in function(**given).items()}


# ------------------------------------------------------------------------------------ the requests


def rows_of(export: Export, signature: str) -> list[Arrays]:
    """Requests of one example each, to be asked alone and together."""
    _, inputs = export.loaded.signatures[signature].structured_input_signature
    if set(inputs) == set(IDS_INPUTS):
        rng = np.random.default_rng(4)
        rows = [np.array([[2, *rng.integers(5, 120, length - 2), 3]]) for length in LENGTHS]
        columns = [(row, row * 0, row * 0 + 1) for row in rows]
        return [dict(zip(IDS_INPUTS, np.int32(each), strict=True)) for each in columns]
    requests = []
    for row in range(len(TEXTS)):
        texts = [TEXTS[(row + shift) % len(TEXTS)] for shift in range(len(inputs))]
        arrays = [np.array([text], object) for text in texts]
        request = dict(zip(inputs, arrays, strict=True))
        if "choices" in request:  # a short start: after a long one, all would be cut to one text
            request["start"] = np.array([TEXTS[1]], object)
            request["choices"] = np.array([(TEXTS[row:] + TEXTS)[:CHOICES]], object)
        requests.append(request)
    return requests


def joined_as_by_serving(requests: Sequence[Arrays]) -> Arrays:
    """One request of several, each tensor padded with its first element (its batching_util.h)."""
    joined = {}
    for name in requests[0]:
        tensors = [request[name] for request in requests]
        longest = np.max([tensor.shape[1:] for tensor in tensors], axis=0)
        padding = [[(0, 0), *((0, n) for n in longest - tensor.shape[1:])] for tensor in tensors]
        joined[name] = np.concatenate(
            [
                np.pad(tensor, sizes, constant_values=tensor.flat[0])
                for tensor, sizes in zip(tensors, padding, strict=True)
            ]
        )
    return joined
