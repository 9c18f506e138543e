"""Strings that break programs: the same ones for the same seed, on every machine."""

from __future__ import annotations

import random

MEGABYTE = 1 << 20

# Each danger once.
FIXED: tuple[bytes, ...] = (
    b"",
    b" ",
    b" \t\r\n\v\f ",
    b"\0",
    b"\0" * 40 + b"a",
    b"cat\0dog \0 mat",
    bytes(range(1, 32)) + b"\x7f",
    "\x80\x85\x9f".encode(),  # C1 controls
    b"\xff\xfe",
    b"cat \xc3",  # ends inside a character
    b"\xe4\xb8 cat",
    b"\x80\xbf\x80",  # continuations of nothing
    b"\xc0\xaf\xe0\x80\xaf",  # too long forms
    b"\xed\xa0\x80\xed\xb0\x80",  # surrogates
    b"\xf4\x90\x80\x80\xf8\x88\x80\x80\x80",  # beyond U+10FFFF
    b"\xef\xbb\xbfcat",  # byte order mark
    "\ufffd\ufffe\uffff\U0010ffff".encode(),
    "\u200b\u200c\u200d\u2060\ufeff\u00ad".encode(),  # of no width
    "\u2028cat\u2029dog".encode(),
    "\u202ecat\u202c \u2066dog\u2069".encode(),  # turn the direction around
    "שלום עולם, مرحبا بالعالم".encode(),
    "מ\u05b8ל\u05b5א cat نَصّ".encode(),
    "👍🏽 👩\u200d👩\u200d👧\u200d👦 🇩🇪🇫🇷 1\ufe0f\u20e3 ❤\ufe0f".encode(),
    "\U000e0067\U000e0062\U000e007f".encode(),  # tags
    ("a" + "\u0301" * 300).encode(),  # a pile of accents
    "\u0301\u0302 cat".encode(),  # accents on nothing
    "İSTANBUL ıI ß ﬁ Ǆ ŉ ΐ Å \u212b K".encode(),  # noqa: RUF001 - longer or shorter in lower case
    "café cafe\u0301 Ｃａｔ ①".encode(),  # noqa: RUF001
    "映画を見ました。中文没有空格".encode(),
    "각 \u1100\u1161\u11a8 ไทย हिन्दी".encode(),
    "\ue000\U000f0000".encode(),  # private
    "\u0378\U0001fbff\u2fe0".encode(),  # not assigned
    b"[CLS] [SEP] [MASK] [UNK] [PAD] [unused0]",
    b"##ing ## ###",
    b"a" * 99,
    b"a" * 100,
    b"a" * 101,
    b"x" * 5_000,
    ("é" * 200).encode(),
    b"the cat " * 300,  # 600 pieces
    b"." * 600,
    b"a.b-c'd,e!f?" * 20,
    b" " * 600,
    b'{"text": "\\u0000"}',
    b"<script>alert('cat')</script>",
    b"%s%n%x ../../etc/passwd",
    b"NaN inf -inf 1e999 0x7fffffff",
)
WORDS = ("the", "cat", "unhappy", "red", "book", "Reading", "2024", "x", "house", "U.S.", "don't")
# Where random characters come from.
BLOCKS = (
    (0x00, 0x20),
    (0x20, 0x7F),
    (0x80, 0x250),
    (0x300, 0x370),
    (0x590, 0x700),
    (0x900, 0xE80),
    (0x1100, 0x1200),
    (0x2000, 0x2070),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0xF900, 0x10000),
    (0x1F300, 0x1FB00),
    (0x20000, 0x110000),
)


def nasty_strings(count: int, seed: int = 0) -> list[bytes]:
    """At least one of each danger where `count` allows, then mixtures of them; no huge ones."""
    rng = random.Random(seed)
    made = list(FIXED[:count])
    while len(made) < count:
        made.append(rng.choice((joined, characters, noise, damaged, words))(rng))
    return made


def huge_strings() -> list[bytes]:
    """A megabyte each, of few pieces."""
    return [
        b"x" * MEGABYTE,
        b" " * MEGABYTE,
        b"\0" * MEGABYTE,
        b"\xff" * MEGABYTE,
        "é".encode() * (MEGABYTE // 2),
        ("a" + "\u0301" * (MEGABYTE // 2)).encode(),
        b"cat" + b"\n" * MEGABYTE + b"dog",
    ]


def long_texts() -> list[bytes]:
    """A megabyte each, of hundreds of thousands of pieces."""
    return [b"cat " * (MEGABYTE // 4), "画".encode() * (MEGABYTE // 3), b"." * MEGABYTE]


def joined(rng: random.Random) -> bytes:
    """Some of `FIXED` and some words, with or without spaces."""
    parts = [rng.choice(FIXED)[: rng.randrange(1, 80)] for _ in range(rng.randrange(1, 4))]
    parts += [rng.choice(WORDS).encode() for _ in range(rng.randrange(4))]
    rng.shuffle(parts)
    return rng.choice((b"", b" ", b"\0", b"\n")).join(parts)


def characters(rng: random.Random) -> bytes:
    """Characters of a few blocks."""
    blocks = rng.sample(BLOCKS, rng.randrange(1, 4))
    codes = [rng.randrange(*rng.choice(blocks)) for _ in range(rng.randrange(60))]
    return "".join(map(chr, codes)).encode(errors="surrogatepass")


def noise(rng: random.Random) -> bytes:
    """Any bytes."""
    return rng.randbytes(rng.randrange(40))


def damaged(rng: random.Random) -> bytes:
    """A text with bytes changed, lost or doubled, so that its characters break."""
    text = bytearray(characters(rng) + b" " + words(rng))
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(text) + 1)
        text[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(text)


def words(rng: random.Random) -> bytes:
    """Plain text, sometimes of more pieces than a model reads."""
    count = rng.randrange(700) if rng.random() < 0.02 else rng.randrange(25)
    return " ".join(rng.choice(WORDS) for _ in range(count)).encode()
