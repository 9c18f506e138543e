"""Makes the tokenizer's tables from Python's `unicodedata`: `python -m bert_tf.unicode_table`.

What the original release's tokenizer does to every code point depends on the Unicode version of
the Python that runs it. The tables of Python 3.11 (Unicode 14.0.0) are shipped, so that token ids
do not change with Python; a test makes them again under Python 3.11 and compares.
"""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Iterable

import numpy as np

from bert_tf.text_normalization import (
    BLOCK_BITS,
    CAPITAL_SIGMA,
    CASE_IGNORABLE,
    CASE_SHIFT,
    CASED,
    CASELESS,
    LENGTH_SHIFT,
    LETTER,
    MODES,
    MOVABLE,
    SAME,
    SPECIAL,
    STARTER,
    TABLES_FILE,
    UNASSIGNED,
)

CODE_POINTS = 0x110000
_KEPT_CONTROLS = (ord("\t"), ord("\n"), ord("\r"))  # white space to the original, not controls
_SEPARATORS = (0x2028, 0x2029)  # not Zs, hence kept by the cleaning; str.split() splits there
_DROPPED = (0x0000, 0xFFFD)
_ASCII_PUNCTUATION = ((33, 47), (58, 64), (91, 96), (123, 126))  # original: "$", "^", "`" as well
_CJK = (  # the original's _is_chinese_char
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# Punctuation of Unicode 13 and 14, which tensorflow-text 2.19 (Unicode 12) takes for letters: with
# spaces around it, it is a word of its own in every version.
_NEWER_PUNCTUATION = (
    (0x061D, 0x061D),
    (0x1B7D, 0x1B7E),
    (0x2E52, 0x2E5D),
    (0x10EAD, 0x10EAD),
    (0x10F86, 0x10F89),
    (0x1145A, 0x1145A),
    (0x116B9, 0x116B9),
    (0x11944, 0x11946),
    (0x12FF1, 0x12FF2),
)
_HANGUL_FIRST, _HANGUL_LAST = 0xAC00, 0xD7A3  # decomposed by rule, Unicode section 3.12


def tables() -> dict[str, np.ndarray]:
    """Everything that `text_normalization.CharacterTable` and its readers need, by name."""
    properties = _properties()
    marks = [code for code in np.flatnonzero(properties.combining) if not properties.mark[code]]
    arrays = {
        "unicode_version": np.array(unicodedata.unidata_version),
        # Combining marks that are not Mn survive, but NFD may reorder them.
        "movable_marks": np.array(marks, np.int32),
        "combining_classes": np.array([unicodedata.combining(chr(code)) for code in marks]),
    }
    for (lower_case, strip_accents), mode in MODES.items():
        entries, expansions = _entries(lower_case, strip_accents)
        rows = [row.tobytes() for row in entries.reshape(-1, 1 << BLOCK_BITS)]
        distinct = {row: place << BLOCK_BITS for place, row in enumerate(dict.fromkeys(rows))}
        stays = (entries & SAME != 0) & (entries & SPECIAL == 0)
        stays[_code_points(((0x00, 0x20), (0xD800, 0xDFFF)))] = False
        arrays |= {
            f"{mode}/block_start": np.array([distinct[row] for row in rows], np.int32),
            f"{mode}/blocks": np.frombuffer(b"".join(distinct), np.int32),
            f"{mode}/expansions": np.array(expansions or [0], np.int32),
            f"{mode}/unchanged": _ranges(stays),
        }
    return arrays


@dataclasses.dataclass(frozen=True)
class _Properties:
    """Boolean arrays [CODE_POINTS], and what lower casing and NFD make of a code point."""

    dropped: np.ndarray
    space: np.ndarray
    isolated: np.ndarray  # punctuation or CJK: a word of its own
    mark: np.ndarray
    unassigned: np.ndarray  # and not in a range of CJK
    cased: np.ndarray
    ignorable: np.ndarray
    combining: np.ndarray
    lower: dict[int, tuple[int, ...]]
    decomposition: dict[int, tuple[int, ...]]


@functools.lru_cache(maxsize=1)
def _properties() -> _Properties:
    characters = [chr(code) for code in range(CODE_POINTS)]
    category = np.array([unicodedata.category(character) for character in characters])
    # str.lower() writes a final sigma after a cased letter, looking through ignorable ones.
    cased = _flags((character + "Σ").lower()[-1] == "ς" for character in characters)
    ignorable = _flags(("A" + character + "Σ").lower()[-1] == "ς" for character in characters)
    dropped = np.isin(category, ["Cc", "Cf"])
    dropped[list(_KEPT_CONTROLS)] = False
    dropped[list(_DROPPED)] = True
    space = category == "Zs"
    space[list(_KEPT_CONTROLS + _SEPARATORS)] = True
    isolated = np.char.startswith(category, "P") | _within(_ASCII_PUNCTUATION) | _within(_CJK)
    surrogate_or_hangul = _within(((0xD800, 0xDFFF), (_HANGUL_FIRST, _HANGUL_LAST)))
    return _Properties(
        dropped=dropped,
        space=space,
        isolated=isolated,
        mark=category == "Mn",
        unassigned=(category == "Cn") & ~isolated,
        cased=cased,
        ignorable=(ignorable & ~cased) | dropped,  # dropped before str.lower() looks
        combining=_flags(unicodedata.combining(character) > 0 for character in characters),
        lower=_changes([character.lower() for character in characters]),
        decomposition=_changes(
            [
                character if surrogate_or_hangul[code] else unicodedata.normalize("NFD", character)
                for code, character in enumerate(characters)
            ]
        ),
    )


def _entries(lower_case: bool, strip_accents: bool) -> tuple[np.ndarray, list[int]]:
    """The entry of every code point, and the code points of those that become two or three."""
    properties = _properties()
    codes = np.arange(CODE_POINTS, dtype=np.int32)
    value, length = codes.copy(), np.ones(CODE_POINTS, np.int32)
    expansions: list[int] = []
    starter = ~properties.combining
    movable = properties.combining & ~properties.mark
    spaced = {code: (ord(" "), code, ord(" ")) for code in _code_points(_NEWER_PUNCTUATION)}
    for code, result in (_mappings(lower_case, strip_accents) | spaced).items():
        kept = [c for c in result if not (strip_accents and properties.mark[c])]
        length[code] = len(kept)
        value[code] = kept[0] if len(kept) == 1 else len(expansions)
        if len(kept) > 1:
            expansions.extend(kept)
        starter[code] = any(not properties.combining[c] for c in result)
        movable[code] = any(movable[c] for c in kept)
    if strip_accents:
        length[properties.mark] = 0
    length[properties.dropped] = 0
    value[length == 0] = 0
    starter &= ~properties.dropped
    value[properties.space] = ord(" ")
    length[properties.space] = 1
    first = np.where(length == 1, value, codes)  # "≠" is "=" and a mark: punctuation then
    letter = ~(properties.isolated[first] | properties.isolated & _within(_CJK) | properties.space)
    case = np.where(properties.cased, CASED, CASELESS)
    case = np.where(properties.ignorable, CASE_IGNORABLE, case)
    movable &= strip_accents
    special = movable | (length != 1) | (lower_case & (codes == CAPITAL_SIGMA))
    entries = np.where((length == 1) & (value == codes), SAME, value)
    entries |= length << LENGTH_SHIFT | case << CASE_SHIFT
    for flags, bit in (
        (letter, LETTER),
        (starter, STARTER),
        (movable, MOVABLE),
        (special, SPECIAL),
    ):
        entries |= np.where(flags, bit, 0)
    # Newer versions of Unicode make punctuation of some of these; to the original each is a letter
    # that no piece contains, whichever it is.
    entries[properties.unassigned] = UNASSIGNED
    return entries.astype(np.int32), expansions


def _mappings(lower_case: bool, strip_accents: bool) -> dict[int, tuple[int, ...]]:
    """What lower casing and then NFD make of the code points that they change."""
    properties = _properties()
    lowered = properties.lower if lower_case else {}
    if not strip_accents:
        return dict(lowered)
    decomposition = properties.decomposition | _hangul_decomposition()
    result = dict(decomposition)
    for code, characters in lowered.items():
        result[code] = tuple(d for c in characters for d in decomposition.get(c, (c,)))
    return result


def _hangul_decomposition() -> dict[int, tuple[int, ...]]:
    """NFD of the syllables, Unicode section 3.12."""
    result: dict[int, tuple[int, ...]] = {}
    for code in range(_HANGUL_FIRST, _HANGUL_LAST + 1):
        lead, rest = divmod(code - _HANGUL_FIRST, 588)
        vowel, trail = divmod(rest, 28)
        syllable = (0x1100 + lead, 0x1161 + vowel, 0x11A7 + trail)
        result[code] = syllable if trail else syllable[:2]
    return result


def _ranges(members: np.ndarray) -> np.ndarray:
    """First and last of each run of True: int32 [ranges, 2]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], members.astype(np.int8), [0]])))
    return (edges.reshape(-1, 2) - [0, 1]).astype(np.int32)


def _code_points(ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    return np.concatenate([np.arange(first, last + 1) for first, last in ranges])


def _within(ranges: tuple[tuple[int, int], ...]) -> np.ndarray:
    flags = np.zeros(CODE_POINTS, bool)
    flags[_code_points(ranges)] = True
    return flags


def _flags(values: Iterable[bool]) -> np.ndarray:
    return np.fromiter(values, bool, CODE_POINTS)


def _changes(results: list[str]) -> dict[int, tuple[int, ...]]:
    """Code points that become something else, and what."""
    return {
        code: tuple(ord(character) for character in result)
        for code, result in enumerate(results)
        if result != chr(code)
    }


if __name__ == "__main__":
    np.savez_compressed(TABLES_FILE, allow_pickle=False, **tables())
