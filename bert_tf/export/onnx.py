"""A trained run as ONNX, for onnxruntime and everything else that reads it.

```
FOLDER/model.onnx                                           NAME.onnx for each of several tasks
FOLDER/vocab.txt, tokenizer.json, tokenizer_config.json     its tokenizer
FOLDER/model_card.json, README.md                           where it comes from, how to use it
```
A model takes `token_ids`, `segment_ids` and `mask` as the `ids` signature of a SavedModel does, but
int64, which is what tokenizers and NumPy make. It answers the same numbers (`onnx_heads.py`), in
float32; names of labels are in `model_card.json`. The mask is taken as it is: what TF Serving pads
is not told from tokens, and ids are not checked. BiLSTM taggers want their padding at the end.

Each of several tasks has a file of its own, with the encoder up to its layer.
"""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from bert_tf.config import write_json
from bert_tf.conversion import new_folder
from bert_tf.export.card import longest, markdown_card, model_card, write_text
from bert_tf.export.onnx_graph import INPUTS, BertGraph, Output, to_model
from bert_tf.export.onnx_heads import HEADS
from bert_tf.export.single_tasks import SingleTask, single_tasks
from bert_tf.export.tokenizer_files import write_tokenizer
from bert_tf.export.usage import with_onnxruntime
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of

LARGEST_FILE = 2_000_000_000  # bytes; a message of protobuf must be smaller than 2 GiB
SMALLEST_OUTSIDE = 1024  # bytes; shapes and the like stay in the file, where runtimes look for them


def export_onnx(opened: OpenedRun, folder: str) -> str:
    """Writes a folder of ONNX models, whole or not at all.

    Args:
        opened: from `restore.open_run` or `restore.open_checkpoint`.
        folder: new or empty; gs:// works.

    Returns:
        The folder.

    Raises:
        ValueError: the task has nothing to answer, the `onnx` package is missing, or the folder is
            not empty or cannot be written.
    """
    answers_of(opened.task, "be exported")  # refuses what has none
    signatures = {}
    with new_folder(folder) as temporary:
        for name, single in single_tasks(opened).items():
            model, outputs = build(single)
            file = f"{name or 'model'}.onnx"
            write_model(os.path.join(temporary, file), model)
            signatures[file] = describe(outputs)
        tokenizer, length = opened.task.tokenizer, longest(opened.run)
        write_tokenizer(temporary, tokenizer, length)
        card = model_card(opened, {}) | {"signatures": signatures}
        write_json(os.path.join(temporary, "model_card.json"), card)
        usage = with_onnxruntime(list(signatures), length, tokenizer.pad_id)
        write_text(os.path.join(temporary, "README.md"), markdown_card(opened, "onnx", usage))
    return folder


def build(single: SingleTask) -> tuple[Any, list[Output]]:
    """The model of a task, an onnx.ModelProto, and what it answers."""
    graph = BertGraph(single.opened.task.config, single.weights)
    outputs = HEADS[single.opened.run.task.name](graph, single)
    return to_model(graph, outputs), outputs


def describe(outputs: list[Output]) -> dict[str, dict[str, str]]:
    """Types and shapes as `card.describe` says them."""
    shapes = {
        output.name: [None if isinstance(size, str) else size for size in output.shape]
        for output in outputs
    }
    return {
        "inputs": dict.fromkeys(INPUTS, "int64 [None, None]"),
        "outputs": {name: f"float32 {shape}" for name, shape in shapes.items()},
    }


def write_model(path: str, model: Any) -> None:  # noqa: ANN401 - an onnx.ModelProto
    """Writes a model; the weights of one that is too large for a file lie beside it."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGEST_FILE:
        move_out(model, f"{path}.data")
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(model.SerializeToString())


def move_out(model: Any, path: str) -> None:  # noqa: ANN401
    """Writes weights to a file of their own, which the model then names."""
    from onnx.external_data_helper import set_external_data

    offset = 0
    with tf.io.gfile.GFile(path, "wb") as file:
        for tensor in model.graph.initializer:
            size = len(tensor.raw_data)
            if size >= SMALLEST_OUTSIDE:
                file.write(tensor.raw_data)
                set_external_data(tensor, os.path.basename(path), offset, size)
                tensor.ClearField("raw_data")
                offset += size
