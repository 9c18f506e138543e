"""Checkpoints out: the files of the original release, and Hugging Face folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from bert_tf import hugging_face
from bert_tf.checkpoints import (
    CONFIG_FILE,
    LABELS_FILE,
    TF1_NAME,
    VOCAB_FILE,
    Checkpoint,
    check_consistency,
)
from bert_tf.config import BertConfig, write_json
from bert_tf.weights import write_tensors


def write_tf1(folder: str, checkpoint: Checkpoint) -> None:
    """Writes the files of the original release, which its code can read, and how the text is cased.

    `bert_model.ckpt.*`, `bert_config.json`, `vocab.txt`, `tokenizer_config.json`, and `labels.json`
    where the classes have names.

    Raises:
        ValueError: the checkpoint has no configuration or contradicts itself, or the folder is not
            empty.
    """
    config = writable_config(checkpoint)
    with new_folder(folder) as temporary:
        write_tensors(os.path.join(temporary, TF1_NAME), checkpoint.weights)
        write_json(os.path.join(temporary, CONFIG_FILE), config.to_dict())
        write_text_files(temporary, checkpoint, config)
        if checkpoint.labels is not None:
            write_labels(temporary, checkpoint.labels)


def write_hugging_face(folder: str, checkpoint: Checkpoint) -> None:
    """Writes a folder that transformers' `from_pretrained` reads.

    `config.json`, `model.safetensors`, `vocab.txt`, `tokenizer_config.json`.

    Raises:
        ValueError: the checkpoint has no configuration or contradicts itself, or the folder is not
            empty.
    """
    config = writable_config(checkpoint)
    values = hugging_face.config_values(config, checkpoint.weights, checkpoint.labels)
    with new_folder(folder) as temporary:
        hugging_face.write_safetensors(
            os.path.join(temporary, hugging_face.SINGLE_FILE),
            hugging_face.from_original(checkpoint.weights),
        )
        write_json(os.path.join(temporary, hugging_face.CONFIG_FILE), values)
        write_text_files(temporary, checkpoint, config)


def writable_config(checkpoint: Checkpoint) -> BertConfig:
    """The configuration of a checkpoint that may be written; raises ValueError for others."""
    if checkpoint.config is None:
        raise ValueError(f"{checkpoint.source} has no {CONFIG_FILE} beside it; give one.")
    check_consistency(checkpoint, "its configuration")
    return checkpoint.config


def write_text_files(folder: str, checkpoint: Checkpoint, config: BertConfig) -> None:
    """Writes `vocab.txt` and `tokenizer_config.json`; what is unknown stays unsaid."""
    casing = {"do_lower_case": checkpoint.lower_case, "strip_accents": checkpoint.strip_accents}
    known = {name: value for name, value in casing.items() if value is not None}
    length = {"model_max_length": config.max_position_embeddings}
    write_json(
        os.path.join(folder, "tokenizer_config.json"),
        known | length | {"tokenizer_class": "BertTokenizer"},
    )
    if checkpoint.vocab_file is not None:
        tf.io.gfile.copy(checkpoint.vocab_file, os.path.join(folder, VOCAB_FILE))


def write_labels(folder: str, labels: tuple[str, ...]) -> None:
    """Writes the file that `read_labels` reads."""
    write_json(os.path.join(folder, LABELS_FILE), {"names": list(labels)})


@contextlib.contextmanager
def new_folder(folder: str) -> Iterator[str]:
    """Gives a temporary sibling to fill; it takes the folder's name at the end, or goes on errors.

    Raises:
        ValueError: the folder exists and is not empty, or it cannot be written to.
    """
    folder = folder.rstrip("/")
    temporary = f"{folder}.tmp-{os.getpid()}"
    try:
        is_folder = tf.io.gfile.isdir(folder)
        if tf.io.gfile.listdir(folder) if is_folder else tf.io.gfile.exists(folder):
            raise ValueError(f"{folder} exists already; remove it or choose another folder.")
        tf.io.gfile.makedirs(temporary)
        try:
            yield temporary
            if is_folder:
                tf.io.gfile.rmtree(folder)  # it is empty; not every file system renames onto it
            tf.io.gfile.rename(temporary, folder)
        except BaseException:
            tf.io.gfile.rmtree(temporary)
            raise
    except tf.errors.OpError as error:
        raise ValueError(f"{folder} cannot be written: {error.message}.") from None
