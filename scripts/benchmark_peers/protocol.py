"""How the driver talks to a worker: a line of JSON there, a line of JSON back.

A worker's standard output belongs to the protocol; whatever a library prints goes to standard
error. A worker is asked to prepare one workload in one variant, then to run it as often as the
driver likes; it measures itself, so that the way of the messages is not counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from workloads import Variant, Workload


@dataclasses.dataclass(frozen=True)
class Job:
    """What a worker prepares."""

    workload: Workload
    variant: Variant
    threads: int
    checkpoint: str = ""  # folder in the form of Hugging Face
    data: str = ""  # npz of workloads.make_rows, or a text file
    folder: str = ""  # the worker's own, for what it writes
    reference: bool = False  # whether exact outputs are wanted, and no speed

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Job:
        """The reverse."""
        parts = {
            "workload": Workload(**values["workload"]),
            "variant": Variant(**values["variant"]),
        }
        return cls(**values | parts)

    def rows(self) -> dict[str, np.ndarray]:
        """The made-up rows."""
        with np.load(self.data) as file:
            return dict(file)


class Prepared(NamedTuple):
    """What a worker made of a job."""

    run: Callable[[], object]  # does it all once; returns units where only it knows them, a float
    outputs: dict[str, np.ndarray]  # to be compared with the reference; may be empty
    warm_up: Callable[[], object] | None = None  # where that is less than a run


def serve(
    prepare: Mapping[str, Callable[[Job], Prepared]],
    variants: Callable[[Workload], list[Variant]],
    versions: dict[str, str],
) -> None:
    """Answers the driver until it closes the pipe.

    Args:
        prepare: by kind of workload.
        variants: the settings that a workload is to be measured with, best guess first.
        versions: of the libraries.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    prepared: Prepared | None = None
    for line in sys.stdin:
        request = json.loads(line)
        reply: dict[str, Any] = {}
        try:
            if request["do"] == "variants":
                workload = Workload(**request["workload"])
                found = variants(workload) if workload.kind in prepare else []
                reply = {"variants": [dataclasses.asdict(variant) for variant in found]}
                reply["versions"] = versions
            elif request["do"] == "prepare":
                job = Job.from_json(request["job"])
                prepared = prepare[job.workload.kind](job)
                np.savez(os.path.join(job.folder, "outputs.npz"), **prepared.outputs)  # type: ignore[arg-type]
            elif request["do"] == "warm_up":
                assert prepared is not None
                (prepared.warm_up or prepared.run)()
            else:
                assert prepared is not None
                reply = timed(prepared.run, request["repeats"])
        except Exception as error:
            traceback.print_exc()
            message = str(error).strip().splitlines() or [""]
            reply = {"error": f"{type(error).__name__}: {message[0]}"}
        usage = {"peak_memory": peak_memory(), "process_cpu": cpu_seconds()}
        replies.write(json.dumps(reply | usage) + "\n")


def export_alone(job: Job, worker: str) -> None:
    """Has a worker's file write the job's model, as `python FILE --export JOB`.

    By another process: what it takes to write a model is not what it takes to run it.
    """
    path = pathlib.Path(__file__).with_name(worker)
    command = [sys.executable, str(path), "--export", json.dumps(job.to_json())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def timed(run: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Seconds of wall and CPU (all threads) that one run takes, the mean of some in a row."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(repeats):
        units = run()
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    known = units if isinstance(units, float) else None
    return {"wall": wall / repeats, "cpu": cpu / repeats, "units": known}


def cpu_seconds() -> float:
    """Of all threads of this process, and of those that it started and that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes; 0 where Linux does not say."""
    try:
        with open("/proc/self/status") as file:
            kilobytes = next(line for line in file if line.startswith("VmHWM")).split()[1]
    except (OSError, StopIteration):
        return 0
    return int(kilobytes) * 1024


def global_norm(gradients: list[np.ndarray]) -> float:
    """Of all gradients together, in float64."""
    return float(np.sqrt(sum(np.square(each.astype(np.float64)).sum() for each in gradients)))
