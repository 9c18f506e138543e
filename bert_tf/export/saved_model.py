"""A trained run as a SavedModel that takes strings and needs nothing of this package.

```
FOLDER/1/saved_model.pb, variables/          what TF Serving loads; the number is the version
FOLDER/1/assets.extra/tf_serving_warmup_requests
FOLDER/1/assets.extra/model_card.json        where it comes from, what it takes and answers
```
Every task brings its signatures (`tasks/NAME_answers.py` says what they answer; those of several
tasks have the tasks' names), of which two are:

- `serving_default`: strings. The tokenizer is part of the graph, so what is served cannot differ
  from what was trained.
- `ids`: `token_ids`, `segment_ids` and `mask` int32 [N, S], for clients with their own tokenizer.

A process needs tensorflow and tensorflow_text to load the model, as TF Serving has them.
"""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf
import tf_keras as keras

from bert_tf.config import write_json
from bert_tf.conversion import new_folder
from bert_tf.encoder import variables_by_name
from bert_tf.export import warmup
from bert_tf.export.card import model_card
from bert_tf.layouts import Layout, UnpaddedLayout
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

EXTRA_FOLDER = "assets.extra"  # files beside a SavedModel that loading leaves alone
MODEL_CARD = f"{EXTRA_FOLDER}/model_card.json"
WARMUP_FILE = f"{EXTRA_FOLDER}/tf_serving_warmup_requests"  # the name that TF Serving looks for


def export_saved_model(opened: OpenedRun, folder: str) -> str:
    """Writes the next version of a model, in float32: `folder/N`, whole or not at all.

    TF Serving watches `folder`, ignores everything that is no number, and takes over a new number
    while it serves; so all is written under another name and renamed at the end.

    Args:
        opened: from `restore.open_run`.
        folder: of all versions of this model; made where it is missing. gs:// works.

    Returns:
        The folder of the new version.

    Raises:
        ValueError: the task has no answers, or the folder cannot be written.
    """
    return write(opened, float32_model(opened), folder)


def write(opened: OpenedRun, model: tf.Module, folder: str) -> str:
    """The same of a model that was made of the run in another way."""
    answers = answers_of(opened.task, "be exported")
    target = os.path.join(folder, str(next_version(folder)))
    with new_folder(target) as temporary:
        signatures = answers.signatures(model)
        served = Served(model, opened.task.tokenizer)
        # No source code lines of the machine that exports.
        options = tf.saved_model.SaveOptions(save_debug_info=False)
        tf.saved_model.save(served, temporary, signatures, options)
        tf.io.gfile.makedirs(os.path.join(temporary, EXTRA_FOLDER))
        warmup_file = os.path.join(temporary, WARMUP_FILE)
        warmup.write_requests(warmup_file, answers.warmup_requests())
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

    def __init__(self, model: tf.Module, tokenizer: Tokenizer) -> None:
        super().__init__(name="bert_tf")
        self.weights = variables_by_name(model)  # by the original release's names
        self.unread = list(model.non_trainable_variables)  # such as the pooler of a tagger
        self.tokenizer = tokenizer


def float32_model(opened: OpenedRun, layout: type[Layout] = UnpaddedLayout) -> tf.Module:
    """The trained weights in a model of its own: in float32 and without a strategy.

    However the run was opened (bfloat16, replicas, padded rows), it exports the same graph. Rows
    without padding cost a few per cent where all texts are equally long, and halve the time of a
    batch in which they are not; formats that cannot have them ask for another layout.
    """
    model_config = dataclasses.replace(opened.run.model, recompute=False)  # there are no gradients
    run = dataclasses.replace(opened.run, model=model_config)
    policy = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("float32")
    try:
        model = dataclasses.replace(opened.task, run=run).build_model(layout)
    finally:
        keras.mixed_precision.set_global_policy(policy)
    trained = variables_by_name(opened.model)
    weights = {name: variable.numpy() for name, variable in trained.items()}
    assign(variables_by_name(model), weights, opened.weights_from)
    return model
