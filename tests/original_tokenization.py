"""Port to Python 3 of the original release's `tokenization.py` (google-research/bert).

Written to be compared with, not to be fast. `spans` adds what the original does not have: where
in the text each piece came from.
"""

from __future__ import annotations

import unicodedata

MAX_CHARACTERS_PER_WORD = 200
CJK = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def tokenize(
    text: bytes, vocab: dict[str, int], lower_case: bool, strip_accents: bool | None = None
) -> list[int]:
    """FullTokenizer.tokenize and convert_tokens_to_ids."""
    strip = lower_case if strip_accents is None else strip_accents
    ids = []
    for word in basic_tokenize(text.decode("utf-8", "ignore"), lower_case, strip):
        ids.extend(vocab[piece] for piece in wordpiece_tokenize(word, vocab))
    return ids


def basic_tokenize(text: str, lower_case: bool, strip_accents: bool) -> list[str]:
    """BasicTokenizer.tokenize, with the two steps of do_lower_case apart."""
    words = []
    for token in space_cjk(clean(text)).strip().split():
        token = token.lower() if lower_case else token
        token = strip_marks(token) if strip_accents else token
        words.extend(split_on_punctuation(token))
    return " ".join(words).strip().split()


def wordpiece_tokenize(text: str, vocab: dict[str, int]) -> list[str]:
    """WordpieceTokenizer.tokenize."""
    output = []
    for token in text.strip().split():
        if len(token) > MAX_CHARACTERS_PER_WORD:
            output.append("[UNK]")
            continue
        pieces, start = [], 0
        while start < len(token):
            end = len(token)
            while start < end:
                piece = ("##" if start else "") + token[start:end]
                if piece in vocab:
                    break
                end -= 1
            if start == end:
                pieces = ["[UNK]"]
                break
            pieces.append(piece)
            start = end
        output.extend(pieces)
    return output


def clean(text: str) -> str:
    """BasicTokenizer._clean_text."""
    kept = [c for c in text if ord(c) not in (0, 0xFFFD) and not is_control(c)]
    return "".join(" " if is_whitespace(c) else c for c in kept)


def space_cjk(text: str) -> str:
    """BasicTokenizer._tokenize_chinese_chars."""
    return "".join(f" {c} " if is_cjk(ord(c)) else c for c in text)


def strip_marks(text: str) -> str:
    """BasicTokenizer._run_strip_accents."""
    return "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")


def split_on_punctuation(text: str) -> list[str]:
    """BasicTokenizer._run_split_on_punc."""
    output: list[list[str]] = []
    start_new_word = True
    for character in text:
        if is_punctuation(character):
            output.append([character])
            start_new_word = True
        else:
            if start_new_word:
                output.append([])
            start_new_word = False
            output[-1].append(character)
    return ["".join(word) for word in output]


def is_whitespace(character: str) -> bool:
    """_is_whitespace."""
    return character in " \t\n\r" or unicodedata.category(character) == "Zs"


def is_control(character: str) -> bool:
    """_is_control."""
    return character not in "\t\n\r" and unicodedata.category(character) in ("Cc", "Cf")


def is_punctuation(character: str) -> bool:
    """_is_punctuation."""
    code = ord(character)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(character).startswith("P")


def is_cjk(code: int) -> bool:
    """BasicTokenizer._is_chinese_char."""
    return any(first <= code <= last for first, last in CJK)


def truncate_pair(tokens_a: list[int], tokens_b: list[int], max_length: int) -> None:
    """_truncate_seq_pair of run_classifier.py."""
    while len(tokens_a) + len(tokens_b) > max_length:
        if len(tokens_a) > len(tokens_b):
            tokens_a.pop()
        else:
            tokens_b.pop()


def spans(
    text: bytes, vocab: dict[str, int], lower_case: bool, strip_accents: bool
) -> list[tuple[int, int, int, int]]:
    """Not in the original: (byte_start, byte_end, char_start, char_end) of each piece."""
    characters, byte_starts = decode_with_places(text)
    found = []
    for word, sources in words_with_sources(characters, lower_case, strip_accents):
        start = 0
        for piece in wordpiece_tokenize(word, vocab):
            continued = start > 0
            length = len(word) if piece == "[UNK]" else len(piece) - 2 * continued
            first, last = sources[start], sources[start + length - 1]
            byte_end = byte_starts[last] + len(characters[last].encode())
            found.append((byte_starts[first], byte_end, first, last + 1))
            start += length
    return found


def decode_with_places(text: bytes) -> tuple[str, list[int]]:
    """The text decoded with errors="ignore" and the byte each character begins at."""
    characters, places, place = "", [], 0
    while place < len(text):
        try:
            valid, skipped = text[place:].decode("utf-8"), 0
        except UnicodeDecodeError as error:
            valid = text[place : place + error.start].decode("utf-8")
            skipped = error.end - error.start
        for character in valid:
            places.append(place)
            place += len(character.encode())
        characters += valid
        place += skipped
    return characters, places


def words_with_sources(
    text: str, lower_case: bool, strip_accents: bool
) -> list[tuple[str, list[int]]]:
    """`basic_tokenize` with the place in the text that each character came from."""
    cleaned = [(c, place) for place, c in enumerate(text) if clean(c)]
    tokens: list[list[tuple[str, int]]] = [[]]
    for character, place in cleaned:
        if is_cjk(ord(character)):
            tokens += [[(character, place)], []]
        elif not clean(character).split():
            tokens.append([])
        else:
            tokens[-1].append((character, place))
    words = []
    for token in tokens:
        normal, sources = "".join(c for c, _ in token), [place for _, place in token]
        if lower_case:
            sources = [place for c, place in token for _ in c.lower()]
            normal = normal.lower()
        if strip_accents:
            # NFD may reorder the characters; their places stay in order.
            sources = [p for c, p in zip(normal, sources, strict=True) for _ in strip_marks(c)]
            normal = strip_marks(normal)
        start = 0
        for word in split_on_punctuation(normal):
            words.append((word, sources[start : start + len(word)]))
            start += len(word)
    return words
