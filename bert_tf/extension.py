"""More words and more positions for a checkpoint: vocabulary, configuration and weights together.

New words take the `[unused]` lines of the vocabulary, then lines behind its end. Their rows begin
as the mean of the rows of the pieces that they had been until now, which the model understands.
New positions repeat the position table from its beginning, as for Longformer (Beltagy et al. 2020,
section 5): neighbours then differ as they did, only the seams are new. Both need training.

Legend: V vocabulary, H hidden, S positions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from absl import logging

from bert_tf import vocabulary
from bert_tf.checkpoints import Checkpoint, make_tokenizer
from bert_tf.tokenization import Tokenizer
from bert_tf.vocabulary import WordSplitter

WORD_TABLES = ("bert/embeddings/word_embeddings", "cls/predictions/output_bias")  # [V, H], [V]
POSITION_TABLE = "bert/embeddings/position_embeddings"  # [S, H]
UNUSED = re.compile(r"\[unused\d+\]")


def with_words(checkpoint: Checkpoint, words: Sequence[str], vocab_file: str) -> Checkpoint:
    """The checkpoint with words added; words that it has already are left out.

    Args:
        checkpoint: with its configuration, vocabulary and casing.
        words: in any casing; each must be a single word to the tokenizer.
        vocab_file: where the new vocabulary is written.

    Raises:
        ValueError: the checkpoint has no vocabulary, or a word is none.
    """
    tokenizer = tokenizer_of(checkpoint)
    new = new_words(words, tokenizer)
    pieces = list(tokenizer.vocab)
    free = [line for line, piece in enumerate(pieces) if UNUSED.fullmatch(piece)]
    lines = (free + list(range(len(pieces), len(pieces) + len(new))))[: len(new)]
    pieces += [""] * (max(lines, default=0) + 1 - len(pieces))
    for line, word in zip(lines, new, strict=True):
        pieces[line] = word
    vocabulary.write(vocab_file, pieces)
    assert checkpoint.config is not None  # tokenizer_of has made sure
    rows = max(checkpoint.config.vocab_size, len(pieces))
    old_pieces = tokenizer(new).to_list() if new else []  # type: ignore[union-attr]
    weights = dict(checkpoint.weights)
    for name in WORD_TABLES:
        if name in weights:
            weights[name] = with_rows(weights[name], rows, lines, old_pieces)
    logging.info(
        "%d words: %d in [unused] lines, %d behind the end; the table has %d rows.",
        len(new),
        min(len(free), len(new)),
        max(len(new) - len(free), 0),
        rows,
    )
    config = dataclasses.replace(checkpoint.config, vocab_size=rows)
    return dataclasses.replace(checkpoint, weights=weights, config=config, vocab_file=vocab_file)


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint; raises ValueError where it lacks something for it."""
    for found, missing in (
        (checkpoint.config, "no configuration (--bert_config)"),
        (checkpoint.vocab_file, "no vocabulary (--vocab_file)"),
        (checkpoint.lower_case, "no casing (--lower_case)"),
    ):
        if found is None:
            raise ValueError(f"{checkpoint.source} has {missing}; words cannot be added without.")
    return make_tokenizer(
        str(checkpoint.vocab_file),
        checkpoint.config,  # type: ignore[arg-type]
        checkpoint.lower_case,
        checkpoint.strip_accents,
    )


def new_words(words: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """The words that the vocabulary lacks, as the tokenizer sees them, each once.

    Raises:
        ValueError: something is not one word to the tokenizer, and would never be looked for.
    """
    splitter = WordSplitter(tokenizer.lower_case, tokenizer.strip_accents)
    found: dict[str, None] = {}
    for word in words:
        split = splitter.words([word])
        if len(split) != 1:
            raise ValueError(
                f"{word!r} is {len(split)} words to the tokenizer ({' '.join(split) or 'none'}), "
                "so its line would never be used; add single words, without spaces and punctuation."
            )
        found[split[0]] = None
    known = set(tokenizer.vocab)
    left_out = [word for word in found if word in known]
    if left_out:
        logging.info("In the vocabulary already: %s.", ", ".join(left_out))
    return [word for word in found if word not in known]


def with_rows(
    table: np.ndarray, rows: int, lines: Sequence[int], old_pieces: Sequence[Sequence[int]]
) -> np.ndarray:
    """A table [V, ...] of `rows` rows, in which each of `lines` is the mean of its old pieces."""
    extended = np.zeros([rows, *table.shape[1:]], table.dtype)
    extended[: len(table)] = table
    for line, pieces in zip(lines, old_pieces, strict=True):
        extended[line] = table[list(pieces)].mean(axis=0)
    return extended


def with_positions(checkpoint: Checkpoint, positions: int) -> Checkpoint:
    """The checkpoint with a position table of that length, the old one repeated.

    Raises:
        ValueError: the checkpoint has no configuration, or as many positions already.
    """
    table, config = checkpoint.weights[POSITION_TABLE], checkpoint.config
    if config is None:
        raise ValueError(f"{checkpoint.source} has no configuration (--bert_config).")
    if positions <= len(table):
        raise ValueError(
            f"--positions={positions}: {checkpoint.source} has {len(table)} already; give more."
        )
    longer = np.take(table, np.arange(positions) % len(table), axis=0)
    return dataclasses.replace(
        checkpoint,
        weights=checkpoint.weights | {POSITION_TABLE: longer},
        config=dataclasses.replace(config, max_position_embeddings=positions),
    )
