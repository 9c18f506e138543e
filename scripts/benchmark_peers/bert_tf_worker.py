"""Measures bert_tf itself, and computes the exact outputs that all libraries are compared with."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_work
from protocol import Job, Prepared, export_alone, global_norm, serve
from workloads import (
    CHECKED_ROWS,
    CLIP_NORM,
    CLS,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Variant,
    Workload,
    cut_batch,
    first_rows,
    make_batches,
)

from bert_tf import run_folder, training
from bert_tf.checkpoints import Pretrained, read_pretrained
from bert_tf.config import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    RuntimeConfig,
    TaskConfig,
    TrainConfig,
)
from bert_tf.data import batches, packing
from bert_tf.data.creation import CreationConfig, create_pretraining_data
from bert_tf.data.instances import InstanceConfig
from bert_tf.distribution import Accelerator, connect
from bert_tf.encoder import variables_by_name
from bert_tf.export import FORMATS
from bert_tf.layouts import PaddedLayout
from bert_tf.optimization import Optimizer, moving
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.contract import Features, Task
from bert_tf.tasks.pretraining import PretrainingTask
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

RUNS = 400  # that a training job may be asked for at most
PACKED_SEQUENCES = 4  # that may share a row
FORMAT = {"float32": "saved_model", "bfloat16": "saved_model_cpu", "int8": "saved_model_int8"}
TRAINED = [Variant("float32"), Variant("bfloat16")]
VARIANTS = {
    "matmul_bfloat16": [Variant("bfloat16")],
    "forward": [
        Variant("float32"),
        Variant("int8", worker="litert"),
        Variant("int8"),
        Variant("bfloat16"),
    ],
    "fine_tuning": TRAINED,
    "pretraining": TRAINED,
    "start_up": TRAINED,
}


# ------------------------------------------------------------------------------ runs and their data


def run_of(job: Job, task: TaskConfig, steps: int = 0) -> RunConfig:
    """The configuration that a user would train with."""
    dtype = job.variant.precision
    return RunConfig(
        model=ModelConfig(init_checkpoint=job.checkpoint),
        data=DataConfig(max_seq_length=job.workload.length),
        task=task,
        optimizer=OptimizerConfig(
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            clip_norm=CLIP_NORM,
            epsilon=EPSILON,
        ),
        train=TrainConfig(global_batch_size=job.workload.batch, steps=steps, deterministic=False),
        runtime=RuntimeConfig("cpu", dtype=dtype if dtype != "int8" else "float32"),
    )


class Opened(NamedTuple):
    """A task, the accelerator with its dtype policy, and the checkpoint."""

    task: Task
    accelerator: Accelerator
    pretrained: Pretrained

    def model(self, padded: bool = False) -> tf.Module:
        """The task's model with the checkpoint's weights."""
        model = self.task.build_model(PaddedLayout if padded else self.accelerator.layout)
        assign(variables_by_name(model), self.pretrained.weights, self.pretrained.source)
        return model


def open_task(job: Job, name: str, steps: int = 0) -> Opened:
    """What a run with this configuration begins with."""
    packed = PACKED_SEQUENCES if job.workload.packed and not job.reference else 1
    run = run_of(job, TaskConfig(name, packed_sequences=packed), steps)
    accelerator = connect(run.runtime)
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    if name == "pretraining":
        task: Task = PretrainingTask(run, pretrained.config, pretrained.tokenizer)
    else:
        labels = Labels("class", ("0", "1"))
        task = ClassificationTask(run, pretrained.config, pretrained.tokenizer, labels)
    return Opened(task, accelerator, pretrained)


def features_of(batch: dict[str, np.ndarray]) -> Features:
    """A batch of the other libraries as this one names it."""
    size = len(batch["labels"])
    features = {name: batch[name] for name in ("token_ids", "segment_ids", "mask")}
    features |= {"weight": np.ones(size, np.float32), "label": batch["labels"]}
    if "masked_ids" in batch:
        features |= {n: batch[n] for n in ("masked_positions", "masked_ids", "masked_weights")}
        features["cls_positions"] = np.zeros([size, 1], np.int32)
        features["next_sentence_labels"] = batch["labels"][:, np.newaxis]
        features["next_sentence_weights"] = np.ones([size, 1], np.float32)
    return {name: tf.constant(values) for name, values in features.items()}


# ------------------------------------------------------------------------------------------ forward


def prepare_forward(job: Job) -> Prepared:
    """Answers of an exported SavedModel to rows of ids."""
    rows = job.rows()
    planned, order = make_batches(rows, job.workload, job.variant)
    if job.reference:
        model = open_task(job, "classification").model(padded=True)
        parts = [model(features_of(batch)).numpy() for batch in planned]
        return Prepared(lambda: None, {"logits": np.concatenate(parts)[np.argsort(order)]})
    export_alone(job, "bert_tf_worker.py")
    signature = load_alone(newest_export(job))
    names = ("token_ids", "segment_ids", "mask")
    inputs = [{name: tf.constant(batch[name]) for name in names} for batch in planned]

    def run() -> list[np.ndarray]:
        return [signature(**each)["logits"].numpy() for each in inputs]

    logits = np.concatenate(run())[np.argsort(order)]
    return Prepared(run, {"logits": logits})


def export(job: Job) -> None:
    """Writes the export of a job's variant."""
    opened = open_task(job, "classification")
    run = OpenedRun(opened.task.run, opened.task, opened.model(), {}, job.checkpoint)
    name = job.variant.worker or FORMAT[job.variant.precision]
    FORMATS[name].write(run, os.path.join(job.folder, "export"))


def newest_export(job: Job) -> str:
    """Its folder: the highest number."""
    folders = pathlib.Path(job.folder, "export").iterdir()
    return str(max(folders, key=lambda folder: int(folder.name)))


def load_alone(folder: str) -> Callable[..., dict[str, tf.Tensor]]:
    """The signature `ids` of a SavedModel."""
    loaded = tf.saved_model.load(folder)
    signature = loaded.signatures["ids"]
    signature.kept = loaded  # a signature does not keep its own weights alive
    return signature


# ----------------------------------------------------------------------------------------- training


def checked_outputs(job: Job, task: Task, model: tf.Module) -> dict[str, np.ndarray]:
    """Logits or losses of a few rows, and the norm of the gradient, without dropout.

    In graphs, as training is: operation by operation everything would be in memory at once, and the
    peak would be that of the comparison.
    """
    rows = first_rows(job.rows(), CHECKED_ROWS)
    if job.workload.packed and not job.reference:
        batch = packed_rows(job, rows)
    else:
        batch = features_of(cut_batch(rows, np.arange(len(rows["labels"]))))
    weights = task.term_weights(batch)
    gradients_of = tf.function(training.make_gradients(task, model, 1), autograph=False)
    sums, gradients = gradients_of(batch, None, weights, tf.constant(1.0))
    norm = global_norm([each.numpy() for each in gradients if each is not None])
    loss = training.total_loss(task, sums, weights).numpy()
    outputs = {"loss": np.array([loss]), "gradient_norm": np.array([norm])}
    if job.workload.kind != "pretraining":
        predict = tf.function(lambda: task.predict(model, batch)["logits"], autograph=False)
        outputs["logits"] = predict().numpy()
    return outputs


def prepare_training(job: Job) -> Prepared:
    """A run's own steps, on batches of its own pipeline."""
    is_pretraining = job.workload.kind == "pretraining"
    name = "pretraining" if is_pretraining else "classification"
    steps = -(-job.workload.rows // job.workload.batch)
    opened = open_task(job, name, steps * RUNS)
    task, accelerator, pretrained = opened
    if job.reference:
        return Prepared(lambda: None, checked_outputs(job, task, opened.model(padded=True)))
    state = run_folder.start(
        task.run, job.folder, accelerator, task, pretrained, task.run.train.steps
    )
    is_start = job.workload.kind == "start_up"
    outputs = {} if is_start else checked_outputs(job, task, state.model)
    train_steps = training.make_train_steps(
        task.run, accelerator, task, state.model, state.optimizer
    )
    feed = (PretrainingFeed if is_pretraining else FineTuningFeed)(job, task, accelerator)

    def run() -> None:
        left = feed.steps
        while left:
            iterator, count = feed.next(min(left, task.run.train.steps_per_loop))
            if not count:
                raise ValueError(f"asked for more than {RUNS} runs")
            sums = train_steps(iterator, tf.constant(count, tf.int32))
            if not np.isfinite(float(sums["loss"])):
                raise ValueError("the loss is not finite")
            left -= count

    return Prepared(run, outputs)  # warm after a whole run: each size of a batch compiles once


class FineTuningFeed:
    """All batches of all runs, planned as `bert_tf.data.batches` plans an epoch."""

    def __init__(self, job: Job, task: Task, accelerator: Accelerator) -> None:
        rows = job.rows()
        ids, labels = rows["token_ids"], {"label": rows["labels"]}
        examples = batches.Examples(ids, np.zeros_like(ids), rows["row_splits"], labels)
        self.steps = batches.steps_per_epoch(len(examples), job.workload.batch)
        self.feed = examples.feed(task.run, 0, self.steps * RUNS, accelerator)

    def next(self, most: int) -> tuple[Iterator[Features], int]:
        """As `batches.Feed`."""
        return self.feed.next(most)


class PretrainingFeed:
    """Batches of pre-training again and again, from memory."""

    def __init__(self, job: Job, task: Task, accelerator: Accelerator) -> None:
        rows = job.rows()
        made = packed_rows(job, rows) if job.workload.packed else plain_rows(job, rows)
        data = tf.data.Dataset.from_tensor_slices(made).repeat()
        data = data.batch(job.workload.batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)
        self.iterator = iter(accelerator.strategy.experimental_distribute_dataset(data))
        self.steps = -(-len(made["weight"]) // job.workload.batch)

    def next(self, most: int) -> tuple[Iterator[Features], int]:
        """As `batches.Feed`."""
        return self.iterator, most


def plain_rows(job: Job, rows: dict[str, np.ndarray]) -> Features:
    """Every sequence in a row of its own; the shorter ones have padding, which costs nothing."""
    return features_of(cut_batch(rows, np.arange(job.workload.rows), job.workload.length))


def packed_rows(job: Job, rows: dict[str, np.ndarray]) -> Features:
    """Several sequences in a row, as `data.packing` finds places for them."""
    lengths = np.diff(rows["row_splits"])
    packs = packing.pack(lengths, job.workload.length, PACKED_SEQUENCES)  # [rows, G]
    # Whole batches: rows that are no example fill the last.
    packs = np.pad(packs, [(0, -len(packs) % job.workload.batch), (0, 0)], constant_values=-1)
    shape, predictions = (len(packs), job.workload.length), job.workload.predictions
    made = {name: np.zeros(shape, np.int32) for name in ("token_ids", "segment_ids", "mask")}
    wide = (len(packs), PACKED_SEQUENCES * predictions)
    made |= {name: np.zeros(wide, np.int32) for name in ("masked_positions", "masked_ids")}
    made["masked_weights"] = np.zeros(wide, np.float32)
    for name, dtype in (
        ("cls_positions", np.int32),
        ("next_sentence_labels", np.int32),
        ("next_sentence_weights", np.float32),
    ):
        made[name] = np.zeros(packs.shape, dtype)
    made["weight"] = (packs[:, 0] >= 0).astype(np.float32)
    for row, place, number in ((r, g, packs[r, g]) for r, g in np.argwhere(packs >= 0)):
        start = int(lengths[packs[row, :place]].sum())
        cut = slice(start, start + lengths[number])
        made["token_ids"][row, cut] = rows["token_ids"][rows["row_splits"][number] :][
            : lengths[number]
        ]
        made["mask"][row, cut] = place + 1
        part = slice(place * predictions, (place + 1) * predictions)
        made["masked_positions"][row, part] = rows["masked_positions"][number] + start
        made["masked_ids"][row, part] = rows["masked_ids"][number]
        made["masked_weights"][row, part] = rows["masked_weights"][number]
        made["cls_positions"][row, place] = start
        made["next_sentence_labels"][row, place] = rows["labels"][number]
        made["next_sentence_weights"][row, place] = 1.0
    assert (made["token_ids"][made["weight"] > 0, 0] == CLS).all()
    return {name: tf.constant(values) for name, values in made.items()}


def prepare_optimizer(job: Job) -> Prepared:
    """One update of all weights by gradients that are there."""
    opened = open_task(job, "classification", 1000)
    task, model = opened.task, opened.model()
    moved = moving(task.run.optimizer, variables_by_name(model))
    optimizer = Optimizer(task.run.optimizer, moved, 1000, task.config.num_hidden_layers)
    gradients = [tf.random.normal(variable.shape) for variable in moved.values()]

    @tf.function(autograph=False)
    def step() -> tf.Tensor:
        return optimizer.apply_gradients(gradients)["learning_rate"]

    return Prepared(lambda: step().numpy(), {})


# --------------------------------------------------------------------------------------------- text


def prepare_tokenizer(job: Job) -> Prepared:
    """Ids of all paragraphs, in batches."""
    tokenizer = Tokenizer(os.path.join(job.checkpoint, "vocab.txt"))
    return tensorflow_work.tokenizer(
        job,
        lambda text: tokenizer(text).flat_values,  # type: ignore[union-attr]
    )


def prepare_pretraining_data(job: Job) -> Prepared:
    """TFRecord files of instances, on all cores."""
    written = os.path.join(job.folder, "instances")

    def run() -> float:
        shutil.rmtree(written, ignore_errors=True)
        os.makedirs(written)
        config = CreationConfig(
            input_file=job.data,
            output_file=os.path.join(written, "data.tfrecord"),
            vocab_file=os.path.join(job.checkpoint, "vocab.txt"),
            instances=InstanceConfig(dupe_factor=2),
        )
        return float(create_pretraining_data(config, job.threads).instances)

    return Prepared(run, {})


PREPARE = {
    "matmul_float32": tensorflow_work.matmul,
    "matmul_bfloat16": tensorflow_work.matmul,
    "memory_copy": tensorflow_work.copy_memory,
    "forward": prepare_forward,
    "fine_tuning": prepare_training,
    "pretraining": prepare_training,
    "start_up": prepare_training,
    "optimizer": prepare_optimizer,
    "tokenizer": prepare_tokenizer,
    "pretraining_data": prepare_pretraining_data,
}


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure."""
    return VARIANTS[workload.kind] if workload.kind in VARIANTS else [Variant()]


if __name__ == "__main__":
    tensorflow_work.set_threads()
    if sys.argv[1:2] == ["--export"]:
        export(Job.from_json(json.loads(sys.argv[2])))
        sys.exit()
    serve(
        PREPARE,
        variants,
        {"tensorflow": tf.__version__},
    )
