"""Measures tf-models-official (the TensorFlow Model Garden)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_work as work
import tf_keras
from official.modeling.optimization.legacy_adamw import AdamWeightDecay
from official.nlp.modeling import layers, models, networks
from protocol import Job, Prepared, serve
from tensorflow_work import Batch, KerasModel
from workloads import CLIP_NORM, EPSILON, LEARNING_RATE, SHAPES, WEIGHT_DECAY, Variant, Workload

NAMES = {"token_ids": "input_word_ids", "segment_ids": "input_type_ids", "mask": "input_mask"}
PADDED = Variant(order="padded")  # every row to the full length, as the original release does


def variants(workload: Workload) -> list[Variant]:
    """Settings to measure."""
    return work.variants(workload) + ([PADDED] if workload.lengths == "sst2" else [])


def inputs_of(batch: Batch) -> Batch:
    """As the library names them."""
    return {theirs: batch[ours] for ours, theirs in NAMES.items()}


def gelu(x: tf.Tensor) -> tf.Tensor:
    """By tanh."""
    return tf_keras.activations.gelu(x, approximate=True)


def load(job: Job) -> KerasModel:
    """The model of a workload with the checkpoint's weights."""
    tf_keras.utils.set_random_seed(1)
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[job.variant.precision]
    tf_keras.mixed_precision.set_global_policy(policy)
    shape = SHAPES[job.workload.shape]
    encoder = networks.BertEncoderV2(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_sequence_length=shape.positions,
        type_vocab_size=2,
        inner_dim=shape.inner,
        inner_activation=gelu,
    )
    encoder(encoder.inputs)
    weights = work.read_weights(job)
    set_encoder(encoder, weights)
    if job.workload.kind == "pretraining":
        return pretraining_model(encoder, weights, shape.hidden)
    model = models.BertClassifier(encoder, num_classes=2)
    set_dense(model.classifier.out_proj, weights, "classifier")
    return trained(
        lambda batch, training: (model(inputs_of(batch), training=training),),
        model.trainable_variables,
    )


def pretraining_model(
    encoder: tf_keras.layers.Layer, weights: dict[str, np.ndarray], hidden: int
) -> KerasModel:
    """The encoder with both heads; that of next sentences reads the encoder's own pooler."""
    words = layers.MaskedLM(encoder.get_embedding_table(), activation=gelu)
    following = layers.ClassificationHead(0, 2, dropout_rate=0.0, dtype="float32")
    sequence, pooled = tf.zeros([1, 8, hidden]), tf.zeros([1, hidden])
    words(sequence, tf.zeros([1, 2], tf.int32))
    following(pooled)
    prefix = "cls.predictions."
    set_dense(words.dense, weights, f"{prefix}transform.dense")
    set_norm(words.layer_norm, weights, f"{prefix}transform.LayerNorm")
    words.bias.assign(weights[f"{prefix}bias"])
    set_dense(following.out_proj, weights, "cls.seq_relationship")

    def outputs(batch: Batch, training: bool) -> tuple[tf.Tensor, ...]:
        found = encoder(inputs_of(batch), training=training)
        return (
            words(found["sequence_output"], batch["masked_positions"]),
            following(found["pooled_output"], training=training),
        )

    parts = (encoder, words, following)
    variables = {id(v): v for part in parts for v in part.trainable_variables}
    return trained(outputs, list(variables.values()))


def trained(
    outputs: Callable[[Batch, bool], tuple[tf.Tensor, ...]], variables: list[tf.Variable]
) -> KerasModel:
    """With the library's AdamW on all variables."""
    optimizer = AdamWeightDecay(
        learning_rate=LEARNING_RATE,
        weight_decay_rate=WEIGHT_DECAY,
        epsilon=EPSILON,
        gradient_clip_norm=CLIP_NORM,
        exclude_from_weight_decay=["LayerNorm", "layer_norm", "bias"],
    )
    # Slots are made now: a graph could not.
    optimizer.apply_gradients([(tf.zeros_like(v), v) for v in variables])
    return KerasModel(
        outputs,
        variables,
        lambda gradients: optimizer.apply_gradients(zip(gradients, variables, strict=True)),
    )


# ------------------------------------------------------------------------------------------ weights


def set_dense(layer: Any, weights: dict[str, np.ndarray], name: str) -> None:  # noqa: ANN401
    """A dense layer of any shape."""
    layer.kernel.assign(weights[f"{name}.weight"].T.reshape(layer.kernel.shape))
    layer.bias.assign(weights[f"{name}.bias"].reshape(layer.bias.shape))


def set_norm(layer: Any, weights: dict[str, np.ndarray], name: str) -> None:  # noqa: ANN401
    """A LayerNorm."""
    layer.gamma.assign(weights[f"{name}.weight"])
    layer.beta.assign(weights[f"{name}.bias"])


def set_encoder(encoder: Any, weights: dict[str, np.ndarray]) -> None:  # noqa: ANN401
    """All weights of the encoder; the library's own converter reads TensorFlow 1 alone."""
    tables = "bert.embeddings."
    for layer, name in (
        (encoder._embedding_layer, "word"),
        (encoder._position_embedding_layer, "position"),
        (encoder._type_embedding_layer, "token_type"),
    ):
        layer.set_weights([weights[f"{tables}{name}_embeddings.weight"]])
    set_norm(encoder._embedding_norm_layer, weights, f"{tables}LayerNorm")
    for number, block in enumerate(encoder._transformer_layers):
        name = f"bert.encoder.layer.{number}."
        attention = block._attention_layer
        for part in ("query", "key", "value"):
            set_dense(getattr(attention, f"_{part}_dense"), weights, f"{name}attention.self.{part}")
        set_dense(attention._output_dense, weights, f"{name}attention.output.dense")
        set_norm(block._attention_layer_norm, weights, f"{name}attention.output.LayerNorm")
        set_dense(block._intermediate_dense, weights, f"{name}intermediate.dense")
        set_dense(block._output_dense, weights, f"{name}output.dense")
        set_norm(block._output_layer_norm, weights, f"{name}output.LayerNorm")
    set_dense(encoder._pooler_layer, weights, "bert.pooler.dense")


# --------------------------------------------------------------------------------------------- text


def tokenizer(job: Job) -> Prepared:
    """Ids of all paragraphs, in batches, by the faster of its two layers."""
    vocabulary = os.path.join(job.checkpoint, "vocab.txt")
    tokenize = layers.FastWordpieceBertTokenizer(vocab_file=vocabulary, lower_case=True)
    return work.tokenizer(job, lambda text: tokenize(text).merge_dims(1, -1).flat_values)


def pretraining_data(job: Job) -> Prepared:
    """Its program as a process, which is how it is used; one core, as it has no other way."""
    written = os.path.join(job.folder, "instances")

    def run() -> float:
        shutil.rmtree(written, ignore_errors=True)
        os.makedirs(written)
        output = os.path.join(written, "data.tfrecord")
        flags = (
            f"--input_file={job.data}",
            f"--output_file={output}",
            f"--vocab_file={os.path.join(job.checkpoint, 'vocab.txt')}",
            "--dupe_factor=2",
        )
        program = [sys.executable, "-m", "official.nlp.data.create_pretraining_data"]
        subprocess.run([*program, *flags], check=True, stdout=subprocess.DEVNULL)
        return float(sum(1 for _ in tf.data.TFRecordDataset(output)))

    return Prepared(run, {})


PREPARE = work.prepare_table(load) | {
    "tokenizer": tokenizer,
    "pretraining_data": pretraining_data,
}

if __name__ == "__main__":
    work.set_threads()
    serve(
        PREPARE,
        variants,
        {"tf-models-official": "2.20.0", "tensorflow": tf.__version__},
    )
