"""Words and positions are added where they belong, and nothing else moves."""

from __future__ import annotations

import dataclasses
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bert_tf.checkpoints import Checkpoint, load, read_checkpoint
from bert_tf.conversion import write_tf1
from bert_tf.extension import POSITION_TABLE, WORD_TABLES, with_positions, with_words
from bert_tf.tokenization import Tokenizer

REPOSITORY = pathlib.Path(__file__).parents[1]
# 120 pieces; the last two are [unused0] and [unused1].
TINY = REPOSITORY / "tests" / "goldens" / "hf" / "tiny_pretraining"


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return read_checkpoint(str(TINY))


@pytest.mark.parametrize("words", [["rereading"], ["Rereading", "bluest", "mats", "the", "mats"]])
def test_words(tiny: Checkpoint, tmp_path: pathlib.Path, words: list[str]) -> None:
    """One word fits into the unused lines, three (without the known and the repeated) do not."""
    new = list(dict.fromkeys(word.lower() for word in words if word != "the"))
    extended = with_words(tiny, words, str(tmp_path / "vocab.txt"))
    before, after = Tokenizer(str(TINY / "vocab.txt")), Tokenizer(str(tmp_path / "vocab.txt"))
    assert after.vocab_size == 118 + max(len(new), 2) == extended.config.vocab_size
    assert after.vocab[:118] == before.vocab[:118]
    for word in new:
        (line,) = after([word]).to_list()[0]
        pieces = before([word]).to_list()[0]
        assert len(pieces) > 1
        for name in WORD_TABLES:
            expected = tiny.weights[name][pieces].mean(axis=0)
            np.testing.assert_allclose(extended.weights[name][line], expected, rtol=1e-6)
    for name, value in tiny.weights.items():
        same = slice(118) if name in WORD_TABLES else slice(None)
        assert np.array_equal(extended.weights[name][same], value[same]), name
    if len(new) == 1:
        assert after.vocab[118:] == ("rereading", "[unused1]")


def test_rows_without_a_line_are_used_before_the_table_grows(
    tiny: Checkpoint, tmp_path: pathlib.Path
) -> None:
    """A table padded to a round number of rows: 120 rows, and a vocabulary of 117 lines."""
    lines = (TINY / "vocab.txt").read_text().split("\n")[:117]
    (tmp_path / "short.txt").write_text("\n".join(lines) + "\n")
    short = dataclasses.replace(tiny, vocab_file=str(tmp_path / "short.txt"))
    extended = with_words(short, ["rereading", "mats"], str(tmp_path / "vocab.txt"))
    assert extended.config.vocab_size == 120
    assert Tokenizer(str(tmp_path / "vocab.txt")).vocab[117:] == ("rereading", "mats")


def test_positions_repeat_the_table(tiny: Checkpoint, tmp_path: pathlib.Path) -> None:
    extended = with_positions(tiny, 90)
    table, longer = tiny.weights[POSITION_TABLE], extended.weights[POSITION_TABLE]
    assert np.array_equal(longer, np.concatenate([table, table, table[:10]]))
    write_tf1(str(tmp_path / "long"), extended)
    token_ids = np.tile(np.arange(5, 45), 2)[np.newaxis]
    short, long = load(str(TINY)), load(str(tmp_path / "long"))
    output = long(token_ids)
    assert output.sequence.shape == [1, 80, 32]
    # What a new position adds is what its old twin adds.
    assert np.array_equal(output.embeddings[:, 40:], output.embeddings[:, :40])
    first = short(token_ids[:, :40]).sequence
    np.testing.assert_allclose(long(token_ids[:, :40]).sequence, first, atol=1e-6)
    with pytest.raises(ValueError, match="has 40 already"):
        with_positions(tiny, 40)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["two words"], r"'two words' is 2 words to the tokenizer \(two words\)"),
        (["covid-19"], r"'covid-19' is 3 words"),
        (["\u200b"], r"is 0 words to the tokenizer \(none\)"),
    ],
)
def test_what_is_not_one_word(
    tiny: Checkpoint, tmp_path: pathlib.Path, words: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        with_words(tiny, words, str(tmp_path / "vocab.txt"))


def test_a_checkpoint_without_casing(tiny: Checkpoint, tmp_path: pathlib.Path) -> None:
    bare = dataclasses.replace(tiny, lower_case=None)
    with pytest.raises(ValueError, match=r"has no casing \(--lower_case\)"):
        with_words(bare, ["mats"], str(tmp_path / "vocab.txt"))


def extend(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/extend_checkpoint.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2", "PATH": "/usr/bin:/bin"},
    )


def test_the_script_writes_everything_together(tmp_path: pathlib.Path) -> None:
    (tmp_path / "words.txt").write_text("Rereading\n\nmats\nbluest\n")
    run = extend(
        f"--input={TINY}",
        f"--output={tmp_path}/out",
        f"--words={tmp_path}/words.txt",
        "--positions=64",
    )
    assert run.returncode == 0, run.stderr
    assert "3 words: 2 in [unused] lines, 1 behind the end" in run.stderr
    found = read_checkpoint(str(tmp_path / "out"))
    assert found.config is not None
    assert (found.config.vocab_size, found.config.max_position_embeddings) == (121, 64)
    assert found.lower_case is True
    encoder = load(str(tmp_path / "out"))
    assert encoder.tokenizer.vocab[118:] == ("rereading", "mats", "bluest")


def test_a_mistake_is_told_in_one_paragraph(tmp_path: pathlib.Path) -> None:
    run = extend(f"--input={TINY}", f"--output={tmp_path}/out")
    assert run.returncode == 1
    assert "there is nothing to add" in run.stderr
    assert "Traceback" not in run.stderr
