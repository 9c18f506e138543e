"""Exports as TF Serving's own messages ask them (package tensorflow-serving-api)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from bert_tf.export import saved_model
from tests.export import c_api
from tests.export.conftest import Exports
from tests.served_models import Arrays, every_export, joined_as_by_serving, rows_of

predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")

MOST_WARMUP_RECORDS = (
    1000  # that TF Serving reads; more are an error (its saved_model_warmup_util.h)
)


def predict_request(signature: str, inputs: Arrays) -> Any:
    """As a client writes it."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "mine"
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return predict_pb2.PredictRequest.FromString(request.SerializeToString())


def problems(request: Any, signature: meta_graph_pb2.SignatureDef) -> list[str]:
    """Why TF Serving would refuse a request (its predict_util.cc), or its graph."""
    names = set(request.inputs) ^ set(signature.inputs)
    found = [f"{name} is in one of the two alone" for name in sorted(names)]
    for name in set(request.inputs) & set(signature.inputs):
        tensor, info = request.inputs[name], signature.inputs[name]
        if tensor.dtype != info.dtype:
            found.append(f"{name} has another type")
        if not tf.TensorShape(tensor.tensor_shape).is_compatible_with(info.tensor_shape):
            found.append(f"{name} has another shape")
    return found


def arrays_of(request: Any) -> Arrays:
    return {name: tf.make_ndarray(value) for name, value in request.inputs.items()}


@every_export
def test_requests_fit_the_signatures(exports: Exports, model: str, form: str) -> None:
    export = exports(model, form)
    signatures = export.meta_graph().signature_def
    for name in export.loaded.signatures:
        signature = signatures[name]
        assert signature.method_name == "tensorflow/serving/predict"
        rows = rows_of(export, name)
        for inputs in (rows[0], joined_as_by_serving(rows)):
            request = predict_request(name, inputs)
            assert not problems(request, signature)
            sent = arrays_of(request)
            assert all(sent[key].tolist() == value.tolist() for key, value in inputs.items())


def test_the_check_finds_what_is_wrong(exports: Exports) -> None:
    signature = exports("classification", "saved_model").meta_graph().signature_def["ids"]
    wrong = {"token_ids": np.zeros([1, 2]), "mask": np.zeros([2], np.int32)}
    assert sorted(problems(predict_request("ids", wrong), signature)) == [
        "mask has another shape",
        "segment_ids is in one of the two alone",
        "token_ids has another type",
    ]


@every_export
def test_warm_up_requests_are_answered(
    exports: Exports, tmp_path: Any, model: str, form: str
) -> None:
    export = exports(model, form)
    signatures = export.meta_graph().signature_def
    requests = []
    for record in tf.data.TFRecordDataset(str(export.folder / saved_model.WARMUP_FILE)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert not problems(request, signatures[request.model_spec.signature_name])
        requests.append((request.model_spec.signature_name, arrays_of(request)))
    assert len(requests) <= MOST_WARMUP_RECORDS
    assert {name for name, _ in requests} == set(export.loaded.signatures)
    answers = c_api.ask(export.folder, requests, tmp_path)["answers"]
    for (name, inputs), answer in zip(requests, answers, strict=True):
        assert not isinstance(answer, str), f"{name}: {answer}"
        count = len(next(iter(inputs.values())))
        assert {len(value) for value in answer.values()} == {count}
