"""The same pre-training step with three encoders, compiled for a TPU: bert_tf, keras-hub, official.

    scripts/tpu_preflight.py has made PYTHON (~/.cache/bert_tf/tpu-compiler-*/bin/python):
    PYTHON -m pip install --no-deps --target=FOLDER keras-hub==0.32.0 tf-models-official==2.20.0 \
        gin-config==0.5.0 tensorflow-model-optimization==0.8.0 regex tokenizers==0.23.3
    PYTHONPATH=.:FOLDER PYTHON scripts/peers/tpu_encoders.py --encoder=bert_tf  # or the others

BERT-base, bfloat16, dropout 0.1, 76 masked words of 512 tokens. Heads, loss, optimizer and
compilation are bert_tf's in all three; only the encoder differs.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import runpy
from typing import Any, TypeAlias

os.environ.update(  # before TensorFlow is imported, which an import of bert_tf does
    runpy.run_path(str(pathlib.Path(__file__).parents[2] / "bert_tf/preflight/environment.py"))[
        "VARIABLES"
    ]
    | {"KERAS_BACKEND": "tensorflow"}
)

import tensorflow as tf
import tf_keras
from absl import app, flags

from bert_tf.config import (
    BertConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    TaskConfig,
    TrainConfig,
)
from bert_tf.distribution import Accelerator
from bert_tf.heads import MaskedLMHead, NextSentenceHead
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.preflight import compiler, program, stand_in
from bert_tf.tasks.pretraining import PretrainingTask

Encoder: TypeAlias = Any  # a layer of any of the three
ENCODER = flags.DEFINE_enum("encoder", "bert_tf", ["bert_tf", "keras_hub", "official"], "Whose.")
BATCH = flags.DEFINE_integer("batch", 32, "Rows.")
LAYERS = flags.DEFINE_integer("layers", 12, "Of the encoder.")
LENGTH = flags.DEFINE_integer("length", 512, "Tokens of a row.")
TOPOLOGY = flags.DEFINE_string("topology", "v5e:1x1", "TYPE:SHAPE.")


class PeerModel(tf.Module):
    """Another library's encoder under bert_tf's heads of pre-training."""

    def __init__(self, config: BertConfig, encoder: Encoder) -> None:
        super().__init__(name="peer")
        self.encoder = encoder
        self.masked_lm = MaskedLMHead(config)
        self.next_sentence = NextSentenceHead(config)

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        """Of all parts, under names that differ."""
        layers = (self.encoder, self.masked_lm, self.next_sentence)
        found = [v for layer in layers for v in layer.trainable_variables]
        variables = [v if isinstance(v, tf.Variable) else v.value for v in found]  # Keras 3 wraps
        for number, variable in enumerate(variables):
            if not variable.name.startswith("of_peer/"):
                variable._handle_name = f"of_peer/{number}/{variable.name}"
        return variables

    def __call__(self, features: dict[str, tf.Tensor], training: bool, seed: tf.Tensor) -> dict:
        """As `PretrainingModel`; the peers draw dropout by themselves."""
        del seed
        sequence, pooled, table = outputs_of(self.encoder, features, training)
        return {
            "masked_lm": self.masked_lm(sequence, features["masked_positions"], table),
            "next_sentence": self.next_sentence(pooled)[:, tf.newaxis],
        }


def outputs_of(encoder: Encoder, features: dict[str, tf.Tensor], training: bool) -> tuple:
    """Sequence [B, S, H], pooled [B, H], and the word table [V, H]."""
    ids, segments, mask = (features[name] for name in ("token_ids", "segment_ids", "mask"))
    if ENCODER.value == "keras_hub":
        inputs = {"token_ids": ids, "segment_ids": segments, "padding_mask": mask}
        outputs = encoder(inputs, training=training)
        table = tf.convert_to_tensor(encoder.token_embedding.embeddings.value)
    else:
        inputs = {"input_word_ids": ids, "input_type_ids": segments, "input_mask": mask}
        outputs = encoder(inputs, training=training)
        table = encoder.get_embedding_table()
    return outputs["sequence_output"], outputs["pooled_output"], table


def make_encoder(config: BertConfig) -> Encoder:
    """Another library's encoder of this shape."""
    if ENCODER.value == "keras_hub":
        import keras
        import keras_hub

        keras.config.set_dtype_policy("mixed_bfloat16")
        return keras_hub.models.BertBackbone(
            vocabulary_size=config.vocab_size,
            num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            hidden_dim=config.hidden_size,
            intermediate_dim=config.intermediate_size,
        )
    from official.nlp.modeling import networks

    encoder = networks.BertEncoderV2(
        vocab_size=config.vocab_size, num_layers=config.num_hidden_layers, type_vocab_size=2
    )
    encoder(encoder.inputs)
    return encoder


@dataclasses.dataclass(frozen=True)
class PeerTask(PretrainingTask):
    """Pre-training of another library's encoder."""

    def build_model(self, layout: type[Layout] = PaddedLayout) -> Encoder:
        """The model with fresh weights."""
        return PeerModel(self.config, make_encoder(self.config))


def main(unused_argv: list[str]) -> None:
    """Compiles one encoder's step and prints what the compiler says."""
    tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    run = RunConfig(
        task=TaskConfig(name="pretraining", max_predictions_per_seq=76),
        data=DataConfig(max_seq_length=LENGTH.value),
        optimizer=OptimizerConfig(name="bert_adamw"),
        train=TrainConfig(steps=1000),
    )
    kind = PretrainingTask if ENCODER.value == "bert_tf" else PeerTask
    config = BertConfig(30522, num_hidden_layers=LAYERS.value)
    task = kind(run, config, stand_in.made_up_tokenizer())
    size = stand_in.Size(BATCH.value, LENGTH.value, 2)
    accelerator = Accelerator("tpu", tf.distribute.get_strategy(), "bfloat16")
    made = program.train_program(task, stand_in.features(task, "", size), accelerator, 1)
    compiled = compiler.compile_program(made, TOPOLOGY.value)
    print(
        f"{ENCODER.value}: {compiled.flops / 1e12:.3f} TFLOP, "
        f"{compiled.bytes_accessed / 1e9:.1f} GB of traffic, {compiled.hbm_used:.2f} GiB, compiled "
        f"in {compiled.seconds:.0f} s {compiled.refusal[:200]}"
    )


if __name__ == "__main__":
    app.run(main)
