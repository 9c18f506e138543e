"""A trained run for others to use: a file for each format, and the table of all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from bert_tf.export.frozen import export_frozen
from bert_tf.export.hugging_face import export_hugging_face
from bert_tf.export.litert import export_litert
from bert_tf.export.onnx import export_onnx
from bert_tf.export.saved_model import export_saved_model
from bert_tf.restore import OpenedRun


@dataclasses.dataclass(frozen=True)
class Format:
    """How a run is written in one form."""

    write: Callable[[OpenedRun, str], str]  # of a run, into a folder; returns what it wrote
    folder: str  # where in the run folder, unless told otherwise
    is_served: bool = False  # whether it is a SavedModel, in versions, for TF Serving


FORMATS = {
    "saved_model": Format(export_saved_model, "export", is_served=True),
    "saved_model_cpu": Format(
        functools.partial(export_frozen, dtype="bfloat16"), "export_cpu", is_served=True
    ),
    "saved_model_int8": Format(
        functools.partial(export_frozen, dtype="int8"), "export_int8", is_served=True
    ),
    "litert": Format(export_litert, "litert"),
    "onnx": Format(export_onnx, "onnx"),
    "hf": Format(export_hugging_face, "hf"),
}
