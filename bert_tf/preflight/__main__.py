"""Runs in the TPU compiler's environment: a request on standard input, answers as lines of JSON.

python -m bert_tf.preflight < request.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras as keras

from bert_tf.config import BertConfig, RunConfig
from bert_tf.distribution import POLICIES, Accelerator
from bert_tf.preflight import compiler, findings, program, stand_in
from bert_tf.preflight.report import HBM, Answer, Request, search


def main() -> None:
    """Answers one request; what cannot work is a line with `error`."""
    request = Request(**json.load(sys.stdin))
    try:
        for answer in answers(request):
            print(json.dumps(dataclasses.asdict(answer)), flush=True)
    except ValueError as error:
        print(json.dumps({"error": str(error)}), flush=True)


def answers(request: Request) -> Iterator[Answer]:
    """One for each program that is compiled."""
    run = RunConfig.from_dict(request.run)
    dtype = "bfloat16" if run.runtime.dtype == "auto" else run.runtime.dtype
    keras.mixed_precision.set_global_policy(POLICIES[dtype])
    accelerator = Accelerator("tpu", tf.distribute.get_strategy(), dtype)
    config = BertConfig(**request.config)
    replicas = len(compiler.topology(request.topology).devices)
    task = stand_in.stand_in(run, config, request.num_classes)

    def compile_all(is_training: bool, batch_size: int, width: int) -> Iterator[Answer]:
        kind = "train" if is_training else "evaluate"
        specs = stand_in.of_parts(task, batch_size // replicas, width, is_training)
        for part, own in specs.items():
            made = (
                program.train_program(run, task, own, accelerator, replicas)
                if is_training
                else program.predict_program(task, own, accelerator, replicas)
            )
            name = f"{kind} {part}".strip()
            yield Answer(
                program=name,
                batch_size=batch_size,
                replicas=replicas,
                width=own["token_ids"].shape[-1],
                **compiled_answer(made, request.topology),
            )

    run.train.check(replicas)
    if request.largest_batch:
        yield from search(
            run, replicas, lambda size: list(compile_all(True, size, request.widths[-1]))
        )
        return
    for width in request.widths:
        yield from compile_all(True, run.train.global_batch_size, width)
    if request.evaluate:
        yield from compile_all(False, run.train.eval_batch_size, request.widths[-1])


def compiled_answer(made: program.Program, topology: str) -> dict[str, Any]:
    """The fields of an answer that come from the compiler."""
    available = HBM[topology.partition(":")[0]]
    try:
        compiled = compiler.compile_program(made, topology)
    except (tf.errors.OpError, RuntimeError) as error:
        problems = findings.unsupported(str(error), made.graph)
        if not problems:
            raise
        nothing = dict.fromkeys(("seconds", "hbm_used", "flops", "bytes_accessed"), 0.0)
        return {**nothing, "hbm_available": available, "problems": problems, "largest": []}
    buffers = (
        findings.refused_buffers(compiled.refusal)
        if compiled.refusal
        else findings.largest_buffers(compiled.optimized)
    )
    return {
        "seconds": compiled.seconds,
        "hbm_used": compiled.hbm_used,
        "hbm_available": available,
        "flops": compiled.flops,
        "bytes_accessed": compiled.bytes_accessed,
        "problems": findings.unwanted(compiled.hlo, made.graph),
        "largest": buffers,
    }


if __name__ == "__main__":
    main()
