"""Text to WordPiece ids exactly as the original release's `tokenization.py`, as TensorFlow ops.

The original cleans the text, puts spaces around CJK ideographs, lower-cases and strips accents
word by word, splits at punctuation and matches the longest pieces greedily. Here all that happens
to a character alone is one table (`text_normalization.py`), and `FastWordpieceTokenizer` of
tensorflow-text splits and matches. Rows of text that the table would not change skip it.

Legend: N texts, C code points of all texts, K the same after normalisation, T pieces of all texts.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from bert_tf.text_normalization import (
    MAX_CHARACTERS_PER_WORD,
    UNMATCHABLE,
    CharacterTable,
    TextNormalizer,
    source_positions,
    unassigned_characters,
)

__all__ = ["PackedTokens", "Tokenizer", "TokensWithOffsets", "in_chunks", "read_vocab", "traced"]

MAX_BYTES_PER_WORD = 4 * MAX_CHARACTERS_PER_WORD  # the normaliser counts the characters
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SUFFIX_MARK = "##"  # begins the pieces that continue a word


class TokensWithOffsets(NamedTuple):
    """Pieces and the part of the original text [start, end) each came from; int32 [N, (tokens)].

    Positions count bytes of the text as given, and valid code points (as Python would decode it
    with errors="ignore"). An [UNK] covers its word.
    """

    token_ids: tf.RaggedTensor
    byte_start: tf.RaggedTensor
    byte_end: tf.RaggedTensor
    char_start: tf.RaggedTensor
    char_end: tf.RaggedTensor


class PackedTokens(NamedTuple):
    """One or two segments with [CLS] and [SEP]; int32 [N, (S)]."""

    token_ids: tf.RaggedTensor
    segment_ids: tf.RaggedTensor


class Tokenizer(tf.Module):
    """WordPiece tokenizer of a BERT vocabulary.

    Works eagerly, in `tf.function`, in `tf.data` and inside a SavedModel, which a process with
    only tensorflow and tensorflow_text can run and which no longer needs the vocabulary file.

    Args:
      vocab_file: path of a vocabulary, one piece a line.
      lower_case: as the original's `do_lower_case`.
      strip_accents: decompose (NFD) and drop accents; None means the same as `lower_case`, as in
        the original. The mixed cases leave out one of the two steps, as in Hugging Face (whose
        Python version composes characters, NFC, before; the original does not, nor is it here).

    Raises:
      ValueError: the vocabulary cannot be used, see `read_vocab`.
    """

    def __init__(
        self, vocab_file: str, lower_case: bool = True, strip_accents: bool | None = None
    ) -> None:
        super().__init__()
        self.lower_case = lower_case
        self.strip_accents = lower_case if strip_accents is None else strip_accents
        self._vocabulary = Vocabulary(read_vocab(vocab_file))
        self.pad_id = self._vocabulary.ids["[PAD]"]
        self.unk_id = self._vocabulary.ids["[UNK]"]
        self.cls_id = self._vocabulary.ids["[CLS]"]
        self.sep_id = self._vocabulary.ids["[SEP]"]
        self.mask_id = self._vocabulary.ids["[MASK]"]
        matchable, unknown, stand_ins = self._vocabulary.matchable_pieces()
        table = CharacterTable.of_mode(lower_case, self.strip_accents).with_stand_ins(stand_ins)
        self._normalizer = TextNormalizer(table, self.lower_case, self.strip_accents)
        # An eager tensor inside, which all graphs capture; strings are for the CPU.
        with tf.init_scope(), tf.device("CPU:0"):
            self._matcher = tf_text.FastWordpieceTokenizer(
                matchable,
                max_bytes_per_word=MAX_BYTES_PER_WORD,
                token_out_type=tf.int32,
                unknown_token=unknown,
            )

    @property
    def vocab(self) -> tuple[str, ...]:
        """The pieces by id."""
        return self._vocabulary.pieces

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self._vocabulary.pieces)

    def __call__(
        self, text: tf.Tensor, offsets: bool = False
    ) -> tf.RaggedTensor | TokensWithOffsets:
        """Tokenizes texts.

        Args:
          text: string [N], UTF-8; bytes that are not vanish, as in the original.
          offsets: whether to say where the pieces came from.

        Returns:
          int32 [N, (tokens)], or `TokensWithOffsets`.
        """
        with tf.device("CPU:0"):
            text = tf.convert_to_tensor(text, tf.string)
            if text.shape.rank != 1:
                raise ValueError(
                    f"Tokenizer wants a string tensor of rank 1, [N], and got shape {text.shape}; "
                    "put a single text into a list, and flatten a higher rank."
                )
            unchanged = self._normalizer.is_unchanged(text)
            pieces = tf.cond(
                tf.reduce_all(unchanged),
                lambda: self._match_unchanged(text, offsets),
                lambda: self._match_mixed(text, unchanged, offsets),
            )
            if not offsets:
                return pieces
            columns = tf.unstack(pieces.values, axis=1)
            return TokensWithOffsets(*(pieces.with_values(column) for column in columns))

    def pack(
        self, a: tf.RaggedTensor, b: tf.RaggedTensor | None = None, max_seq_length: int = 512
    ) -> PackedTokens:
        """Makes `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, the longer one truncated first.

        As in the original's run_classifier.py: pieces are taken from the end of the longer
        segment, of `b` if both are equally long; a pair whose `b` is empty is a single segment.

        Args:
          a: int32 [N, (tokens)].
          b: int32 [N, (tokens)] or None.
          max_seq_length: S at most, special pieces included; at least 3.

        Raises:
          ValueError: max_seq_length is below 3.
        """
        if max_seq_length < 3:
            raise ValueError(
                f"max_seq_length={max_seq_length} has no room for [CLS] and two [SEP]; "
                "use at least 3."
            )
        length_a = a.row_lengths()
        length_b = tf.zeros_like(length_a) if b is None else b.row_lengths()
        paired = tf.cast(length_b > 0, length_a.dtype)
        room = max_seq_length - 2 - paired
        keep_b = tf.minimum(length_b, tf.maximum(room // 2, room - length_a))
        keep_a = tf.minimum(length_a, room - keep_b)
        rows = tf.zeros_like(length_a)
        first = [
            _repeated(self.cls_id, rows + 1),
            _head(a, keep_a),
            _repeated(self.sep_id, rows + 1),
        ]
        second = [] if b is None else [_head(b, keep_b), _repeated(self.sep_id, paired)]
        segment_ids = tf.concat(
            [_repeated(0, keep_a + 2), _repeated(1, keep_b + paired)][: 1 if b is None else 2],
            axis=1,
        )
        return PackedTokens(tf.concat(first + second, axis=1), segment_ids)

    def tokens(self, token_ids: list[int]) -> list[str]:
        """The pieces of ids."""
        return [self.vocab[token_id] for token_id in token_ids]

    def decode(self, token_ids: list[int]) -> str:
        """Readable text of ids: pieces joined by spaces, `##` pieces to the one before."""
        return " ".join(self.tokens(token_ids)).replace(" ##", "").strip()

    def save(self, folder: str) -> None:
        """Writes vocab.txt and tokenizer_config.json, which Hugging Face reads as well."""
        tf.io.gfile.makedirs(folder)
        config = {"do_lower_case": self.lower_case, "strip_accents": self.strip_accents}
        _write(folder, "vocab.txt", "".join(piece + "\n" for piece in self.vocab))
        _write(folder, "tokenizer_config.json", json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str) -> Tokenizer:
        """Reads vocab.txt and tokenizer_config.json, of `save` or of Hugging Face.

        Raises:
          ValueError: a file is missing or says something that cannot be used.
        """
        path = f"{folder}/tokenizer_config.json"
        if not tf.io.gfile.exists(path):
            raise ValueError(
                f"{path} does not exist; without it nobody knows whether the model is cased. "
                'Write one with {"do_lower_case": true} or false, or use Tokenizer(vocab_file).'
            )
        with tf.io.gfile.GFile(path) as file:
            try:
                config = json.load(file)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} is not JSON: {error}. Write it again.") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path} must be a JSON object, not {config!r}.")
        # Both defaults are Hugging Face's.
        lower_case = config.get("do_lower_case", True)
        strip_accents = config.get("strip_accents")
        if not isinstance(lower_case, bool) or not isinstance(strip_accents, bool | None):
            raise ValueError(
                f"{path}: do_lower_case={lower_case!r} must be true or false and "
                f"strip_accents={strip_accents!r} true, false or null."
            )
        return cls(f"{folder}/vocab.txt", lower_case, strip_accents)

    def _match_unchanged(self, text: tf.Tensor, offsets: bool) -> tf.RaggedTensor:
        """Pieces int32 [N, (tokens)] or [N, (tokens), 5] of texts that stay the same."""
        pieces = self._matcher.tokenize_with_offsets(
            tf.strings.lower(text) if self.lower_case else text
        )
        if not offsets:
            return pieces[0]
        token_ids, start, end = pieces
        # Every byte but 10xxxxxx begins a code point.
        text_bytes = tf.io.decode_raw(tf.strings.reduce_join(text), tf.uint8)
        begins = tf.cast(text_bytes & 0xC0 != 0x80, tf.int32)
        count_before = tf.concat([[0], tf.cumsum(begins)], axis=0)
        row_start = tf.cumsum(tf.strings.length(text), exclusive=True)
        base = tf.gather(row_start, token_ids.value_rowids())  # [T]
        base_count = tf.gather(count_before, base)
        start, end = tf.cast(start.values, tf.int32), tf.cast(end.values, tf.int32)
        columns = [
            token_ids.values,
            start,
            end,
            tf.gather(count_before, base + start) - base_count,
            tf.gather(count_before, base + end) - base_count,
        ]
        return token_ids.with_values(tf.stack(columns, axis=1))

    def _match_normalized(self, text: tf.Tensor, offsets: bool) -> tf.RaggedTensor:
        """The same of any texts."""
        decoded = self._normalizer.decode(text)
        normalized = self._normalizer.normalize(decoded)
        token_ids, start, end = self._matcher.tokenize_with_offsets(normalized.text)
        if not offsets:
            return token_ids
        row = token_ids.value_rowids()
        start, end = tf.cast(start.values, tf.int32), tf.cast(end.values, tf.int32)
        positions = source_positions(decoded, normalized, row, start, end)
        return token_ids.with_values(tf.stack([token_ids.values, *positions], axis=1))

    def _match_mixed(self, text: tf.Tensor, unchanged: tf.Tensor, offsets: bool) -> tf.RaggedTensor:
        """The same again, each text on the shortest way."""
        short, general = tf.where(unchanged)[:, 0], tf.where(~unchanged)[:, 0]
        pieces = [
            self._match_unchanged(tf.gather(text, short), offsets),
            self._match_normalized(tf.gather(text, general), offsets),
        ]
        order = tf.cast(tf.concat([short, general], axis=0), tf.int32)
        return tf.gather(tf.concat(pieces, axis=0), tf.math.invert_permutation(order))


def _head(pieces: tf.RaggedTensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """The first `lengths` [N] pieces of each row."""
    starts = pieces.row_starts()
    places = tf.ragged.range(starts, starts + lengths)
    return places.with_values(tf.gather(pieces.values, places.values))


def _repeated(value: int, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Rows of `lengths` [N] times the int32 value."""
    return tf.RaggedTensor.from_row_lengths(
        tf.fill([tf.reduce_sum(lengths)], value), lengths, validate=False
    )


def _write(folder: str, name: str, content: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is never half there."""
    temporary = f"{folder}/.{name}.tmp"
    with tf.io.gfile.GFile(temporary, "w") as file:
        file.write(content)
    tf.io.gfile.rename(temporary, f"{folder}/{name}", overwrite=True)


# ---------------------------------------------------------------------------- many texts at once


def traced(function: Callable[..., Any], columns: int) -> Callable[..., Any]:
    """The function of so many columns of strings, each [n], as one graph for every n.

    Keep it for the next texts: to trace a tokenizer takes longer than to use it on a small file.
    """
    return tf.function(function, [tf.TensorSpec([None], tf.string)] * columns, autograph=False)


def in_chunks(
    function: Callable[..., Any], columns: Sequence[Sequence[str | bytes]], size: int
) -> Any:  # noqa: ANN401 - the structure that the function returns
    """The outputs of a `traced` function for all rows, in their order.

    Args:
        function: returns a tensor, or a tuple or dict of some, with the results of its rows along
            the first axis.
        columns: of equal length, which may be 0.
        size: rows of a chunk.

    Returns:
        NumPy arrays in the structure that the function returns.
    """

    def compute(start: int) -> Any:  # noqa: ANN401
        with tf.device("CPU:0"):
            chunk = [tf.constant(column[start : start + size], tf.string) for column in columns]
            return tf.nest.map_structure(lambda output: output.numpy(), function(*chunk))

    # TensorFlow lets go of the interpreter while it computes.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        parts = list(threads.map(compute, range(0, max(len(columns[0]), 1), size)))
    return tf.nest.map_structure(lambda *outputs: np.concatenate(outputs), *parts)


# ------------------------------------------------------------------------------------- vocabulary


def read_vocab(path: str) -> list[str]:
    """Reads a vocabulary; white space around a piece goes, as in the original's `load_vocab`.

    Args:
      path: a local path, or any that `tf.io.gfile` opens, such as `gs://bucket/vocab.txt`.

    Raises:
      ValueError: the file is missing, empty, not UTF-8, has a piece twice (unless empty: a few
        published files have such lines and their numbers count) or lacks a special piece.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise ValueError(
            f"The vocabulary {path} is not a file. Give the path of a vocab.txt, one piece a line."
        )
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    try:
        lines = content.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The vocabulary {path} is not UTF-8 (byte {error.start}). Save it as UTF-8."
        ) from error
    pieces = [line.strip() for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not any(pieces):
        raise ValueError(f"The vocabulary {path} is empty. It needs one piece a line.")
    first_line: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if piece and first_line.setdefault(piece, number) != number:
            raise ValueError(
                f"The vocabulary {path} has {piece!r} in line {first_line[piece]} and again in "
                f"line {number}. An id must have one piece: remove one, or rename it [unused0]."
            )
    missing = [piece for piece in SPECIAL_PIECES if piece not in first_line]
    if missing:
        raise ValueError(
            f"The vocabulary {path} lacks {', '.join(missing)}. BERT needs "
            f"{', '.join(SPECIAL_PIECES)}, each on a line of its own; is this a BERT vocabulary?"
        )
    return pieces


class Vocabulary:
    """Pieces by id and ids by piece."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces = tuple(pieces)
        self.ids = {piece: piece_id for piece_id, piece in enumerate(pieces)}

    def matchable_pieces(self) -> tuple[list[str], str, dict[int, int]]:
        """The pieces as tensorflow-text's matcher should have them.

        A piece that no text can produce, such as "[MASK]", "##" or an empty line, gets a name
        that no text can produce either, since the matcher refuses or misreads some of them.

        Returns:
          V pieces; the one for unknown words; and (code point, stand-in) of the characters that
          are newer than the Unicode of the table: tensorflow-text's own Unicode may call them
          punctuation, the original calls them letters, and a stand-in settles it.
        """
        newer = unassigned_characters(set().union(*self.pieces))
        first = UNMATCHABLE + 1
        stand_ins = {ord(code): first + place for place, code in enumerate(newer)}
        first += len(newer)
        matchable = [
            piece.translate(stand_ins) if _can_be_produced(piece) else chr(first + piece_id)
            for piece_id, piece in enumerate(self.pieces)
        ]
        return matchable, matchable[self.ids["[UNK]"]], stand_ins


# Words are letters alone or one other character alone.
_ASCII_OTHER = re.compile(r"[\x00-/:-@\[-`{-\x7f]")


def _can_be_produced(piece: str) -> bool:
    body = piece.removeprefix(SUFFIX_MARK)
    if len(piece) == 1:
        return piece > " "  # the matcher keeps control characters for itself
    return bool(body) and not _ASCII_OTHER.search(body)
