"""From a path to weights, configuration and tokenizer: what a model or a run starts from.

Read are TF1 checkpoints, Hugging Face folders and this package's run folders.
Whatever the source, weights carry the names of the original release, kernels lie [in, out] and
values are float32. Optimizer slots and counters are left out (`weights.read_tensors` has them).
"""

from __future__ import annotations

import dataclasses
import os
import re

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf import hugging_face
from bert_tf.config import BertConfig, ModelConfig, read_json
from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.layouts import Layout, PaddedLayout
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign, check_shapes, find_prefix, read_weights

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
    vocab_file = existing(place.home, VOCAB_FILE)
    if place.kind == "hugging_face":
        weights = hugging_face.read_weights(place.weights)
        labels = hugging_face.read_labels(place.home, weights)
        vocab_file = vocab_file or hugging_face.vocabulary_file(place.home)
    else:
        weights = read_weights(place.weights)
        labels = read_labels(place.home)
    # TF1 checkpoints come without a configuration at times; Hugging Face folders never do.
    has_config = place.kind == "hugging_face" or tf.io.gfile.exists(place.config_file)
    lower_case, strip_accents = read_casing(place)
    return Checkpoint(
        config=BertConfig.from_file(place.config_file) if has_config else None,
        weights=weights,
        vocab_file=vocab_file,
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
        return place_of_prefix(find_prefix(path))
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


def read_casing(place: Place) -> tuple[bool | None, bool | None]:
    """`lower_case` and `strip_accents`, by the tokenizer's files or an original folder name.

    Raises:
        ValueError: one of them is something else than true, false or null.
    """
    settings_file = existing(place.home, "tokenizer_config.json")
    if place.kind == "hugging_face":
        settings = hugging_face.tokenizer_settings(place.home)
    else:
        settings = read_json(settings_file) if settings_file else {}
    for name in ("do_lower_case", "strip_accents"):
        if not isinstance(settings.get(name), bool | None):
            raise ValueError(
                f"{place.home}: the tokenizer's {name} is {settings[name]!r}, not true or false."
            )
    if settings.get("tokenize_chinese_chars") is False:
        logging.warning(
            "%s: this model was made without spaces around CJK characters "
            "(tokenize_chinese_chars is false); they are put in all the same.",
            place.home,
        )
    lower_case = settings.get("do_lower_case")
    if lower_case is None:
        name = os.path.basename(place.home if "://" in place.home else os.path.abspath(place.home))
        if CASED_FOLDER.match(name):
            lower_case = False
        elif UNCASED_FOLDER.match(name):
            lower_case = True
    return lower_case, settings.get("strip_accents")


def read_labels(folder: str) -> tuple[str, ...] | None:
    """The classes that `labels.json` lists under `names`, in the order of the outputs, if any."""
    path = existing(folder, LABELS_FILE)
    if path is None:
        return None
    labels = read_json(path).get("names")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f'{path} must hold {{"names": ["...", ...]}}, the classes in order.')
    return tuple(labels) or None  # a regression has none


# --------------------------------------------------------------------------------------- checking


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


# --------------------------------------------------------------------------- what a run starts from

SWITCH = {"auto": None, "true": True, "false": False}


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """What a run starts from."""

    config: BertConfig
    tokenizer: Tokenizer | None
    weights: dict[str, np.ndarray]  # by original name; empty: random weights
    source: str


def load(path: str, layout: type[Layout] = PaddedLayout) -> BertEncoder:
    """Loads an encoder with its weights, and its tokenizer where a vocabulary is found.

    Args:
        path: a TF1 checkpoint (prefix or folder), a Hugging Face folder (`config.json` and
            `model.safetensors`), or a run folder of this package.
        layout: how rows are laid out; see `encoder.Layout`.

    Returns:
        The encoder; its `.config` and `.tokenizer` are set (`.tokenizer` is None where the
        checkpoint has no vocabulary).

    Raises:
        ValueError: nothing readable is there, or weights, config and vocabulary disagree.
    """
    pretrained = read_pretrained(ModelConfig(init_checkpoint=path))
    encoder = BertEncoder(pretrained.config, layout)
    encoder.tokenizer = pretrained.tokenizer
    # A checkpoint of Hugging Face may come without a pooler.
    assign(variables_by_name(encoder), pretrained.weights, path, optional=("bert/pooler",))
    return encoder


def read_pretrained(model: ModelConfig) -> Pretrained:
    """Reads config, tokenizer and weights as `model` asks, and checks them against each other.

    Raises:
        ValueError: a file is missing, or casing, vocabulary and config do not fit together.
    """
    for field in ("lower_case", "strip_accents"):
        if getattr(model, field) not in SWITCH:
            raise ValueError(
                f"config.model.{field}={getattr(model, field)!r} must be 'auto', 'true' or 'false'."
            )
    if not model.init_checkpoint:
        return first_layers(random_start(model), model.num_layers)
    checkpoint = read_checkpoint(model.init_checkpoint)
    config = checkpoint.config
    if model.bert_config:
        config = BertConfig.from_file(model.bert_config)
        check_shapes(checkpoint.weights, config, checkpoint.source, model.bert_config)
    if config is None:
        raise ValueError(
            f"{model.init_checkpoint} has no bert_config.json beside it; name one with "
            "config.model.bert_config."
        )
    vocab_file = model.vocab_file or checkpoint.vocab_file
    tokenizer = None
    if vocab_file:
        casing = {
            field: agreed_casing(field, getattr(model, field), getattr(checkpoint, field), model)
            for field in ("lower_case", "strip_accents")
        }
        if casing["lower_case"] is None:
            logging.warning(
                "%s does not say whether its vocabulary is lower-cased: taken as lower-cased. For "
                "a cased model set config.model.lower_case=false, or most words become [UNK].",
                model.init_checkpoint,
            )
        tokenizer = make_tokenizer(vocab_file, config, **casing)
    found = Pretrained(
        with_dropout(config, model), tokenizer, checkpoint.weights, model.init_checkpoint
    )
    return first_layers(found, model.num_layers)


def first_layers(pretrained: Pretrained, count: int) -> Pretrained:
    """The model without the layers above the first `count`; 0 leaves it as it is.

    Raises:
        ValueError: it has fewer layers.
    """
    layers = pretrained.config.num_hidden_layers
    if not 0 <= count <= layers:
        raise ValueError(
            f"config.model.num_layers={count} must be from 1 to {layers}, the layers of "
            f"{pretrained.source or 'bert_config'}; 0 takes all of them."
        )
    if count in (0, layers):
        return pretrained
    dropped = tuple(f"bert/encoder/layer_{number}/" for number in range(count, layers))
    return dataclasses.replace(
        pretrained,
        config=dataclasses.replace(pretrained.config, num_hidden_layers=count),
        weights={k: v for k, v in pretrained.weights.items() if not k.startswith(dropped)},
    )


def random_start(model: ModelConfig) -> Pretrained:
    """Config and tokenizer for random weights."""
    for field in ("bert_config", "vocab_file"):
        if not getattr(model, field):
            raise ValueError(
                f"config.model.{field} is empty: without config.model.init_checkpoint a run starts "
                "from random weights and needs both bert_config and vocab_file."
            )
    config = with_dropout(BertConfig.from_file(model.bert_config), model)
    lower_case, strip_accents = SWITCH[model.lower_case], SWITCH[model.strip_accents]
    tokenizer = make_tokenizer(model.vocab_file, config, lower_case, strip_accents)
    return Pretrained(config, tokenizer, {}, "")


def make_tokenizer(
    vocab_file: str, config: BertConfig, lower_case: bool | None, strip_accents: bool | None
) -> Tokenizer:
    """A tokenizer; raises ValueError where it has pieces that the embedding table lacks."""
    tokenizer = Tokenizer(vocab_file, lower_case is not False, strip_accents)
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{vocab_file} has {tokenizer.vocab_size:,} pieces, but the model's embedding table "
            f"has {config.vocab_size:,} rows (vocab_size); use the vocabulary that belongs to the "
            "checkpoint."
        )
    return tokenizer


def agreed_casing(field: str, asked: str, found: bool | None, model: ModelConfig) -> bool | None:
    """The casing to use; raises ValueError where a run asks for another than the checkpoint's."""
    wanted = SWITCH[asked]
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(
            f"config.model.{field}={asked} but {model.init_checkpoint} was trained with "
            f"{field}={str(found).lower()}: its vocabulary would turn most words into [UNK] or "
            f"lose their case. Leave config.model.{field} at 'auto', or choose another checkpoint."
        )
    return found if wanted is None else wanted


def with_dropout(config: BertConfig, model: ModelConfig) -> BertConfig:
    """The config with the run's own dropout rates, where it has some."""
    hidden, attention = model.hidden_dropout, model.attention_dropout
    return dataclasses.replace(
        config,
        hidden_dropout_prob=config.hidden_dropout_prob if hidden < 0.0 else hidden,
        attention_probs_dropout_prob=(
            config.attention_probs_dropout_prob if attention < 0.0 else attention
        ),
    )
