"""Words for [MASK]: the model's own logits, and mistakes in one paragraph."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.checkpoints import load, read_checkpoint
from bert_tf.config import ModelConfig
from bert_tf.conversion import write_tf1
from bert_tf.masked_words import Answer, MaskFiller, best_words

REPOSITORY = pathlib.Path(__file__).parents[1]
FOLDER = REPOSITORY / "tests" / "goldens" / "hf"
TINY = FOLDER / "tiny_pretraining"


@pytest.fixture(scope="module")
def filler() -> MaskFiller:
    return MaskFiller.from_checkpoint(ModelConfig(init_checkpoint=str(TINY)))


def by_hand(sentence_ids: list[int], position: int) -> np.ndarray:
    """Probabilities [V] from the weights, by the formulas of the paper, in float64."""
    weights = {
        name: value.astype(np.float64) for name, value in read_checkpoint(str(TINY)).weights.items()
    }
    output = load(str(TINY))(tf.constant([sentence_ids])).sequence[0, position].numpy()
    name = "cls/predictions/transform"
    x = output @ weights[f"{name}/dense/kernel"] + weights[f"{name}/dense/bias"]
    x = tf.nn.gelu(tf.constant(x)).numpy()
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-12)
    x = x * weights[f"{name}/LayerNorm/gamma"] + weights[f"{name}/LayerNorm/beta"]
    logits = weights["bert/embeddings/word_embeddings"] @ x + weights["cls/predictions/output_bias"]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def test_ids_have_the_mask_of_the_vocabulary(filler: MaskFiller) -> None:
    vocab = {piece: number for number, piece in enumerate(filler.tokenizer.vocab)}
    names = ["[CLS]", "the", "[MASK]", "sat", "un", "##happy", "[MASK]", "!", "[SEP]"]
    expected = [vocab[name] for name in names]
    assert filler.token_ids("The [MASK] sat unhappy[MASK]!") == expected
    assert filler.token_ids("[MASK]") == [vocab[name] for name in ("[CLS]", "[MASK]", "[SEP]")]


def test_the_five_likeliest_words(filler: MaskFiller) -> None:
    sentence = "the [MASK] sat on the [MASK]."
    answers = filler.fill(sentence)
    assert [len(words) for words in answers] == [5, 5]
    token_ids = filler.token_ids(sentence)
    for words, position in zip(answers, (2, 6), strict=True):
        expected = by_hand(token_ids, position)
        best = np.argsort(-expected)[:5]
        assert [answer.word for answer in words] == [filler.tokenizer.vocab[i] for i in best]
        probabilities = [answer.probability for answer in words]
        np.testing.assert_allclose(probabilities, expected[best], rtol=1e-4)
    assert answers[0] != answers[1]


def test_best_words() -> None:
    answers = best_words(np.array([0.1, 0.4, 0.1, 0.4]), "abcd", 3)
    assert answers == [Answer("b", 0.4), Answer("d", 0.4), Answer("a", 0.1)]


def test_a_tf1_checkpoint_answers_the_same(filler: MaskFiller, tmp_path: pathlib.Path) -> None:
    write_tf1(str(tmp_path / "tf1"), read_checkpoint(str(TINY)))
    other = MaskFiller.from_checkpoint(ModelConfig(init_checkpoint=str(tmp_path / "tf1")))
    assert other.fill("the [MASK] ran") == filler.fill("the [MASK] ran")


def test_sentences_that_cannot_be_filled(filler: MaskFiller) -> None:
    with pytest.raises(ValueError, match=r"'the cat' has no \[MASK\]; put it in place of a word"):
        filler.fill("the cat")
    with pytest.raises(ValueError, match=r"has 53 pieces, more than the position table.*\(40\)"):
        filler.fill("[MASK]" + " cat" * 50)


def test_a_checkpoint_without_the_head() -> None:
    with pytest.raises(ValueError, match="tiny_classifier has no masked-LM head"):
        MaskFiller.from_checkpoint(ModelConfig(init_checkpoint=str(FOLDER / "tiny_classifier")))


def fill_mask(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts/fill_mask.py"), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2", "PATH": "/usr/bin:/bin"},
    )


def test_the_script(filler: MaskFiller, tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("\nthe [MASK] and [MASK]\n")
    run = fill_mask(f"--checkpoint={TINY}", "--text=a [MASK].", f"--input={tmp_path}/in.txt")
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        "a [MASK].",
        "the [MASK] and [MASK]",
    ]
    assert len(lines) == 5
    first = filler.fill("a [MASK].")[0][0]
    assert lines[1].startswith(f"  [MASK] 1: {first.word} {first.probability:.3f}  ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text=no mask"], "'no mask' has no [MASK]"),
        pytest.param([], "there is no sentence", marks=pytest.mark.slow),
        pytest.param(["--input=/nowhere/a"], "--input=/nowhere/a cannot", marks=pytest.mark.slow),
    ],
)
def test_mistakes_are_told_in_one_paragraph(arguments: list[str], message: str) -> None:
    run = fill_mask(f"--checkpoint={TINY}", *arguments)
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == "" or message.startswith("'")
