"""Measures onnxruntime on the graph that torch writes of a transformers model; forward alone."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.optimizer import optimize_model
from protocol import Job, Prepared, serve
from workloads import SHAPES, Variant, Workload, make_batches

NAMES = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "mask": "attention_mask"}
# `compiled`: with the layers of a BERT joined by onnxruntime's own optimizer of transformers.
MODELS = [
    Variant(precision, joined) for precision in ("float32", "int8") for joined in (True, False)
]
EXPORT = """
import sys
import torch
from transformers import BertForSequenceClassification

checkpoint, output = sys.argv[1:]
names = ["input_ids", "attention_mask", "token_type_ids"]
kind = BertForSequenceClassification
model = kind.from_pretrained(checkpoint, attn_implementation="eager").eval()
model.config.return_dict = False
ids = torch.ones(2, 16, dtype=torch.int64)
axes = {0: "batch", 1: "length"}
torch.onnx.export(
    model, (ids, ids, ids), output, input_names=names, output_names=["logits"],
    dynamic_axes={**{name: axes for name in names}, "logits": {0: "batch"}},
    opset_version=17, dynamo=False,
)
"""


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure."""
    return MODELS + ([Variant(order="as_they_come")] if workload.lengths != "full" else [])


def write_model(job: Job) -> str:
    """The file of the variant's model."""
    path = os.path.join(job.folder, "model.onnx")
    # By another process, so that torch takes none of this one's memory.
    subprocess.run([sys.executable, "-c", EXPORT, job.checkpoint, path], check=True)
    if job.variant.compiled:
        shape = SHAPES[job.workload.shape]
        joined = optimize_model(
            path, model_type="bert", num_heads=shape.heads, hidden_size=shape.hidden
        )
        joined.save_model_to_file(path)
    if job.variant.precision == "int8":
        quantized = os.path.join(job.folder, "int8.onnx")
        # Types behind joined operations are not inferred; all are float32.
        types = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8, extra_options=types)
        return quantized
    return path


def prepare_forward(job: Job) -> Prepared:
    """Logits of all batches."""
    plain = Variant(job.variant.precision, order=job.variant.order)  # it takes any width as it is
    planned, order = make_batches(job.rows(), job.workload, plain)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        write_model(job), options, providers=["CPUExecutionProvider"]
    )
    given = {each.name for each in session.get_inputs()}
    inputs = [
        {theirs: batch[ours].astype(np.int64) for ours, theirs in NAMES.items() if theirs in given}
        for batch in planned
    ]

    def run() -> list[np.ndarray]:
        return [session.run(["logits"], each)[0] for each in inputs]

    logits = np.concatenate(run())[np.argsort(order)]
    return Prepared(run, {"logits": logits})


if __name__ == "__main__":
    serve(
        {"forward": prepare_forward},
        variants,
        lambda: {"onnxruntime": onnxruntime.__version__},
    )
