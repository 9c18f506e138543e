"""The original tokenizer's cleaning, lower-casing and accent stripping, as TensorFlow ops.

What happens to a character alone is one table with an entry of 32 bits for every code point, which
`unicode_table.py` has made: what the code point becomes, whether it belongs to a word, and what its
neighbours have to know about it.

Legend: N texts, C code points of all texts, K the same after normalisation.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

TABLES_FILE = pathlib.Path(__file__).parent / "character_tables.npz"
# Names in that file by (lower_case, strip_accents).
MODES = {
    (False, False): "cased",
    (False, True): "cased_without_accents",
    (True, False): "lower_cased",
    (True, True): "lower_cased_without_accents",
}

BLOCK_BITS = 8  # the table is stored as distinct blocks of 256 code points and an index of blocks
BLOCK_SIZE = 1 << BLOCK_BITS

VALUE_MASK = (1 << 21) - 1  # the new code point, or the place in `expansions` of several
LENGTH_SHIFT = 21  # two bits: how many code points it becomes, 0 (dropped) to 3 (Hangul syllable)
CASE_SHIFT = 23  # two bits: one of the three below
LETTER = 1 << 25  # neither white space nor punctuation nor a CJK ideograph: stays inside a word
STARTER = 1 << 26  # has a character of combining class 0: combining marks do not move across it
MOVABLE = 1 << 27  # has a combining mark that is not dropped (Mc): NFD may have to move it
SPECIAL = 1 << 28  # needs more than replacing one code point by one
SAME = -(1 << 31)  # the sign: the code point stays as it is, and the value is 0

CASELESS, CASED, CASE_IGNORABLE = 0, 1, 2  # as Python's str.lower() sees the neighbours of Sigma

CAPITAL_SIGMA, FINAL_SIGMA = 0x03A3, 0x03C2
# Planes 4 to 13 are unassigned in every version of Unicode: code points from here on stand for
# what cannot be written in text, such as a piece of the vocabulary that no text can produce.
UNMATCHABLE = 0x40000
UNASSIGNED = UNMATCHABLE | 1 << LENGTH_SHIFT | LETTER | STARTER  # in Unicode 14

# The original's WordpieceTokenizer makes a longer word [UNK]; counted after normalisation.
MAX_CHARACTERS_PER_WORD = 200
# A text with a run that may be such a word. Judging by ASCII alone, it suspects sentences in
# scripts without spaces as well, which costs them a longer way but changes nothing.
_SUSPECT = rf"(?s).*[^\t\n\r !-/:-@\[-`{{-~]{{{MAX_CHARACTERS_PER_WORD + 1}}}.*"


@dataclasses.dataclass(frozen=True)
class CharacterTable:
    """Arrays of int32: the entry of `code` is `blocks[block_start[code >> 8] + (code & 255)]`."""

    block_start: np.ndarray  # [4352], where the block of 256 code points starts in `blocks`
    blocks: np.ndarray  # [distinct blocks * 256]
    expansions: np.ndarray  # code points of the entries that become two or three
    unchanged: np.ndarray  # [ranges, 2] first and last visible code points that stay as they are

    @classmethod
    def of_mode(cls, lower_case: bool, strip_accents: bool) -> CharacterTable:
        """The table of one of the four modes."""
        mode = MODES[lower_case, strip_accents]
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: stored_tables()[f"{mode}/{name}"] for name in names})

    def entry(self, code: int) -> int:
        """The entry of a code point."""
        return int(self.blocks[self.block_start[code >> BLOCK_BITS] + (code & BLOCK_SIZE - 1)])

    def with_stand_ins(self, stand_ins: dict[int, int]) -> CharacterTable:
        """The table with these code points as letters that become their stand-ins."""
        block_start, blocks = self.block_start.copy(), self.blocks
        for code, stand_in in stand_ins.items():
            start = block_start[code >> BLOCK_BITS]
            block = blocks[start : start + BLOCK_SIZE].copy()  # others may share it
            block[code & BLOCK_SIZE - 1] = stand_in | 1 << LENGTH_SHIFT | LETTER | STARTER
            block_start[code >> BLOCK_BITS] = len(blocks)
            blocks = np.concatenate([blocks, block])
        return dataclasses.replace(self, block_start=block_start, blocks=blocks)


@functools.lru_cache(maxsize=1)
def stored_tables() -> dict[str, np.ndarray]:
    """The arrays of `TABLES_FILE` by name."""
    with np.load(TABLES_FILE, allow_pickle=False) as file:
        return dict(file)


def unassigned_characters(characters: set[str]) -> list[str]:
    """Those of the characters that Unicode 14 does not know, sorted."""
    table = CharacterTable.of_mode(False, False)
    return sorted(
        character for character in characters if table.entry(ord(character)) == UNASSIGNED
    )


class Decoded(NamedTuple):
    """Valid code points of texts."""

    code_points: tf.Tensor  # int32 [C]
    byte_start: tf.Tensor  # int64 [C], place in the text
    row_splits: tf.Tensor  # int64 [N + 1]


class Normalized(NamedTuple):
    """What `Decoded` becomes."""

    text: tf.Tensor  # string [N], UTF-8
    code_points: tf.Tensor  # int32 [K]
    source: tf.Tensor  # int64 [K], the code point of `Decoded` each came from
    row_splits: tf.Tensor  # int64 [N + 1]


class _Runs(NamedTuple):
    """`Normalized` before it is encoded."""

    code_points: tf.Tensor  # int32 [K]
    source: tf.Tensor  # int64 [K]
    row_splits: tf.Tensor  # int64 [N + 1]


class TextNormalizer(tf.Module):
    """Rewrites texts so that only splitting and matching remain to be done."""

    def __init__(self, table: CharacterTable, lower_case: bool, strip_accents: bool) -> None:
        super().__init__()
        self._lower_case = lower_case
        self._strip_accents = strip_accents
        self._unchanged_text = _unchanged_text(table, lower_case)
        # Eager tensors, so that all graphs capture the same ones; strings are for the CPU.
        with tf.init_scope(), tf.device("CPU:0"):
            self._block_start = tf.constant(table.block_start)
            self._blocks = tf.constant(table.blocks)
            self._expansions = tf.constant(table.expansions)
            self._movable_marks = tf.constant(stored_tables()["movable_marks"])
            self._combining_classes = tf.constant(stored_tables()["combining_classes"])

    def is_unchanged(self, text: tf.Tensor) -> tf.Tensor:
        """Bool [N]: normalising the text would do no more than lower-case its ASCII letters."""
        unchanged = tf.strings.regex_full_match(text, self._unchanged_text)
        return unchanged & ~tf.strings.regex_full_match(text, _SUSPECT)

    def decode(self, text: tf.Tensor) -> Decoded:
        """Code points of UTF-8 texts [N]; invalid bytes vanish, byte for byte as in Python."""
        code_points, byte_start = tf.strings.unicode_decode_with_offsets(
            text, "UTF-8", errors="ignore"
        )
        return Decoded(code_points.values, byte_start.values, code_points.row_splits)

    def normalize(self, text: Decoded) -> Normalized:
        """Cleans, lower-cases and strips accents, and makes too long words unmatchable."""
        code = text.code_points
        block = tf.gather(self._block_start, tf.bitwise.right_shift(code, BLOCK_BITS))
        entry = tf.gather(self._blocks, block + (code & BLOCK_SIZE - 1))
        value = tf.where(entry < 0, code, entry & VALUE_MASK)
        runs = tf.cond(
            tf.reduce_any(entry & SPECIAL != 0),
            lambda: self._with_special(value, text, entry),
            lambda: _Runs(value, tf.range(tf.size(code, tf.int64)), text.row_splits),
        )
        encoded = _encode(runs)
        code_points, encoded = tf.cond(
            tf.reduce_any(tf.strings.regex_full_match(encoded, _SUSPECT)),
            lambda: _without_long_words(runs, entry),
            lambda: (runs.code_points, encoded),
        )
        return Normalized(encoded, code_points, runs.source, runs.row_splits)

    def _with_special(self, value: tf.Tensor, text: Decoded, entry: tf.Tensor) -> _Runs:
        """What does not replace one code point by one."""
        if self._lower_case:
            value = _with_final_sigmas(value, text, entry)
        runs = self._resized(value, entry, text.row_splits)
        return self._reordered(runs, text, entry) if self._strip_accents else runs

    def _resized(self, value: tf.Tensor, entry: tf.Tensor, row_splits: tf.Tensor) -> _Runs:
        """Drops the code points of length 0 and writes out those of length 2 and 3."""
        length = tf.bitwise.right_shift(entry, LENGTH_SHIFT) & 3  # [C]
        ends = tf.cumsum(tf.cast(length, tf.int64))
        starts_of_rows = tf.gather(tf.concat([[0], ends], axis=0), row_splits)

        def shrunk() -> tuple[tf.Tensor, tf.Tensor]:
            source = tf.where(length > 0)[:, 0]
            return tf.gather(value, source), source

        def expanded() -> tuple[tf.Tensor, tf.Tensor]:
            source = tf.repeat(tf.range(tf.size(length, tf.int64)), length)
            size = tf.gather(length, source)
            remaining = tf.gather(ends, source) - tf.range(tf.size(source, tf.int64))
            own = tf.gather(value, source)
            place = tf.where(size > 1, own + size - tf.cast(remaining, tf.int32), 0)
            return tf.where(size > 1, tf.gather(self._expansions, place), own), source

        code_points, source = tf.cond(tf.reduce_any(length > 1), expanded, shrunk)
        return _Runs(code_points, source, starts_of_rows)

    def _reordered(self, runs: _Runs, text: Decoded, entry: tf.Tensor) -> _Runs:
        """Sorts combining marks behind the same starter by class, as NFD does (stable).

        Only the order of those that remain matters, since the others (Mn) are dropped. Their
        sources stay in place, so that offsets keep growing.
        """
        starter = tf.cast(entry & STARTER != 0, tf.int64)
        stretch = _numbered(starter, text.row_splits)  # [C], of a starter and its marks
        places = tf.where(tf.gather(entry & MOVABLE != 0, runs.source))  # [M, 1]
        marks = tf.gather_nd(runs.code_points, places)
        is_mark = tf.cast(marks[:, tf.newaxis] == self._movable_marks, tf.int64)
        combining_class = tf.linalg.matvec(is_mark, self._combining_classes)  # 0 of a starter
        key = tf.gather(stretch, tf.gather_nd(runs.source, places)) * 256 + combining_class
        moved = tf.gather(marks, tf.argsort(key, stable=True))
        return runs._replace(
            code_points=tf.tensor_scatter_nd_update(runs.code_points, places, moved)
        )


def _unchanged_text(table: CharacterTable, lower_case: bool) -> str:
    """The regular expression of texts that stay as they are, but for ASCII letters."""
    ranges = "".join(rf"\x{{{first:x}}}-\x{{{last:x}}}" for first, last in table.unchanged)
    return rf"[\t\n\r {'A-Z' if lower_case else ''}{ranges}]*"


def _encode(runs: _Runs) -> tf.Tensor:
    code_points = tf.RaggedTensor.from_row_splits(runs.code_points, runs.row_splits, validate=False)
    return tf.strings.unicode_encode(code_points, "UTF-8")


def _numbered(begins: tf.Tensor, row_splits: tf.Tensor) -> tf.Tensor:
    """Numbers [C] that grow wherever `begins` [C] is 1 and at least at every new row."""
    padded = tf.concat([begins, tf.zeros([1], begins.dtype)], axis=0)  # empty rows end at C
    rows = tf.ones_like(row_splits, begins.dtype)
    return tf.cumsum(tf.tensor_scatter_nd_add(padded, row_splits[:, tf.newaxis], rows))[:-1]


def _with_final_sigmas(value: tf.Tensor, text: Decoded, entry: tf.Tensor) -> tf.Tensor:
    """Lower-cases capital sigma as str.lower() does.

    It is final behind a cased letter and not before one, in its stretch of non-space, not
    counting the case-ignorable characters in between.
    """
    case = tf.bitwise.right_shift(entry, CASE_SHIFT) & 3
    relevant = tf.where(case != CASE_IGNORABLE)[:, 0]  # sigma is among them
    sigma = tf.where(text.code_points == CAPITAL_SIGMA)[:, 0]
    place = tf.searchsorted(relevant, sigma, out_type=tf.int64)
    row = tf.searchsorted(text.row_splits, sigma, side="right", out_type=tf.int64)
    first, end = tf.gather(text.row_splits, row - 1), tf.gather(text.row_splits, row)
    nobody = tf.constant([-1], tf.int64)
    neighbours = tf.concat([nobody, relevant, nobody], axis=0)
    before, after = tf.gather(neighbours, place), tf.gather(neighbours, place + 2)
    is_cased = case == CASED
    final = (before >= first) & tf.gather(is_cased, tf.maximum(before, 0))
    final &= ~((after >= 0) & (after < end) & tf.gather(is_cased, tf.maximum(after, 0)))
    places = tf.boolean_mask(sigma, final)[:, tf.newaxis]
    update = tf.fill([tf.shape(places)[0]], FINAL_SIGMA)
    return tf.tensor_scatter_nd_update(value, places, update)


def _without_long_words(runs: _Runs, entry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Code points and texts with words of over 200 characters unmatchable, to become [UNK]."""
    letter = tf.cast(tf.gather(entry & LETTER != 0, runs.source), tf.int32)  # [K]
    word = _numbered(1 - letter, runs.row_splits)
    too_long = tf.math.segment_sum(letter, word) > MAX_CHARACTERS_PER_WORD
    too_long = tf.gather(too_long, word) & (letter == 1)
    code_points = tf.where(too_long, UNMATCHABLE, runs.code_points)
    return code_points, _encode(runs._replace(code_points=code_points))


def source_positions(
    decoded: Decoded, normalized: Normalized, row: tf.Tensor, start: tf.Tensor, end: tf.Tensor
) -> list[tf.Tensor]:
    """Byte and character spans in the text of spans in the normalised text.

    Args:
      decoded: the texts.
      normalized: the same, normalised.
      row: int [T], the text that each piece belongs to.
      start: int32 [T], first byte of the piece in its normalised text.
      end: int32 [T], the byte behind its last.

    Returns:
      byte_start, byte_end, char_start, char_end: int32 [T].
    """
    ends = tf.cumsum(_utf8_length(normalized.code_points))  # [K]
    bytes_before = tf.concat([[0], ends], axis=0)
    base = tf.gather(tf.gather(bytes_before, normalized.row_splits), row)
    # The code point that holds a byte: as many as end at or before it come first.
    first = tf.searchsorted(ends, base + start, side="right")
    last = tf.searchsorted(ends, base + end - 1, side="right")
    first, last = tf.gather(normalized.source, first), tf.gather(normalized.source, last)
    row_start = tf.gather(decoded.row_splits, row)
    length = _utf8_length(tf.gather(decoded.code_points, last))
    return [
        tf.cast(tf.gather(decoded.byte_start, first), tf.int32),
        tf.cast(tf.gather(decoded.byte_start, last), tf.int32) + length,
        tf.cast(first - row_start, tf.int32),
        tf.cast(last + 1 - row_start, tf.int32),
    ]


def _utf8_length(code_points: tf.Tensor) -> tf.Tensor:
    """Bytes int32 that code points take."""
    limits = [0x80, 0x800, 0x10000]
    return 1 + tf.add_n([tf.cast(code_points >= limit, tf.int32) for limit in limits])
