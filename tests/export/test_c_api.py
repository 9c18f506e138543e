"""Exports answer without any Python of TensorFlow, as in TF Serving: see c_api.py."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bert_tf.export import saved_model
from bert_tf.tasks.serving import IDS_INPUTS
from tests.export import c_api
from tests.export.conftest import Exports
from tests.served_models import (
    Arrays,
    Export,
    every_export,
    every_repeatable_export,
    joined_as_by_serving,
    nodes,
    rows_of,
)

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "classification": (
        "token_ids must be from 0 to",
        dict.fromkeys(IDS_INPUTS, np.full([1, 1], 500)),
    ),
    "pair": ("text_a and text_b differ in number", {"text_a": ["a"], "text_b": ["b", "c"]}),
    "tagging": ("have no columns", dict.fromkeys(IDS_INPUTS, np.zeros([1, 0]))),
    "question_answering": ("differ in number", {"question": ["a", "b"], "context": ["c"]}),
    "multiple_choice": (
        "context and start and choices differ in number",
        {"context": ["a"], "start": ["b"], "choices": [["c"], ["d"]]},
    ),
    "dual_encoder": ("longer than the 40 positions", dict.fromkeys(IDS_INPUTS, np.ones([1, 41]))),
    "multi_task": (
        "mask must be from 0 to 1",
        {"token_ids": [[2]], "segment_ids": [[0]], "mask": [[2]]},
    ),
}


@dataclasses.dataclass(frozen=True)
class Told:
    """What a process without TensorFlow's Python says of an export."""

    requests: dict[str, list[Arrays]]  # by signature: rows alone, then all of them together
    answers: dict[str, list[Arrays | str]]
    refusal: Arrays | str  # of the request in `REFUSED`
    process: dict[str, Any]


Ask = Callable[[str, str], Told]


@pytest.fixture(scope="module")
def told(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Ask:
    """Asks every signature of an export, once."""

    @functools.cache
    def asked(model: str, form: str) -> Told:
        export = exports(model, form)
        requests = {name: rows_of(export, name) for name in export.loaded.signatures}
        for rows in requests.values():
            rows.append(joined_as_by_serving(rows))
        flat = [(name, request) for name, rows in requests.items() for request in rows]
        flat.append((refused(export, model), as_arrays(REFUSED[model][1])))
        process = c_api.ask(export.folder, flat, tmp_path_factory.mktemp("c_api"))
        *answers, refusal = process["answers"]
        rest = iter(answers)
        by_signature = {name: [next(rest) for _ in rows] for name, rows in requests.items()}
        return Told(requests, by_signature, refusal, process)

    return asked


def refused(export: Export, model: str) -> str:
    """The signature of the request in `REFUSED`."""
    names = set(REFUSED[model][1])
    return next(
        name
        for name, function in export.loaded.signatures.items()
        if set(function.structured_input_signature[1]) == names
    )


def as_arrays(inputs: dict[str, Any]) -> Arrays:
    arrays = {name: np.array(value) for name, value in inputs.items()}
    return {
        name: np.char.encode(array).astype(object) if array.dtype.kind == "U" else np.int32(array)
        for name, array in arrays.items()
    }


def assert_same(actual: Arrays, expected: Arrays, message: str) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, f"{message}: {name}"
        assert actual[name].shape == value.shape, f"{message}: {name}"
        if value.dtype == object:
            assert actual[name].tolist() == value.tolist(), f"{message}: {name}"
        else:
            np.testing.assert_allclose(
                actual[name], value, rtol=0, atol=1e-5, err_msg=f"{message}: {name}"
            )


@every_export
def test_answers_are_those_of_python(exports: Exports, told: Ask, model: str, form: str) -> None:
    export, asked = exports(model, form), told(model, form)
    for signature, requests in asked.requests.items():
        for inputs, answer in zip(requests, asked.answers[signature], strict=True):
            assert not isinstance(answer, str), answer
            assert_same(answer, export.ask(signature, inputs), f"{signature} {inputs}")


@every_repeatable_export
def test_answers_do_not_depend_on_the_request(told: Ask, model: str, form: str) -> None:
    """Alone, or joined with others and padded as TF Serving pads them."""
    for signature, (*alone, joined) in told(model, form).answers.items():
        for row, answer in enumerate(alone):
            own = {
                name: joined[name][row : row + 1, : value.shape[1]]
                if value.ndim > 1
                else joined[name][row : row + 1]
                for name, value in answer.items()
            }
            assert_same(own, answer, f"{signature}, row {row}")
        numbers = [value for value in joined.values() if value.dtype == np.float32]
        assert any(np.ptp(value) > 0.05 for value in numbers), "rows must differ"


@every_export
def test_wrong_requests_are_refused_in_words(told: Ask, model: str, form: str) -> None:
    refusal = told(model, form).refusal
    assert isinstance(refusal, str), "it must not be answered"
    assert REFUSED[model][0] in refusal


@every_export
def test_signatures_are_those_of_the_model_card(
    exports: Exports, told: Ask, model: str, form: str
) -> None:
    card = json.loads((exports(model, form).folder / saved_model.MODEL_CARD).read_text())
    found = {
        signature: {
            kind: {
                key: f"{dtype} {[None if size < 0 else size for size in dims]}"
                for key, (dtype, dims) in specs.items()
            }
            for kind, specs in each.items()
        }
        for signature, each in told(model, form).process["signatures"].items()
    }
    assert found == card["signatures"]


@every_export
def test_every_op_is_of_tensorflow_or_tensorflow_text(
    exports: Exports, told: Ask, model: str, form: str
) -> None:
    registered = told(model, form).process
    graph = exports(model, form).meta_graph().graph_def
    functions = {each.signature.name for each in graph.library.function}
    foreign = {node.op for node in nodes(graph)} - set(registered["ops"]) - functions
    assert foreign == {"FastWordpieceTokenizeWithOffsets"}
    assert foreign <= set(registered["text_ops"])


@every_export
def test_the_process_has_nothing_of_ours(told: Ask, model: str, form: str) -> None:
    tops = {module.split(".")[0] for module in told(model, form).process["modules"]}
    assert "numpy" in tops
    assert not tops & {"tensorflow", "tensorflow_text", "tf_keras", "bert_tf", "google"}
