"""From a checkpoint on disk to an encoder with its weights and its tokenizer."""

from __future__ import annotations

import dataclasses

import numpy as np
from absl import logging

from bert_tf import checkpoints
from bert_tf.config import BertConfig, ModelConfig
from bert_tf.encoder import BertEncoder, variables_by_name
from bert_tf.layout import Layout, PaddedLayout
from bert_tf.tokenization import Tokenizer

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
        layout: how rows are laid out; see `layout.py`.

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
    checkpoints.assign(
        variables_by_name(encoder), pretrained.weights, path, optional=("bert/pooler",)
    )
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
        return random_start(model)
    checkpoint = checkpoints.read_checkpoint(model.init_checkpoint)
    config = checkpoint.config
    if model.bert_config:
        config = BertConfig.from_file(model.bert_config)
        checkpoints.check_shapes(checkpoint.weights, config, checkpoint.source, model.bert_config)
    if config is None:
        raise ValueError(
            f"{model.init_checkpoint} has no bert_config.json beside it; name one with "
            "config.model.bert_config."
        )
    vocab_file = model.vocab_file or checkpoint.vocab_file
    tokenizer = None
    if vocab_file:
        lower_case = agreed_casing("lower_case", model.lower_case, checkpoint.lower_case, model)
        strip_accents = agreed_casing(
            "strip_accents", model.strip_accents, checkpoint.strip_accents, model
        )
        if lower_case is None:
            logging.warning(
                "%s does not say whether its vocabulary is lower-cased: taken as lower-cased. For "
                "a cased model set config.model.lower_case=false, or most words become [UNK].",
                model.init_checkpoint,
            )
        tokenizer = Tokenizer(vocab_file, lower_case is not False, strip_accents)
        check_vocabulary(tokenizer, config, vocab_file)
    return Pretrained(
        with_dropout(config, model), tokenizer, checkpoint.weights, model.init_checkpoint
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
    lower_case = SWITCH[model.lower_case]
    tokenizer = Tokenizer(
        model.vocab_file,
        True if lower_case is None else lower_case,
        SWITCH[model.strip_accents],
    )
    check_vocabulary(tokenizer, config, model.vocab_file)
    return Pretrained(config, tokenizer, {}, "")


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


def check_vocabulary(tokenizer: Tokenizer, config: BertConfig, vocab_file: str) -> None:
    """Raises ValueError where the vocabulary has words that the embedding table lacks."""
    if tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"{vocab_file} has {tokenizer.vocab_size:,} pieces, but the model's embedding table "
            f"has {config.vocab_size:,} rows (vocab_size); use the vocabulary that belongs to the "
            "checkpoint."
        )


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
