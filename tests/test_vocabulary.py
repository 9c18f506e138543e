"""Vocabularies are learnt on the tokenizer's own words, with exact sizes and equal bytes."""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import sys
import unicodedata

import pytest

from bert_tf import vocabulary
from bert_tf.tokenization import Tokenizer
from bert_tf.vocabulary import VocabularySettings, WordSplitter, learn, reserved_pieces
from tests.original_tokenization import basic_tokenize

REPOSITORY = pathlib.Path(__file__).parents[1]
GOLDENS = REPOSITORY / "tests" / "goldens" / "tokenization" / "goldens.jsonl"
TEXT = """The happiest people read unreadable books, unhappily.
Reading is reading: readers re-read what they have read!
Ünïcode and naïve cafés; 東京 is written in two characters.
happy happier happiest unhappy unhappier unhappiest
"""
SETTINGS = VocabularySettings(size=190, unused=99)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def counts(corpus: pathlib.Path) -> collections.Counter[str]:
    return WordSplitter(lower_case=True).count([str(corpus)])


@pytest.mark.parametrize("lower_case", [True, False])
def test_words_are_those_of_the_original_release(lower_case: bool) -> None:
    """On every string of the tokenizer's goldens.

    Words of over 200 characters are [UNK] there and absent here, and so are words with characters
    that Unicode 14 does not know.
    """
    texts = [json.loads(line)["text"] for line in GOLDENS.read_text("utf-8").splitlines()]
    words = [word for text in texts for word in basic_tokenize(text, lower_case, lower_case)]
    expected = [word for word in words if len(word) <= 200 and is_known(word)]
    assert len(expected) > 3000
    assert WordSplitter(lower_case).words(texts) == expected


def is_known(word: str) -> bool:
    return all(unicodedata.category(character) != "Cn" for character in word)


def test_words_do_not_cross_texts() -> None:
    assert WordSplitter(True).words(["one", "", "two!", "a b"]) == ["one", "two", "!", "a", "b"]
    assert WordSplitter(True).words([""]) == []


def test_counts(counts: collections.Counter[str]) -> None:
    assert counts["happiest"] == 6
    assert counts["reading"] == 6
    assert counts["unicode"] == 3
    assert counts["cafes"] == 3
    assert counts["東"] == 3
    assert "Reading" not in counts


def test_special_pieces_are_in_the_original_places() -> None:
    pieces = reserved_pieces()
    assert pieces[0] == "[PAD]"
    assert pieces[1:100] == [f"[unused{number}]" for number in range(99)]
    assert pieces[100:105] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused99]"]
    assert pieces[-1] == "[unused993]"
    assert len(pieces) == 999  # where "!" is in the original's English vocabulary
    with pytest.raises(ValueError, match="--unused=98 must be at least 99"):
        reserved_pieces(98)


def test_the_size_is_exact_and_the_tokenizer_reads_it(
    counts: collections.Counter[str], tmp_path: pathlib.Path
) -> None:
    pieces = learn(counts, SETTINGS)
    assert len(pieces) == len(set(pieces)) == 190
    assert pieces[:104] == reserved_pieces(99)
    vocabulary.write(str(tmp_path / "vocab.txt"), pieces)
    tokenizer = Tokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.vocab == tuple(pieces)
    # No word of the text is unknown, and what is frequent is one piece or two.
    token_ids = tokenizer(TEXT.split("\n"))
    assert tokenizer.unk_id not in token_ids.flat_values.numpy()
    assert len(tokenizer(["happiest"]).to_list()[0]) <= 2
    # Merges come in the order of their number: "##" pieces of two characters before long ones.
    learnt = [piece.removeprefix("##") for piece in pieces[104:]]
    assert max(map(len, learnt)) >= 4


def test_another_process_learns_the_same(corpus: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [
        sys.executable,
        str(REPOSITORY / "scripts/learn_vocab.py"),
        f"--input_file={corpus}",
        "--vocab_size=190",
        "--unused=99",
    ]
    environment = {"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        [*command, f"--output={tmp_path}/vocab.txt"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    expected = learn(WordSplitter(True).count([str(corpus)]), SETTINGS)
    assert (tmp_path / "vocab.txt").read_text("utf-8").split("\n")[:-1] == expected


def test_rare_characters_are_left_out(counts: collections.Counter[str]) -> None:
    small = VocabularySettings(size=140, unused=99, limit_alphabet=10)
    characters = {piece.removeprefix("##") for piece in learn(counts, small)[104:]}
    singles = {character for character in characters if len(character) == 1}
    assert len(singles) == 10
    assert "東" not in singles
    assert "e" in singles


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (VocabularySettings(size=5000, unused=99), r"has evidence for \d+ pieces, not for 4896"),
        (VocabularySettings(size=120, unused=99), r"leaves 16 pieces beside 104 reserved lines"),
        (VocabularySettings(size=50, unused=99), r"leaves 0 pieces beside 104"),
    ],
)
def test_sizes_that_cannot_be(
    counts: collections.Counter[str], settings: VocabularySettings, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        learn(counts, settings)
