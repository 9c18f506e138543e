"""Writes `tf_serving_warmup_requests`: a TFRecord file of `tensorflow.serving.PredictionLog`.

The messages are made here from TF Serving's public definitions (tensorflow_serving/apis:
prediction_log.proto, predict.proto, model.proto): its Python package would bring gRPC along. On the
wire only numbers and types of fields count, and a map is a repeated entry of key and value; so the
messages may have a package name of their own, and both can be loaded into one process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

FieldProto = descriptor_pb2.FieldDescriptorProto
PACKAGE = "bert_tf.serving"
# Name, number and type of the fields that are used; one without a type is a string.
MESSAGES = {
    "PredictionLog": (("predict_log", 6, ".bert_tf.serving.PredictLog"),),
    "PredictLog": (("request", 1, ".bert_tf.serving.PredictRequest"),),
    "PredictRequest": (
        ("model_spec", 1, ".bert_tf.serving.ModelSpec"),
        ("inputs", 2, ".bert_tf.serving.Input"),
    ),
    "ModelSpec": (("name", 1, ""), ("signature_name", 3, "")),
    "Input": (("key", 1, ""), ("value", 2, ".tensorflow.TensorProto")),
}
REPEATED = "inputs"


def write_requests(path: str, requests: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Writes requests, each the name of a signature and its inputs by name (arrays or lists)."""
    prediction_log = prediction_log_class()
    with tf.io.TFRecordWriter(path) as writer:
        for signature, inputs in requests:
            log: Any = prediction_log()
            request = log.predict_log.request
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                request.inputs.add(key=name, value=tf.make_tensor_proto(values))
            writer.write(log.SerializeToString())


def prediction_log_class() -> type[message.Message]:
    """The class of `tensorflow.serving.PredictionLog`, as far as `MESSAGES` describe it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="bert_tf/serving.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[tf.make_tensor_proto(0).DESCRIPTOR.file.name],
    )
    for name, fields in MESSAGES.items():
        message_type = file.message_type.add(name=name)
        for field, number, type_name in fields:
            message_type.field.add(
                name=field,
                number=number,
                type=FieldProto.TYPE_MESSAGE if type_name else FieldProto.TYPE_STRING,
                type_name=type_name or None,
                label=FieldProto.LABEL_REPEATED if field == REPEATED else FieldProto.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.PredictionLog"))
