"""A trained run for phones and small devices: files of LiteRT, formerly TensorFlow Lite.

```
FOLDER/model_float32.tflite      the numbers of the run
FOLDER/model_int8.tflite         a quarter of the size, and the fastest; the numbers move a little
FOLDER/vocab.txt, tokenizer.json, tokenizer_config.json
FOLDER/model_card.json           where it comes from, what it takes and answers
```
Both files have the signature `ids`: `token_ids`, `segment_ids` and `mask` int32 [B, S] of any sizes
to what that signature of the SavedModel answers, but for strings (the names of labels are in the
card). Those of several tasks have NAME_ids of each, on one copy of the encoder. Ids and lengths
beyond the model are errors of the interpreter.

`model_int8.tflite` has the weights of matrix products in int8, with a scale for each output, and
the word embeddings, with one scale for all; a row of activations becomes int8 where it is
multiplied by them, with a scale of its own. All else is float32, and so are weights of fewer than
1,024 numbers, such as those of a small head, and position embeddings.

A process needs a LiteRT interpreter to run them, and a tokenizer: see scripts/answer_litert.py.
"""

from __future__ import annotations

import os
import tempfile

import tensorflow as tf

from bert_tf.config import write_json
from bert_tf.conversion import new_folder
from bert_tf.export.card import longest, model_card
from bert_tf.export.saved_model import float32_model
from bert_tf.export.tokenizer_files import write_tokenizer
from bert_tf.layouts import PaddedLayout
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of
from bert_tf.tasks.contract import IdsAnswer, Signature
from bert_tf.tasks.feature_tagger import FeatureTagger
from bert_tf.tasks.serving import IDS_INPUTS, Tensors

# What the converter may do to the weights for each file. DEFAULT makes them int8.
FILES: dict[str, list[tf.lite.Optimize]] = {
    "model_float32.tflite": [],
    "model_int8.tflite": [tf.lite.Optimize.DEFAULT],
}
MODEL_CARD = "model_card.json"


def export_litert(opened: OpenedRun, folder: str) -> str:
    """Writes the files above, all of them or none.

    Args:
        opened: from `restore.open_run`.
        folder: a new or empty one; gs:// works.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is not empty or cannot be written, or the model cannot be converted.
    """
    answers = answers_of(opened.task, "be exported")
    if isinstance(opened.model, FeatureTagger):
        raise ValueError(
            f"a tagger with config.task.feature_layers={opened.run.task.feature_layers} has LSTMs, "
            "which LiteRT's converter cannot take for batches of any size; export a SavedModel, or "
            "train a tagger with feature_layers=0."
        )
    with new_folder(folder) as temporary:
        model = float32_model(opened, PaddedLayout)
        signatures = {
            name: sized_freely(answer) for name, answer in answers.ids_answers(model).items()
        }
        for name, content in convert(model, signatures).items():
            with tf.io.gfile.GFile(os.path.join(temporary, name), "wb") as file:
                file.write(content)
        write_tokenizer(temporary, opened.task.tokenizer, longest(opened.run))
        write_json(os.path.join(temporary, MODEL_CARD), model_card(opened, signatures))
    return folder


def sized_freely(answer: IdsAnswer) -> Signature:
    """The graph from `IDS_INPUTS` int32 [B, S] to the numbers among the answers."""

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], tf.int32, name) for name in IDS_INPUTS],
        autograph=False,
    )
    def numbers(*columns: tf.Tensor) -> Tensors:
        outputs = answer(dict(zip(IDS_INPUTS, columns, strict=True)))
        return {name: value for name, value in outputs.items() if value.dtype != tf.string}

    return numbers.get_concrete_function()


def convert(model: tf.Module, signatures: dict[str, Signature]) -> dict[str, bytes]:
    """The contents of `FILES`; signatures of one model share its weights."""
    saved = tf.Module()
    # Not the model itself: a Keras layer in a saved object drags its own description along.
    saved.weights = [*model.trainable_variables, *model.non_trainable_variables]
    contents = {}
    with tempfile.TemporaryDirectory() as graph:
        tf.saved_model.save(saved, graph, signatures)
        for name, optimizations in FILES.items():
            converter = tf.lite.TFLiteConverter.from_saved_model(graph, list(signatures))
            converter.optimizations = optimizations
            # No op that needs more than a plain interpreter.
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            contents[name] = converter.convert()
    return contents
