"""Asks TF Serving over gRPC: texts in, a line of JSON for each out (needs the extra `serving`).

    docker run --rm -p 8500:8500 -v "$PWD/runs/sst2/export:/models/sst2" -e MODEL_NAME=sst2 \
        tensorflow/serving:2.20.0

    python scripts/ask_grpc.py --model=sst2 "A joy from start to finish." "Dull."
    python scripts/ask_grpc.py --model=nli \
        --instances='[{"text_a": "A cat sat.", "text_b": "An animal sat."}]'

The flags are those of ask_rest.py. Names and types of inputs are asked of the server first.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def main(arguments: list[str] | None = None) -> None:
    """Sends one request and prints the answers."""
    parser = argparse.ArgumentParser(description="Asks TF Serving over gRPC.")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="for signatures of one input")
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--model", required=True, help="its name on the server")
    parser.add_argument("--version", default="", help="a number, or a label such as canary")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--instances", default="", help="JSON list of examples; - reads it")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds")
    flags = parser.parse_args(arguments)
    try:
        instances = examples(flags.texts, flags.instances)
        client = Client(flags.server, flags.timeout)
        for prediction in client.ask(flags.model, flags.version, flags.signature, instances):
            print(json.dumps(prediction, ensure_ascii=False))
    except ValueError as error:
        sys.exit(f"error: {error}")


def examples(texts: list[str], instances: str) -> list[Any]:
    """The examples of the command line; raises ValueError where there are none or no JSON list."""
    if bool(texts) == bool(instances):
        raise ValueError("give texts, or --instances with a JSON list of examples; one of the two.")
    if texts:
        return texts
    try:
        parsed = json.loads(sys.stdin.read() if instances == "-" else instances)
    except json.JSONDecodeError as error:
        raise ValueError(f"--instances is not JSON: {error}.") from None
    if not isinstance(parsed, list) or not parsed:
        raise ValueError('--instances must be a list, such as [{"text": "Dull."}].')
    return parsed


class Client:
    """A connection to a server."""

    def __init__(self, server: str, timeout: float) -> None:
        """Raises ValueError where the packages are missing; nothing is sent yet."""
        try:
            import grpc
            from tensorflow_serving.apis import prediction_service_pb2_grpc
        except ImportError:
            raise ValueError(
                "gRPC needs tensorflow-serving-api: pip install 'bert_tf[serving]' (or "
                "pip install tensorflow-serving-api); ask_rest.py needs neither."
            ) from None
        self.server, self.timeout = server, timeout
        self.errors = grpc.RpcError
        channel = grpc.insecure_channel(server)
        self.service = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask(
        self, model: str, version: str, signature: str, instances: list[Any]
    ) -> list[dict[str, Any]]:
        """The answer to each example; raises ValueError where there is none."""
        from tensorflow_serving.apis import predict_pb2

        inputs = self.inputs(model, version, signature)
        columns = by_name(instances, list(inputs), signature)
        request = predict_pb2.PredictRequest()
        address(request.model_spec, model, version)
        request.model_spec.signature_name = signature
        for name, column in columns.items():
            request.inputs[name].CopyFrom(to_proto(name, column, inputs[name].dtype))
        return rows(self.send(self.service.Predict, request).outputs)

    def inputs(self, model: str, version: str, signature: str) -> Mapping[str, Any]:
        """The inputs of a signature: TensorInfo by name."""
        from tensorflow_serving.apis import get_model_metadata_pb2

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        address(request.model_spec, model, version)
        packed = self.send(self.service.GetModelMetadata, request).metadata["signature_def"]
        known = get_model_metadata_pb2.SignatureDefMap()
        packed.Unpack(known)
        if signature not in known.signature_def:
            names = sorted(name for name in known.signature_def if not name.startswith("__"))
            raise ValueError(f"{model} has no signature {signature!r}; it has {', '.join(names)}.")
        return known.signature_def[signature].inputs

    def send(self, method: Any, request: Any) -> Any:  # noqa: ANN401 - messages
        """What the server answers; raises ValueError for errors."""
        try:
            return method(request, timeout=self.timeout)
        except self.errors as error:
            if error.code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
                raise ValueError(
                    f"no server answers at {self.server} ({error.details()}). Start TF Serving, as "
                    "the first lines of this script say, or name it with --server."
                ) from None
            raise ValueError(
                f"the server refused the request ({error.code().name}): {error.details()}"
            ) from None


def address(model_spec: Any, model: str, version: str) -> None:  # noqa: ANN401 - a message
    """Says which model; `version` is a number, a label, or "" for the newest one."""
    model_spec.name = model
    if version.isdecimal():
        model_spec.version.value = int(version)
    elif version:
        model_spec.version_label = version


def by_name(instances: list[Any], names: list[str], signature: str) -> dict[str, list[Any]]:
    """Examples as columns; raises ValueError where they have other inputs than the signature."""
    if isinstance(instances[0], str) and len(names) == 1:
        return {names[0]: instances}
    for number, instance in enumerate(instances):
        if not isinstance(instance, dict) or set(instance) != set(names):
            found = ", ".join(instance) if isinstance(instance, dict) else "a text"
            raise ValueError(
                f"the signature {signature!r} takes {', '.join(sorted(names))}; "
                f"example {number} has {found}. Give --instances."
            )
    return {name: [instance[name] for instance in instances] for name in names}


def to_proto(name: str, column: list[Any], dtype: int) -> Any:  # noqa: ANN401 - a message
    """A TensorProto; raises ValueError where the values do not fit."""
    import tensorflow as tf

    try:
        return tf.make_tensor_proto(column, dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be {tf.as_dtype(dtype).name} and of one shape in all examples: {error}"
        ) from None


def rows(outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of TensorProto as an object for each example."""
    import tensorflow as tf

    columns = {name: decoded(tf.make_ndarray(outputs[name]).tolist()) for name in sorted(outputs)}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def decoded(values: Any) -> Any:  # noqa: ANN401 - lists of lists of values
    """Bytes as text, in lists of any depth."""
    if isinstance(values, list):
        return [decoded(value) for value in values]
    return values.decode(errors="replace") if isinstance(values, bytes) else values


if __name__ == "__main__":
    main()
