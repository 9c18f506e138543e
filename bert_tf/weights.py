"""The weights of a BERT: names, shapes, how variables get them, and TF1 checkpoint files.

Names and orientation are those of the original release: kernels lie [in, out]. The table below is
the one place that knows every weight, and what Hugging Face files (kernels [out, in]) call it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from bert_tf.config import BertConfig


class Weight(NamedTuple):
    """Both names of a weight and its shape in letters.

    H hidden, F feed-forward, V vocabulary, S positions, T segment types, 2 two, C classes (any
    number).
    """

    original: str
    hugging_face: str
    shape: str


EMBEDDINGS = (
    Weight("bert/embeddings/word_embeddings", "bert.embeddings.word_embeddings.weight", "VH"),
    Weight(
        "bert/embeddings/position_embeddings", "bert.embeddings.position_embeddings.weight", "SH"
    ),
    Weight(
        "bert/embeddings/token_type_embeddings",
        "bert.embeddings.token_type_embeddings.weight",
        "TH",
    ),
    Weight("bert/embeddings/LayerNorm/gamma", "bert.embeddings.LayerNorm.weight", "H"),
    Weight("bert/embeddings/LayerNorm/beta", "bert.embeddings.LayerNorm.bias", "H"),
)
# Names after `bert/encoder/layer_0/` and `bert.encoder.layer.0.`.
EACH_LAYER = (
    Weight("attention/self/query/kernel", "attention.self.query.weight", "HH"),
    Weight("attention/self/query/bias", "attention.self.query.bias", "H"),
    Weight("attention/self/key/kernel", "attention.self.key.weight", "HH"),
    Weight("attention/self/key/bias", "attention.self.key.bias", "H"),
    Weight("attention/self/value/kernel", "attention.self.value.weight", "HH"),
    Weight("attention/self/value/bias", "attention.self.value.bias", "H"),
    Weight("attention/output/dense/kernel", "attention.output.dense.weight", "HH"),
    Weight("attention/output/dense/bias", "attention.output.dense.bias", "H"),
    Weight("attention/output/LayerNorm/gamma", "attention.output.LayerNorm.weight", "H"),
    Weight("attention/output/LayerNorm/beta", "attention.output.LayerNorm.bias", "H"),
    Weight("intermediate/dense/kernel", "intermediate.dense.weight", "HF"),
    Weight("intermediate/dense/bias", "intermediate.dense.bias", "F"),
    Weight("output/dense/kernel", "output.dense.weight", "FH"),
    Weight("output/dense/bias", "output.dense.bias", "H"),
    Weight("output/LayerNorm/gamma", "output.LayerNorm.weight", "H"),
    Weight("output/LayerNorm/beta", "output.LayerNorm.bias", "H"),
)
# Any of these may be absent.
POOLER = (
    Weight("bert/pooler/dense/kernel", "bert.pooler.dense.weight", "HH"),
    Weight("bert/pooler/dense/bias", "bert.pooler.dense.bias", "H"),
)
PREDICTIONS = "cls/predictions/transform"
HEADS = (
    Weight(f"{PREDICTIONS}/dense/kernel", "cls.predictions.transform.dense.weight", "HH"),
    Weight(f"{PREDICTIONS}/dense/bias", "cls.predictions.transform.dense.bias", "H"),
    Weight(f"{PREDICTIONS}/LayerNorm/gamma", "cls.predictions.transform.LayerNorm.weight", "H"),
    Weight(f"{PREDICTIONS}/LayerNorm/beta", "cls.predictions.transform.LayerNorm.bias", "H"),
    Weight("cls/predictions/output_bias", "cls.predictions.bias", "V"),
    Weight("cls/seq_relationship/output_weights", "cls.seq_relationship.weight", "2H"),
    Weight("cls/seq_relationship/output_bias", "cls.seq_relationship.bias", "2"),
    Weight("cls/squad/output_weights", "qa_outputs.weight", "2H"),
    Weight("cls/squad/output_bias", "qa_outputs.bias", "2"),
    Weight("output_weights", "classifier.weight", "CH"),
    Weight("output_bias", "classifier.bias", "C"),
)


def weight_table(layers: int) -> list[Weight]:
    """Every weight that a BERT of that many layers, with all heads, can have."""
    encoder = [
        Weight(
            f"bert/encoder/layer_{index}/{row.original}",
            f"bert.encoder.layer.{index}.{row.hugging_face}",
            row.shape,
        )
        for index in range(layers)
        for row in EACH_LAYER
    ]
    return [*EMBEDDINGS, *encoder, *POOLER, *HEADS]


def count_layers(names: list[str]) -> int:
    """One more than the highest layer number in names of either kind; 0 where there is none."""
    numbers = [re.match(r"bert[./]encoder[./]layer[._](\d+)[./]", name) for name in names]
    return max((int(match[1]) + 1 for match in numbers if match), default=0)


def check_shapes(
    weights: dict[str, np.ndarray], config: BertConfig, source: str, config_source: str
) -> None:
    """Raises one ValueError that lists every weight which the configuration makes otherwise."""
    expected = expected_shapes(config)
    faults = []
    for name, shape in expected.items():
        if name in weights and not fits(weights[name].shape, shape):
            faults.append(f"{name} is {list(weights[name].shape)}, not {list(shape)}")
        elif name not in weights and name.startswith(("bert/embeddings/", "bert/encoder/")):
            faults.append(f"{name} is missing")
    strange = [
        name for name in weights if name.startswith(("bert/", "bert.")) and name not in expected
    ]
    faults += [f"{name} is not part of it" for name in strange]
    if faults:
        raise ValueError(
            f"{source} holds weights of another shape than {config_source} says ({config}): "
            f"{listing(faults)}. Give the configuration that these weights were trained with."
        )


def expected_shapes(config: BertConfig) -> dict[str, tuple[int | None, ...]]:
    """The shape of every weight by original name, heads included; None where any size is right."""
    sizes = {
        "H": config.hidden_size,
        "F": config.intermediate_size,
        "V": config.vocab_size,
        "S": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "2": 2,
        "C": None,
    }
    table = weight_table(config.num_hidden_layers)
    return {row.original: tuple(sizes[letter] for letter in row.shape) for row in table}


def fits(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a shape is the expected one."""
    return len(shape) == len(expected) and all(
        size is None or size == own for own, size in zip(shape, expected, strict=True)
    )


def listing(faults: list[str], shown: int = 12) -> str:
    """The first faults, and how many more there are."""
    more = f"; and {len(faults) - shown} more" if len(faults) > shown else ""
    return "; ".join(faults[:shown]) + more


# -------------------------------------------------------------------------------------- assignment

# What a model must take over from a checkpoint; the pooler and everything else are heads.
BODY = ("bert/embeddings/", "bert/encoder/", "bert.")


@dataclasses.dataclass(frozen=True)
class AssignReport:
    """Names of the variables that were assigned or left fresh, and of the weights nobody wanted."""

    assigned: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def assign(
    variables: dict[str, tf.Variable],
    weights: dict[str, np.ndarray],
    source: str,
    optional: tuple[str, ...] = (),
) -> AssignReport:
    """Gives variables (also those of a tf.distribute strategy) the weights of the same names.

    Args:
        variables: by original name.
        weights: by original name; heads and poolers that the model lacks are left out and reported.
        source: what to call the checkpoint in errors.
        optional: prefixes of variables that may keep their initial values: the checkpoint need not
            have them.

    Raises:
        ValueError: a variable has no weight, a weight of the encoder no variable, or shapes differ.
            All such pairs are listed and nothing has been assigned.
    """
    fresh = [name for name in variables if name not in weights and name.startswith(optional)]
    missing = [name for name in variables if name not in weights and name not in fresh]
    unwanted = [name for name in weights if name not in variables]
    assigned = [name for name in variables if name in weights]
    shapes = {name: (tuple(variables[name].shape), weights[name].shape) for name in assigned}
    faults = [f"{name} is not in the checkpoint" for name in missing]
    faults += [
        f"{name} {list(weights[name].shape)} is not in the model"
        for name in unwanted
        if name.startswith(BODY)
    ]
    faults += [
        f"{name} is {list(theirs)} in the checkpoint and {list(ours)} in the model"
        for name, (ours, theirs) in shapes.items()
        if ours != theirs
    ]
    if faults:
        raise ValueError(
            f"The weights of {source} do not fit the model: {listing(faults)}. Nothing was loaded; "
            "build the model from the configuration of this checkpoint."
        )
    for name in assigned:
        variables[name].assign(np.asarray(weights[name], variables[name].dtype.as_numpy_dtype))
    return AssignReport(tuple(assigned), tuple(fresh), tuple(unwanted))


# ----------------------------------------------------------------------------- TF1 checkpoint files

# Counters of optimizers and loops, beside the weights in a training checkpoint.
BOOKKEEPING = ("beta1_power", "beta2_power", "global_step", "good_steps", "loss_scale")


def find_prefix(folder: str) -> str:
    """The one TF1 checkpoint of a folder, or the one that its `checkpoint` file names."""
    names = [name for name in tf.io.gfile.listdir(folder) if name.endswith(".index")]
    prefixes = sorted(name.removesuffix(".index") for name in names)
    state = (
        tf.train.get_checkpoint_state(folder)
        if tf.io.gfile.exists(f"{folder}/checkpoint")
        else None
    )
    if state is not None and os.path.basename(state.model_checkpoint_path) in prefixes:
        # Only the last part counts: the path in the file is that of the machine that wrote it.
        prefixes = [os.path.basename(state.model_checkpoint_path)]
    if len(prefixes) == 1:
        return os.path.join(folder, prefixes[0])
    if prefixes:
        raise ValueError(
            f"{folder} holds several checkpoints ({', '.join(prefixes)}) and no `checkpoint` file "
            f"that names one of them; give a prefix, such as {folder}/{prefixes[-1]}."
        )
    raise ValueError(f"{folder} holds no TF1 checkpoint (*.index).")


def read_weights(prefix: str) -> dict[str, np.ndarray]:
    """The weights of a TF1 checkpoint, as float32, without optimizer slots and counters.

    A slot is a tensor named below another (`bert/pooler/dense/kernel/adam_m`), of any optimizer.
    """
    with readable_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        types = reader.get_variable_to_dtype_map()
        names = [
            name
            for name in sorted(types)
            if types[name].is_floating
            and name not in BOOKKEEPING
            and os.path.dirname(name) not in types
        ]
        return {name: np.asarray(reader.get_tensor(name), np.float32) for name in names}


def read_tensors(prefix: str) -> dict[str, np.ndarray]:
    """Every tensor of a TF1 checkpoint by name, slots and counters included, in its stored type.

    Raises:
        ValueError: the files are missing or damaged.
    """
    with readable_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        return {
            name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_dtype_map())
        }


@contextlib.contextmanager
def readable_errors(prefix: str) -> Iterator[None]:
    """Turns TensorFlow's errors about checkpoint files into one ValueError that names them."""
    try:
        yield
    except (tf.errors.OpError, IndexError, RuntimeError) as error:
        message = getattr(error, "message", None) or str(error)
        raise ValueError(
            f"The checkpoint {prefix} cannot be read ({message}). Its .index and .data files are "
            "missing, damaged or not of the same save; fetch or copy them again."
        ) from None


def write_tensors(prefix: str, tensors: dict[str, np.ndarray]) -> None:
    """Writes tensors by name, readable by `tf.train.load_checkpoint` and by the original release.

    The index gets its name last: where it exists, the save is complete.

    Raises:
        ValueError: the place cannot be written to.
    """
    names = sorted(tensors)
    try:
        with tf.device("CPU:0"):
            tf.raw_ops.SaveV2(
                prefix=prefix,
                tensor_names=names,
                shape_and_slices=[""] * len(names),
                tensors=[tensors[name] for name in names],
            )
    except tf.errors.OpError as error:
        raise ValueError(f"The checkpoint {prefix} cannot be written ({error.message}).") from None
