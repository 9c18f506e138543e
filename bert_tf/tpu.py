"""Cloud TPU: connects, and finds at once what would fail after minutes or without a plain word."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Iterator

import tensorflow as tf
from absl import logging
from tensorflow.python.framework import kernels

from bert_tf.config import RunConfig

INSTALL = (
    "In a fresh environment (Python 3.10 to 3.12): pip install tensorflow-tpu==2.19.1 "
    "libtpu==0.0.10, then pip install --no-deps tensorflow-text==2.19.0 tf_keras==2.19.0, because "
    "these two ask for the stock tensorflow"
)
# The first and the last libtpu known to compile programs for a tensorflow-tpu. 2.19.1 asks for
# exactly this one; 2.20.0 asks for 0.0.14 or newer, but aborts with 0.0.32.1 and later.
LIBTPU = {"2.19.1": ("0.0.10", "0.0.10"), "2.20.0": ("0.0.14", "0.0.30")}
# Every TPU build has a kernel for this op, with or without a TPU. It takes the place of
# `ConfigureDistributedTPU`, which stock builds name in their message and no build has a kernel for.
TPU_OP = "_ConfigureDistributedTPU"
PACKAGES = ("tensorflow", "tensorflow-tpu", "tf_keras", "tensorflow-text", "libtpu")


def connect(name: str) -> tf.distribute.Strategy:
    """Initialises the TPU system and returns its strategy; `local` is the TPU of this machine.

    Raises:
        ValueError: no TPU build, another libtpu than it works with, or no TPU.
    """
    check_software()
    logging.info("Initialising --tpu=%s with %s.", name, versions())
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    # OSError: the address of a name is asked from a server; ImportError: with Google's API client.
    except (ValueError, tf.errors.OpError, RuntimeError, OSError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]  # its first line may say nothing
        raise ValueError(
            f"no TPU answered at --tpu={name} ({reason}). On a TPU VM use --tpu=local, with no "
            "other process on the TPU; for a TPU of several hosts its name, or grpc://ADDRESS:8470 "
            f"of the first. Installed: {versions()}. Elsewhere choose --accelerator=gpu or cpu."
        ) from error
    strategy = tf.distribute.TPUStrategy(resolver)
    logging.info(
        "TPU topology %s: %d host(s), %d replica(s).",
        "x".join(str(size) for size in topology.mesh_shape),
        strategy.extended.num_hosts,
        strategy.num_replicas_in_sync,
    )
    return strategy


def check_software() -> None:
    """Raises ValueError where the installed packages cannot drive a TPU."""
    if not kernels.get_registered_kernels_for_op(TPU_OP).kernel:
        raise ValueError(
            f"--accelerator=tpu, but this build of TensorFlow has no TPU kernels ({versions()}): "
            f"it is the stock package, or that was installed over tensorflow-tpu. {INSTALL}."
        )
    tensorflow, libtpu = installed("tensorflow-tpu"), installed("libtpu")
    # TPU images bring builds and a libtpu that are no packages: nothing is known of them.
    if tensorflow not in LIBTPU or libtpu is None:
        return
    first, last = LIBTPU[tensorflow]
    if not numbers(first) <= numbers(libtpu) <= numbers(last):
        known = first if first == last else f"{first} to {last}"
        raise ValueError(
            f"libtpu {libtpu} is not known to work with tensorflow-tpu {tensorflow}, which needs "
            f"{known}: pip install libtpu=={last}."
        )


def installed(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> str:
    """The packages that matter on a TPU, for the log and for errors."""
    found = {package: installed(package) for package in PACKAGES}
    return ", ".join(f"{package} {version}" for package, version in found.items() if version)


def numbers(version: str) -> tuple[int, ...]:
    """What orders versions: 0.0.32.1 comes after 0.0.32."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def check_paths(run: RunConfig, workdir: str, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError for files that only one of a TPU's several hosts can see.

    One process drives all hosts, but each of them reads its own share of the data, and none of
    their disks outlives the TPU.
    """
    hosts = strategy.extended.num_hosts
    if hosts == 1:
        return
    for field, path in [("--workdir", workdir), *paths(run)]:
        if lies_on_own_disk(path):
            raise ValueError(
                f"{field}={path} lies on the disk of this machine, but the TPU has {hosts} hosts; "
                "copy it to gs://BUCKET/... (gcloud storage cp -r), or to a disk that all hosts "
                "mount."
            )


def paths(run: RunConfig) -> Iterator[tuple[str, str]]:
    """Field and path of everything that a run reads."""
    yield "config.model.init_checkpoint", run.model.init_checkpoint
    yield "config.distillation.teacher", run.distillation.teacher
    of_data = {"config.data": run.data} | {
        f"config.tasks.{name}.data": part.data for name, part in run.tasks.items()
    }
    for section, data in of_data.items():
        yield f"{section}.data_dir", data.data_dir
        for split in ("train", "dev", "test"):
            for source in map(str.strip, getattr(data, split).split(",")):
                if not source.startswith("tfds:"):  # it lies in data_dir
                    yield f"{section}.{split}", source


def lies_on_own_disk(path: str) -> bool:
    """Whether a path, if there is one, is neither a URL nor on a disk that was mounted."""
    if not path or "://" in path:
        return False
    existing = os.path.abspath(path)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    return os.stat(existing).st_dev == os.stat("/").st_dev
