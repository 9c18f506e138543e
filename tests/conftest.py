"""What every test shares: four logical CPU devices, fixed seeds, quiet logs, the real data."""

from __future__ import annotations

import os
import pathlib

# Read by TensorFlow when it is imported. Not 2, because the absence of a GPU is logged as an error.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest
import tensorflow as tf
import tf_keras as keras

# Tests compare 1, 2 and 4 replicas, and devices cannot be added once TensorFlow has started.
LOGICAL_CPU_DEVICES = 4
SEED = 20181011  # The day the BERT paper appeared.
SHARED_VARIABLE = "BERT_TF_SHARED"
MINILM_VARIABLE = "BERT_TF_MINILM"


def _configure_tensorflow() -> None:
    """Splits the CPU into logical devices and shares its cores between the test workers."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * LOGICAL_CPU_DEVICES
    tf.config.set_logical_device_configuration(cpu, devices)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = max(1, (os.cpu_count() or 1) // workers)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    # Two at least: a replica that waits for another in a collective holds its thread.
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))


_configure_tensorflow()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Starts every test from the same random state, whatever ran before it."""
    keras.utils.set_random_seed(SEED)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data that the project does not ship; skips the test without it."""
    value = os.environ.get(SHARED_VARIABLE)
    if not value:
        pytest.skip(f"real data not given: set {SHARED_VARIABLE} to its folder")
    folder = pathlib.Path(value).expanduser()
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder} ({SHARED_VARIABLE})")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """The folder with the weights of all-MiniLM-L6-v2; skips the test without it."""
    folder = os.environ.get(MINILM_VARIABLE)
    if not folder:
        pytest.skip(f"MiniLM not given: set {MINILM_VARIABLE} to its folder")
    if not pathlib.Path(folder).is_dir():
        pytest.skip(f"MiniLM not found at {folder} ({MINILM_VARIABLE})")
    return folder
