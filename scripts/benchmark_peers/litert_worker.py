"""Measures what bert_tf exports to LiteRT, in a process without TensorFlow; forward alone."""

from __future__ import annotations

import os

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from protocol import Job, Prepared, export_alone, serve
from workloads import make_batches


def prepare_forward(job: Job) -> Prepared:
    """Answers of the signature `ids` to rows of ids."""
    planned, order = make_batches(job.rows(), job.workload, job.variant)
    export_alone(job, "bert_tf_worker.py")
    file = os.path.join(job.folder, "export", f"model_{job.variant.precision}.tflite")
    signature = Interpreter(file, num_threads=job.threads).get_signature_runner("ids")
    names = ("token_ids", "segment_ids", "mask")
    inputs = [{name: batch[name] for name in names} for batch in planned]

    def run() -> list[np.ndarray]:
        return [signature(**each)["logits"] for each in inputs]

    logits = np.concatenate(run())[np.argsort(order)]
    return Prepared(run, {"logits": logits})


if __name__ == "__main__":
    serve({"forward": prepare_forward}, lambda workload: [], {})  # bert_tf_worker.py has the list
