"""The driver's side of the protocol: a worker as a process, and what it may take."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import signal
import subprocess
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
CLOSING = 20.0  # seconds that a worker gets to end by itself
# Of TensorFlow and tokenizers: nothing of it changes a number.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONWARNINGS": "ignore"}


class WorkerFailed(Exception):  # noqa: N818
    """A worker could not do what it was asked for; the message says why."""


@dataclasses.dataclass(frozen=True)
class Program:
    """How a library's worker is started."""

    worker: str  # WORKER_worker.py
    python: str
    threads: int

    def command(self) -> list[str]:
        """Without anything of this process's own environment on the path."""
        return [self.python, str(HERE / f"{self.worker}_worker.py")]

    def environment(self) -> dict[str, str]:
        """Variables for the worker."""
        threads = str(self.threads)
        counts = {"OMP_NUM_THREADS": threads, "BENCHMARK_THREADS": threads}
        is_own = self.worker in ("bert_tf", "litert")
        path = {"PYTHONPATH": str(ROOT) if is_own else ""}
        return os.environ | QUIET | counts | path


class Worker:
    """One process; to be closed, as by `contextlib.closing`."""

    def __init__(self, program: Program, log: pathlib.Path) -> None:
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            self.process = subprocess.Popen(
                program.command(),
                env=program.environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,  # some compile in processes of their own
            )
        if hasattr(os, "sched_setaffinity"):  # Linux: thread pools that nobody thought of, too
            cores = sorted(os.sched_getaffinity(0))[: program.threads]
            os.sched_setaffinity(self.process.pid, cores)

    def ask(self, request: dict[str, Any], limit: float) -> dict[str, Any]:
        """The answer; raises WorkerFailed where there is none within `limit` seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write((json.dumps(request) + "\n").encode())
            self.process.stdin.flush()
        except BrokenPipeError:
            raise WorkerFailed(self.last_words()) from None
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.kill()
            raise WorkerFailed(f"stopped: {request['do']} took more than {limit:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise WorkerFailed(self.last_words())
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"])
        return reply

    def last_words(self) -> str:
        """Why the process has ended, as far as it said so."""
        self.process.wait()
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return f"ended with code {self.process.returncode}: {(lines or ['no message'])[-1][:200]}"

    def close(self) -> None:
        """Ends the process, and those that it has started."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # there is nothing more to be asked: it ends by itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSING)
        self.kill()

    def kill(self) -> None:
        """Ends the whole group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def available_memory() -> float:
    """Bytes; endless where Linux does not say."""
    try:
        with open("/proc/meminfo") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
    return int(line.split()[1]) * 1024.0
