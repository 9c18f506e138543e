"""Learns a WordPiece vocabulary from text, with the words that the tokenizer will see.

The merges are learnt by the `tokenizers` library (extra `vocab`). Cleaning, casing and splitting
into words are this package's own, so that learning and use agree on every character.

Legend: N texts, K code points of all texts after normalisation.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from bert_tf.text_normalization import LETTER, UNMATCHABLE, CharacterTable, TextNormalizer

# The original release's English vocabulary: [PAD] and 99 unused lines, then the four others at 100
# to 103, then more unused lines, 994 in all.
SPECIAL_AFTER_UNUSED = ("[UNK]", "[CLS]", "[SEP]", "[MASK]")
FIRST_UNUSED = 99
UNUSED = 994
LIMIT_ALPHABET = 1000  # characters; rarer ones are [UNK]. The default of the tokenizers library.
MIN_FREQUENCY = 2  # a pair of pieces seen once is no evidence. That of the library is 0.
LINES_PER_CHUNK = 4096
WORDS_PER_LINE = 1000  # that the trainer is given at a time
SPACE = ord(" ")


def reserved_pieces(unused: int = UNUSED) -> list[str]:
    """[PAD] at 0, [unused0] to [unused98], [UNK] at 100, [CLS], [SEP], [MASK], [unused99] ...

    Raises:
        ValueError: fewer unused lines than stand before [UNK].
    """
    if unused < FIRST_UNUSED:
        raise ValueError(
            f"--unused={unused} must be at least {FIRST_UNUSED}: so many lines stand before [UNK], "
            "whose number is 100 in every vocabulary of the original release."
        )
    lines = [f"[unused{number}]" for number in range(unused)]
    return ["[PAD]", *lines[:FIRST_UNUSED], *SPECIAL_AFTER_UNUSED, *lines[FIRST_UNUSED:]]


# --------------------------------------------------------------------------------------- the words


class WordSplitter:
    """Splits texts into words exactly as the tokenizer does before it looks for pieces."""

    def __init__(self, lower_case: bool, strip_accents: bool | None = None) -> None:
        """Casing as `Tokenizer` has it."""
        strips = lower_case if strip_accents is None else strip_accents
        table = CharacterTable.of_mode(lower_case, strips)
        self.normalizer = TextNormalizer(table, lower_case, strips)
        codes = np.arange(len(table.block_start) << 8)
        entries = table.blocks[table.block_start[codes >> 8] + (codes & 255)]
        self.is_letter = entries & LETTER != 0  # by code point

    def words(self, texts: list[str]) -> list[str]:
        """The words of all texts, one after the other."""
        return self.split(*(part.numpy() for part in self.normalize(tf.constant(texts))))

    def count(self, files: Iterable[str]) -> collections.Counter[str]:
        """How often each word occurs in UTF-8 files of lines."""
        counts: collections.Counter[str] = collections.Counter()
        lines = tf.data.TextLineDataset(list(files)).batch(LINES_PER_CHUNK)
        chunks = lines.map(self.normalize, num_parallel_calls=tf.data.AUTOTUNE)
        for code_points, row_splits in chunks.as_numpy_iterator():
            counts.update(self.split(code_points, row_splits))
        return counts

    @tf.autograph.experimental.do_not_convert
    def normalize(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Strings [N] to code points int32 [K] and row splits [N + 1]."""
        normalized = self.normalizer.normalize(self.normalizer.decode(texts))
        return normalized.code_points, normalized.row_splits

    def split(self, code_points: np.ndarray, row_splits: np.ndarray) -> list[str]:
        """Words of normalised texts: letters alone, or one other character alone.

        Words that are too long for the tokenizer, which are [UNK] whatever the vocabulary, are left
        out, and so are those with characters newer than the tokenizer's Unicode.
        """
        alone = ~self.is_letter[code_points]  # [K]
        begins = np.zeros(len(code_points) + 1, bool)
        begins[row_splits] = True  # a text ends: what follows is another word
        # A space behind each other character, and before it or the beginning of a text.
        behind, before = alone.astype(np.int64), (alone | begins[:-1]).astype(np.int64)
        ends = np.cumsum(1 + behind + before)
        spaced = np.full(ends[-1] if len(ends) else 0, SPACE, "<u4")
        spaced[ends - behind - 1] = code_points
        words = spaced.tobytes().decode("utf-32-le").split(" ")
        return [word for word in words if word and chr(UNMATCHABLE) not in word]


# ------------------------------------------------------------------------------------ the learning


@dataclasses.dataclass(frozen=True)
class VocabularySettings:
    """What vocabulary to learn."""

    size: int  # lines of the file, reserved ones included
    unused: int = UNUSED
    limit_alphabet: int = LIMIT_ALPHABET
    min_frequency: int = MIN_FREQUENCY


def learn(counts: collections.Counter[str], settings: VocabularySettings) -> list[str]:
    """The vocabulary of a corpus whose words are counted: exactly `size` pieces, always the same.

    Raises:
        ValueError: the text has too few different words for that many pieces, the size has no room
            for the characters, or the `tokenizers` library is not there.
    """
    reserved = reserved_pieces(settings.unused)
    counts, alphabet = within_alphabet(counts, settings.limit_alphabet)
    room = settings.size - len(reserved)
    if room < len(alphabet):
        raise ValueError(
            f"--vocab_size={settings.size} leaves {max(room, 0)} pieces beside {len(reserved)} "
            f"reserved lines, fewer than the {len(alphabet)} that single characters need; raise "
            "it, or lower --limit_alphabet or --unused."
        )
    learnt = train(counts, alphabet, room, settings.min_frequency)
    if len(learnt) < room:
        raise ValueError(
            f"the text has evidence for {len(learnt)} pieces, not for {room}; lower --vocab_size "
            f"to at most {len(learnt) + len(reserved)}, lower --min_frequency, or give more text."
        )
    return reserved + learnt


def within_alphabet(
    counts: collections.Counter[str], limit: int
) -> tuple[collections.Counter[str], list[str]]:
    """The words of the `limit` most frequent characters, and these as pieces: `a` and `##a`."""
    characters: collections.Counter[str] = collections.Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    by_count = sorted(characters, key=lambda character: (-characters[character], character))
    kept = set(by_count[:limit])
    words = collections.Counter({w: count for w, count in counts.items() if kept.issuperset(w)})
    first = sorted({word[0] for word in words})
    following = sorted(set().union(*(word[1:] for word in words)))
    return words, first + [f"##{character}" for character in following]


def train(
    counts: collections.Counter[str], alphabet: list[str], room: int, min_frequency: int
) -> list[str]:
    """The alphabet, then longer pieces by the order in which they were found: `room` at most."""
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    except ImportError:
        raise ValueError(
            "learning a vocabulary needs the tokenizers library: pip install -e '.[vocab]'."
        ) from None
    learner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=room + 1,
        min_frequency=min_frequency,
        # The library numbers `##a` by the order of a hash table that differs in every process, and
        # breaks ties by these numbers. Given here, they are always the same.
        special_tokens=["[UNK]", *alphabet],
        show_progress=False,
    )
    learner.train_from_iterator(repeated(counts), trainer)
    numbers = learner.get_vocab()
    return sorted(numbers.keys() - {"[UNK]"}, key=numbers.__getitem__)


def repeated(counts: collections.Counter[str]) -> Iterator[str]:
    """Lines with every word as often as it was counted."""
    for word, count in sorted(counts.items()):
        for start in range(0, count, WORDS_PER_LINE):
            yield f"{word} " * min(WORDS_PER_LINE, count - start)


def write(path: str, pieces: list[str]) -> None:
    """Writes one piece a line, under a temporary name first."""
    with tf.io.gfile.GFile(f"{path}.tmp", "w") as file:
        file.write("".join(f"{piece}\n" for piece in pieces))
    tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)
