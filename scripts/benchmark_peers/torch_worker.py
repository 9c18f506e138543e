"""Measures Hugging Face transformers on torch.

Logits of masked words are computed at masked positions only, which transformers does not do by
itself: its `BertForPreTraining` computes those of all positions.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Callable

os.environ["HF_HUB_OFFLINE"] = "1"  # all weights are in a folder here
os.environ["TOKENIZERS_PARALLELISM"] = "true"

import numpy as np
import tokenizers
import torch
import transformers
from protocol import Job, Prepared, global_norm, serve
from torch.nn.functional import cross_entropy
from transformers import BertForPreTraining, BertForSequenceClassification, PreTrainedModel
from workloads import (
    CHECKED_ROWS,
    CLIP_NORM,
    COPIED_BYTES,
    EPSILON,
    LEARNING_RATE,
    LINES,
    MATRIX_SIDE,
    WEIGHT_DECAY,
    Variant,
    Workload,
    cut_batch,
    make_batches,
)

PRECISIONS = ("float32", "medium", "autocast", "bfloat16")  # the last: weights are bfloat16
MODELS = [Variant(p, compiled) for p in PRECISIONS for compiled in (False, True)]
UNSORTED = [Variant(order="as_they_come"), Variant("autocast", order="as_they_come")]

Batch = dict[str, torch.Tensor]


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure."""
    if workload.kind in ("forward", "fine_tuning", "pretraining"):
        return MODELS + (UNSORTED if workload.lengths != "full" else [])
    if workload.kind == "start_up":
        return [
            variant for variant in MODELS if not variant.compiled and variant.precision != "medium"
        ]
    if workload.kind == "optimizer":
        return [Variant(), Variant(compiled=True)]
    return [Variant()]


# -------------------------------------------------------------------------------- models and losses


def load(job: Job) -> PreTrainedModel:
    """The model in the precision of the variant."""
    torch.manual_seed(1)
    is_medium = job.variant.precision == "medium"
    torch.set_float32_matmul_precision("medium" if is_medium else "highest")
    kind = BertForSequenceClassification
    if job.workload.kind == "pretraining":
        kind = BertForPreTraining
    dtype = torch.bfloat16 if job.variant.precision == "bfloat16" else torch.float32
    model = kind.from_pretrained(job.checkpoint, dtype=dtype, attn_implementation="sdpa")
    assert isinstance(model, PreTrainedModel)
    return model


def compiled(job: Job, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`torch.compile`, where the variant says so; once for all lengths where there are several."""
    if not job.variant.compiled:
        return function
    return torch.compile(function, dynamic=job.workload.lengths != "full")


def autocast(job: Job) -> contextlib.AbstractContextManager[object]:
    """bfloat16 where the variant says so."""
    return torch.autocast("cpu", torch.bfloat16, enabled=job.variant.precision == "autocast")


def tensors(batch: dict[str, np.ndarray]) -> Batch:
    """A batch as transformers names it."""
    names = {"token_ids": "input_ids", "segment_ids": "token_type_ids", "mask": "attention_mask"}
    made = {names.get(name, name): torch.from_numpy(values) for name, values in batch.items()}
    ids = ("input_ids", "labels", "masked_positions", "masked_ids")
    return {name: value.long() if name in ids else value for name, value in made.items()}


def logits_of(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Of a classifier: [B, C]."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    return model(**{name: batch[name] for name in names}).logits


def classification_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The mean over the batch."""
    return cross_entropy(logits_of(model, batch).float(), batch["labels"])


def pretraining_loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """The sum of both means: over masked words, and over rows."""
    names = ("input_ids", "token_type_ids", "attention_mask")
    outputs = model.bert(**{name: batch[name] for name in names})
    sequence = outputs.last_hidden_state
    places = batch["masked_positions"][:, :, None].expand(-1, -1, sequence.shape[-1])
    words, following = model.cls(torch.gather(sequence, 1, places), outputs.pooler_output)
    losses = cross_entropy(
        words.float().flatten(0, 1), batch["masked_ids"].flatten(), reduction="none"
    )
    weights = batch["masked_weights"].flatten()
    of_words = (losses * weights).sum() / weights.sum()
    return of_words + cross_entropy(following.float(), batch["labels"])


# ------------------------------------------------------------------------------------------ forward


def prepare_forward(job: Job) -> Prepared:
    """Logits of all batches."""
    planned, order = make_batches(job.rows(), job.workload, padded_little(job))
    model = load(job).eval()
    forward = compiled(job, lambda batch: logits_of(model, batch))
    inputs = [tensors(batch) for batch in planned]

    def run() -> list[np.ndarray]:
        with torch.inference_mode(), autocast(job):
            return [forward(batch).float().numpy() for batch in inputs]

    logits = np.concatenate(run())[np.argsort(order)]
    return Prepared(run, {"logits": logits})


def padded_little(job: Job) -> Variant:
    """The variant for `make_batches`: torch compiles once for all widths."""
    return Variant(job.variant.precision, order=job.variant.order)


# ----------------------------------------------------------------------------------------- training


def make_optimizer(model: PreTrainedModel) -> torch.optim.Optimizer:
    """AdamW in one operation for all weights; no decay of biases and LayerNorm."""
    named = list(model.named_parameters())
    plain = [value for name, value in named if name.endswith("bias") or "LayerNorm" in name]
    others = [value for name, value in named if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [
        {"params": others, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, eps=EPSILON, fused=True)


def prepare_training(job: Job) -> Prepared:
    """Steps on all batches."""
    loss_of = pretraining_loss if job.workload.kind == "pretraining" else classification_loss
    rows = job.rows()
    planned, _ = make_batches(rows, job.workload, padded_little(job))
    model = load(job)
    is_start = job.workload.kind == "start_up"
    outputs = {} if is_start else checked_outputs(job, model, loss_of)
    model.train()
    optimizer = make_optimizer(model)
    loss_function = compiled(job, lambda batch: loss_of(model, batch))
    inputs = [tensors(batch) for batch in planned]

    def run(chosen: list[Batch]) -> None:
        for batch in chosen:
            with autocast(job):
                loss = loss_function(batch)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=True)
            optimizer.step()
        if not np.isfinite(loss.item()):
            raise ValueError("the loss is not finite")

    return Prepared(lambda: run(inputs), outputs, lambda: run([inputs[0], inputs[-1]]))


def checked_outputs(
    job: Job, model: PreTrainedModel, loss_of: Callable[..., torch.Tensor]
) -> dict[str, np.ndarray]:
    """Logits or losses of a few rows, and the norm of the gradient, without dropout."""
    numbers = np.arange(min(CHECKED_ROWS, job.workload.rows))
    batch = tensors(cut_batch(job.rows(), numbers))
    model.eval()
    with autocast(job):
        loss = loss_of(model, batch)
    loss.backward()
    gradients = [p.grad.float().numpy() for p in model.parameters() if p.grad is not None]
    norm = global_norm(gradients)
    model.zero_grad()
    outputs = {"loss": np.array([loss.item()]), "gradient_norm": np.array([norm])}
    if job.workload.kind != "pretraining":
        with torch.no_grad(), autocast(job):
            outputs["logits"] = logits_of(model, batch).float().numpy()
    return outputs


def prepare_optimizer(job: Job) -> Prepared:
    """One update of all weights, with the clipping before it."""
    model = load(job)
    optimizer = make_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    values = list(model.parameters())

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(values, CLIP_NORM, foreach=True)
        optimizer.step()

    stepping = torch.compile(step) if job.variant.compiled else step
    return Prepared(stepping, {})


# ----------------------------------------------------------------------------- text and the ceiling


def prepare_tokenizer(job: Job) -> Prepared:
    """Ids of all paragraphs by `tokenizers`, which transformers stands on; on all cores."""
    vocabulary = os.path.join(job.checkpoint, "vocab.txt")
    tokenizer = tokenizers.BertWordPieceTokenizer(vocabulary, lowercase=True)
    lines = pathlib.Path(job.data).read_text("utf-8").splitlines()
    encode = tokenizer._tokenizer.encode_batch_fast  # without offsets

    def run() -> float:
        return float(sum(len(each) for each in encode(lines, add_special_tokens=False)))

    few = encode(lines[:LINES], add_special_tokens=False)
    ids = np.array([i for each in few for i in each.ids][:1000])
    return Prepared(run, {"ids": ids})


def matmul(job: Job) -> Prepared:
    """A product of large matrices: what no model can exceed."""
    dtype = torch.bfloat16 if job.workload.kind.endswith("bfloat16") else torch.float32
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(dtype)

    def run() -> float:
        torch.matmul(matrix, matrix)
        return 2.0 * MATRIX_SIDE**3

    return Prepared(run, {})


def copy_memory(job: Job) -> Prepared:
    """A copy of a large array; every byte is read and written."""
    source = torch.ones(COPIED_BYTES // 4)
    target = torch.zeros_like(source)

    def run() -> float:
        target.copy_(source)
        return 2.0 * COPIED_BYTES

    return Prepared(run, {})


PREPARE = {
    "matmul_float32": matmul,
    "matmul_bfloat16": matmul,
    "memory_copy": copy_memory,
    "forward": prepare_forward,
    "fine_tuning": prepare_training,
    "pretraining": prepare_training,
    "start_up": prepare_training,
    "optimizer": prepare_optimizer,
    "tokenizer": prepare_tokenizer,
}

if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["BENCHMARK_THREADS"]))
    transformers.logging.set_verbosity_error()
    serve(
        PREPARE,
        variants,
        {"torch": torch.__version__, "transformers": transformers.__version__},
    )
