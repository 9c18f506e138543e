"""The files of configs/serving/ say what TF Serving can read, and what belongs together agrees."""

from __future__ import annotations

import mmap
import pathlib
import re
from typing import Any

import numpy as np
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from tests.export import c_api
from tests.export.conftest import Exports
from tests.served_models import rows_of

FOLDER = pathlib.Path(__file__).parents[2] / "configs" / "serving"
FieldProto = descriptor_pb2.FieldDescriptorProto
PACKAGE = "bert_tf.configs"
# The public definitions (tensorflow_serving/config/*.proto, session_bundle_config.proto) as far as
# the files use them: name, number and type of each field; REPEATED ones end in *.
INT64 = "google.protobuf.Int64Value"
MESSAGES = {
    "ModelServerConfig": (("model_config_list", 1, "ModelConfigList"),),
    "ModelConfigList": (("config*", 1, "ModelConfig"),),
    "ModelConfig": (
        ("name", 1, "string"),
        ("base_path", 2, "string"),
        ("model_platform", 4, "string"),
        ("model_version_policy", 7, "ServableVersionPolicy"),
        ("version_labels*", 8, "Label"),
    ),
    "ServableVersionPolicy": (("latest", 100, "Latest"), ("specific", 102, "Specific")),
    "Latest": (("num_versions", 1, "uint32"),),
    "Specific": (("versions*", 1, "int64"),),
    "Label": (("key", 1, "string"), ("value", 2, "int64")),
    "BatchingParameters": (
        ("max_batch_size", 1, INT64),
        ("batch_timeout_micros", 2, INT64),
        ("max_enqueued_batches", 3, INT64),
        ("num_batch_threads", 4, INT64),
        ("allowed_batch_sizes*", 6, "int64"),
        ("pad_variable_length_inputs", 7, "bool"),
    ),
    "MonitoringConfig": (("prometheus_config", 1, "PrometheusConfig"),),
    "PrometheusConfig": (("enable", 1, "bool"), ("path", 2, "string")),
}
SCALARS = {
    "string": FieldProto.TYPE_STRING,
    "int64": FieldProto.TYPE_INT64,
    "uint32": FieldProto.TYPE_UINT32,
    "bool": FieldProto.TYPE_BOOL,
}


def descriptors() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="configs.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            message.field.add(
                name=field.rstrip("*"),
                number=number,
                type=SCALARS.get(kind, FieldProto.TYPE_MESSAGE),
                type_name=None
                if kind in SCALARS
                else f".{kind if '.' in kind else f'{PACKAGE}.{kind}'}",
                label=FieldProto.LABEL_REPEATED
                if field.endswith("*")
                else FieldProto.LABEL_OPTIONAL,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def read(file: str, name: str) -> Any:
    """The message in a file; raises ParseError for fields that the definition does not have."""
    descriptor = descriptors().FindMessageTypeByName(f"{PACKAGE}.{name}")
    message = message_factory.GetMessageClass(descriptor)()
    return text_format.Parse((FOLDER / file).read_text(), message)


def test_models_have_the_versions_that_labels_name() -> None:
    configs = read("models.config", "ModelServerConfig").model_config_list.config
    assert len({config.name for config in configs}) == len(configs) > 1
    for config in configs:
        assert config.base_path == f"/models/{config.name}"
        assert config.model_platform == "tensorflow"
        labels = {label.key: label.value for label in config.version_labels}
        assert set(labels.values()) <= set(config.model_version_policy.specific.versions)
    assert {label.key for label in configs[0].version_labels} == {"stable", "canary"}


def test_models_in_the_official_message() -> None:
    config_pb2 = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    official = text_format.Parse(
        (FOLDER / "models.config").read_text(), config_pb2.ModelServerConfig()
    )
    found = read("models.config", "ModelServerConfig")
    assert official == config_pb2.ModelServerConfig.FromString(found.SerializeToString())


def test_batches_have_an_allowed_size() -> None:
    batching = read("batching_parameters.txt", "BatchingParameters")
    sizes = list(batching.allowed_batch_sizes)
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == batching.max_batch_size.value, "the server refuses anything else"
    assert batching.pad_variable_length_inputs
    assert batching.batch_timeout_micros.value < 10_000, "one request takes a few milliseconds"


def test_monitoring() -> None:
    prometheus = read("monitoring.config", "MonitoringConfig").prometheus_config
    assert prometheus.enable
    assert prometheus.path in (FOLDER / "monitoring.config").read_text().split("\nprometheus")[0]


def test_definitions_refuse_other_fields() -> None:
    message = type(read("monitoring.config", "MonitoringConfig"))()
    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse("prometheus_config { port: 1 }", message)


def variables() -> dict[str, str]:
    """Of serving.env, as docker reads it: lines are comments, empty, or NAME=VALUE as it is."""
    lines = (FOLDER / "serving.env").read_text().split("\n")
    pairs = [line.split("=", 1) for line in lines if line and not line.startswith("#")]
    return dict(pairs)


def test_every_variable_has_its_reason() -> None:
    blocks = (FOLDER / "serving.env").read_text().rstrip("\n").split("\n\n")[1:]
    assert len(blocks) == len(variables())
    for block in blocks:
        *comments, line = block.split("\n")
        assert comments
        assert all(comment.startswith("# ") for comment in comments)
        assert re.fullmatch(r"TF_[A-Z_]+=\d+", line)


def test_tensorflow_reads_every_variable() -> None:
    """A name that it does not know would change nothing, and nobody would notice."""
    (path,) = c_api.package("tensorflow").glob("libtensorflow_framework.*")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        unknown = [name for name in variables() if content.find(name.encode() + b"\0") < 0]
    assert not unknown


def test_the_environment_changes_no_answer(
    exports: Exports, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = exports("classification", "saved_model")
    requests = [("ids", row) for row in 2 * rows_of(export, "ids")]  # weights are kept by the first
    for name, value in variables().items():
        monkeypatch.setenv(name, value)
    answers = c_api.ask(export.folder, requests, tmp_path)["answers"]
    for (name, inputs), answer in zip(requests, answers, strict=True):
        np.testing.assert_allclose(answer["logits"], export.ask(name, inputs)["logits"], atol=1e-5)


def test_commands_name_files_that_exist() -> None:
    text = (FOLDER / "models.config").read_text()
    files = re.findall(r"=/config/([\w.]+)", text)
    assert {*files, "serving.env"} == {path.name for path in FOLDER.iterdir()}
    assert "--env-file=configs/serving/serving.env" in text
