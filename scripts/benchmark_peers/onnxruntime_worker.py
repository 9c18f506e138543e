"""Measures onnxruntime on the graph that torch writes of a transformers model; forward alone."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import onnxruntime
from protocol import Job, Prepared, export_alone, serve
from workloads import SHAPES, Variant, Workload, make_batches

NAMES = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "mask": "attention_mask"}
# `compiled`: with the layers of a BERT joined by onnxruntime's own optimizer of transformers.
MODELS = [
    Variant(precision, joined) for precision in ("float32", "int8") for joined in (True, False)
]


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure."""
    return MODELS + ([Variant(order="as_they_come")] if workload.lengths != "full" else [])


def write_model(job: Job) -> None:
    """Writes the variant's model, by torch and by onnxruntime's own programs."""
    import onnx
    import torch  # not where models are run: it takes memory
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import BertForSequenceClassification

    path = os.path.join(job.folder, "plain.onnx")
    kind = BertForSequenceClassification
    model = kind.from_pretrained(job.checkpoint, attn_implementation="eager").eval()
    model.config.return_dict = False
    names = ["input_ids", "attention_mask", "token_type_ids"]
    ids = torch.ones(2, 16, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in names}
    torch.onnx.export(
        model,
        (ids, ids, ids),
        path,
        input_names=names,
        output_names=["logits"],
        dynamic_axes=axes | {"logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
    )
    if job.variant.compiled:
        shape = SHAPES[job.workload.shape]
        joined = optimize_model(
            path, model_type="bert", num_heads=shape.heads, hidden_size=shape.hidden
        )
        joined.save_model_to_file(path)
    if job.variant.precision == "int8":
        # Types behind joined operations are not inferred; all are float32.
        types = {"DefaultTensorType": onnx.TensorProto.FLOAT}
        output = model_file(job)
        quantize_dynamic(path, output, weight_type=QuantType.QInt8, extra_options=types)
    else:
        os.replace(path, model_file(job))


def model_file(job: Job) -> str:
    """Of the variant."""
    return os.path.join(job.folder, "model.onnx")


def prepare_forward(job: Job) -> Prepared:
    """Logits of all batches."""
    plain = Variant(job.variant.precision, order=job.variant.order)  # it takes any width as it is
    planned, order = make_batches(job.rows(), job.workload, plain)
    export_alone(job, "onnxruntime_worker.py")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(
        model_file(job), options, providers=["CPUExecutionProvider"]
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
    if sys.argv[1:2] == ["--export"]:
        write_model(Job.from_json(json.loads(sys.argv[2])))
        sys.exit()
    serve(
        {"forward": prepare_forward},
        variants,
        {"onnxruntime": onnxruntime.__version__},
    )
