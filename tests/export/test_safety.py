"""An export computes, and does nothing else: no code of ours, no files, nothing of this machine."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Callable, Iterator

import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 - registers its ops
from tensorflow.core.framework import graph_pb2
from tensorflow.python.framework import op_def_registry

from bert_tf.export import saved_model
from tests.export.conftest import Exports
from tests.served_models import every_export, nodes

# What TensorFlow calls stateful, and so neither merges nor leaves out.
HARMLESS = {
    "Assert",
    "AssignVariableOp",
    "DisableCopyOnRead",
    "If",
    "ReadVariableOp",
    "ResourceGather",
    "StatefulPartitionedCall",
    "VarHandleOp",
    "While",
}
SUSPICIOUS = re.compile(r"PyFunc|File|Dataset|Iterator|Reader|Record|Proto|Rpc|Library|Print")
# Every SavedModel has two functions that write and read its variables; no signature calls them.
SAVER = re.compile(r"__inference__traced_(save|restore)_\d+")
SAVER_OPS = {"SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename"}
FILES = (
    "saved_model.pb",
    "fingerprint.pb",
    "variables/variables.index",
    r"variables/variables.data-\d{5}-of-\d{5}",
    saved_model.WARMUP_FILE,
    saved_model.MODEL_CARD,
)
# Of objects in a SavedModel: lists, dicts and plain objects. A Keras layer would be one of
# `_tf_keras_...`, with metadata that Keras makes Python of.
PLAIN = {
    "signature_map",
    "trackable_dict_wrapper",
    "trackable_list_wrapper",
    "trackable_tuple_wrapper",
    "_generic_user_object",
}
ROOT = pathlib.Path(__file__).parents[2]


def harmful(graph: graph_pb2.GraphDef) -> Iterator[str]:
    """Ops that do more than compute, as FUNCTION: OP."""
    own = {function.signature.name for function in graph.library.function}
    for place, found in [
        ("graph", graph.node),
        *((function.signature.name, function.node_def) for function in graph.library.function),
    ]:
        allowed = own | HARMLESS | (SAVER_OPS if SAVER.fullmatch(place) else set())
        for op in {node.op for node in found} - allowed:
            definition = op_def_registry.get(op)
            if definition is None or definition.is_stateful or SUSPICIOUS.search(op):
                yield f"{place}: {op}"


@every_export
def test_graphs_only_compute(exports: Exports, model: str, form: str) -> None:
    graph = exports(model, form).meta_graph().graph_def
    assert len(list(nodes(graph))) > 500
    assert not list(harmful(graph))


@pytest.mark.parametrize(
    "add",
    [
        lambda text: tf.numpy_function(lambda value: value, [text], tf.string, stateful=False),
        lambda text: tf.py_function(lambda value: value, [text], tf.string),
        lambda text: tf.io.read_file(text),
        lambda text: tf.io.write_file("name", text),
        lambda text: tf.io.matching_files(text),
        lambda text: tf.print(text),
        lambda text: tf.raw_ops.SaveV2(
            prefix=text, tensor_names=["a"], shape_and_slices=[""], tensors=[text]
        ),
        lambda text: tf.data.TextLineDataset(text),
    ],
    ids=["numpy", "python", "read", "write", "search", "print", "save", "dataset"],
)
def test_the_search_finds(add: Callable[[tf.Tensor], object]) -> None:
    with tf.Graph().as_default() as graph:
        add(tf.constant("text"))
    assert list(harmful(graph.as_graph_def()))


@every_export
def test_no_signature_reads_or_writes_files(exports: Exports, model: str, form: str) -> None:
    for signature in exports(model, form).loaded.signatures.values():
        graph = signature.graph.as_graph_def()
        assert not SAVER_OPS & {node.op for node in nodes(graph)}


@every_export
def test_objects_have_no_python(exports: Exports, model: str, form: str) -> None:
    for node in exports(model, form).meta_graph().object_graph_def.nodes:
        if node.WhichOneof("kind") == "user_object":
            assert node.user_object.identifier in PLAIN
            assert not node.user_object.metadata


@every_export
def test_the_folder_has_no_other_files(exports: Exports, model: str, form: str) -> None:
    folder = exports(model, form).folder
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files >= {saved_model.WARMUP_FILE, saved_model.MODEL_CARD, "saved_model.pb"}
    assert not [file for file in files if not any(re.fullmatch(kind, file) for kind in FILES)]


@every_export
def test_nothing_names_a_place_of_this_machine(
    exports: Exports, tmp_path: pathlib.Path, model: str, form: str
) -> None:
    """Neither paths nor source code; the card may say where the weights come from."""
    folder = exports(model, form).folder
    places = {
        folder.parent,
        ROOT,
        pathlib.Path(sys.prefix),
        pathlib.Path.home(),
        tmp_path.parents[1],
    }
    words = [str(place).encode() for place in places] + [b"site-packages", b".py"]
    for path in folder.rglob("*"):
        if path.is_file() and path.name != pathlib.Path(saved_model.MODEL_CARD).name:
            content = path.read_bytes()
            assert not [word for word in words if word in content], path.name
