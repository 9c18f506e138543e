"""What a masked language model puts for `[MASK]` in a sentence.

Legend: B sentences, S sequence, P masked positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from bert_tf.checkpoints import read_pretrained
from bert_tf.config import ModelConfig
from bert_tf.encoder import variables_by_name
from bert_tf.tasks.pretraining import PretrainingModel
from bert_tf.tokenization import Tokenizer
from bert_tf.weights import assign

MASK = "[MASK]"
HEAD = "cls/predictions/output_bias"  # a weight that only a masked-LM head has


@dataclasses.dataclass(frozen=True)
class Answer:
    """A word for a masked position."""

    word: str
    probability: float


@dataclasses.dataclass(frozen=True)
class MaskFiller:
    """A model with its masked-LM head, and its tokenizer."""

    model: PretrainingModel
    tokenizer: Tokenizer
    max_length: int  # S, of the position table

    @classmethod
    def from_checkpoint(cls, model: ModelConfig) -> MaskFiller:
        """Opens `model.init_checkpoint`: a TF1 checkpoint, a Hugging Face folder or a run folder.

        Raises:
            ValueError: nothing readable is there, or it has no masked-LM head or no vocabulary.
        """
        pretrained = read_pretrained(model)
        if HEAD not in pretrained.weights:
            raise ValueError(
                f"{pretrained.source} has no masked-LM head ({HEAD}), so it cannot fill masks: "
                "encoders are often published, and fine-tuned, without it. Take a checkpoint of "
                "pre-training."
            )
        if pretrained.tokenizer is None:
            raise ValueError(f"{pretrained.source} has no vocabulary beside it; name one.")
        filler = PretrainingModel(pretrained.config, next_sentence=False)
        assign(variables_by_name(filler), pretrained.weights, pretrained.source)
        return cls(filler, pretrained.tokenizer, pretrained.config.max_position_embeddings)

    def token_ids(self, sentence: str) -> list[int]:
        """`[CLS]`, pieces and masks, `[SEP]`.

        `[MASK]` in a text is three words to the tokenizer, as to the original's: the text around
        each is tokenized by itself.

        Raises:
            ValueError: the sentence has no mask, or is longer than the position table.
        """
        parts = sentence.split(MASK)
        if len(parts) == 1:
            raise ValueError(f"{sentence!r} has no {MASK}; put it in place of a word.")
        pieces: Any = self.tokenizer(tf.constant(parts))
        first, *others = pieces.to_list()
        token_ids = [self.tokenizer.cls_id, *first]
        for part in others:
            token_ids += [self.tokenizer.mask_id, *part]
        token_ids.append(self.tokenizer.sep_id)
        if len(token_ids) > self.max_length:
            raise ValueError(
                f"{sentence[:60]!r}... has {len(token_ids)} pieces, more than the position table "
                f"of the model ({self.max_length}); shorten it."
            )
        return token_ids

    def fill(self, sentence: str, count: int = 5) -> list[list[Answer]]:
        """The likeliest words for each `[MASK]` of a sentence, the best first."""
        token_ids = np.array([self.token_ids(sentence)], np.int32)  # [1, S]
        positions = np.flatnonzero(token_ids[0] == self.tokenizer.mask_id)[np.newaxis]  # [1, P]
        features = {
            "token_ids": tf.constant(token_ids),
            "segment_ids": tf.zeros_like(token_ids),
            "mask": tf.ones_like(token_ids),
            "masked_positions": tf.constant(positions, tf.int32),
        }
        # Rows of a table beyond the vocabulary (padding to a round number) have no word.
        logits = self.model(features)["masked_lm"][0]  # [P, V]
        probabilities = tf.nn.softmax(logits).numpy()[:, : self.tokenizer.vocab_size]
        return [best_words(row, self.tokenizer.vocab, count) for row in probabilities]


def best_words(probabilities: np.ndarray, vocab: Sequence[str], count: int) -> list[Answer]:
    """The `count` likeliest pieces, by probabilities [V]; equal ones in the vocabulary's order."""
    best = np.argsort(-probabilities, kind="stable")[:count]
    return [Answer(vocab[piece], float(probabilities[piece])) for piece in best]
