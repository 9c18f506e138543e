"""TF1 checkpoints: `PREFIX.index` and `PREFIX.data-00000-of-00001`, tensors by name.

The format of the original release, of this package's own saves, and of every converter.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

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
