"""No TPU is here: its parts are stand-ins, and what is tested is what a user is told."""

from __future__ import annotations

import importlib.metadata
import logging
import pathlib
import re
import types

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from bert_tf import tpu
from bert_tf.config import (
    DataConfig,
    DistillationConfig,
    ModelConfig,
    PartConfig,
    RunConfig,
    RuntimeConfig,
    TaskConfig,
)
from bert_tf.distribution import connect

ROOT = pathlib.Path(__file__).parent.parent
TPU_BUILD = {
    "tensorflow-tpu": "2.19.1",
    "tf_keras": "2.19.0",
    "tensorflow-text": "2.19.0",
    "libtpu": "0.0.10",
}
SEVERAL_TASKS = TaskConfig(name="multi_task")


def set_packages(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]) -> None:
    def version(package: str) -> str:
        if package in packages:
            return packages[package]
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)


def set_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a TPU build."""
    registered = types.SimpleNamespace(kernel=["TPU_SYSTEM"])
    monkeypatch.setattr(kernels, "get_registered_kernels_for_op", lambda op: registered)


@pytest.fixture
def tpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    set_kernels(monkeypatch)
    set_packages(monkeypatch, TPU_BUILD)


def set_resolver(monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
    """A TPU of two hosts with 4 chips each, or one that fails so when its name is looked up."""

    def resolver(tpu: str) -> str:
        if error is not None:
            raise error
        return tpu

    fake = types.SimpleNamespace(TPUClusterResolver=resolver)
    topology = types.SimpleNamespace(mesh_shape=[2, 4, 1, 1])
    monkeypatch.setattr(tf.distribute, "cluster_resolver", fake)
    monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", lambda resolver: None)
    monkeypatch.setattr(tf.tpu.experimental, "initialize_tpu_system", lambda resolver: topology)
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver: strategy(hosts=2))


def strategy(hosts: int) -> types.SimpleNamespace:
    extended = types.SimpleNamespace(num_hosts=hosts)
    return types.SimpleNamespace(extended=extended, num_replicas_in_sync=4 * hosts)


# ------------------------------------------------------------------------------------------ connect


@pytest.mark.usefixtures("tpu_build")
def test_topology_and_versions_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_resolver(monkeypatch)
    with caplog.at_level(logging.INFO, "absl"):
        assert tpu.connect("mine").num_replicas_in_sync == 8
    assert caplog.messages == [
        "Initialising --tpu=mine with tensorflow-tpu 2.19.1, tf_keras 2.19.0, tensorflow-text "
        "2.19.0, libtpu 0.0.10.",
        "TPU topology 2x4x1x1: 2 host(s), 8 replica(s).",
    ]


@pytest.mark.parametrize(
    "error",
    [
        tf.errors.NotFoundError(None, None, "Graph execution error:\n\nTPUs not found"),
        ValueError("TPUs not found"),
        RuntimeError("TPUs not found"),
        OSError("TPUs not found"),
        ImportError("TPUs not found"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.usefixtures("tpu_build")
def test_a_tpu_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    set_resolver(monkeypatch, error)
    with pytest.raises(ValueError, match=r"no TPU answered at --tpu=local \(.*TPUs not") as caught:
        connect(RuntimeConfig(accelerator="tpu"))
    message = str(caught.value)
    assert "\n" not in message
    assert "Installed: tensorflow-tpu 2.19.1" in message
    assert "--accelerator=gpu or cpu" in message


# ----------------------------------------------------------------------------------------- software


@pytest.mark.skipif(tpu.installed("tensorflow-tpu") is not None, reason="has TPU kernels")
def test_the_stock_package_is_named_before_anything_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernels are those of the TensorFlow that runs the tests, which is the stock package."""
    set_resolver(monkeypatch, AssertionError("the TPU was looked for"))
    set_packages(monkeypatch, {"tensorflow": "2.20.0", "tensorflow-tpu": "2.19.1"})
    with pytest.raises(ValueError, match="has no TPU kernels") as caught:
        connect(RuntimeConfig(accelerator="tpu"))
    assert "(tensorflow 2.20.0, tensorflow-tpu 2.19.1)" in str(caught.value)
    assert "pip install --no-deps tensorflow-text==2.19.0" in str(caught.value)


@pytest.mark.parametrize(
    ("tensorflow", "libtpu", "message"),
    [
        ("2.19.1", "0.0.9", "which needs 0.0.10: pip install libtpu==0.0.10"),
        ("2.19.1", "0.0.10.1", "which needs 0.0.10: pip install libtpu==0.0.10"),
        ("2.20.0", "0.0.32.1", "which needs 0.0.14 to 0.0.30: pip install libtpu==0.0.30"),
        ("2.20.0", "0.0.10", "which needs 0.0.14 to 0.0.30: pip install libtpu==0.0.30"),
    ],
)
def test_another_libtpu_is_refused(
    monkeypatch: pytest.MonkeyPatch, tensorflow: str, libtpu: str, message: str
) -> None:
    set_kernels(monkeypatch)
    set_packages(monkeypatch, {"tensorflow-tpu": tensorflow, "libtpu": libtpu})
    with pytest.raises(ValueError, match=f"libtpu {libtpu} is not known to work") as caught:
        tpu.check_software()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "packages",
    [
        TPU_BUILD,
        {"tensorflow-tpu": "2.20.0", "libtpu": "0.0.14"},
        {"tensorflow-tpu": "2.20.0", "libtpu": "0.0.30"},
        {"tensorflow-tpu": "2.19.1"},  # libtpu of the image
        {"tensorflow-tpu": "2.18.0", "libtpu": "0.0.5"},  # nothing is known of it
        {},
    ],
)
def test_what_may_work_is_tried(monkeypatch: pytest.MonkeyPatch, packages: dict[str, str]) -> None:
    set_kernels(monkeypatch)
    set_packages(monkeypatch, packages)
    tpu.check_software()


def test_the_pins_agree() -> None:
    """Those of the message with those of the extra, and with those that the tests can run with."""
    pins = re.findall(r"[\w-]+==[\d.]+", tpu.INSTALL)
    assert len(pins) == 4
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert not [pin for pin in pins if pin not in pyproject]
    tested = (ROOT / "scripts" / "tensorflow-2.19.txt").read_text("utf-8").splitlines()
    assert {*pins[2:], pins[0].replace("-tpu", "")} <= set(tested)


# -------------------------------------------------------------------------------------------- paths


@pytest.fixture
def one_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything lies on the disk of the machine but what is below /mnt/shared."""

    def device(path: str) -> types.SimpleNamespace:
        return types.SimpleNamespace(st_dev=int(str(path).startswith("/mnt/shared")))

    monkeypatch.setattr(tpu.os, "stat", device)
    monkeypatch.setattr(tpu.os.path, "exists", lambda path: path in ("/", "/mnt/shared"))


@pytest.mark.parametrize(
    ("run", "workdir", "field"),
    [
        (RunConfig(), "runs/mine", "--workdir=runs/mine"),
        (
            RunConfig(model=ModelConfig(init_checkpoint="data/bert")),
            "gs://b/run",
            "config.model.init_checkpoint=data/bert",
        ),
        (
            RunConfig(data=DataConfig(train="gs://b/1-*.tfrecord, data/2-*.tfrecord")),
            "gs://b/run",
            "config.data.train=data/2-*.tfrecord",
        ),
        (
            RunConfig(data=DataConfig(data_dir="/data/glue")),
            "gs://b/run",
            "config.data.data_dir=/data/glue",
        ),
        (
            RunConfig(distillation=DistillationConfig(teacher="runs/old")),
            "gs://b/run",
            "config.distillation.teacher=runs/old",
        ),
        (
            RunConfig(task=SEVERAL_TASKS, tasks={"a": PartConfig(data=DataConfig(dev="dev.tsv"))}),
            "gs://b/run",
            "config.tasks.a.data.dev=dev.tsv",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("one_disk")
def test_files_that_other_hosts_cannot_see_are_refused(
    run: RunConfig, workdir: str, field: str
) -> None:
    with pytest.raises(ValueError, match="disk of this machine, but the TPU has 2") as caught:
        tpu.check_paths(run, workdir, strategy(hosts=2))
    assert str(caught.value).startswith(f"{field} lies on")
    assert "gs://BUCKET/" in str(caught.value)
    tpu.check_paths(run, workdir, strategy(hosts=1))


@pytest.mark.usefixtures("one_disk")
def test_files_that_all_hosts_see_are_welcome() -> None:
    data = DataConfig(train="gs://b/a.tsv", dev="/mnt/shared/dev.tsv", test="tfds:glue/sst2/test")
    tpu.check_paths(RunConfig(data=data), "/mnt/shared/runs/new", strategy(hosts=8))


def test_this_machine_has_a_disk(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_root = tmp_path.stat().st_dev == pathlib.Path("/").stat().st_dev
    assert tpu.lies_on_own_disk("not/there/yet") == on_root
    assert not tpu.lies_on_own_disk("")
