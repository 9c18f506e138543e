"""What is told of an exported model: where it comes from, what it takes and what it answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from bert_tf.config import VERSION
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of
from bert_tf.tasks.contract import Signature


def model_card(opened: OpenedRun, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """What somebody who finds the model wants to know, for JSON."""
    task, run = opened.task, opened.run
    return {
        "task": dataclasses.asdict(run.task),
        "signatures": {name: describe(signature) for name, signature in signatures.items()},
        "max_seq_length": run.data.max_seq_length,
        "lower_case": task.tokenizer.lower_case,
        "strip_accents": task.tokenizer.strip_accents,
        "bert_config": task.config.to_dict(),
        "data": dataclasses.asdict(run.data),
        **answers_of(task, "be exported").card(),
        "metrics": opened.metrics,
        "weights_from": opened.weights_from,
        "run": run.to_dict(),
        "versions": {
            "bert_tf": VERSION,
            "tensorflow": tf.__version__,
            "tensorflow_text": tf_text.__version__,
        },
    }


def describe(signature: Signature) -> dict[str, dict[str, str]]:
    """Types and shapes of inputs and outputs, such as `string [None]`."""
    inputs = {spec.name: spec for spec in tf.nest.flatten(signature.structured_input_signature)}
    specs = {"inputs": inputs, "outputs": signature.structured_outputs}
    return {
        kind: {name: f"{spec.dtype.name} {spec.shape.as_list()}" for name, spec in each.items()}
        for kind, each in specs.items()
    }
