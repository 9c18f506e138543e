"""What workers on TensorFlow share: threads, ceilings, tokenizers, loops around Keras models."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np
import safetensors.numpy
import tensorflow as tf
from protocol import Job, Prepared, global_norm
from workloads import (
    CHECKED_ROWS,
    COPIED_BYTES,
    LINES,
    MATRIX_SIDE,
    Variant,
    Workload,
    cut_batch,
    make_batches,
)

MODELS = [Variant(p, compiled) for p in ("float32", "bfloat16") for compiled in (False, True)]
UNSORTED = Variant(order="as_they_come")

Batch = dict[str, tf.Tensor]


def set_threads() -> None:
    """As many threads as the driver says, in BENCHMARK_THREADS; before the first operation."""
    threads = int(os.environ["BENCHMARK_THREADS"])
    tf.config.threading.set_intra_op_parallelism_threads(threads)


def matmul(job: Job) -> Prepared:
    """A product of large matrices: what no model can exceed."""
    dtype = tf.bfloat16 if job.workload.kind.endswith("bfloat16") else tf.float32
    matrix = tf.cast(tf.random.normal([MATRIX_SIDE, MATRIX_SIDE]), dtype)
    multiply = tf.function(lambda: tf.matmul(matrix, matrix))

    def run() -> float:
        multiply()[0, 0].numpy()
        return 2.0 * MATRIX_SIDE**3

    return Prepared(run, {})


def copy_memory(job: Job) -> Prepared:
    """A copy of a large array; every byte is read and written."""
    source = np.ones(COPIED_BYTES // 8)
    target = np.zeros_like(source)

    def run() -> float:
        np.copyto(target, source)
        return 2.0 * COPIED_BYTES

    return Prepared(run, {})


def tokenizer(job: Job, ids_of: Callable[[tf.Tensor], tf.Tensor]) -> Prepared:
    """Ids of all paragraphs, in batches; `ids_of` lines [N] are those of all of them, flat."""
    token_ids = tf.function(ids_of)
    lines = pathlib.Path(job.data).read_text("utf-8").splitlines()
    parts = [tf.constant(lines[i : i + LINES]) for i in range(0, len(lines), LINES)]
    first = token_ids(parts[0]).numpy()[:1000]
    return Prepared(lambda: float(sum(token_ids(part).shape[0] for part in parts)), {"ids": first})


# ------------------------------------------------------------------------ models of Keras libraries


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure a Keras library with."""
    if workload.kind in ("forward", "fine_tuning", "pretraining"):
        return MODELS + ([UNSORTED] if workload.lengths != "full" else [])
    if workload.kind == "start_up":
        return [variant for variant in MODELS if not variant.compiled]
    return [Variant(), Variant(compiled=True)] if workload.kind == "optimizer" else [Variant()]


@dataclasses.dataclass(frozen=True)
class KerasModel:
    """A library's model, by what is asked of it."""

    outputs: Callable[[Batch, bool], tuple[tf.Tensor, ...]]  # logits; of words and of pairs
    variables: list[tf.Variable]
    apply_gradients: Callable[[list[tf.Tensor]], object]  # clips, and moves all variables

    def loss(self, batch: Batch, training: bool) -> tf.Tensor:
        """The mean over the batch; of pre-training the sum of both means."""
        logits = [tf.cast(each, tf.float32) for each in self.outputs(batch, training)]
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits
        of_rows = tf.reduce_mean(cross_entropy(batch["labels"], logits[-1]))
        if len(logits) == 1:
            return of_rows
        weights = batch["masked_weights"]
        of_words = cross_entropy(batch["masked_ids"], logits[0]) * weights
        return tf.reduce_sum(of_words) / tf.reduce_sum(weights) + of_rows


def read_weights(job: Job) -> dict[str, np.ndarray]:
    """The checkpoint's, by the names of Hugging Face."""
    return safetensors.numpy.load_file(os.path.join(job.checkpoint, "model.safetensors"))


def tensors(batch: dict[str, np.ndarray]) -> Batch:
    """A batch as tensors."""
    return {name: tf.constant(values) for name, values in batch.items()}


def traced(
    job: Job, function: Callable[[Batch], tf.Tensor], batch: Batch
) -> Callable[[Batch], tf.Tensor]:
    """A graph; one for all widths where rows have several lengths."""
    is_full = job.workload.lengths == "full"
    specs = {
        name: tf.TensorSpec(value.shape if is_full else [None] * value.shape.rank, value.dtype)
        for name, value in batch.items()
    }
    return tf.function(function, input_signature=[specs], jit_compile=job.variant.compiled)


def forward(job: Job, model: KerasModel) -> Prepared:
    """Logits of all batches."""
    planned, order = make_batches(job.rows(), job.workload, job.variant)
    inputs = [tensors(batch) for batch in planned]
    function = traced(job, lambda batch: model.outputs(batch, False)[0], inputs[0])

    def run() -> list[np.ndarray]:
        return [tf.cast(function(batch), tf.float32).numpy() for batch in inputs]

    logits = np.concatenate(run())[np.argsort(order)]
    return Prepared(run, {"logits": logits})


def training(job: Job, model: KerasModel) -> Prepared:
    """Steps on all batches."""
    planned, _ = make_batches(job.rows(), job.workload, job.variant)
    inputs = [tensors(batch) for batch in planned]
    outputs = {} if job.workload.kind == "start_up" else checked_outputs(job, model)

    def step(batch: Batch) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = model.loss(batch, True)
        gradients = tape.gradient(loss, model.variables)
        model.apply_gradients([tf.convert_to_tensor(gradient) for gradient in gradients])
        return loss

    function = traced(job, step, inputs[0])

    def run(chosen: list[Batch]) -> None:
        for batch in chosen:
            loss = function(batch)
        if not np.isfinite(float(loss)):
            raise ValueError("the loss is not finite")

    # What is compiled is compiled for each shape.
    by_shape = {tuple(batch["mask"].shape): batch for batch in inputs}
    warm = list(by_shape.values()) if job.variant.compiled else [inputs[0], inputs[-1]]
    return Prepared(lambda: run(inputs), outputs, lambda: run(warm))


def checked_outputs(job: Job, model: KerasModel) -> dict[str, np.ndarray]:
    """Logits or losses of a few rows, and the norm of the gradient, without dropout."""
    numbers = np.arange(min(CHECKED_ROWS, job.workload.rows))
    batch = tensors(cut_batch(job.rows(), numbers))
    with tf.GradientTape() as tape:
        loss = model.loss(batch, False)
    gradients = [tf.convert_to_tensor(g) for g in tape.gradient(loss, model.variables)]
    norm = global_norm([tf.cast(gradient, tf.float32).numpy() for gradient in gradients])
    outputs = {"loss": np.array([loss.numpy()]), "gradient_norm": np.array([norm])}
    if job.workload.kind != "pretraining":
        outputs["logits"] = tf.cast(model.outputs(batch, False)[0], tf.float32).numpy()
    return outputs


def optimizer(job: Job, model: KerasModel) -> Prepared:
    """One update of all weights by gradients that are there."""
    gradients = [tf.random.normal(variable.shape) for variable in model.variables]

    @tf.function(jit_compile=job.variant.compiled)
    def step() -> tf.Tensor:
        model.apply_gradients(gradients)
        return tf.constant(0.0)

    return Prepared(lambda: step().numpy(), {})


def prepare_table(load: Callable[[Job], KerasModel]) -> dict[str, Callable[[Job], Prepared]]:
    """What a library with Keras models prepares, by kind of workload."""
    return {
        "forward": lambda job: forward(job, load(job)),
        "fine_tuning": lambda job: training(job, load(job)),
        "pretraining": lambda job: training(job, load(job)),
        "start_up": lambda job: training(job, load(job)),
        "optimizer": lambda job: optimizer(job, load(job)),
    }
