"""Weights in and out: TF1 checkpoints, Hugging Face folders and this package's run folders.

Whatever the source, weights carry the names of the original release, kernels lie [in, out] and
values are float32. Optimizer slots and counters are left out (`read_tensors` has them).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import hugging_face, tensor_bundles
from bert_tf.config import BertConfig, read_json, write_json
from bert_tf.tensor_bundles import read_tensors as read_tensors
from bert_tf.tensor_bundles import write_tensors as write_tensors
from bert_tf.weights import AssignReport as AssignReport
from bert_tf.weights import assign as assign
from bert_tf.weights import check_shapes as check_shapes

CONFIG_FILE = "bert_config.json"
VOCAB_FILE = "vocab.txt"
LABELS_FILE = "labels.json"
RUN_FILE = "run.json"
TF1_NAME = "bert_model.ckpt"
RUN_NAME = "model.ckpt"
# Casing by the folder names of the original release, as in its validate_case_matches_checkpoint.
CASED_FOLDER = re.compile(r"(wwm_|multi_)?cased_L-")
UNCASED_FOLDER = re.compile(r"((wwm_)?uncased|multilingual|chinese)_L-")


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was found at a path; None stands for what was not."""

    config: BertConfig | None
    weights: dict[str, np.ndarray]  # float32, by original name
    vocab_file: str | None
    lower_case: bool | None
    strip_accents: bool | None
    source: str  # the file prefix or folder that was read
    kind: str  # "tf1", "hugging_face" or "run"
    labels: tuple[str, ...] | None  # names of the classifier's classes


# ------------------------------------------------------------------------------------------ reading


def read_checkpoint(path: str) -> Checkpoint:
    """Reads weights and what lies beside them, and checks that they belong together.

    Args:
        path: local or `gs://`; a TF1 checkpoint (prefix or folder), a Hugging Face folder
            (`config.json` with `model.safetensors`, whole or in shards) or a run folder (its best
            weights, else its newest step).

    Raises:
        ValueError: nothing readable is there, a file is damaged, or weights, configuration and
            vocabulary disagree.
    """
    try:
        place = locate(path)
        checkpoint = gather(place)
        check_consistency(checkpoint, place.config_file)
    except tf.errors.OpError as error:
        raise ValueError(f"{path} cannot be read: {error.message}.") from None
    return checkpoint


def gather(place: Place) -> Checkpoint:
    """Reads the weights and what lies beside them."""
    if place.kind == "hugging_face":
        weights = hugging_face.read_weights(place.weights)
        labels = hugging_face.read_labels(place.home, weights)
    else:
        weights = tensor_bundles.read_weights(place.weights)
        labels = read_labels(place.home)
    # TF1 checkpoints come without a configuration at times; Hugging Face folders never do.
    has_config = place.kind == "hugging_face" or tf.io.gfile.exists(place.config_file)
    lower_case, strip_accents = read_casing(place.home)
    return Checkpoint(
        config=BertConfig.from_file(place.config_file) if has_config else None,
        weights=weights,
        vocab_file=existing(place.home, VOCAB_FILE) or hugging_face.vocabulary_file(place.home),
        lower_case=lower_case,
        strip_accents=strip_accents,
        source=place.weights,
        kind=place.kind,
        labels=labels,
    )


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the weights (TF1 prefix or folder) and the files beside them (`home`) are."""

    kind: str
    weights: str
    home: str

    @property
    def config_file(self) -> str:
        """Where the configuration must be."""
        name = hugging_face.CONFIG_FILE if self.kind == "hugging_face" else CONFIG_FILE
        return os.path.join(self.home, name)


def locate(path: str) -> Place:
    """Finds out what `path` is; raises ValueError where it is nothing that can be read."""
    path = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.rstrip("/"))
    if path.endswith((".safetensors", hugging_face.SHARD_INDEX)):
        path = os.path.dirname(path) or "."
    if tf.io.gfile.exists(f"{path}.index"):
        return place_of_prefix(path)
    if not tf.io.gfile.isdir(path):
        raise ValueError(
            f"There is no checkpoint at {path}. Give a TF1 checkpoint (its prefix, such as "
            f".../{TF1_NAME}, or its folder), a Hugging Face folder or a run folder."
        )
    if existing(path, RUN_FILE):
        return Place("run", run_prefix(path), path)
    if existing(path, hugging_face.SINGLE_FILE) or existing(path, hugging_face.SHARD_INDEX):
        return Place("hugging_face", path, path)
    if any(name.endswith(".index") for name in tf.io.gfile.listdir(path)):
        return place_of_prefix(tensor_bundles.find_prefix(path))
    raise nothing_to_read(path)


def nothing_to_read(folder: str) -> ValueError:
    """The error for a folder without readable weights; it tells the remedy for unreadable ones."""
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"):
        if existing(folder, name):
            return ValueError(
                f"{folder} holds its weights only as {name}; pickles and HDF5 files are not read. "
                "Save the model as safetensors first (transformers: save_pretrained)."
            )
    return ValueError(
        f"{folder} holds no checkpoint: no *.index (TF1), no {hugging_face.SINGLE_FILE} "
        f"(Hugging Face), no {RUN_FILE} (run folder)."
    )


def place_of_prefix(prefix: str) -> Place:
    """A TF1 prefix stands by itself, or belongs to the run folder one or two levels above it."""
    folder = os.path.dirname(prefix) or "."
    if not existing(folder, CONFIG_FILE):
        for home in (parent(folder), parent(parent(folder))):
            if existing(home, RUN_FILE):
                return Place("run", prefix, home)
    return Place("tf1", prefix, folder)


def parent(folder: str) -> str:
    """The folder above; buckets know no `..`."""
    remote = "://" in folder
    return os.path.dirname(folder) if remote else os.path.normpath(os.path.join(folder, ".."))


def run_prefix(folder: str) -> str:
    """The best weights of a run, else those of its newest step."""
    for part in ("best", "checkpoints"):
        steps = os.path.join(folder, part)
        names = tf.io.gfile.listdir(steps) if existing(folder, part) else []
        numbers = [re.fullmatch(r"step-(\d+)/?", name) for name in names]
        newest = sorted(filter(None, numbers), key=lambda match: int(match[1]), reverse=True)
        # An unfinished save has no index.
        for place in ("", *(f"step-{match[1]}" for match in newest)):
            prefix = os.path.join(steps, place, RUN_NAME)
            if tf.io.gfile.exists(f"{prefix}.index"):
                return prefix
    raise ValueError(f"The run {folder} has saved no weights yet: no best/, no checkpoints/step-*.")


def existing(folder: str, name: str) -> str | None:
    """The path of a file in a folder, or None where it is not there."""
    path = os.path.join(folder, name)
    return path if tf.io.gfile.exists(path) else None


def read_casing(folder: str) -> tuple[bool | None, bool | None]:
    """`lower_case` and `strip_accents`, by the tokenizer's files or an original folder name."""
    lower_case, strip_accents = hugging_face.read_casing(folder)
    if lower_case is None:
        name = os.path.basename(folder if "://" in folder else os.path.abspath(folder))
        if CASED_FOLDER.match(name):
            lower_case = False
        elif UNCASED_FOLDER.match(name):
            lower_case = True
    return lower_case, strip_accents


def read_labels(folder: str) -> tuple[str, ...] | None:
    """The classes that `labels.json` lists under `names`, in the order of the outputs, if any."""
    path = existing(folder, LABELS_FILE)
    if path is None:
        return None
    labels = read_json(path).get("names")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f'{path} must hold {{"names": ["...", ...]}}, the classes in order.')
    return tuple(labels) or None  # a regression has none


# ----------------------------------------------------------------------------------------- checking


def check_consistency(checkpoint: Checkpoint, config_source: str) -> None:
    """Raises ValueError where weights, configuration, vocabulary and labels are not of one model.

    A vocabulary shorter than the embedding is allowed (models padded to a round number of rows are
    common) and logged; a longer one would index past the end.
    """
    weights, source = checkpoint.weights, checkpoint.source
    if "bert/embeddings/word_embeddings" not in weights:
        raise ValueError(
            f"{source} holds no BERT: no bert/embeddings/word_embeddings. It has "
            f"{', '.join(list(weights)[:4]) or 'no weights'}; object-based TF2 checkpoints and "
            "other models (ALBERT, ELECTRA, RoBERTa) cannot be read."
        )
    if checkpoint.config is not None:
        check_shapes(weights, checkpoint.config, source, config_source)
    rows = len(weights["bert/embeddings/word_embeddings"])
    if checkpoint.vocab_file is not None:
        pieces = count_lines(checkpoint.vocab_file)
        if pieces > rows:
            raise ValueError(
                f"{checkpoint.vocab_file} has {pieces} pieces, the word embeddings of {source} "
                f"only {rows} rows: this is the vocabulary of another model."
            )
        if pieces < rows:
            logging.warning(
                "%s: %d pieces, %d embedding rows.", checkpoint.vocab_file, pieces, rows
            )
    classes = len(weights.get("output_weights", ()))
    if checkpoint.labels is not None and classes and classes != len(checkpoint.labels):
        raise ValueError(
            f"{source}: the classifier has {classes} outputs, but {len(checkpoint.labels)} labels "
            f"lie beside it ({', '.join(checkpoint.labels[:10])})."
        )


def count_lines(path: str) -> int:
    """Lines as the original load_vocab counts them: the last needs no end, an empty one counts."""
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    return content.count(b"\n") + (not content.endswith(b"\n") and len(content) > 0)


# ------------------------------------------------------------------------------------------ writing


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
