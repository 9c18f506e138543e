from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf import distribution
from bert_tf.config import RuntimeConfig
from bert_tf.distribution import Accelerator, best_dtype, connect, cpu_strategy, find_kind
from bert_tf.layouts import GridLayout, UnpaddedLayout

CLUSTER = {"worker": ["one:1", "two:2"]}
GPU = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")


@pytest.fixture(autouse=True)
def _policy() -> Iterator[None]:
    """`connect` sets the global dtype policy, which other tests must not notice."""
    yield
    keras.mixed_precision.set_global_policy("float32")


@pytest.fixture(autouse=True)
def _plain_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator, no cluster, whatever this machine has."""
    for name in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(distribution.os.path, "exists", lambda path: False)
    set_gpus(monkeypatch, 0)


def set_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [GPU] * count)


def set_cpu_flags(monkeypatch: pytest.MonkeyPatch, flags: str) -> None:
    text = f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {flags}\nbugs\t\t: none\n"
    monkeypatch.setattr(distribution, "open", lambda path: io.StringIO(text), raising=False)


# -------------------------------------------------------------------------------------------- kinds


def test_a_plain_machine_is_a_cpu() -> None:
    assert find_kind() == "cpu"


def test_gpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, 1)
    assert find_kind() == "gpu"


@pytest.mark.parametrize("device", ["/dev/accel0", "/dev/vfio/0"])
def test_a_tpu_is_found_by_its_device(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    set_gpus(monkeypatch, 0)
    monkeypatch.setattr(distribution.os.path, "exists", lambda path: path == device)
    assert find_kind() == "tpu"


def test_a_virtual_machine_with_a_gpu_is_no_tpu(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, 1)
    monkeypatch.setattr(distribution.os.path, "exists", lambda path: path == "/dev/vfio/0")
    assert find_kind() == "gpu"


def test_a_tpu_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_NAME", "mine")
    assert find_kind() == "tpu"


def test_several_workers_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    set_gpus(monkeypatch, 1)
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER}))
    assert find_kind() == "multi_worker"
    monkeypatch.setenv("TF_CONFIG", json.dumps({"environment": "cloud"}))
    assert find_kind() == "gpu"


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (
            RuntimeConfig(accelerator="npu"),
            "--accelerator='npu' must be one of auto, cpu, gpu, tpu",
        ),
        (
            RuntimeConfig(accelerator="cpu", dtype="int8"),
            "config.runtime.dtype='int8' must be auto",
        ),
        (RuntimeConfig(accelerator="gpu"), "TensorFlow sees no GPU; choose cpu or auto"),
        (
            RuntimeConfig(accelerator="gpu", replicas=2),
            "replicas=2 makes logical CPU devices; on gpu",
        ),
        (RuntimeConfig(accelerator="multi_worker"), "needs the environment variable TF_CONFIG"),
        (RuntimeConfig(accelerator="cpu", replicas=64), "replicas=64, but TensorFlow has started"),
    ],
)
def test_what_cannot_work_is_refused(runtime: RuntimeConfig, message: str) -> None:
    policy = keras.mixed_precision.global_policy().name
    with pytest.raises(ValueError, match=re.escape(message)):
        connect(runtime)
    assert keras.mixed_precision.global_policy().name == policy


@pytest.mark.parametrize("kind", ["auto", "multi_worker"])
@pytest.mark.parametrize("value", ["{cluster: 3}", "[]", "{}x"])
def test_a_cluster_that_is_no_json_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: str, value: str
) -> None:
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(ValueError, match=r"TF_CONFIG='.*JSON object; describe cluster and task"):
        connect(RuntimeConfig(accelerator=kind))


@pytest.mark.parametrize("value", ["", "{}", '{"cluster": {"worker": ["a:1"]}}'])
def test_workers_need_cluster_and_task(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(ValueError, match=r"needs the environment variable TF_CONFIG \(cluster and"):
        connect(RuntimeConfig(accelerator="multi_worker"))


# -------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu sse avx2 avx512f", "float32"),
        ("fpu avx512f avx512_bf16", "bfloat16"),
        ("fpu amx_bf16 amx_tile", "bfloat16"),
        ("", "float32"),
    ],
)
def test_dtype_of_a_cpu(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: str) -> None:
    set_cpu_flags(monkeypatch, flags)
    assert best_dtype("cpu") == dtype


def test_a_system_that_tells_nothing_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(distribution, "open", missing, raising=False)
    assert best_dtype("cpu") == "float32"


@pytest.mark.parametrize(
    ("details", "dtype"),
    [
        ({"compute_capability": (9, 0)}, "bfloat16"),
        ({"compute_capability": (8, 0)}, "bfloat16"),
        ({"compute_capability": (7, 5)}, "float16"),
        ({"compute_capability": (6, 1)}, "float32"),
        ({}, "float32"),
    ],
)
def test_dtype_of_a_gpu(monkeypatch: pytest.MonkeyPatch, details: dict, dtype: str) -> None:
    set_gpus(monkeypatch, 1)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details)
    assert best_dtype("gpu") == dtype


def test_dtype_of_a_tpu() -> None:
    assert best_dtype("tpu") == "bfloat16"


@pytest.mark.parametrize(
    ("dtype", "policy"),
    [
        ("float32", "float32"),
        ("bfloat16", "mixed_bfloat16"),
        ("float16", "mixed_float16"),
        ("auto", "mixed_bfloat16"),
    ],
)
def test_connect_sets_the_policy(monkeypatch: pytest.MonkeyPatch, dtype: str, policy: str) -> None:
    set_cpu_flags(monkeypatch, "amx_bf16")
    accelerator = connect(RuntimeConfig(accelerator="auto", dtype=dtype))
    assert keras.mixed_precision.global_policy().name == policy
    assert policy.endswith(accelerator.dtype)
    assert accelerator.kind == "cpu"
    assert accelerator.replicas == 1


# ------------------------------------------------------------------------------------- accelerators


def test_logical_replicas() -> None:
    accelerator = connect(RuntimeConfig(accelerator="cpu", replicas=4, dtype="float32"))
    assert accelerator.replicas == 4
    assert accelerator.describe() == "cpu, 4 replica(s) (MirroredStrategy), float32"
    context = tf.distribute.get_replica_context
    total = accelerator.strategy.run(
        lambda: context().all_reduce("sum", tf.cast(context().replica_id_in_sync_group, tf.float32))
    )
    sums = [float(value) for value in accelerator.strategy.experimental_local_results(total)]
    assert sums == [6.0] * 4


def test_one_replica_is_no_strategy_of_its_own() -> None:
    assert cpu_strategy(1) is tf.distribute.get_strategy()


@pytest.mark.parametrize(
    ("kind", "static_shapes", "compile_gradients", "layout"),
    [
        ("cpu", False, False, UnpaddedLayout),
        ("gpu", False, True, GridLayout),
        ("tpu", True, False, GridLayout),
    ],
)
def test_what_each_device_likes(
    kind: str, static_shapes: bool, compile_gradients: bool, layout: type
) -> None:
    accelerator = Accelerator(kind, cpu_strategy(1), "float32")
    assert accelerator.static_shapes == static_shapes
    assert accelerator.compile_gradients == compile_gradients
    assert accelerator.layout is layout


@pytest.mark.parametrize(
    ("cluster", "task_type", "task_id", "is_chief"),
    [
        ({}, None, None, True),
        ({"worker": ["a:1", "b:1"]}, "worker", 0, True),
        ({"worker": ["a:1", "b:1"]}, "worker", 1, False),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "chief", 0, True),
        ({"chief": ["a:1"], "worker": ["b:1"]}, "worker", 0, False),
        ({"worker": ["a:1"], "evaluator": ["b:1"]}, "evaluator", 0, False),
    ],
)
def test_one_process_writes(
    cluster: dict, task_type: str | None, task_id: int | None, is_chief: bool
) -> None:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=task_type, task_id=task_id
    )
    strategy = types.SimpleNamespace(cluster_resolver=resolver)
    assert Accelerator("cpu", strategy, "float32").is_chief is is_chief
    assert Accelerator("tpu", strategy, "float32").is_chief, "one process drives all of a TPU"


def test_the_only_process_writes() -> None:
    assert Accelerator("cpu", cpu_strategy(1), "float32").is_chief
    assert Accelerator("cpu", cpu_strategy(2), "float32").is_chief


WAITS = """
import sys, time
import tensorflow as tf
from bert_tf.distribution import cpu_strategy, next_batch

if "deterministic" in sys.argv:
    tf.keras.utils.set_random_seed(1)
    tf.config.experimental.enable_op_determinism()

def slowly(number):
    time.sleep(0.1)
    return number

@tf.function(autograph=False)
def eight(iterator):
    def one_more(count, seconds, total):
        batch, more = next_batch(iterator, after=total)
        return count + 1, seconds + more, total + batch[0]

    start = (tf.constant(0), tf.constant(0.0), tf.constant(0, tf.int64))
    return tf.while_loop(lambda count, *_: count < 8, one_more, start)

numbers = tf.data.Dataset.range(8)
slow = numbers.map(lambda n: tf.ensure_shape(tf.py_function(slowly, [n], tf.int64), []))
strategy = cpu_strategy(1)
for data in (numbers.prefetch(8), slow):
    _, seconds, total = eight(iter(strategy.experimental_distribute_dataset(data.batch(1))))
    print(float(seconds), int(total))
"""


@pytest.mark.parametrize("deterministic", [False, True])
def test_how_long_a_batch_was_waited_for(deterministic: bool) -> None:
    """In a process of its own: what makes operations deterministic cannot be taken back."""
    command = [sys.executable, "-c", WAITS, *(["deterministic"] if deterministic else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (quick, first), (slow, second) = (map(float, line.split()) for line in done.stdout.splitlines())
    assert first == second == sum(range(8))
    if deterministic:
        assert np.isnan([quick, slow]).all()
    else:
        assert 0.0 <= quick < slow
        assert slow >= 0.6
