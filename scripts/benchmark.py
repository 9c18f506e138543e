"""Measures bert_tf side by side with other libraries, on this machine, in one run.

    python scripts/benchmark_peers/environments.py      # once: an environment for each library
    python scripts/benchmark.py --output=benchmark
    python scripts/benchmark.py --output=benchmark --workloads=forward,tokenizer --peers=torch
    python scripts/benchmark.py --output=benchmark --workloads=tokenizer --threads=1 \
        --vocab_file=vocab.txt --text='books/*.txt'

Every library runs in a process and an environment of its own, from the same random weights, in all
of its settings that might be its best; its outputs are compared before it is timed. See
`benchmark_peers/driver.py` for the order, `benchmark_peers/workloads.py` for what is measured. The
output folder gets `results.json`, `results.md` and `results.png` (extra `plots`).
"""

from __future__ import annotations

import datetime
import os
import pathlib
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator

# Its modules also run by themselves, in environments that know nothing of this package.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "benchmark_peers"))

import environments
import inputs
import numpy as np
import report
import tensorflow as tf
import workloads
from absl import flags, logging
from driver import Settings, measure, variants_of
from processes import Program, WorkerFailed
from protocol import Job

from bert_tf import command_line
from bert_tf.config import VERSION
from bert_tf.data.files import find_files

OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", required=True)
WORKLOADS = flags.DEFINE_list("workloads", [], "Beginnings of their names; none: all.")
SHAPES = flags.DEFINE_list("shapes", [], f"Of {', '.join(workloads.SHAPES)}; none: all but tiny.")
PEERS = flags.DEFINE_list("peers", list(environments.PEERS), "Libraries to measure beside bert_tf.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Of which the median is told.", lower_bound=1)
THREADS = flags.DEFINE_integer("threads", 0, "Cores; 0: all.", lower_bound=0)
LIMIT = flags.DEFINE_float("limit", 600.0, "Seconds for one qualifying run, and for preparing it.")
EPOCH_SENTENCES = flags.DEFINE_integer(
    "epoch_sentences",
    1024,
    "Sentences of SST-2's lengths; BERT-base gets a quarter.",
    lower_bound=4,
)
ALLOW_LOAD = flags.DEFINE_bool("allow_load", False, "Measure on a busy machine, without a verdict.")
VOCAB_FILE = flags.DEFINE_string("vocab_file", "", "Of the tokenizer; default: a made-up language.")
TEXT = flags.DEFINE_string("text", "", "Files of prose, as patterns with commas between them.")


def chosen_workloads() -> list[workloads.Workload]:
    """What the flags name, and the ceilings; raises ValueError where that is nothing."""
    if "tiny" in SHAPES.value:
        found = workloads.tiny_workloads()
    else:
        found = workloads.all_workloads(EPOCH_SENTENCES.value)
    known = sorted({workload.kind for workload in found})
    for name in WORKLOADS.value:
        if not any(workload.name.startswith(name) for workload in found):
            raise ValueError(f"--workloads={name} names nothing; there are {', '.join(known)}.")
    for name in SHAPES.value:
        if name not in workloads.SHAPES:
            raise ValueError(f"--shapes={name}: choose of {', '.join(workloads.SHAPES)}.")
    named = [
        workload
        for workload in found
        if (not WORKLOADS.value or workload.name.startswith(tuple(WORKLOADS.value)))
        and (not SHAPES.value or workload.shape in ("", *SHAPES.value))
    ]
    if any(workload.shape for workload in named):
        # What the machine can do at most; figures of text have no such limit.
        named += [w for w in found if w.kind in report.CEILINGS and w not in named]
    return [workload for workload in found if workload in named]


def find_programs(threads: int) -> tuple[dict[str, Program], dict[str, str]]:
    """How to start each library, and why those that are missing are."""
    programs = {"bert_tf": Program("bert_tf", sys.executable, threads)}
    missing = {}
    for peer in PEERS.value:
        if peer not in environments.PEERS:
            raise ValueError(f"--peers={peer}: choose of {', '.join(environments.PEERS)}.")
        if not environments.is_made(peer):
            logging.info("Making an environment for %s.", peer)
        try:
            programs[peer] = Program(peer, str(environments.make(peer)), threads)
        except environments.NotInstalled as error:
            missing[peer] = str(error)
    return programs, missing


def given_text() -> str:
    """All files of prose; raises ValueError where there is none."""
    if not TEXT.value:
        return ""
    parts = []
    for path in find_files(TEXT.value, "--text"):
        with tf.io.gfile.GFile(path, "rb") as file:
            parts.append(file.read().decode(errors="replace"))
    return "\n\n".join(parts)


def about(load: float, threads: int) -> dict[str, object]:
    """What the figures depend on."""
    return {
        "command": " ".join(["python", "scripts/benchmark.py", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "machine": f"{processor()}, {os.cpu_count()} cores, {platform.system()}",
        "threads": threads,
        "load before": load,
        "rounds": ROUNDS.value,
        "bert_tf": VERSION,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Its name and what it computes products with."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    values = {name.strip(): value.strip() for name, value in values.items()}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    has = set(values.get("flags", "").split())
    return (
        f"{values.get('model name', platform.machine())} ({' '.join(k for k in known if k in has)})"
    )


def measure_all(
    settings: Settings,
    chosen: list[workloads.Workload],
    variants: dict[str, list[list[workloads.Variant]]],
    text: str,
) -> Iterator[report.Measured]:
    """All workloads in order; what fails as a whole is told and left out."""
    slow: dict[tuple[str, str, str], str] = {}
    for number, workload in enumerate(chosen):
        logging.info("%s (%d of %d)", workload.name, number + 1, len(chosen))
        checkpoint, data = inputs.make_inputs(
            workload, settings.scratch / "inputs", text, VOCAB_FILE.value
        )
        threads = next(iter(settings.programs.values())).threads
        job = Job(workload, workloads.Variant(), threads, checkpoint, data)
        try:
            of_workload = {peer: found[number] for peer, found in variants.items()}
            results = measure(settings, job, of_workload, slow)
        except WorkerFailed as failure:
            logging.error("%s: no exact outputs to compare with: %s", workload.name, failure)
            continue
        work = 0.0
        if workload.shape:
            with np.load(data) as rows:
                work = workloads.work(workload, dict(rows))
        yield report.Measured(workload.name, workload.kind, workload.unit, work, results)


def write(
    output: pathlib.Path,
    measured: list[report.Measured],
    facts: dict[str, object],
    missing: dict[str, str],
) -> None:
    """All files of the output folder."""
    (output / "results.md").write_text(report.markdown(measured, facts, missing), "utf-8")
    report.write_json(output / "results.json", measured, facts, missing)
    try:
        report.draw(output / "results.png", measured)
    except ModuleNotFoundError as error:
        logging.warning("No picture: %s is not installed (pip install matplotlib).", error.name)


def main(unused_argv: list[str]) -> None:
    """Measures, prints and writes."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(command_line.EXIT_PREEMPTED))  # tidies up
    load = os.getloadavg()[0]
    report.check_load(load, ALLOW_LOAD.value)
    chosen, text = chosen_workloads(), given_text()
    threads = THREADS.value or len(os.sched_getaffinity(0))
    programs, missing = find_programs(threads)
    for peer, reason in missing.items():
        print(f"{peer} is missing: {reason}")
    output = pathlib.Path(OUTPUT.value).absolute()
    output.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="benchmark-", dir=output))
    measured: list[report.Measured] = []
    try:
        settings = Settings(programs, ROUNDS.value, LIMIT.value, output / "logs", scratch)
        variants, versions = variants_of(settings, chosen)
        facts = about(load, threads) | versions
        for one in measure_all(settings, chosen, variants, text):
            measured.append(one)
            print(report.table(one, report.ceilings(measured)) + "\n", flush=True)
            write(output, measured, facts, missing)  # a whole run takes hours
    finally:
        shutil.rmtree(scratch)
    for line in report.verdicts(measured, load):
        print(line)
    print(output / "results.md")


if __name__ == "__main__":
    command_line.run_script(main)
