"""Shards hold each document exactly once, and what is read from them is the text."""

from __future__ import annotations

import itertools
import pathlib
import random
import sys

import pytest
import tensorflow as tf

from bert_tf.data import corpus as module
from bert_tf.data.corpus import (
    Corpus,
    batches,
    find_corpus,
    other_documents,
    read_documents,
    shard_start,
    tokenize_documents,
)


def write(path: pathlib.Path, content: str | bytes) -> pathlib.Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def corpus_of(
    folder: pathlib.Path, shard_bytes: int = 1 << 20, blank_lines: int = 1, language: str = ""
) -> Corpus:
    return find_corpus(f"{folder}/*.txt", shard_bytes, blank_lines, language)


def all_documents(corpus: Corpus) -> list[list[list[str]]]:
    return [read_documents(corpus, shard) for shard in range(corpus.num_shards)]


@pytest.mark.parametrize("shard_bytes", [40, 100, 333, 1000, 5000, 100_000])
def test_every_document_is_in_one_shard(tmp_path: pathlib.Path, shard_bytes: int) -> None:
    rng = random.Random(shard_bytes)
    expected = []
    for name in "abcde":
        documents = [
            [f"{name}{number}.{line} {'ü' * rng.randrange(9)}".strip() for line in range(3)]
            for number in range(rng.randrange(1, 30))
        ]
        expected += documents
        gaps = ("\n\n", "\n\n\n", "\r\n \t\r\n")
        text = "".join("\n".join(document) + rng.choice(gaps) for document in documents)
        write(tmp_path / f"{name}.txt", text.rstrip() if name in "bd" else text)
    write(tmp_path / "aa.txt", "")
    corpus = corpus_of(tmp_path, shard_bytes)
    shards = all_documents(corpus)
    read = [document for shard in shards for document in shard]
    # Documents that are longer than a shard are cut at lines; these are about 30 bytes long.
    if shard_bytes >= 100:
        assert read == expected
    assert [line for document in read for line in document] == [
        line for document in expected for line in document
    ]
    starts = [shard_start(corpus, shard)[0] for shard in range(corpus.num_shards + 1)]
    assert starts == sorted(starts)
    assert (starts[0], starts[-1]) == (0, corpus.num_bytes)
    assert max(b - a for a, b in itertools.pairwise(starts)) <= 2 * max(shard_bytes, 60)
    assert corpus.num_shards == max(1, round(corpus.num_bytes / shard_bytes))


def test_a_long_document_is_cut_at_lines(tmp_path: pathlib.Path) -> None:
    lines = [f"line {number}" for number in range(500)]
    write(tmp_path / "a.txt", "\n".join(lines))
    corpus = corpus_of(tmp_path, 1000)
    shards = all_documents(corpus)
    assert [line for shard in shards for document in shard for line in document] == lines
    assert [len(shard) for shard in shards] == [1] * corpus.num_shards
    assert [shard_start(corpus, shard)[1] for shard in range(3)] == [True, False, False]


def test_a_line_longer_than_shards(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.txt", f"first\n{'x' * 5000}\nlast\n")
    shards = all_documents(corpus_of(tmp_path, 500))
    assert [line for shard in shards for document in shard for line in document] == [
        "first",
        "x" * 5000,
        "last",
    ]


def test_blank_lines_that_end_a_document(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.txt", "\ufeffa\n\nb\n \n\t\n\n\nc\nd")
    write(tmp_path / "b.txt", "e")
    expected = {
        0: [["a", "b", "c", "d"], ["e"]],
        1: [["a"], ["b"], ["c", "d"], ["e"]],
        2: [["a", "b"], ["c", "d"], ["e"]],
        4: [["a", "b"], ["c", "d"], ["e"]],
        5: [["a", "b", "c", "d"], ["e"]],
    }
    for blank_lines, documents in expected.items():
        assert all_documents(corpus_of(tmp_path, blank_lines=blank_lines)) == [documents]


def test_prose_is_split_into_sentences(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("sentencex", reason="sentencex is not installed (extra `pretraining`)")
    write(
        tmp_path / "a.txt",
        'Mr. Elliot was\nvain. He said to Dr. Grant: "No!" Then\nhe left.\n\n'
        "It was 5 p.m. already.",
    )
    corpus = corpus_of(tmp_path, blank_lines=0, language="en")
    assert all_documents(corpus) == [
        [
            [
                "Mr. Elliot was vain.",
                'He said to Dr. Grant: "No!"',
                "Then he left.",
                "It was 5 p.m. already.",
            ]
        ]
    ]


def test_prose_without_its_library(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencex", None)
    write(tmp_path / "a.txt", "a")
    with pytest.raises(ValueError, match=r"pip install 'bert_tf\[pretraining\]'"):
        corpus_of(tmp_path, language="en")


def test_a_lonely_document_borrows_from_others(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.txt", "short one\n\n" + "\n".join(f"line {n}" for n in range(300)))
    write(tmp_path / "b.txt", "\n".join(f"other {n}" for n in range(300)))
    corpus = corpus_of(tmp_path, 800)
    for shard, documents in enumerate(all_documents(corpus)):
        if len(documents) == 1:
            own = documents[0][-1].split()[0]
            borrowed = other_documents(corpus, shard)
            assert borrowed
            assert own not in {line.split()[0] for document in borrowed for line in document}
    assert sum(len(documents) == 1 for documents in all_documents(corpus)) > 4


def test_the_only_document_is_refused(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.txt", "\n".join(f"line {n}" for n in range(300)))
    for shard_bytes in (500, 100_000):
        with pytest.raises(ValueError, match=r"single document.*--blank_lines"):
            other_documents(corpus_of(tmp_path, shard_bytes), 0)


def test_a_line_that_is_not_utf8_is_named(tmp_path: pathlib.Path) -> None:
    lines = [b"line"] * 1000
    lines[700] = b"caf\xe9"
    path = write(tmp_path / "a.txt", b"\n".join(lines))
    for shard_bytes in (100_000, 500):
        corpus = corpus_of(tmp_path, shard_bytes)
        with pytest.raises(ValueError, match=f"{path}, line 701: byte 0xe9 is not UTF-8"):
            all_documents(corpus)


def test_inputs_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="--input_file: no file matches"):
        corpus_of(tmp_path)
    with pytest.raises(ValueError, match=r"it is a folder: write .*/\*"):
        find_corpus(str(tmp_path), 1, 1, "")
    write(tmp_path / "a.txt", "")
    with pytest.raises(ValueError, match="is empty"):
        corpus_of(tmp_path)
    write(tmp_path / "a.txt", "a")
    with pytest.raises(ValueError, match="shard of 0 bytes"):
        corpus_of(tmp_path, shard_bytes=0)
    with pytest.raises(ValueError, match="blank_lines=-1"):
        corpus_of(tmp_path, blank_lines=-1)
    with pytest.raises(ValueError, match="prose='True' must be the code"):
        corpus_of(tmp_path, language="True")


def test_patterns_are_sorted_and_count_once(tmp_path: pathlib.Path) -> None:
    for name in "cab":
        write(tmp_path / f"{name}.txt", name)
    corpus = find_corpus(f"{tmp_path}/c.txt, {tmp_path}/*.txt", 1 << 20, 1, "")
    assert corpus.paths == tuple(f"{tmp_path}/{name}.txt" for name in "abc")
    assert corpus.starts == (0, 1, 2, 3)


def test_sentences_and_documents_without_tokens_vanish() -> None:
    def tokenize(text: tf.Tensor) -> tf.RaggedTensor:
        """One token a letter x."""
        return tf.ragged.constant(
            [[7] * line.count(b"x") for line in text.numpy()], tf.int32, ragged_rank=1
        )

    documents = [["xx", "-", "x"], ["-"], ["xxx"], ["-", "x"]]
    tokenized = tokenize_documents(documents, 3, tokenize)
    assert tokenized.token_ids.tolist() == [7] * 7
    assert tokenized.sentence_starts == [0, 2, 3, 6, 7]
    assert tokenized.document_starts == [0, 2, 3, 4]
    assert tokenized.num_own == 2
    assert tokenize_documents([], 0, tokenize).num_own == 0


def test_batches_hold_all_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOKENIZED_CHARACTERS", 10)
    sentences = ["a" * 4, "b" * 4, "c" * 4, "d" * 40, "", "e"]
    assert list(batches(sentences)) == [
        sentences[:2],
        sentences[2:3],
        sentences[3:4],
        sentences[4:],
    ]
