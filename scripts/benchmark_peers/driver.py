"""In which order everything is measured.

For each workload: the exact outputs; then the qualifying, in which every library runs once in each
of its settings, and in which outputs are compared; then rounds in which the best settings of each
library, all started and warm, run in turn, so that only one computes at a time and whatever the
machine does meanwhile meets all of them.

Peers find their batches in memory, padded and in order; bert_tf makes its own by its pipeline,
which counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any

import numpy as np
from absl import logging
from processes import Program, Worker, WorkerFailed, available_memory
from protocol import Job
from workloads import Variant, Workload

# Largest difference from the exact outputs, as a share of their size. Rounding to 8 bits of
# mantissa moves these models by a few hundredths; what is beyond is a mistake, not rounding.
TOLERANCES = {"float32": 2e-3, "medium": 0.1, "autocast": 0.3, "bfloat16": 0.3, "int8": 0.6}
IDS_TOLERANCE = (
    0.01  # of tokenizers, some of which do not split each rare character as the original
)
NEAR = 1.3  # settings this near to a library's best take part in the rounds,
MOST = 2  # so many of each library at most
SLOW = 4.0  # settings this far from a library's best are stopped, and not tried again
LEAST_LIMIT = 30.0  # seconds before anything is stopped
LEAST_SECONDS = 0.5  # of one measurement: what is faster is repeated,
MOST_REPEATS = 20  # so many times at most
MEMORY_SHARE = 0.8  # of the memory that is available, for workers that wait for their turn


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure."""

    programs: dict[str, Program]  # by library
    rounds: int
    limit: float  # seconds for a qualifying run, and for what comes before it
    logs: pathlib.Path
    scratch: pathlib.Path


@dataclasses.dataclass
class Result:
    """A library in one of its settings at one workload."""

    workload: str
    peer: str
    variant: str
    precision: str
    note: str = ""  # why it was not measured, or not in the rounds
    difference: float | None = None  # from the exact outputs
    qualifying: dict[str, float] = dataclasses.field(default_factory=dict)  # wall and cpu
    walls: list[float] = dataclasses.field(default_factory=list)  # seconds, by round
    cpus: list[float] = dataclasses.field(default_factory=list)
    units: float = 0.0  # of a run
    peak_memory: int = 0  # bytes
    prepare_seconds: float = 0.0  # from the start of the process to its first run


class Candidate:
    """A library in one of its settings, with its worker while it runs."""

    def __init__(self, settings: Settings, peer: str, job: Job) -> None:
        self.settings, self.peer, self.job = settings, peer, job
        workload, variant = job.workload, job.variant
        self.result = Result(workload.name, peer, variant.name, variant.precision)
        self.name = f"{workload.name} {peer} {variant.name}"
        self.worker: Worker | None = None
        self.repeats = 1

    def start(self) -> None:
        """Starts and prepares."""
        began = time.perf_counter()
        pathlib.Path(self.job.folder).mkdir(parents=True, exist_ok=True)
        log = self.settings.logs / (self.name.replace("/", "-").replace(" ", "_") + ".log")
        program = self.settings.programs[self.peer]
        if self.job.variant.worker:
            program = dataclasses.replace(program, worker=self.job.variant.worker)
        self.worker = Worker(program, log)
        request = {"do": "prepare", "job": self.job.to_json()}
        self.worker.ask(request, self.settings.limit)
        self.result.prepare_seconds = time.perf_counter() - began

    def ask(self, limit: float, **request: Any) -> dict[str, Any]:
        """An answer of the worker, which is running."""
        assert self.worker is not None
        reply = self.worker.ask(request, limit)
        self.result.peak_memory = max(self.result.peak_memory, reply["peak_memory"])
        return reply

    def run(self, limit: float) -> dict[str, float]:
        """One measurement."""
        if self.job.workload.kind == "start_up":
            return self.run_from_nothing()
        return self.ask(limit, do="run", repeats=self.repeats)

    def run_from_nothing(self) -> dict[str, float]:
        """From the start of a process to the end of its first step."""
        self.stop()
        began = time.perf_counter()
        self.start()
        reply = self.ask(self.settings.limit, do="run", repeats=1)
        wall = time.perf_counter() - began
        self.stop()
        return {"wall": wall, "cpu": reply["process_cpu"], "units": 1.0}

    def outputs(self) -> dict[str, np.ndarray]:
        """What the worker computed when it prepared."""
        with np.load(pathlib.Path(self.job.folder) / "outputs.npz") as file:
            return dict(file)

    def stop(self) -> None:
        """Ends the worker."""
        if self.worker is not None:
            self.worker.close()
        self.worker = None


# ---------------------------------------------------------------------------------------- the order


def variants_of(
    settings: Settings, workloads: list[Workload]
) -> tuple[dict[str, list[list[Variant]]], dict[str, str]]:
    """The settings of each library for each workload, and the versions of all libraries.

    A library whose worker does not even start is taken out of the settings' programs; its version
    then says why.
    """
    found, versions = {}, {}
    for peer, program in list(settings.programs.items()):
        log = settings.logs / f"{peer}.log"
        try:
            with contextlib.closing(Worker(program, log)) as worker:
                replies = [
                    worker.ask(
                        {"do": "variants", "workload": dataclasses.asdict(w)}, settings.limit
                    )
                    for w in workloads
                ]
        except WorkerFailed as failure:
            versions[peer] = f"does not start: {failure}"
            del settings.programs[peer]
            continue
        found[peer] = [[Variant(**each) for each in reply["variants"]] for reply in replies]
        versions |= replies[0]["versions"]
    return found, versions


def measure(
    settings: Settings,
    job: Job,
    variants: dict[str, list[Variant]],
    slow: dict[tuple[str, str, str], str],
) -> list[Result]:
    """All results of one workload.

    Args:
        settings: how to measure.
        job: everything but variant and folder.
        variants: settings to try, by library.
        slow: by kind of workload, library and variant, what is not tried again, and why; more of
            it is found out here.
    """
    reference = exact_outputs(settings, job)
    candidates = []
    for peer, of_peer in variants.items():
        best = math.inf
        for number, variant in enumerate(of_peer):
            folder = settings.scratch / job.workload.name.replace("/", "-") / f"{peer}-{number}"
            own = dataclasses.replace(job, variant=variant, folder=str(folder))
            candidate = Candidate(settings, peer, own)
            limit = settings.limit if best == math.inf else max(SLOW * best, LEAST_LIMIT)
            candidates.append(candidate)
            key = (job.workload.kind, peer, variant.name)
            if key in slow:
                candidate.result.note = slow[key]
                continue
            try:
                qualify(candidate, reference, min(limit, settings.limit))
                best = min(best, candidate.result.qualifying.get("wall", math.inf))
            finally:
                keep_near(candidates)
    slow |= hopeless(candidates)
    try:
        in_rounds(settings, finalists(candidates))
    finally:
        for candidate in candidates:
            candidate.stop()
    return [candidate.result for candidate in candidates]


def exact_outputs(settings: Settings, job: Job) -> dict[str, np.ndarray]:
    """What bert_tf's plain formulas give in float32; nothing where a workload has no outputs.

    Of a tokenizer, what bert_tf gives: its tests hold it equal to the original release's.
    """
    if job.workload.kind not in ("forward", "fine_tuning", "pretraining", "tokenizer"):
        return {}
    folder = settings.scratch / job.workload.name.replace("/", "-") / "reference"
    job = dataclasses.replace(job, reference=True, folder=str(folder))
    candidate = Candidate(settings, "bert_tf", job)
    try:
        candidate.start()
        return candidate.outputs()
    finally:
        candidate.stop()


def qualify(candidate: Candidate, reference: dict[str, np.ndarray], limit: float) -> None:
    """Compares outputs, then runs once, warm."""
    result = candidate.result
    is_start = candidate.job.workload.kind == "start_up"
    try:
        if not is_start:
            prepare(candidate, reference)
        reply = candidate.run(limit)
        repeats = 1 if is_start else math.ceil(LEAST_SECONDS / max(reply["wall"], 1e-6))
        if repeats > 1:
            candidate.repeats = min(repeats, MOST_REPEATS)
            reply = candidate.run(limit)
        result.qualifying = {name: reply[name] for name in ("wall", "cpu")}
        result.units = float(reply["units"] or candidate.job.workload.rows)
        result.note = "qualifying run alone"
        logging.info("%s: %.3f s", candidate.name, reply["wall"])
    except WorkerFailed as failure:
        result.note = str(failure)
        logging.info("%s: %s", candidate.name, failure)


def prepare(candidate: Candidate, reference: dict[str, np.ndarray]) -> None:
    """Starts a worker and warms it; raises WorkerFailed where its outputs are wrong."""
    result = candidate.result
    candidate.start()
    result.difference = largest_difference(candidate.outputs(), reference)
    is_text = candidate.job.workload.kind == "tokenizer"
    tolerance = IDS_TOLERANCE if is_text else TOLERANCES[result.precision]
    if result.difference is not None and not result.difference <= tolerance:
        raise WorkerFailed(f"outputs differ by {result.difference:.2g}, above {tolerance:g}")
    candidate.ask(candidate.settings.limit, do="warm_up")


def hopeless(candidates: list[Candidate]) -> dict[tuple[str, str, str], str]:
    """Settings so far from their library's best that other sizes will not save them."""
    found = {}
    for candidate in candidates:
        of_peer = [c for c in candidates if c.peer == candidate.peer and c.result.qualifying]
        best = min((c.result.qualifying["wall"] for c in of_peer), default=0.0)
        wall = candidate.result.qualifying.get("wall", math.inf)
        was_stopped = candidate.result.note.startswith("stopped: run")
        if of_peer and (was_stopped or SLOW * best < wall < math.inf):
            workload, name = candidate.job.workload, candidate.job.variant.name
            reason = f"not tried: {SLOW:g} times slower than another setting at {workload.name}"
            found[workload.kind, candidate.peer, name] = reason
    return found


def keep_near(candidates: list[Candidate]) -> None:
    """Ends all workers but those that would take part in the rounds by now."""
    chosen = finalists(candidates)
    for candidate in candidates:
        if candidate not in chosen:
            candidate.stop()


def largest_difference(
    outputs: dict[str, np.ndarray], reference: dict[str, np.ndarray]
) -> float | None:
    """The largest of all outputs' differences; None where there is nothing to compare."""
    found = [
        difference(outputs[name], exact) for name, exact in reference.items() if name in outputs
    ]
    return max(found) if found else None


def difference(output: np.ndarray, exact: np.ndarray) -> float:
    """Of ids, the share that the other does not have; of numbers, how wrong they are.

    The root mean square of what is wrong is told as a share of how much rows differ from one
    another, or of the numbers where there is but one row.
    """
    if np.issubdtype(exact.dtype, np.integer):
        size = int(max(output.max(), exact.max())) + 1
        counts = [np.bincount(ids, minlength=size) for ids in (output, exact)]
        return float(np.abs(counts[0] - counts[1]).sum() / len(exact))
    spread = exact - exact.mean(axis=0) if exact.ndim and len(exact) > 1 else exact
    return float(np.sqrt(np.mean(np.square(output - exact)) / np.mean(np.square(spread))))


def finalists(candidates: list[Candidate]) -> list[Candidate]:
    """The best of each library and those near to it, as many as have room in memory together."""
    able = [candidate for candidate in candidates if candidate.result.qualifying]
    able.sort(key=lambda candidate: candidate.result.qualifying["wall"])
    best: dict[str, float] = {}
    for candidate in able:
        best.setdefault(candidate.peer, candidate.result.qualifying["wall"])

    def distance(candidate: Candidate) -> float:
        return candidate.result.qualifying["wall"] / best[candidate.peer]

    running = sum(candidate.result.peak_memory for candidate in able if candidate.worker)
    room = MEMORY_SHARE * available_memory() + running  # theirs is not available any more
    chosen: list[Candidate] = []
    for candidate in sorted(able, key=distance):
        room -= candidate.result.peak_memory
        others = sum(candidate.peer == each.peer for each in chosen)
        is_near = distance(candidate) <= NEAR and others < MOST
        if not others or (is_near and room >= 0):
            chosen.append(candidate)
    return chosen


def in_rounds(settings: Settings, chosen: list[Candidate]) -> None:
    """Measures all in turn, again and again, each time beginning with another one."""
    ready = []
    for candidate in chosen:
        try:
            if candidate.worker is None and candidate.job.workload.kind != "start_up":
                candidate.start()
                candidate.ask(settings.limit, do="warm_up")
            ready.append(candidate)
        except WorkerFailed as failure:
            candidate.result.note = str(failure)
    for number in range(settings.rounds):
        shift = number % max(len(ready), 1)
        for candidate in ready[shift:] + ready[:shift]:
            one_more(settings, candidate)
    for candidate in ready:
        if len(candidate.result.walls) == settings.rounds:
            candidate.result.note = ""


def one_more(settings: Settings, candidate: Candidate) -> None:
    """One measurement in the rounds; a library that fails takes no further part."""
    result = candidate.result
    if len(result.walls) and result.note.startswith("failed"):
        return
    try:
        reply = candidate.run(settings.limit * candidate.repeats)
        result.walls.append(reply["wall"])
        result.cpus.append(reply["cpu"])
    except WorkerFailed as failure:
        result.note = f"failed in round {len(result.walls) + 1}: {failure}"
