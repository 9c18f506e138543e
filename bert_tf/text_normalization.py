"""The original tokenizer's cleaning, lower-casing and accent stripping, as TensorFlow ops.

Legend: N texts, C code points of all texts, K the same after normalisation.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from bert_tf import unicode_table
from bert_tf.unicode_table import CharacterTable

# The original's WordpieceTokenizer makes a longer word [UNK]; counted after normalisation.
MAX_CHARACTERS_PER_WORD = 200
# A text with a run that may be such a word. Judging by ASCII alone, it suspects sentences in
# scripts without spaces as well, which costs them a longer way but changes nothing.
_SUSPECT = rf"(?s).*[^\t\n\r !-/:-@\[-`{{-~]{{{MAX_CHARACTERS_PER_WORD + 1}}}.*"


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
        classes = unicode_table.combining_classes()
        # Eager tensors, so that all graphs capture the same ones; strings are for the CPU.
        with tf.init_scope(), tf.device("CPU:0"):
            self._block_start = tf.constant(table.block_start)
            self._blocks = tf.constant(table.blocks)
            self._expansions = tf.constant(table.expansions)
            self._movable_marks = tf.constant(list(classes), tf.int32)
            self._combining_classes = tf.constant(list(classes.values()), tf.int64)

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
        block = tf.gather(self._block_start, tf.bitwise.right_shift(code, unicode_table.BLOCK_BITS))
        entry = tf.gather(self._blocks, block + (code & (1 << unicode_table.BLOCK_BITS) - 1))
        value = tf.where(entry < 0, code, entry & unicode_table.VALUE_MASK)
        runs = tf.cond(
            tf.reduce_any(entry & unicode_table.SPECIAL != 0),
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
        length = tf.bitwise.right_shift(entry, unicode_table.LENGTH_SHIFT) & 3  # [C]
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
        starter = tf.cast(entry & unicode_table.STARTER != 0, tf.int64)
        stretch = _numbered(starter, text.row_splits)  # [C], of a starter and its marks
        places = tf.where(tf.gather(entry & unicode_table.MOVABLE != 0, runs.source))  # [M, 1]
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
    case = tf.bitwise.right_shift(entry, unicode_table.CASE_SHIFT) & 3
    relevant = tf.where(case != unicode_table.CASE_IGNORABLE)[:, 0]  # sigma is among them
    sigma = tf.where(text.code_points == unicode_table.CAPITAL_SIGMA)[:, 0]
    place = tf.searchsorted(relevant, sigma, out_type=tf.int64)
    row = tf.searchsorted(text.row_splits, sigma, side="right", out_type=tf.int64)
    first, end = tf.gather(text.row_splits, row - 1), tf.gather(text.row_splits, row)
    nobody = tf.constant([-1], tf.int64)
    neighbours = tf.concat([nobody, relevant, nobody], axis=0)
    before, after = tf.gather(neighbours, place), tf.gather(neighbours, place + 2)
    is_cased = case == unicode_table.CASED
    final = (before >= first) & tf.gather(is_cased, tf.maximum(before, 0))
    final &= ~((after >= 0) & (after < end) & tf.gather(is_cased, tf.maximum(after, 0)))
    places = tf.boolean_mask(sigma, final)[:, tf.newaxis]
    update = tf.fill([tf.shape(places)[0]], unicode_table.FINAL_SIGMA)
    return tf.tensor_scatter_nd_update(value, places, update)


def _without_long_words(runs: _Runs, entry: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Code points and texts with words of over 200 characters unmatchable, to become [UNK]."""
    letter = tf.cast(tf.gather(entry & unicode_table.LETTER != 0, runs.source), tf.int32)  # [K]
    word = _numbered(1 - letter, runs.row_splits)
    too_long = tf.math.segment_sum(letter, word) > MAX_CHARACTERS_PER_WORD
    too_long = tf.gather(too_long, word) & (letter == 1)
    code_points = tf.where(too_long, unicode_table.UNMATCHABLE, runs.code_points)
    return code_points, _encode(runs._replace(code_points=code_points))
