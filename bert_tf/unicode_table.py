"""What the original release's tokenizer does to every code point, as one compact table.

The properties come from Python 3.11's `unicodedata` (Unicode 14.0.0) and are shipped in
`bert_tf/unicode_14.py`, so that token ids do not change with the Python that runs.
`python -m bert_tf.unicode_table` writes that file again; a test compares it under Python 3.11.

An entry is an int32 (see the `*_SHIFT` and flag constants): what a code point becomes, whether
it belongs to a word, and what its neighbours have to know about it.
"""

from __future__ import annotations

import base64
import functools
import json
import pathlib
import unicodedata
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_tf import unicode_14

CODE_POINTS = 0x110000
BLOCK_BITS = 8  # the table is stored as distinct blocks of 256 code points and an index of blocks

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
FIRST_STAND_IN = UNMATCHABLE + 1

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
_HANGUL_FIRST, _HANGUL_LAST = 0xAC00, 0xD7A3  # decomposed by rule, Unicode section 3.12


@dataclass(frozen=True)
class CharacterTable:
    """Arrays of int32: the entry of `code` is `blocks[block_start[code >> 8] + (code & 255)]`."""

    block_start: np.ndarray  # [4352], where the block of 256 code points starts in `blocks`
    blocks: np.ndarray  # [distinct blocks * 256]
    expansions: np.ndarray  # code points of the entries that become two or three
    unchanged: tuple[tuple[int, int], ...]  # ranges of visible code points that stay as they are


def properties_of_this_python() -> dict[str, Any]:
    """The raw properties by this Python's `unicodedata`, as `unicode_14.DATA` stores them.

    Ranges are flat lists [gap, length - 1, gap, length - 1, ...]; `lower` and `decomposition`
    (NFD, without Hangul) are lists of [step to the code point, first - code point, others...].
    """
    characters = [chr(code) for code in range(CODE_POINTS)]
    category = [unicodedata.category(character) for character in characters]
    # str.lower() writes a final sigma after a cased letter, looking through ignorable ones.
    cased = [(character + "Σ").lower()[-1] == "ς" for character in characters]
    ignorable = [("A" + character + "Σ").lower()[-1] == "ς" for character in characters]
    plain = [
        not (0xD800 <= code <= 0xDFFF or _HANGUL_FIRST <= code <= _HANGUL_LAST)
        for code in range(CODE_POINTS)
    ]
    decomposed = [
        unicodedata.normalize("NFD", character) if plain[code] else character
        for code, character in enumerate(characters)
    ]
    return {
        "control": _to_ranges([name in ("Cc", "Cf") for name in category]),
        "space": _to_ranges([name == "Zs" for name in category]),
        "punctuation": _to_ranges([name.startswith("P") for name in category]),
        "mark": _to_ranges([name == "Mn" for name in category]),
        "unassigned": _to_ranges([name == "Cn" for name in category]),
        "cased": _to_ranges(cased),
        "ignorable": _to_ranges(
            [ignorable[code] and not cased[code] for code in range(CODE_POINTS)]
        ),
        "combining": _to_ranges([unicodedata.combining(character) > 0 for character in characters]),
        "combining_class": [
            [code, unicodedata.combining(characters[code])]
            for code in range(CODE_POINTS)
            if unicodedata.combining(characters[code]) and category[code] != "Mn"
        ],
        "lower": _to_steps([character.lower() for character in characters]),
        "decomposition": _to_steps(decomposed),
    }


def render(properties: dict[str, Any]) -> str:
    """The text of `bert_tf/unicode_14.py` for these properties."""
    packed = zlib.compress(json.dumps(properties, separators=(",", ":")).encode(), 9)
    text = base64.b64encode(packed).decode()
    rows = "\n".join(f'    "{text[start : start + 92]}"' for start in range(0, len(text), 92))
    return (
        '"""Generated by `python -m bert_tf.unicode_table`; not to be edited.\n\n'
        f"Properties of code points by unicodedata {unicodedata.unidata_version}: base64 of zlib of"
        ' JSON.\n"""\n\n'
        f'UNICODE_VERSION = "{unicodedata.unidata_version}"\n\nDATA = (\n{rows}\n)\n'
    )


def stored_properties() -> dict[str, Any]:
    """The raw properties shipped with the package (Unicode 14)."""
    return json.loads(zlib.decompress(base64.b64decode(unicode_14.DATA)))


def combining_classes() -> dict[int, int]:
    """Combining class of the marks that are not Mn: they survive, but NFD may reorder them."""
    return dict(stored_properties()["combining_class"])


def unassigned_characters(characters: set[str]) -> list[str]:
    """Those of the characters that Unicode 14 does not know, sorted."""
    unassigned = _properties().unassigned
    return sorted(character for character in characters if unassigned[ord(character)])


@functools.lru_cache(maxsize=8)
def character_table(
    lower_case: bool, strip_accents: bool, stand_ins: tuple[tuple[int, int], ...] = ()
) -> CharacterTable:
    """Builds the table once per process for each mode.

    Args:
      lower_case: apply str.lower().
      strip_accents: apply NFD and drop category Mn.
      stand_ins: (code point, code point) of characters newer than Unicode 14 in the vocabulary.
    """
    entries, expansions = _entries(lower_case, strip_accents)
    # Newer versions of Unicode make punctuation of some of these; to the original each is a
    # letter that no piece contains, whichever it is.
    entries[_properties().unassigned] = UNMATCHABLE | 1 << LENGTH_SHIFT | LETTER | STARTER
    for code, stand_in in stand_ins:
        entries[code] = stand_in | 1 << LENGTH_SHIFT | LETTER | STARTER
    rows = [row.tobytes() for row in entries.reshape(-1, 1 << BLOCK_BITS)]
    distinct = {row: place << BLOCK_BITS for place, row in enumerate(dict.fromkeys(rows))}
    stays = (entries & SAME != 0) & (entries & SPECIAL == 0)
    stays[_code_points(((0x00, 0x20), (0xD800, 0xDFFF)))] = False
    return CharacterTable(
        block_start=np.array([distinct[row] for row in rows], np.int32),
        blocks=np.frombuffer(b"".join(distinct), np.int32),
        expansions=np.array(expansions or [0], np.int32),
        unchanged=tuple(_range_pairs(_to_ranges(list(stays)))),
    )


@dataclass(frozen=True)
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
    stored = stored_properties()
    flags = {
        name: _flags(_range_pairs(stored[name]))
        for name in ("control", "space", "punctuation", "mark", "unassigned", "cased", "ignorable")
    }
    dropped = flags["control"].copy()
    dropped[list(_KEPT_CONTROLS)] = False
    dropped[list(_DROPPED)] = True
    space = flags["space"].copy()
    space[list(_KEPT_CONTROLS + _SEPARATORS)] = True
    isolated = flags["punctuation"] | _flags(_ASCII_PUNCTUATION) | _flags(_CJK)
    return _Properties(
        dropped=dropped,
        space=space,
        isolated=isolated,
        mark=flags["mark"],
        unassigned=flags["unassigned"] & ~isolated,
        cased=flags["cased"],
        ignorable=flags["ignorable"] | dropped,  # dropped before str.lower() looks
        combining=_flags(_range_pairs(stored["combining"])),
        lower=_from_steps(stored["lower"]),
        decomposition=_from_steps(stored["decomposition"]),
    )


def _entries(lower_case: bool, strip_accents: bool) -> tuple[np.ndarray, list[int]]:
    properties = _properties()
    codes = np.arange(CODE_POINTS, dtype=np.int32)
    value, length = codes.copy(), np.ones(CODE_POINTS, np.int32)
    expansions: list[int] = []
    starter = ~properties.combining
    movable = properties.combining & ~properties.mark
    for code, result in _mappings(lower_case, strip_accents).items():
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
    letter = ~(properties.isolated[first] | properties.isolated & _flags(_CJK) | properties.space)
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
    result: dict[int, tuple[int, ...]] = {}
    for code in range(_HANGUL_FIRST, _HANGUL_LAST + 1):
        lead, rest = divmod(code - _HANGUL_FIRST, 588)
        vowel, trail = divmod(rest, 28)
        syllable = (0x1100 + lead, 0x1161 + vowel, 0x11A7 + trail)
        result[code] = syllable if trail else syllable[:2]
    return result


def _to_ranges(members: list[bool]) -> list[int]:
    padded = np.concatenate([[0], np.asarray(members, np.int8), [0]])
    edges = np.flatnonzero(np.diff(padded)).reshape(-1, 2)  # [start, end) of each range
    flat, previous = [], 0
    for start, end in edges.tolist():
        flat += [start - previous, end - 1 - start]
        previous = end - 1
    return flat


def _range_pairs(flat: list[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(np.asarray(flat, np.int64)).reshape(-1, 2)
    return [(first, last) for first, last in ends.tolist()]


def _code_points(ranges: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.arange(first, last + 1) for first, last in ranges])


def _flags(ranges: tuple[tuple[int, int], ...] | list[tuple[int, int]]) -> np.ndarray:
    flags = np.zeros(CODE_POINTS, bool)
    flags[_code_points(ranges)] = True
    return flags


def _to_steps(results: list[str]) -> list[list[int]]:
    steps, previous = [], 0
    for code, result in enumerate(results):
        if result != chr(code):
            first, *others = (ord(character) for character in result)
            steps.append([code - previous, first - code, *others])
            previous = code
    return steps


def _from_steps(steps: list[list[int]]) -> dict[int, tuple[int, ...]]:
    result, code = {}, 0
    for step, first, *others in steps:
        code += step
        result[code] = (code + first, *others)
    return result


if __name__ == "__main__":
    pathlib.Path(unicode_14.__file__).write_text(render(properties_of_this_python()))
