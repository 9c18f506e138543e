"""The clients ask servers in this process, which answer with an export as TF Serving would."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import http.server
import io
import json
import pathlib
import runpy
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from tests.export.conftest import Exports
from tests.served_models import QUICK_MODELS, Arrays, Export, rows_of

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@dataclasses.dataclass(frozen=True)
class Outcome:
    error: str
    lines: list[Any]


def run(script: str, *arguments: str) -> Outcome:
    """What `scripts/SCRIPT.py` prints, as JSON a line, or the error that it ends with."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(str(SCRIPTS / f"{script}.py"))["main"]([*arguments])
    except SystemExit as stop:
        return Outcome(str(stop.code), [])
    return Outcome("", [json.loads(line) for line in output.getvalue().splitlines()])


def plain(values: Any) -> Any:
    """Bytes as text."""
    if isinstance(values, list):
        return [plain(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


def as_rows(columns: Arrays) -> list[dict[str, Any]]:
    lists = {name: plain(value.tolist()) for name, value in columns.items()}
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def instances_of(export: Export, signature: str) -> list[dict[str, Any]]:
    """Two examples that JSON can say."""
    rows = [row for row in rows_of(export, signature) if not broken(row)]
    width = {row["token_ids"].shape[1] for row in rows[:1] if "token_ids" in row}
    if width:  # all of one width
        rows = [rows[0], {name: np.flip(value, 1) for name, value in rows[0].items()}]
        rows[1]["token_ids"][0, 0] = 2
    return [as_rows(row)[0] for row in rows[:2]]


def broken(row: Arrays) -> bool:
    """Whether some of its strings are no UTF-8."""
    flat = [value for array in row.values() if array.dtype == object for value in array.flat]
    return any(value.decode(errors="ignore").encode() != value for value in flat)


def expected(export: Export, signature: str, instances: list[dict[str, Any]]) -> list[Any]:
    columns = {name: [one[name] for one in instances] for name in instances[0]}
    return as_rows(export.ask(signature, columns))


def assert_same(lines: list[Any], answers: list[Any]) -> None:
    assert len(lines) == len(answers)
    for line, answer in zip(lines, answers, strict=True):
        assert line.keys() == answer.keys()
        for name, value in answer.items():
            if np.asarray(value).dtype.kind == "f":
                np.testing.assert_allclose(line[name], value, rtol=0, atol=1e-5)
            else:
                assert line[name] == value


# --------------------------------------------------------------------------------------------- REST


class Rest(http.server.BaseHTTPRequestHandler):
    """TF Serving's predict call by rows (its documentation of the RESTful API)."""

    exports: dict[str, Export]
    paths: list[str]

    def do_POST(self) -> None:
        self.paths.append(self.path)
        name = self.path.removeprefix("/v1/models/").removesuffix(":predict").split("/")[0]
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if name not in self.exports:
            self.answer(404, {"error": f"Servable not found for request: Latest({name})"})
            return
        try:
            self.answer(200, {"predictions": self.predictions(self.exports[name], content)})
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            self.answer(400, {"error": str(error)})

    def predictions(self, export: Export, content: bytes) -> list[Any]:
        request = json.loads(content)
        assert self.headers["Content-Type"] == "application/json"
        assert request.keys() == {"signature_name", "instances"}
        _, specs = export.loaded.signatures[request["signature_name"]].structured_input_signature
        instances = request["instances"]
        if not isinstance(instances[0], dict):
            if len(specs) > 1:
                raise ValueError("instances is a plain list, but expecting list of objects")
            instances = [{next(iter(specs)): value} for value in instances]
        for instance in instances:
            if set(instance) != set(specs):
                raise ValueError("Failed to process element: 0 of 'instances' list")
        answers = expected(export, request["signature_name"], instances)
        # An output that is alone has no name.
        return [next(iter(one.values())) if len(one) == 1 else one for one in answers]

    def answer(self, code: int, content: dict[str, Any]) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: Any) -> None:
        """Prints nothing."""


@pytest.fixture(scope="module")
def rest(exports: Exports) -> Iterator[str]:
    Rest.exports = {name: exports(name, "saved_model") for name in QUICK_MODELS}
    Rest.paths = []
    with http.server.ThreadingHTTPServer(("localhost", 0), Rest) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("model", QUICK_MODELS)
def test_rest_asks_every_signature(exports: Exports, rest: str, model: str) -> None:
    export = exports(model, "saved_model")
    for signature in export.loaded.signatures:
        instances = instances_of(export, signature)
        outcome = run(
            "ask_rest",
            f"--server={rest}",
            f"--model={model}",
            f"--signature={signature}",
            f"--instances={json.dumps(instances)}",
        )
        assert not outcome.error
        answers = expected(export, signature, instances)
        lines = [
            line if isinstance(line, dict) else {next(iter(answers[0])): line}
            for line in outcome.lines
        ]
        assert_same(lines, answers)


def test_rest_takes_texts_and_versions(exports: Exports, rest: str) -> None:
    texts = ["the cat sat", "Café — “old”"]
    export = exports("classification", "saved_model")
    answers = expected(export, "serving_default", [{"text": text} for text in texts])
    flags = (f"--server={rest}/", "--model=classification")
    for version, part in (("", ""), ("3", "/versions/3"), ("canary", "/labels/canary")):
        outcome = run("ask_rest", *flags, f"--version={version}", *texts)
        assert_same(outcome.lines, answers)
        assert Rest.paths[-1] == f"/v1/models/classification{part}:predict"


def test_instances_are_read_from_standard_input(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('[{"text": "the cat"}]'))
    outcome = run("ask_rest", f"--server={rest}", "--model=classification", "--instances=-")
    assert len(outcome.lines) == 1


@pytest.mark.parametrize("script", ["ask_rest", "ask_grpc"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give texts, or --instances"),
        (["text", "--instances=[]"], "one of the two"),
        (["--instances={"], "--instances is not JSON: Expecting property name"),
        (["--instances={}"], "must be a list, such as"),
        (["--instances=[]"], "must be a list, such as"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(
    script: str, arguments: list[str], message: str
) -> None:
    assert message in run(script, "--model=classification", *arguments).error


def test_rest_explains_refusals(rest: str) -> None:
    flags = (f"--server={rest}", "--model=classification")
    wrong = run("ask_rest", *flags, '--instances=[{"words": "a"}]')
    assert wrong.error == (
        "error: the server refused the request (400): Failed to process element: 0 of 'instances' "
        "list"
    )
    other = run("ask_rest", f"--server={rest}", "--model=other", "a")
    assert "(404): Servable not found for request: Latest(other)" in other.error
    ids = '[{"token_ids": [500], "segment_ids": [0], "mask": [1]}]'
    refused = run("ask_rest", *flags, "--signature=ids", f"--instances={ids}")
    assert "token_ids must be from 0 to 119" in refused.error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_rest_says_where_no_server_is() -> None:
    outcome = run("ask_rest", f"--server=http://localhost:{free_port()}", "--model=mine", "a")
    assert "no server answers at http://localhost:" in outcome.error
    assert "Start TF Serving" in outcome.error


# --------------------------------------------------------------------------------------------- gRPC


@pytest.fixture(scope="module")
def grpc_server(exports: Exports) -> Iterator[str]:
    grpc = pytest.importorskip("grpc")
    metadata_pb2 = pytest.importorskip("tensorflow_serving.apis.get_model_metadata_pb2")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    services = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")

    class Service(services.PredictionServiceServicer):
        """`Predict` and `GetModelMetadata` of TF Serving's PredictionService."""

        def export(self, request: Any, context: Any) -> Export:
            spec = request.model_spec
            versions.append(spec.version_label or spec.version.value)
            if spec.name not in QUICK_MODELS:
                context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {spec.name}")
            return exports(spec.name, "saved_model")

        def GetModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
            signatures = self.export(request, context).meta_graph().signature_def
            assert list(request.metadata_field) == ["signature_def"]
            response = metadata_pb2.GetModelMetadataResponse()
            response.metadata["signature_def"].Pack(
                metadata_pb2.SignatureDefMap(signature_def=signatures)
            )
            return response

        def Predict(self, request: Any, context: Any) -> Any:  # noqa: N802
            export = self.export(request, context)
            signature = request.model_spec.signature_name
            inputs = {name: tf.make_ndarray(value) for name, value in request.inputs.items()}
            specs: dict[str, meta_graph_pb2.TensorInfo] = dict(
                export.meta_graph().signature_def[signature].inputs
            )
            assert {name: value.dtype for name, value in request.inputs.items()} == {
                name: info.dtype for name, info in specs.items()
            }
            response = predict_pb2.PredictResponse()
            try:
                answers = export.ask(signature, inputs)
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
            for name, value in answers.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    versions.clear()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    services.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None).wait()


versions: list[Any] = []  # that were asked for


@pytest.mark.parametrize("model", QUICK_MODELS)
def test_grpc_asks_every_signature(exports: Exports, grpc_server: str, model: str) -> None:
    export = exports(model, "saved_model")
    for signature in export.loaded.signatures:
        instances = instances_of(export, signature)
        outcome = run(
            "ask_grpc",
            f"--server={grpc_server}",
            f"--model={model}",
            f"--signature={signature}",
            f"--instances={json.dumps(instances)}",
        )
        assert not outcome.error
        assert_same(outcome.lines, expected(export, signature, instances))


def test_grpc_takes_texts_and_versions(exports: Exports, grpc_server: str) -> None:
    texts = ["the cat sat", "Café — “old”"]
    export = exports("classification", "saved_model")
    answers = expected(export, "serving_default", [{"text": text} for text in texts])
    flags = (f"--server={grpc_server}", "--model=classification")
    for version, asked in (("", 0), ("3", 3), ("canary", "canary")):
        outcome = run("ask_grpc", *flags, f"--version={version}", *texts)
        assert_same(outcome.lines, answers)
        assert versions[-2:] == [asked, asked]


def test_grpc_explains_refusals(grpc_server: str) -> None:
    ids = '[{"token_ids": [500], "segment_ids": [0], "mask": [1]}]'
    ragged = (
        '[{"token_ids": [1, 2], "segment_ids": [0, 0], "mask": [1, 1]},'
        ' {"token_ids": [1], "segment_ids": [0], "mask": [1]}]'
    )
    for arguments, message in (
        (["--model=other", "a"], "(NOT_FOUND): Servable not found: other"),
        (["--model=classification", "--signature=embed", "a"], "it has ids, serving_default"),
        (["--model=classification", "--signature=ids", f"--instances={ids}"], "from 0 to 119"),
        (["--model=classification", "--signature=ids", f"--instances={ragged}"], "of one shape"),
        (["--model=multiple_choice", "a"], "takes choices, context, start; example 0 has a text"),
        (["--model=classification", '--instances=[{"words": "a"}]'], "example 0 has words"),
        (["--model=classification", '--instances=[{"text": 5}]'], "text must be string"),
    ):
        error = run("ask_grpc", f"--server={grpc_server}", *arguments).error
        assert error.startswith("error: ")
        assert message in error


def test_grpc_says_where_no_server_is() -> None:
    pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    outcome = run("ask_grpc", f"--server=localhost:{free_port()}", "--model=mine", "a")
    assert "no server answers at localhost:" in outcome.error
    assert "Start TF Serving" in outcome.error


def test_grpc_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    assert "pip install 'bert_tf[serving]'" in run("ask_grpc", "--model=mine", "a").error
