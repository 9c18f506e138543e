"""Hugging Face folders: `config.json`, `model.safetensors` and the tokenizer's files.

Weights have other names there (`bert_tf.weights` has the table) and kernels lie transposed:
[out, in] there, [in, out] in the original release and here.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from bert_tf.config import BertConfig, read_json
from bert_tf.weights import count_layers, weight_table

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
SHARD_INDEX = "model.safetensors.index.json"


# The first one whose weight is there names the architecture.
ARCHITECTURES = (
    ("output_weights", "BertForSequenceClassification"),
    ("cls/squad/output_weights", "BertForQuestionAnswering"),
)


def to_original(tensors: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Renames Hugging Face tensors to the original names, as float32 with kernels [in, out].

    Understood: names with and without the leading `bert.`, the older `LayerNorm.gamma` and `.beta`,
    the tied copies `cls.predictions.decoder.*` and the buffers `position_ids`, `token_type_ids`
    (both left out). A tensor that no BERT has keeps its name.

    Raises:
        ValueError: the decoder is not tied to the embeddings, or a weight is not of floating point.
    """
    tensors = {modern_name(name): tensor for name, tensor in tensors.items()}
    if not any(name.startswith("bert.") for name in tensors):
        body = ("embeddings.", "encoder.", "pooler.")
        tensors = {f"bert.{n}" if n.startswith(body) else n: t for n, t in tensors.items()}
    buffers = ("bert.embeddings.position_ids", "bert.embeddings.token_type_ids")
    tensors = without_tied_copies({n: t for n, t in tensors.items() if n not in buffers}, source)
    table = {row.hugging_face: row.original for row in weight_table(count_layers(list(tensors)))}
    weights = {}
    for name, tensor in tensors.items():
        if tensor.dtype.kind in "biu":
            raise ValueError(
                f"{source}: {name} is stored as {tensor.dtype}; quantised weights cannot be read. "
                "Take the float32, float16 or bfloat16 weights of this model."
            )
        original = table.get(name, name)
        oriented = tensor.T if original.endswith("/kernel") else tensor
        weights[original] = np.ascontiguousarray(oriented, dtype=np.float32)
    return weights


def modern_name(name: str) -> str:
    """The spelling of today for names of converters from before 2019."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def without_tied_copies(tensors: dict[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Leaves out `cls.predictions.decoder.*`, shared with the embeddings and the output bias."""
    kept = dict(tensors)
    decoder_bias = kept.pop("cls.predictions.decoder.bias", None)
    if decoder_bias is not None:
        kept.setdefault("cls.predictions.bias", decoder_bias)
    decoder = kept.pop("cls.predictions.decoder.weight", None)
    embeddings = kept.get("bert.embeddings.word_embeddings.weight")
    for copy, shared, name in (
        (decoder, embeddings, "cls.predictions.decoder.weight"),
        (decoder_bias, kept.get("cls.predictions.bias"), "cls.predictions.decoder.bias"),
    ):
        if copy is not None and shared is not None and not np.array_equal(copy, shared):
            raise ValueError(
                f"{source}: {name} is not a copy of the weight it is tied to in BERT "
                "(tie_word_embeddings is off?); a masked LM with its own decoder cannot be read."
            )
    return kept


def from_original(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `to_original`; without heads also without `bert.`, as `BertModel` saves."""
    table = {row.original: row.hugging_face for row in weight_table(count_layers(list(weights)))}
    tensors = {}
    for original, weight in weights.items():
        oriented = weight.T if original.endswith("/kernel") else weight
        tensors[table.get(original, original)] = np.ascontiguousarray(oriented)
    if all(name.startswith("bert.") for name in tensors):
        return {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    return tensors


# -------------------------------------------------------------------------------------------- files

SAFETENSORS_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": tf.bfloat16.as_numpy_dtype,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_weights(folder: str) -> dict[str, np.ndarray]:
    """Reads `model.safetensors`, whole or in shards, under the original names as float32.

    Raises:
        ValueError: a file is missing or damaged, or holds what is not a BERT's (see `to_original`).
    """
    single = os.path.join(folder, SINGLE_FILE)
    if tf.io.gfile.exists(single):
        return to_original(read_safetensors(single), single)
    index = os.path.join(folder, SHARD_INDEX)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and os.path.basename(file) == file for file in weight_map.values()
    ):
        raise ValueError(f"{index} has no weight_map of tensor names to files in its folder.")
    tensors: dict[str, np.ndarray] = {}
    for file in sorted(set(weight_map.values())):
        tensors |= read_safetensors(os.path.join(folder, file))
    lost = sorted(set(weight_map) - set(tensors))
    if lost:
        raise ValueError(f"{index} names tensors that its files lack: {', '.join(lost[:5])}.")
    return to_original(tensors, index)


def read_safetensors(path: str) -> dict[str, np.ndarray]:
    """All tensors of a local or `gs://` file as stored; raises ValueError naming a damaged file."""
    if not tf.io.gfile.exists(path):
        raise ValueError(f"{path} does not exist.")
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        entries = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}); fetch or copy it again."
        ) from None
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in SAFETENSORS_TYPES:
            raise ValueError(f"{path}: {name} has the type {entry['dtype']}, which cannot be read.")
        values = np.frombuffer(entry["data"], SAFETENSORS_TYPES[entry["dtype"]])
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_safetensors(path: str, tensors: dict[str, np.ndarray]) -> None:
    """Writes contiguous arrays; transformers demands to be told the format `pt`."""
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(safetensors.numpy.save(tensors, metadata={"format": "pt"}))


def config_values(
    config: BertConfig,
    weights: dict[str, np.ndarray],
    labels: tuple[str, ...] | None,
    known: str = "",
) -> dict[str, Any]:
    """The content of `config.json`: shape, architecture and labels.

    `known` is the architecture where more is known than the weights tell.
    """
    values = config.to_hugging_face() | {"architectures": [known or architecture(weights)]}
    if "output_weights" in weights:
        labels = labels or placeholder_labels(len(weights["output_weights"]))
        values["id2label"] = {str(index): label for index, label in enumerate(labels)}
        values["label2id"] = {label: index for index, label in enumerate(labels)}
    return values


def architecture(weights: dict[str, np.ndarray]) -> str:
    """The transformers class that has these heads.

    A tagger and a multiple choice have the weights of a sequence classifier and are called one: the
    weights do not tell. Where the task is known, `bert_tf.export` names the right one.
    """
    for head, name in ARCHITECTURES:
        if head in weights:
            return name
    predicts = "cls/predictions/output_bias" in weights
    if "cls/seq_relationship/output_weights" in weights:
        return "BertForPreTraining" if predicts else "BertForNextSentencePrediction"
    return "BertForMaskedLM" if predicts else "BertModel"


def placeholder_labels(classes: int) -> tuple[str, ...]:
    """What transformers writes where nobody named the classes."""
    return tuple(f"LABEL_{index}" for index in range(classes))


def read_labels(folder: str, weights: dict[str, np.ndarray]) -> tuple[str, ...] | None:
    """The classifier's labels in `config.json`; None where it is absent or nobody named them."""
    path = os.path.join(folder, CONFIG_FILE)
    numbered = read_json(path).get("id2label")
    if not numbered or "output_weights" not in weights:
        return None
    classes = len(weights["output_weights"])
    if not isinstance(numbered, dict) or set(numbered) != {str(index) for index in range(classes)}:
        raise ValueError(
            f"{path}: id2label must name the classes 0 to {classes - 1}: {numbered!r}."
        )
    labels = tuple(str(numbered[str(index)]) for index in range(classes))
    return None if labels == placeholder_labels(classes) else labels


def vocabulary_file(folder: str) -> str | None:
    """A `vocab.txt` made from `tokenizer.json`, the only vocabulary that transformers 5 saves.

    It lies in a temporary folder that is removed when the process ends. None where there is no
    `tokenizer.json` or it does not hold a WordPiece vocabulary.

    Raises:
        ValueError: the ids are not 0, 1, 2, ...
    """
    path = os.path.join(folder, "tokenizer.json")
    model = read_json(path).get("model") if tf.io.gfile.exists(path) else None
    if not isinstance(model, dict) or model.get("type") != "WordPiece" or "vocab" not in model:
        return None
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    if [model["vocab"][piece] for piece in pieces] != list(range(len(pieces))):
        raise ValueError(f"{path}: the ids of the vocabulary are not 0 to {len(pieces) - 1}.")
    temporary = tempfile.mkdtemp(prefix="bert_tf_vocabulary_")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    vocab_file = os.path.join(temporary, "vocab.txt")
    with open(vocab_file, "w", encoding="utf-8", newline="\n") as file:
        file.write("".join(f"{piece}\n" for piece in pieces))
    return vocab_file


def tokenizer_settings(folder: str) -> dict[str, Any]:
    """`tokenizer_config.json`; what it lacks comes from the normalizer in `tokenizer.json`.

    Empty where the folder has neither.
    """
    settings: dict[str, Any] = {}
    path = os.path.join(folder, "tokenizer.json")
    if tf.io.gfile.exists(path):
        normalizer = read_json(path).get("normalizer") or {}
        if normalizer.get("type") == "BertNormalizer":
            settings["do_lower_case"] = normalizer.get("lowercase")
            settings["strip_accents"] = normalizer.get("strip_accents")
    path = os.path.join(folder, "tokenizer_config.json")
    if tf.io.gfile.exists(path):
        settings |= read_json(path)
    return settings
