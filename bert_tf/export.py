"""A trained run as a SavedModel that takes strings and needs nothing of this package.

```
FOLDER/1/saved_model.pb, variables/          what TF Serving loads; the number is the version
FOLDER/1/assets.extra/tf_serving_warmup_requests
FOLDER/1/assets.extra/model_card.json        where it comes from, what it takes and answers
```
Signatures (N texts, S the longest of the batch, C classes):

- `serving_default`: `text` string [N], or `text_a` and `text_b` for a task of pairs. The tokenizer
  is part of the graph, so what is served cannot differ from what was trained.
- `ids`: `token_ids`, `segment_ids` and `mask` int32 [N, S], for clients with their own tokenizer.

Both answer, for each text:

- classes: `label` string [N], `probabilities` and `logits` float32 [N, C];
- multi-label: `label` string [N], all labels above one half joined by the separator of the training
  data; `labels` int32 [N, C], the same as 0 and 1; `probabilities` and `logits`;
- regression: `score` float32 [N], `logits` float32 [N, 1].

The model card lists the labels in the order of `probabilities`. A process needs tensorflow and
tensorflow_text to load the model, as TF Serving has them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text
import tf_keras as keras

from bert_tf import serving_warmup
from bert_tf.config import VERSION, BertConfig, write_json
from bert_tf.conversion import new_folder
from bert_tf.data import glue
from bert_tf.encoder import UnpaddedLayout, variables_by_name
from bert_tf.restore import OpenedRun
from bert_tf.tasks import only_classification
from bert_tf.tasks.classification import ClassificationTask as Task
from bert_tf.tasks.classification import Classifier
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

TEXT_SIGNATURE = "serving_default"  # what TF Serving calls where a request names no signature
IDS_SIGNATURE = "ids"
IDS_INPUTS = ("token_ids", "segment_ids", "mask")
EXTRA_FOLDER = "assets.extra"  # files beside a SavedModel that loading leaves alone
MODEL_CARD = f"{EXTRA_FOLDER}/model_card.json"
WARMUP_FILE = f"{EXTRA_FOLDER}/tf_serving_warmup_requests"  # the name that TF Serving looks for
WARMUP_BATCH_SIZES = (1, 8)
WARMUP_LENGTHS = (16, 64, 128, 256, 512)  # tokens; those that the run allows, and its own maximum


Features = dict[str, tf.Tensor]
Signature = Any  # tf.types.experimental.ConcreteFunction


def export_saved_model(opened: OpenedRun, folder: str) -> str:
    """Writes the next version of a model: `folder/N`, whole or not at all.

    TF Serving watches `folder`, ignores everything that is no number, and takes over a new number
    while it serves; so all is written under another name and renamed at the end.

    Args:
        opened: from `restore.open_run`.
        folder: of all versions of this model; made where it is missing. gs:// works.

    Returns:
        The folder of the new version.

    Raises:
        ValueError: the folder cannot be written.
    """
    task = only_classification(opened.task, "be exported")
    target = os.path.join(folder, str(next_version(folder)))
    with new_folder(target) as temporary:
        model = float32_model(opened)
        signatures = {
            TEXT_SIGNATURE: text_signature(task, model),
            IDS_SIGNATURE: ids_signature(task, model),
        }
        served = Served(variables_by_name(model), task.tokenizer)
        # No source code lines of the machine that exports.
        options = tf.saved_model.SaveOptions(save_debug_info=False)
        tf.saved_model.save(served, temporary, signatures, options)
        tf.io.gfile.makedirs(os.path.join(temporary, EXTRA_FOLDER))
        warmup_file = os.path.join(temporary, WARMUP_FILE)
        serving_warmup.write_requests(warmup_file, warmup_requests(task))
        write_json(os.path.join(temporary, MODEL_CARD), model_card(opened, signatures))
    return target


def next_version(folder: str) -> int:
    """One more than the highest version in the folder, from 1."""
    names = tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    versions = [int(name) for name in (entry.rstrip("/") for entry in names) if name.isdecimal()]
    return max(versions, default=0) + 1


class Served(tf.Module):
    """What a SavedModel holds beside its signatures.

    The model itself is only in the closures of the signatures: a Keras layer in a saved object
    drags its own description along, which a process without tf_keras cannot read.
    """

    def __init__(self, weights: dict[str, tf.Variable], tokenizer: Tokenizer) -> None:
        super().__init__(name="bert_tf")
        self.weights = weights  # by the original release's names
        self.tokenizer = tokenizer


def float32_model(opened: OpenedRun) -> Classifier:
    """The trained weights in a model of its own: in float32, unpadded and without a strategy.

    However the run was opened (bfloat16, replicas, padded rows), it exports the same graph. Rows
    without padding cost a few per cent where all texts are equally long, and halve the time of a
    batch in which they are not.
    """
    model_config = dataclasses.replace(opened.run.model, recompute=False)  # there are no gradients
    run = dataclasses.replace(opened.run, model=model_config)
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        model = dataclasses.replace(opened.task, run=run).build_model(UnpaddedLayout)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    trained = variables_by_name(opened.model)
    weights = {name: variable.numpy() for name, variable in trained.items()}
    assign(variables_by_name(model), weights, opened.weights_from)
    return model


# --------------------------------------------------------------------------------------- signatures


def text_signature(task: Task, model: Classifier) -> Signature:
    """Strings [N] to answers."""
    names = text_inputs(task)

    @tf.function(
        input_signature=[tf.TensorSpec([None], tf.string, name) for name in names], autograph=False
    )
    def serve_text(*texts: tf.Tensor) -> dict[str, tf.Tensor]:
        return answers(task, task.predict(model, text_features(task, texts)))

    return serve_text.get_concrete_function()


def ids_signature(task: Task, model: Classifier) -> Signature:
    """Token ids [N, S] to answers."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.int32, name) for name in IDS_INPUTS],
        autograph=False,
    )
    def serve_ids(
        token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        with tf.control_dependencies(id_checks(token_ids, segment_ids, mask, task.config)):
            token_ids = tf.identity(token_ids)
        features = {
            "token_ids": at_least_one_column(token_ids),
            "segment_ids": at_least_one_column(segment_ids),
            "mask": at_least_one_column(own_mask(token_ids, mask, task.tokenizer.cls_id)),
        }
        return answers(task, task.predict(model, features))

    return serve_ids.get_concrete_function()


def text_inputs(task: Task) -> tuple[str, ...]:
    """Names of the string inputs: one, or two for a task of pairs."""
    columns = glue.GLUE[task.run.task.glue].columns if task.run.task.glue else task.run.data
    return ("text_a", "text_b") if columns.text_b else ("text",)


def text_features(task: Task, texts: Sequence[tf.Tensor]) -> Features:
    """One or two strings [N] to `token_ids`, `segment_ids` and `mask` int32 [N, S]."""
    if len(texts) > 1:
        tf.debugging.assert_equal(
            tf.shape(texts[0]), tf.shape(texts[1]), "text_a and text_b differ in number."
        )
    token_ids = [task.tokenizer(text) for text in texts]  # one or two, int32 [N, (tokens)]
    first, second = token_ids[0], token_ids[1] if len(texts) > 1 else None
    packed = task.tokenizer.pack(first, second, task.run.data.max_seq_length)
    grids = {
        "token_ids": packed.token_ids.to_tensor(task.tokenizer.pad_id),
        "segment_ids": packed.segment_ids.to_tensor(),
        "mask": tf.ones_like(packed.token_ids).to_tensor(),
    }
    return {name: at_least_one_column(grid) for name, grid in grids.items()}


def at_least_one_column(grid: tf.Tensor) -> tf.Tensor:
    """[N, S] to [N, max(S, 1)]: no texts have no columns, but the pooler takes the first."""
    return tf.pad(grid, [[0, 0], [0, tf.maximum(1 - tf.shape(grid)[1], 0)]])


def id_checks(
    token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor, config: BertConfig
) -> list[tf.Operation]:
    """What a client can get wrong, as assertions: [N, S] each.

    Without them a GPU answers out-of-range ids and positions with zeros instead of an error.
    """
    shape = tf.shape(token_ids)
    limit = config.max_position_embeddings
    positions = f"token_ids are longer than the {limit} positions of this model; cut them."
    same_shape = "token_ids, segment_ids and mask must have the same shape."
    checks = [
        tf.debugging.assert_less_equal(shape[1], limit, positions),
        tf.debugging.assert_equal(tf.shape(segment_ids), shape, same_shape),
        tf.debugging.assert_equal(tf.shape(mask), shape, same_shape),
        tf.debugging.assert_equal(
            tf.logical_or(shape[0] == 0, shape[1] > 0), True, "token_ids have no columns."
        ),
    ]
    limits = (
        ("token_ids", token_ids, config.vocab_size),
        ("segment_ids", segment_ids, config.type_vocab_size),
    )
    for name, values, size in limits:
        message = f"{name} must be from 0 to {size - 1} for this model."
        checks.append(tf.debugging.assert_non_negative(values, message))
        checks.append(tf.debugging.assert_less(values, size, message))
    return checks


def own_mask(token_ids: tf.Tensor, mask: tf.Tensor, cls_id: int) -> tf.Tensor:
    """The mask without what TF Serving padded.

    With `pad_variable_length_inputs` TF Serving joins requests of unequal length and pads each
    tensor with its *first element*, not with 0 (its batching_util.h): `token_ids` end in a run of
    [CLS], while `mask` goes on with 1 and says that they are real. No input of BERT ends in [CLS],
    so that a run of [CLS] up to the end of a row, but for its first position, is padding.

    Args:
        token_ids: int32 [N, S].
        mask: int32 [N, S], 1 = real token, as the client or TF Serving says.
        cls_id: id of [CLS].

    Returns:
        int32 [N, S].
    """
    is_other = tf.cast(token_ids != cls_id, tf.int32)
    others_ahead = tf.cumsum(is_other, axis=1, reverse=True)  # [N, S] at or after each position
    is_first = tf.range(tf.shape(token_ids)[1]) == 0  # [S]
    return tf.where((others_ahead > 0) | is_first, mask, 0)


def answers(task: Task, outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """What clients get, from the outputs of `Task.predict`; see the top of this file."""
    logits, probabilities = outputs["logits"], outputs["probabilities"]  # [N, C]
    if task.labels.kind == "regression":
        return {"score": logits[:, 0], "logits": logits}
    names = tf.constant(task.labels.names)  # [C]
    scores = {"probabilities": probabilities, "logits": logits}
    if task.labels.kind == "class":
        return {"label": tf.gather(names, tf.argmax(probabilities, axis=-1))} | scores
    chosen = probabilities > 0.5  # [N, C]
    every_name = tf.broadcast_to(names, tf.shape(chosen))  # [N, C]
    joined = tf.strings.reduce_join(
        tf.ragged.boolean_mask(every_name, chosen),
        axis=-1,
        separator=task.labels.separator,
    )
    return {"label": joined, "labels": tf.cast(chosen, tf.int32)} | scores


# --------------------------------------------------------------------------- warm-up and model card


def warmup_requests(task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """What TF Serving replays before it takes traffic: signature and inputs by name.

    Without it the first clients wait until memory and kernels for their sizes are set up.
    """
    names, longest = text_inputs(task), task.run.data.max_seq_length
    tokenizer: Tokenizer = task.tokenizer
    for batch_size in WARMUP_BATCH_SIZES:
        for length in sorted({*WARMUP_LENGTHS, longest}):
            if length > longest:
                break
            # A full stop is one token, known or [UNK], and so is an ellipsis, which is no ASCII and
            # takes the tokenizer's longer way.
            words = (length - 1) // len(names) - 1
            texts = ["." * words] * (batch_size - 1) + ["…" * words]
            yield TEXT_SIGNATURE, dict.fromkeys(names, texts)
            row = [tokenizer.cls_id] + [tokenizer.unk_id] * (length - 2) + [tokenizer.sep_id]
            token_ids = np.array([row] * batch_size, np.int32)  # [N, S]
            segment_ids, mask = np.zeros_like(token_ids), np.ones_like(token_ids)
            yield IDS_SIGNATURE, dict(zip(IDS_INPUTS, (token_ids, segment_ids, mask), strict=True))


def model_card(opened: OpenedRun, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """What somebody who finds the model wants to know, for JSON."""
    task, run = only_classification(opened.task, "be exported"), opened.run
    return {
        "task": dataclasses.asdict(run.task),
        "labels": list(task.labels.names),
        "signatures": {name: describe(signature) for name, signature in signatures.items()},
        "max_seq_length": run.data.max_seq_length,
        "lower_case": task.tokenizer.lower_case,
        "strip_accents": task.tokenizer.strip_accents,
        "bert_config": task.config.to_dict(),
        "data": dataclasses.asdict(run.data),
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
