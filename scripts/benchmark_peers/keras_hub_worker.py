"""Measures keras-hub (Keras 3 on TensorFlow)."""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import tensorflow_work as work
from protocol import Job, Prepared, serve
from tensorflow_work import Batch, KerasModel
from workloads import CLIP_NORM, EPSILON, LEARNING_RATE, WEIGHT_DECAY

NAMES = {"token_ids": "token_ids", "segment_ids": "segment_ids", "mask": "padding_mask"}


def inputs_of(batch: Batch) -> Batch:
    """As keras-hub names them."""
    return {theirs: batch[ours] for ours, theirs in NAMES.items()}


def load(job: Job) -> KerasModel:
    """The model of a workload with the checkpoint's weights."""
    keras.utils.set_random_seed(1)
    policy = {"float32": "float32", "bfloat16": "mixed_bfloat16"}[job.variant.precision]
    keras.config.set_dtype_policy(policy)
    backbone = keras_hub.models.BertBackbone.from_preset(job.checkpoint)
    weights = work.read_weights(job)
    if job.workload.kind == "pretraining":
        return pretraining_model(backbone, weights)
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    model.output_dense.set_weights([weights["classifier.weight"].T, weights["classifier.bias"]])
    return trained(
        lambda batch, training: (model(inputs_of(batch), training=training),),
        model.trainable_variables,
    )


def pretraining_model(backbone: keras.Model, weights: dict[str, np.ndarray]) -> KerasModel:
    """The backbone with both heads; that of next sentences is a plain dense layer."""
    words = keras_hub.layers.MaskedLMHead(
        token_embedding=backbone.token_embedding,
        intermediate_activation=lambda x: keras.activations.gelu(x, approximate=True),
        layer_norm_epsilon=1e-12,
    )
    following = keras.layers.Dense(2, dtype="float32")
    hidden = backbone.hidden_dim
    words.build((None, None, hidden), (None, None))
    following.build((None, hidden))
    prefix = "cls.predictions."
    transform = f"{prefix}transform."
    dense, norm = words._intermediate_dense, words._intermediate_layer_norm
    dense.set_weights([weights[f"{transform}dense.weight"].T, weights[f"{transform}dense.bias"]])
    norm.gamma.assign(weights[f"{transform}LayerNorm.weight"])
    norm.beta.assign(weights[f"{transform}LayerNorm.bias"])
    words._bias.assign(weights[f"{prefix}bias"])
    pair = "cls.seq_relationship."
    following.set_weights([weights[f"{pair}weight"].T, weights[f"{pair}bias"]])

    def outputs(batch: Batch, training: bool) -> tuple[tf.Tensor, ...]:
        found = backbone(inputs_of(batch), training=training)
        logits = words(found["sequence_output"], mask_positions=batch["masked_positions"])
        return logits, following(found["pooled_output"])

    variables = {
        id(v): v
        for part in (backbone, words, following)
        for v in part.trainable_variables  # the head has the word table, too
    }
    return trained(outputs, list(variables.values()))


def trained(outputs: object, variables: list[keras.Variable]) -> KerasModel:
    """With AdamW on all variables."""
    optimizer = keras.optimizers.AdamW(
        LEARNING_RATE, WEIGHT_DECAY, epsilon=EPSILON, global_clipnorm=CLIP_NORM
    )
    names = ("bias", "beta", "gamma")
    optimizer.exclude_from_weight_decay([v for v in variables if v.name in names])
    optimizer.build(variables)
    return KerasModel(
        outputs,  # type: ignore[arg-type]
        [variable.value for variable in variables],
        lambda gradients: optimizer.apply(gradients, variables),
    )


def tokenizer(job: Job) -> Prepared:
    """Ids of all paragraphs, in batches."""
    tokenize = keras_hub.models.BertTokenizer(
        os.path.join(job.checkpoint, "vocab.txt"), lowercase=True
    )
    return work.tokenizer(job, lambda text: tokenize(text).flat_values)


PREPARE = work.prepare_table(load) | {"tokenizer": tokenizer}

if __name__ == "__main__":
    work.set_threads()
    serve(
        PREPARE,
        work.variants,
        {"keras-hub": keras_hub.__version__, "keras": keras.__version__},
    )
