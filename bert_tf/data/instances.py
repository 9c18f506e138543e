"""Pre-training instances: pairs of segments, and the pieces of them to predict.

The algorithm is that of the original release's create_pretraining_data.py, draw for draw in its
distribution, but not in the order of its draws. A segment is a run of neighbouring tokens, also
after truncation, so that a pair is four numbers; these are found sentence by sentence in Python.
Tokens are touched only afterwards, for thousands of instances at once in NumPy.

Legend: T tokens of all documents, E instances, S sequence length, P masked positions, V vocabulary.
"""

from __future__ import annotations

import array
import bisect
import dataclasses
import random
from typing import NamedTuple

import numpy as np

from bert_tf.tokenization import SUFFIX_MARK, Tokenizer

MIN_SEQ_LENGTH = 5  # [CLS] A [SEP] B [SEP] with one token for each segment
MASK_SHARE = 0.8  # of the chosen pieces become [MASK] (section 3.1 of the paper)
KEEP_SHARE = 0.1  # stay as they are; the others become any piece of the vocabulary
WHOLE_WORDS = ("", "per_piece", "per_word")
WORD_BITS = np.uint64(16)  # of a sorting key tell the word, the other 48 are random
LAST_KEY = np.uint64((1 << 64) - (1 << 16))


@dataclasses.dataclass(frozen=True)
class InstanceConfig:
    """How instances are made; the defaults are the original release's."""

    max_seq_length: int = 128
    max_predictions_per_seq: int = 20
    masked_lm_prob: float = 0.15
    short_seq_prob: float = 0.1  # of the passes through a document, not of the instances
    dupe_factor: int = 10  # passes through each document, with new pairs and new masks
    # "": pieces are chosen one by one. "per_piece": all pieces of a word are chosen together, and
    # each becomes [MASK], itself or another piece on its own (the original release's
    # --do_whole_word_mask). "per_word": they share that fate, too.
    whole_words: str = ""
    # False: [CLS] A [SEP], where A is a run of sentences as long as a pair would be. For masked
    # words alone, whose context is then not cut in two (FULL-SENTENCES of RoBERTa, Liu et al. 2019,
    # section 4.2, within a document).
    next_sentence: bool = True

    @property
    def max_tokens(self) -> int:
        """Of the segments, [CLS] and [SEP] not counted."""
        return self.max_seq_length - (3 if self.next_sentence else 2)

    def check(self) -> None:
        """Raises ValueError where no instance can be made like this."""
        if not MIN_SEQ_LENGTH <= self.max_seq_length < 1 << 16:
            raise ValueError(
                f"max_seq_length={self.max_seq_length} must be from {MIN_SEQ_LENGTH} ([CLS], two "
                "[SEP] and a token for each segment) to 65535; the paper uses 128 and 512."
            )
        for name in ("max_predictions_per_seq", "dupe_factor"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if not 0 < self.masked_lm_prob < 1:
            raise ValueError(
                f"masked_lm_prob={self.masked_lm_prob} must be above 0 and below 1; "
                "the paper uses 0.15."
            )
        if not 0 <= self.short_seq_prob <= 1:
            raise ValueError(f"short_seq_prob={self.short_seq_prob} must be from 0 to 1.")
        if self.whole_words not in WHOLE_WORDS:
            valid = ", ".join(map(repr, WHOLE_WORDS))
            raise ValueError(f"whole_words={self.whole_words!r} must be one of {valid}.")


class PieceTable(NamedTuple):
    """What masking must know of a vocabulary."""

    cls_id: int
    sep_id: int
    mask_id: int
    continues: np.ndarray  # bool [V]: the piece goes on with a word, "##ing"


def piece_table(tokenizer: Tokenizer) -> PieceTable:
    """What masking must know of a tokenizer's vocabulary."""
    continues = np.array([piece.startswith(SUFFIX_MARK) for piece in tokenizer.vocab])
    return PieceTable(tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, continues)


@dataclasses.dataclass(frozen=True)
class Documents:
    """Tokenized documents, none of them empty, laid out one after the other."""

    token_ids: np.ndarray  # int32 [T]
    sentence_starts: list[int]  # in tokens; T comes last
    document_starts: list[int]  # in sentences; the number of sentences comes last
    num_own: int  # the first so many make instances; the others only lend random next sentences


class Pairs(NamedTuple):
    """Segments as ranges of `Documents.token_ids`; int64 [E] each, random_next bool."""

    a_start: np.ndarray
    a_length: np.ndarray
    b_start: np.ndarray
    b_length: np.ndarray
    random_next: np.ndarray  # B is from another document

    def at(self, rows: np.ndarray) -> Pairs:
        """Some of the pairs."""
        return Pairs(*(column[rows] for column in self))


class Instances(NamedTuple):
    """Arrays named as the features of the original release's files."""

    input_ids: np.ndarray  # int32 [E, S]; 0 after the end, as in the original
    input_mask: np.ndarray  # bool [E, S]
    segment_ids: np.ndarray  # bool [E, S]
    masked_lm_positions: np.ndarray  # int32 [E, P], ascending; 0 after the last
    masked_lm_ids: np.ndarray  # int32 [E, P]
    masked_lm_weights: np.ndarray  # float32 [E, P]; 1, and 0 after the last
    next_sentence_labels: np.ndarray | None  # bool [E]; 1: B is of another document. None: no B


# ------------------------------------------------------------------------------------------- pairs


def build_pairs(documents: Documents, config: InstanceConfig, rng: random.Random) -> Pairs:
    """Pairs of `dupe_factor` passes through the documents, in their order and not yet truncated.

    Without next sentences every B is empty.

    The original's `create_instances_from_document`. It draws a document for the next sentence up
    to ten times until it is another one; here it is another one at the first draw.

    Raises:
        ValueError: there is only one document.
    """
    num_documents = len(documents.document_starts) - 1
    if num_documents == 1 and config.next_sentence:
        raise ValueError(
            "There is only one document, and a random next sentence must come from another one."
        )
    rows = array.array("q")
    for _ in range(config.dupe_factor):
        for document in range(min(documents.num_own, num_documents)):
            add_pairs(rows, documents, document, config, rng)
    columns = np.frombuffer(rows, np.int64).reshape(-1, 5).T
    a_start, a_end, b_start, b_end, random_next = columns
    return Pairs(a_start, a_end - a_start, b_start, b_end - b_start, random_next.astype(bool))


def add_pairs(
    rows: array.array[int],
    documents: Documents,
    document: int,
    config: InstanceConfig,
    rng: random.Random,
) -> None:
    """Appends (A's start and end, B's start and end, random) of one pass through a document."""
    starts, uniform = documents.sentence_starts, rng.random  # looked up once: this is a hot loop
    document_starts = documents.document_starts
    num_others = len(document_starts) - 2
    target = config.max_tokens
    if uniform() < config.short_seq_prob:
        target = rng.randint(2, target)
    first, last = document_starts[document], document_starts[document + 1]  # of its sentences
    while first < last:
        # Sentences until the target is reached: the original's `current_chunk`.
        end = min(bisect.bisect_left(starts, starts[first] + target, first + 1, last), last)
        if not config.next_sentence:
            rows.extend((starts[first], starts[end], starts[end], starts[end], 0))
            first = end
            continue
        split = first + 1
        if end - first >= 2:
            split += int(uniform() * (end - first - 1))
        if end - first == 1 or uniform() < 0.5:
            other = int(uniform() * num_others)
            other += other >= document
            other_first, other_last = document_starts[other], document_starts[other + 1]
            b_first = other_first + int(uniform() * (other_last - other_first))
            b_target = starts[b_first] + target - (starts[split] - starts[first])
            b_end = min(bisect.bisect_left(starts, b_target, b_first + 1, other_last), other_last)
            rows.extend((starts[first], starts[split], starts[b_first], starts[b_end], 1))
            first = split  # sentences that B would have had are put back
        else:
            rows.extend((starts[first], starts[split], starts[split], starts[end], 0))
            first = end


def sequence_lengths(pairs: Pairs, config: InstanceConfig) -> np.ndarray:
    """Tokens of each instance, special ones included: int64 [E]."""
    special = config.max_seq_length - config.max_tokens
    return np.minimum(pairs.a_length + pairs.b_length, config.max_tokens) + special


def truncate(pairs: Pairs, max_tokens: int, generator: np.random.Generator) -> Pairs:
    """Takes tokens from the longer segment until both have `max_tokens`: `truncate_seq_pair`.

    Of two equal segments B gives. The original takes each token from the front or from the back
    with equal chance, so that a binomial number of them is taken from the front.
    """
    keep_b = np.maximum(max_tokens // 2, max_tokens - pairs.a_length)
    keep_b = np.minimum(pairs.b_length, keep_b)
    keep_a = np.minimum(pairs.a_length, max_tokens - keep_b)
    return Pairs(
        pairs.a_start + generator.binomial(pairs.a_length - keep_a, 0.5),
        keep_a,
        pairs.b_start + generator.binomial(pairs.b_length - keep_b, 0.5),
        keep_b,
        pairs.random_next,
    )


# ------------------------------------------------------------------------------------------- masks


def make_instances(
    token_ids: np.ndarray,
    pairs: Pairs,
    config: InstanceConfig,
    pieces: PieceTable,
    generator: np.random.Generator,
) -> Instances:
    """Truncates and joins the segments, chooses positions and masks them.

    Args:
        token_ids: of the documents, int32 [T].
        pairs: E of them; memory is about 100 bytes for each of E x S positions.
        config: how.
        pieces: the special pieces, and which pieces go on with a word.
        generator: of all draws.
    """
    lengths = sequence_lengths(pairs, config)[:, None]  # [E, 1]
    pairs = truncate(pairs, config.max_tokens, generator)
    input_ids = join_segments(token_ids, pairs, config.max_seq_length, pieces)
    column = np.arange(config.max_seq_length)  # [S]
    separator = (pairs.a_length + 1)[:, None]
    is_token = (column > 0) & (column < lengths - 1) & (column != separator)
    words = number_words(input_ids, is_token, config.whole_words, pieces)
    wanted = np.rint(lengths[:, 0] * config.masked_lm_prob).astype(np.int64)
    wanted = np.minimum(config.max_predictions_per_seq, np.maximum(1, wanted))
    chosen = choose(words, is_token, wanted, config.whole_words, generator)
    rows, columns = np.nonzero(chosen)
    labels = input_ids[rows, columns]
    word = words[rows, columns] if config.whole_words == "per_word" else None
    input_ids[rows, columns] = replace(labels, rows, word, pieces, generator)
    slots = np.arange(len(rows)) - np.searchsorted(rows, rows)  # 0, 1... in each row
    shape = (len(input_ids), config.max_predictions_per_seq)
    positions, ids = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weights = np.zeros(shape, np.float32)
    positions[rows, slots], ids[rows, slots], weights[rows, slots] = columns, labels, 1.0
    return Instances(
        input_ids=input_ids,
        input_mask=column < lengths,
        segment_ids=(column > separator) & (column < lengths),
        masked_lm_positions=positions,
        masked_lm_ids=ids,
        masked_lm_weights=weights,
        next_sentence_labels=pairs.random_next if config.next_sentence else None,
    )


def join_segments(
    token_ids: np.ndarray, pairs: Pairs, max_seq_length: int, pieces: PieceTable
) -> np.ndarray:
    """[CLS] A [SEP] B [SEP] and zeros, int32 [E, S]; [CLS] A [SEP] where B is empty."""
    column = np.arange(max_seq_length)
    row = np.arange(len(pairs.a_start))
    separator = pairs.a_length + 1
    end = separator + np.where(pairs.b_length > 0, pairs.b_length + 1, 0)
    in_a = column < separator[:, None]
    source = column + np.where(
        in_a, (pairs.a_start - 1)[:, None], (pairs.b_start - separator - 1)[:, None]
    )
    joined = token_ids.take(source, mode="clip")
    joined[:, 0] = pieces.cls_id
    joined[row, separator] = pieces.sep_id
    joined[row, end] = pieces.sep_id
    joined[column > end[:, None]] = 0
    return joined


def number_words(
    input_ids: np.ndarray, is_token: np.ndarray, whole_words: str, pieces: PieceTable
) -> np.ndarray:
    """The word that each piece belongs to, int64 [E, S], as numbers below S; else its position.

    As in the original, a continuation at the front of B, where truncation cut its word, counts to
    the last word of A.
    """
    if not whole_words:
        return np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    begins = is_token & ~pieces.continues[input_ids]
    begins[:, 1] = True
    return np.cumsum(begins, axis=1)


def choose(
    words: np.ndarray,
    is_token: np.ndarray,
    wanted: np.ndarray,
    whole_words: str,
    generator: np.random.Generator,
) -> np.ndarray:
    """Words in random order, each that fits, until `wanted` [E] pieces are chosen; bool [E, S]."""
    num_rows, width = words.shape
    flat = words + np.arange(num_rows)[:, None] * width
    sizes = np.bincount(flat[is_token], minlength=num_rows * width).reshape(num_rows, width)
    # Sorting random numbers that end in the word's number puts the words into random order.
    keys = generator.integers(0, 1 << 48, (num_rows, width), np.uint64) << WORD_BITS
    keys[sizes == 0] = LAST_KEY
    keys |= np.arange(width, dtype=np.uint64)
    keys.sort(axis=1)
    order = (keys & np.uint64((1 << 16) - 1)).astype(np.int64)
    sizes = np.take_along_axis(sizes, order, axis=1)
    if whole_words:
        taken = take_that_fit(sizes, wanted)
    else:
        taken = (np.arange(width) < wanted[:, None]) & (sizes > 0)
    by_word = np.empty_like(taken)
    np.put_along_axis(by_word, order, taken, axis=1)
    return np.take_along_axis(by_word, words, axis=1) & is_token


def take_that_fit(sizes: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Goes through the words of each row; those longer than what is left are passed over."""
    taken = np.zeros(sizes.shape[::-1], bool)  # [S, E]
    left = wanted.copy()
    for number, size in enumerate(np.ascontiguousarray(sizes.T)):
        taken[number] = (size > 0) & (size <= left)
        left -= size * taken[number]
        if not left.any():
            break
    return taken.T


def replace(
    labels: np.ndarray,
    rows: np.ndarray,
    word: np.ndarray | None,
    pieces: PieceTable,
    generator: np.random.Generator,
) -> np.ndarray:
    """[MASK], the piece itself, or any piece of the vocabulary (special ones too, as originally).

    Args:
        labels: the chosen pieces.
        rows: the instance that each is in, ascending.
        word: its word there, for pieces that share the fate of their word; or None.
        pieces: of the vocabulary.
        generator: of all draws.
    """
    draw = generator.random(len(labels))
    if word is not None:
        first = np.unique(rows * (1 << int(WORD_BITS)) + word, return_inverse=True)[1]
        draw = draw[first]
    other = generator.integers(0, len(pieces.continues), len(labels), labels.dtype)
    kept = np.where(draw < MASK_SHARE + KEEP_SHARE, labels, other)
    return np.where(draw < MASK_SHARE, labels.dtype.type(pieces.mask_id), kept)
