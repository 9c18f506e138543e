"""From `--accelerator` to a `tf.distribute` strategy, a dtype policy and what the device likes.

The training loop is written once; what differs between devices is in the `Accelerator` made here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from absl import logging
from tensorflow.python.framework.config import is_op_determinism_enabled

from bert_tf import rendezvous, tpu
from bert_tf.config import RuntimeConfig
from bert_tf.layouts import GridLayout, Layout, UnpaddedLayout

KINDS = ("auto", "cpu", "gpu", "tpu", "multi_worker")
POLICIES = {
    "float32": "float32",
    "bfloat16": "mixed_bfloat16",
    "float16": "mixed_float16",
}
# Bytes of gradients that workers without GPUs sum at a time: all at once costs more.
PACK_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """A strategy and what follows from the device under it."""

    kind: str  # "cpu", "gpu" or "tpu"
    strategy: tf.distribute.Strategy
    dtype: str  # "float32", "bfloat16" or "float16"

    @property
    def replicas(self) -> int:
        """Replicas in all machines together."""
        return self.strategy.num_replicas_in_sync

    @property
    def static_shapes(self) -> bool:
        """TPUs compile one program a shape: batches come in a few fixed widths."""
        return self.kind == "tpu"

    @property
    def layout(self) -> type[Layout]:
        """Rows of real tokens alone on CPU; XLA, on GPU and TPU, wants shapes it can know."""
        return UnpaddedLayout if self.kind == "cpu" else GridLayout

    @property
    def compile_gradients(self) -> bool:
        """XLA pays on GPU; TPU compiles everything anyway; XLA on CPU has slow matrix products."""
        return self.kind == "gpu"

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files (always, but for the other workers of several)."""
        resolver = self.strategy.cluster_resolver
        if resolver is None or not resolver.cluster_spec().jobs or self.kind == "tpu":
            return True
        return resolver.task_type in (None, "", "chief") or (
            resolver.task_type == "worker"
            and resolver.task_id == 0
            and "chief" not in resolver.cluster_spec().jobs
        )

    @property
    def has_workers(self) -> bool:
        """Whether several processes train together."""
        return isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy)

    def own_rows(self, value: tf.Tensor) -> np.ndarray:
        """The rows of this process's replicas: [B, ...] each, to [n B, ...]."""
        parts = self.strategy.experimental_local_results(value)
        return np.concatenate([part.numpy() for part in parts])

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all processes, [E, ...] each, the chief's first; every process must call it.

        Their number E may differ. It costs a round trip: better once than for every batch.
        """
        if not self.has_workers:
            return rows
        with watching_workers(self):
            every = self.rows_of_workers(tf.constant(rows))
            return self.strategy.experimental_local_results(every)[0].numpy()

    @functools.cached_property
    def rows_of_workers(self) -> tf.types.experimental.GenericFunction:
        """Rows of a process to those of all; `strategy.gather` would be traced at every call."""
        local = self.replicas // self.workers

        def in_replica(rows: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            # All replicas take part, the first of each process with the rows.
            is_first = context.replica_id_in_sync_group % local == 0
            given = tf.where(is_first, tf.shape(rows)[0], 0)
            return context.all_gather(rows[:given], axis=0)

        return tf.function(
            lambda rows: self.strategy.run(in_replica, (rows,)),
            autograph=False,
            reduce_retracing=True,
        )

    def numbers_of_workers(self, number: int) -> list[int]:
        """This number as each process has it, the chief's first; every process must call it.

        So processes agree, and wait for each other.
        """
        if not self.has_workers:
            return [number]
        every = self.numbers_of_replicas(tf.constant(number, tf.int64))
        first = self.strategy.experimental_local_results(every)[0].numpy()
        return first[:: self.replicas // self.workers].tolist()

    @functools.cached_property
    def numbers_of_replicas(self) -> tf.types.experimental.GenericFunction:
        """A number as each replica has it: int64 scalar to [replicas] in each, in one operation."""

        def in_replica(number: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            place = tf.one_hot(context.replica_id_in_sync_group, self.replicas, dtype=tf.int64)
            return context.all_reduce(tf.distribute.ReduceOp.SUM, place * number)

        return tf.function(lambda own: self.strategy.run(in_replica, (own,)), autograph=False)

    @property
    def sends_rows(self) -> bool:
        """Whether gradients of tables are summed over the replicas as rows, which are fewer.

        Not where XLA makes the gradients: it wants shapes that it can know.
        """
        return self.has_workers and not self.compile_gradients

    def to_send(
        self, gradient: tf.Tensor | tf.IndexedSlices, most_rows: int
    ) -> tf.Tensor | tf.IndexedSlices:
        """A gradient [V, H] as it is to be summed; `most_rows` of each replica at most, or 0.

        Rows of all replicas are sent where they are fewer than those of the table. Zeros fill them
        up: in a loop on the device, collectives must have the same shape every time.
        """
        if not isinstance(gradient, tf.IndexedSlices):
            return gradient
        if not 0 < most_rows * self.replicas < gradient.shape[0]:
            return tf.convert_to_tensor(gradient)
        missing = most_rows - tf.shape(gradient.indices)[0]
        values = tf.pad(gradient.values, [[0, missing], [0, 0]])
        return tf.IndexedSlices(
            tf.ensure_shape(values, [most_rows, gradient.shape[1]]),
            tf.ensure_shape(tf.pad(gradient.indices, [[0, missing]]), [most_rows]),
            gradient.dense_shape,
        )

    @property
    def workers(self) -> int:
        """Processes that train together."""
        if not self.has_workers:
            return 1
        return sum(map(len, self.strategy.cluster_resolver.cluster_spec().as_dict().values()))

    def describe(self) -> str:
        """One line for the log."""
        name = type(self.strategy).__name__
        return f"{self.kind}, {self.replicas} replica(s) ({name}), {self.dtype}"


def next_batch(iterator: tf.data.Iterator, after: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """The next batch, and the seconds from when `after` was known to when it came (float32 []).

    NaN in a process whose operations are to be deterministic: TensorFlow has no clock then.
    """
    batch = iterator.get_next()  # without waiting for `after`: it may come while a step runs
    if is_op_determinism_enabled():
        return batch, tf.constant(float("nan"))
    with tf.control_dependencies([after]):
        began = tf.timestamp()
    with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
        came = tf.timestamp()
    return batch, tf.cast(tf.maximum(came - began, 0.0), tf.float32)


def connect(runtime: RuntimeConfig) -> Accelerator:
    """Connects to the devices and sets the global Keras dtype policy.

    Raises:
        ValueError: an unknown or absent accelerator or dtype, or replicas off the CPU.
    """
    if runtime.accelerator not in KINDS:
        raise ValueError(
            f"--accelerator={runtime.accelerator!r} must be one of {', '.join(KINDS)}."
        )
    if runtime.dtype != "auto" and runtime.dtype not in POLICIES:
        raise ValueError(
            f"config.runtime.dtype={runtime.dtype!r} must be auto, {', '.join(POLICIES)}."
        )
    kind, strategy = make_strategy(runtime)
    dtype = best_dtype(kind) if runtime.dtype == "auto" else runtime.dtype
    keras.mixed_precision.set_global_policy(POLICIES[dtype])
    accelerator = Accelerator(kind, strategy, dtype)
    logging.info("TensorFlow %s on %s.", tf.__version__, accelerator.describe())
    return accelerator


def make_strategy(runtime: RuntimeConfig) -> tuple[str, tf.distribute.Strategy]:
    """The kind of device and the strategy for it."""
    kind = find_kind() if runtime.accelerator == "auto" else runtime.accelerator
    if kind != "cpu" and runtime.replicas != 1:
        raise ValueError(
            f"config.runtime.replicas={runtime.replicas} makes logical CPU devices; on {kind} "
            "every device is a replica. Leave it at 1."
        )
    if kind == "tpu":
        return kind, tpu.connect(runtime.tpu)
    if kind == "multi_worker":
        return connect_workers()
    if kind == "gpu":
        return kind, gpu_strategy()
    return kind, cpu_strategy(runtime.replicas)


def find_kind() -> str:
    """What `auto` means here: several workers, TPU, GPU, else CPU."""
    if "worker" in read_tf_config().get("cluster", {}):
        return "multi_worker"
    if os.environ.get("TPU_NAME") or os.path.exists("/dev/accel0"):
        return "tpu"
    if tf.config.list_physical_devices("GPU"):
        return "gpu"
    # Newer TPUs come by way of VFIO, but so do the devices of other virtual machines.
    return "tpu" if os.path.exists("/dev/vfio/0") else "cpu"


def read_tf_config() -> dict[str, Any]:
    """The description of a cluster; empty where there is none."""
    value = os.environ.get("TF_CONFIG") or "{}"
    try:
        described = json.loads(value)
    except json.JSONDecodeError:
        described = None
    if not isinstance(described, dict):
        raise ValueError(
            f"The environment variable TF_CONFIG={value!r} is not a JSON object; describe cluster "
            "and task in it, or unset it."
        )
    return described


class Preempted(Exception):  # noqa: N818 - not an error: everything is saved
    """SIGTERM came; the run is saved and can be continued with the same command."""


@contextlib.contextmanager
def listening_for_sigterm() -> Iterator[Callable[[], bool]]:
    """Inside, SIGTERM does not end the process; the function given says whether one came."""
    came: list[int] = []
    previous = None
    with contextlib.suppress(ValueError):  # not the main thread (a notebook's, a test's): nobody
        previous = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


class WorkerLost(Exception):  # noqa: N818 - nothing is wrong here: another process stopped
    """A process that trains together with this one stopped, or cannot be reached."""


# What operations of several processes end in where one of them is gone.
LOST = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.UnavailableError,
)


@contextlib.contextmanager
def watching_workers(accelerator: Accelerator) -> Iterator[None]:
    """Errors inside that mean that another process is gone become `WorkerLost`."""
    try:
        yield
    except LOST as error:
        if not accelerator.has_workers:
            raise
        raise WorkerLost(
            f"another worker stopped, or cannot be reached ({type(error).__name__}). Look into its "
            "log; then start all workers again with the same command: they go on from the last "
            "checkpoint."
        ) from error


def connect_workers() -> tuple[str, tf.distribute.Strategy]:
    """The strategy of several machines, as `TF_CONFIG` describes them."""
    kind, index, addresses = own_task(read_tf_config())
    logging.info(
        "%s %d of %d workers; waiting until all are there: %s.",
        kind.capitalize(),
        index,
        len(addresses),
        ", ".join(addresses),
    )
    rendezvous.meet(index, addresses)
    has_gpu = grow_memory() > 0
    try:
        # Before any other operation of TensorFlow: it restarts the process's runtime.
        strategy = tf.distribute.MultiWorkerMirroredStrategy(
            communication_options=tf.distribute.experimental.CommunicationOptions(
                bytes_per_pack=0 if has_gpu else PACK_BYTES
            )
        )
    except (tf.errors.OpError, RuntimeError) as error:
        raise ValueError(
            f"the workers of TF_CONFIG did not find each other ({str(error).splitlines()[0]}). Its "
            "cluster must be the same everywhere, its addresses reachable from every machine, and "
            f"the port of {addresses[index]} free on this one."
        ) from error
    # TensorFlow took SIGTERM for itself, and would let it pass unheard until training begins.
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return "gpu" if has_gpu else "cpu", strategy


def own_task(described: dict[str, Any]) -> tuple[str, int, list[str]]:
    """Kind and number of this process, and the addresses of all, the chief first.

    Raises:
        ValueError: `TF_CONFIG` does not describe workers, or this process is none of them.
    """
    if not {"cluster", "task"} <= described.keys():
        raise ValueError(
            "--accelerator=multi_worker needs the environment variable TF_CONFIG (cluster and "
            "task), set on every machine before the script starts."
        )
    cluster, task = described["cluster"], described["task"]
    kind, index = task.get("type"), task.get("index")
    if not set(cluster) <= {"chief", "worker"} or not cluster.get("worker"):
        raise ValueError(
            f"TF_CONFIG: the cluster has {', '.join(cluster) or 'nobody'}; it must have worker, "
            "and may have chief: every process trains."
        )
    if kind not in cluster or index not in range(len(cluster[kind])):
        raise ValueError(
            f"TF_CONFIG: the task is {kind} {index}, but the cluster has "
            f"{', '.join(f'{name} 0 to {len(each) - 1}' for name, each in cluster.items())}."
        )
    addresses = [address for name in ("chief", "worker") for address in cluster.get(name, [])]
    wrong = [address for address in addresses if not re.fullmatch(r".+:\d+", str(address))]
    if wrong or len(set(addresses)) < len(addresses):
        raise ValueError(
            f"TF_CONFIG: {wrong[0] if wrong else 'two workers have one address'}; every worker "
            "needs an address of its own, HOST:PORT."
        )
    return kind, index + (len(cluster.get("chief", [])) if kind == "worker" else 0), addresses


def gpu_strategy() -> tf.distribute.Strategy:
    """All GPUs of this machine."""
    count = grow_memory()
    if not count:
        raise ValueError("--accelerator=gpu, but TensorFlow sees no GPU; choose cpu or auto.")
    return (
        tf.distribute.OneDeviceStrategy("GPU:0") if count == 1 else tf.distribute.MirroredStrategy()
    )


def grow_memory() -> int:
    """Lets the memory taken of each GPU grow; returns how many there are."""
    devices = tf.config.list_physical_devices("GPU")
    for device in devices:
        # Without growth the first process takes all memory of every GPU on the machine.
        tf.config.experimental.set_memory_growth(device, True)
    return len(devices)


def cpu_strategy(replicas: int) -> tf.distribute.Strategy:
    """One replica, or several logical ones (to develop and test distribution without devices)."""
    if replicas == 1:
        return tf.distribute.get_strategy()
    if len(tf.config.list_logical_devices("CPU")) < replicas:
        raise ValueError(
            f"config.runtime.replicas={replicas}, but TensorFlow has started with fewer logical "
            "CPU devices; call distribution.make_logical_cpus before anything else."
        )
    # Logical devices share memory: a plain sum beats collectives, which also confuse the groups of
    # two strategies in one process.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def make_logical_cpus(count: int) -> None:
    """Splits the CPU into logical devices; must come before TensorFlow's first operation."""
    if count > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
        tf.config.set_logical_device_configuration(cpu, parts)


def best_dtype(kind: str) -> str:
    """The fastest dtype that is safe: bfloat16 where the device computes in it."""
    if kind == "tpu":
        return "bfloat16"
    if kind == "gpu":
        details = tf.config.experimental.get_device_details(
            tf.config.list_physical_devices("GPU")[0]
        )
        capability = details.get("compute_capability", (0, 0))
        return (
            "bfloat16" if capability >= (8, 0) else "float16" if capability >= (7, 0) else "float32"
        )
    return "bfloat16" if cpu_computes_bfloat16() else "float32"


def cpu_computes_bfloat16() -> bool:
    """AMX or AVX512-BF16, as Linux reports it; elsewhere bfloat16 is emulated, and slow."""
    try:
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
