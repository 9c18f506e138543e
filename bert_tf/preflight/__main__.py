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
from bert_tf.data.batches import widths_for
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
    replicas = len(compiler.topology(request.topology).devices)
    run.train.check(replicas)
    task = stand_in.stand_in(run, BertConfig(**request.config), request.classes)

    def compile_all(is_training: bool, batch_size: int, all_widths: bool) -> Iterator[Answer]:
        for part, own in stand_in.parts_of(task).items():
            widths = widths_for(own.run.data.max_seq_length, static=True)
            is_streamed = own.run.task.name == "pretraining"  # then all batches have one width
            for width in widths if all_widths and not is_streamed else widths[-1:]:
                size = stand_in.Size(batch_size // replicas, width, request.classes)
                specs = stand_in.features(own, part, size, is_training)
                make = program.train_program if is_training else program.predict_program
                made = make(task, specs, accelerator, replicas)
                yield Answer(
                    program=f"{'train' if is_training else 'evaluate'} {part}".strip(),
                    batch_size=batch_size,
                    replicas=replicas,
                    width=width,
                    **compiled_answer(made, request.topology),
                )

    if request.largest_batch:
        yield from search(run.train, replicas, lambda size: list(compile_all(True, size, False)))
        return
    yield from compile_all(True, run.train.global_batch_size, request.all_widths)
    if request.evaluate:
        yield from compile_all(False, run.train.eval_batch_size, request.all_widths)


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
