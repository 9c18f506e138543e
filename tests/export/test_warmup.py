from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from bert_tf.export import warmup

IDS = np.array([[2, 7, 300_000, 3]], np.int32)
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("serving_default", {"text": ["a film", "", "… é"]}),
    ("ids", {"token_ids": IDS, "mask": np.ones_like(IDS)}),
    ("x" * 200, {"text_a": ["a" * 1000], "text_b": []}),
]


@pytest.fixture
def records(tmp_path: pathlib.Path) -> list[bytes]:
    path = str(tmp_path / "tf_serving_warmup_requests")
    warmup.write_requests(path, REQUESTS)
    return [record.numpy() for record in tf.data.TFRecordDataset(path)]


def varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if data[place - 1] < 0x80:
            return value, place


def fields(data: bytes) -> list[tuple[int, bytes]]:
    """Number and content of the fields of a message that has only fields with a length."""
    found, place = [], 0
    while place < len(data):
        key, place = varint(data, place)
        assert key & 7 == 2
        length, place = varint(data, place)
        found.append((key >> 3, data[place : place + length]))
        place += length
    return found


def parse_request(record: bytes) -> tuple[str, dict[str, np.ndarray]]:
    """Reads PredictionLog.predict_log(6).request(1) by the numbers of the public definition."""
    ((number, predict_log),) = fields(record)
    assert number == 6
    ((number, request),) = fields(predict_log)
    assert number == 1
    parts = fields(request)
    assert [number for number, _ in parts].count(1) == 1
    ((number, signature),) = fields(dict(parts)[1])  # model_spec
    assert number == 3
    inputs = {}
    for number, entry in parts:
        if number == 2:
            values = dict(fields(entry))
            tensor = tensor_pb2.TensorProto.FromString(values[2])
            inputs[values[1].decode()] = tf.make_ndarray(tensor)
        else:
            assert number == 1
    return signature.decode(), inputs


def assert_same(found: dict[str, np.ndarray], written: dict[str, Any]) -> None:
    assert set(found) == set(written)
    for name, values in written.items():
        expected = tf.make_ndarray(tf.make_tensor_proto(values))
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_bytes_are_those_of_the_public_definition(records: list[bytes]) -> None:
    assert len(records) == len(REQUESTS)
    for record, (signature, inputs) in zip(records, REQUESTS, strict=True):
        found_signature, found = parse_request(record)
        assert found_signature == signature
        assert_same(found, inputs)


def test_tensorflow_serving_reads_them(records: list[bytes]) -> None:
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    for record, (signature, inputs) in zip(records, REQUESTS, strict=True):
        log = apis.PredictionLog.FromString(record)
        assert log.WhichOneof("log_type") == "predict_log"
        request = log.predict_log.request
        assert request.model_spec.signature_name == signature
        assert_same({key: tf.make_ndarray(value) for key, value in request.inputs.items()}, inputs)


def test_the_class_can_be_made_twice(records: list[bytes]) -> None:
    first = warmup.prediction_log_class().FromString(records[0])
    assert first == warmup.prediction_log_class().FromString(records[0])
    assert first.SerializeToString() == records[0]
