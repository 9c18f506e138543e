"""How many requests an exported model answers a second, and how long they take, under load.

    python scripts/load_test.py --saved_model=runs/sst2/export --input=sentences.txt
    python scripts/load_test.py --saved_model=runs/sst2/export --input=sentences.txt \
        --clients=1,8 --seconds=30 --max_batch_size=16 --batch_timeout_micros=500 --output=load.json

Clients ask one text at a time and ask again as soon as they have an answer. The server is this
process: without batching every request runs by itself, as in TF Serving; with batching they wait
for one another in the scheduler that TF Serving has (the op BatchFunction; its flags are named as
in configs/serving/batching_parameters.txt). Nothing goes through a network or becomes JSON, so
these are the figures of the model alone.

The input has a request a line; for signatures with several inputs, their texts in the order of
their names, with tabs between them.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text  # noqa: F401 - brings the tokenizer's ops
from absl import flags, logging

from bert_tf import command_line
from bert_tf.config import write_json
from bert_tf.data.text import read_lines

SAVED_MODEL = flags.DEFINE_string(
    "saved_model",
    None,
    "Export folder: of a version, or of all, of which the newest.",
    required=True,
)
INPUT = flags.DEFINE_string("input", None, "UTF-8 file with a request a line.", required=True)
SIGNATURE = flags.DEFINE_string("signature", "serving_default", "Which to ask; it takes strings.")
CLIENTS = flags.DEFINE_list("clients", ["1", "2", "4", "8", "16"], "Numbers of clients to try.")
SECONDS = flags.DEFINE_float("seconds", 10.0, "Of each measurement.", lower_bound=0.1)
THREADS = flags.DEFINE_integer("threads", 0, "That share one operation; 0: as many as cores.")
MAX_BATCH_SIZE = flags.DEFINE_integer("max_batch_size", 32, "Requests of a batch.", lower_bound=1)
BATCH_TIMEOUT_MICROS = flags.DEFINE_integer(
    "batch_timeout_micros", 1000, "How long the first one waits.", lower_bound=0
)
NUM_BATCH_THREADS = flags.DEFINE_integer(
    "num_batch_threads", 2, "Batches computed side by side.", lower_bound=1
)
ALLOWED_BATCH_SIZES = flags.DEFINE_list(
    "allowed_batch_sizes", [], "Sizes that batches are filled up to; the last is the largest."
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

WARMUP_SECONDS = 1.0  # before each measurement, of the same load
# Of the table, and how their numbers are written.
COLUMNS = {
    "batching": "",
    "clients": "d",
    "requests": ",d",
    "per_second": ".1f",
    "p50_ms": ".1f",
    "p95_ms": ".1f",
    "p99_ms": ".1f",
    "cpu_ms": ".1f",
    "batch_size": ".2f",
}
WIDTH = 11
Ask = Callable[..., dict[str, tf.Tensor]]  # from strings [1], one for each input


class Server(NamedTuple):
    """A model in this process."""

    ask: Ask
    batches: tf.Variable | None  # that were computed so far; None without batching


class Figures(NamedTuple):
    """One measurement."""

    batching: str  # "on" or "off"
    clients: int
    requests: int
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cpu_ms: float  # processor time of a request: on a busy machine the steadiest of the figures
    batch_size: float  # mean


def main(unused_argv: list[str]) -> None:
    """Measures, prints a table and writes the file."""
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
    clients = positive(CLIENTS.value, "--clients")
    allowed = positive(ALLOWED_BATCH_SIZES.value, "--allowed_batch_sizes")
    if allowed and (allowed != sorted(set(allowed)) or allowed[-1] != MAX_BATCH_SIZE.value):
        raise ValueError(
            f"--allowed_batch_sizes={','.join(map(str, allowed))} must rise and end with "
            f"--max_batch_size={MAX_BATCH_SIZE.value}."
        )
    model = tf.saved_model.load(newest_version(SAVED_MODEL.value))  # holds the weights
    signature = string_signature(model, SIGNATURE.value)
    names = sorted(signature.structured_input_signature[1])
    requests = read_requests(INPUT.value, names)
    servers = {"off": alone(signature, names), "on": batched(signature, names, allowed)}
    logging.info("Load of the machine before: %.2f.", os.getloadavg()[0])
    print("".join(f"{name:>{WIDTH}}" for name in COLUMNS), flush=True)
    measured = []
    for count in clients:
        for batching, server in servers.items():
            run_clients(server, requests, count, WARMUP_SECONDS)
            figures = measure(batching, server, requests, count)._asdict()
            row = "".join(f"{figures[name]:>{WIDTH}{form}}" for name, form in COLUMNS.items())
            print(row, flush=True)
            measured.append(figures)
    if OUTPUT.value:
        given = (SECONDS, THREADS, MAX_BATCH_SIZE, BATCH_TIMEOUT_MICROS, NUM_BATCH_THREADS)
        settings: dict[str, Any] = {flag.name: flag.value for flag in given}
        settings |= {"allowed_batch_sizes": allowed, "cores": os.cpu_count()}
        write_json(OUTPUT.value, {"settings": settings, "figures": measured})


# ---------------------------------------------------------------------------------------- the input


def positive(values: Sequence[str], flag: str) -> list[int]:
    """Numbers from 1; raises ValueError for anything else."""
    if not all(value.isdecimal() and int(value) for value in values):
        raise ValueError(f"{flag}={','.join(values)} must be numbers from 1, as in 1,2,4.")
    return [int(value) for value in values]


def newest_version(folder: str) -> str:
    """The folder of a SavedModel, or of the highest number in it; raises ValueError for others."""
    if tf.saved_model.contains_saved_model(folder):
        return folder
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    versions = [name.rstrip("/") for name in names if name.rstrip("/").isdecimal()]
    if not versions:
        raise ValueError(f"--saved_model={folder} holds no export; write one: scripts/export.py.")
    return os.path.join(folder, max(versions, key=int))


def string_signature(model: Any, name: str) -> Any:  # noqa: ANN401 - a concrete function
    """A signature whose inputs are strings [N]; raises ValueError where there is none."""
    if name not in model.signatures:
        raise ValueError(f"--signature={name}: the model has {', '.join(model.signatures)}.")
    _, specs = model.signatures[name].structured_input_signature
    if any(spec.dtype != tf.string or spec.shape.rank != 1 for spec in specs.values()):
        raise ValueError(f"--signature={name}: its inputs are not one text each for a request.")
    return model.signatures[name]


def read_requests(path: str, names: Sequence[str]) -> list[tuple[tf.Tensor, ...]]:
    """The lines of a file, string [1] for each input; raises ValueError where one does not fit."""
    requests = []
    for number, line in read_lines(path):
        texts = line.split("\t") if len(names) > 1 else [line]
        if len(texts) != len(names):
            raise ValueError(
                f"{path}, line {number} has {len(texts)} texts; the signature takes "
                f"{', '.join(names)}, with tabs between them."
            )
        requests.append(tuple(tf.constant([text]) for text in texts))
    if not requests:
        raise ValueError(f"{path} is empty; give a request a line.")
    return requests


# -------------------------------------------------------------------------------------- the servers


def alone(signature: Any, names: Sequence[str]) -> Server:  # noqa: ANN401
    """Every request by itself."""
    return Server(lambda *texts: signature(**dict(zip(names, texts, strict=True))), None)


def batched(signature: Any, names: Sequence[str], allowed: Sequence[int]) -> Server:  # noqa: ANN401
    """Requests that arrive together as one batch."""
    batches = tf.Variable(0, dtype=tf.int64, trainable=False)

    @tf.nondifferentiable_batch_function(
        NUM_BATCH_THREADS.value,
        MAX_BATCH_SIZE.value,
        BATCH_TIMEOUT_MICROS.value,
        allowed_batch_sizes=list(allowed) or None,
        max_enqueued_batches=1000,  # more than there are clients
        autograph=False,
    )
    def answer_batch(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        batches.assign_add(1)
        return signature(**dict(zip(names, texts, strict=True)))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)] * len(names), autograph=False)
    def ask(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer_batch(*texts)

    return Server(ask, batches)


# ----------------------------------------------------------------------------------------- the load


def measure(
    batching: str, server: Server, requests: Sequence[tuple[tf.Tensor, ...]], clients: int
) -> Figures:
    """The figures of some clients that ask for `SECONDS`."""
    before = 0 if server.batches is None else int(server.batches)
    started, cpu_before = time.perf_counter(), time.process_time()
    latencies = run_clients(server, requests, clients, SECONDS.value)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_before
    count = len(latencies)
    batches = count if server.batches is None else int(server.batches) - before
    p50, p95, p99 = (1000 * float(value) for value in np.percentile(latencies, [50, 95, 99]))
    return Figures(
        batching=batching,
        clients=clients,
        requests=count,
        per_second=count / seconds,
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        cpu_ms=1000 * cpu / count,
        batch_size=count / batches,
    )


def run_clients(
    server: Server, requests: Sequence[tuple[tf.Tensor, ...]], clients: int, seconds: float
) -> list[float]:
    """How many seconds each request took, of clients that ask again and again for a while."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    def ask(client: int) -> None:
        for number in itertools.count(client, clients):
            started = time.perf_counter()
            if started >= until:
                return
            outputs = server.ask(*requests[number % len(requests)])
            next(iter(outputs.values())).numpy()  # the answer is there
            latencies.append(time.perf_counter() - started)

    with concurrent.futures.ThreadPoolExecutor(clients) as threads:
        for finished in [threads.submit(ask, client) for client in range(clients)]:
            finished.result()
    return latencies


if __name__ == "__main__":
    command_line.run_script(main)
