"""Makes what all libraries are given: a checkpoint with random weights, rows, and text."""

from __future__ import annotations

import pathlib

import numpy as np
from workloads import SEED, SHAPES, SPECIAL_PIECES, Shape, Workload, make_rows

from bert_tf.checkpoints import Checkpoint
from bert_tf.config import BertConfig
from bert_tf.conversion import write_hugging_face
from bert_tf.encoder import variables_by_name
from bert_tf.tasks.pretraining import PretrainingModel

TABLE_DEVIATION = 0.02  # BERT's own
CHOOSING = 2.0  # times as large kernels of queries and keys as of all else
SENTENCES_PER_DOCUMENT = 12
TEXT_WORDS = 200_000
TINY_TEXT_WORDS = 5_000
VOCABULARY_SIZE = 30522  # of workloads without a model


def make_checkpoint(shape: Shape, folder: pathlib.Path) -> str:
    """A folder in the form of Hugging Face, with the heads of pre-training and of classification.

    Every bias and every LayerNorm is moved off its first value: a library that forgot one of them
    would else compute the same.
    """
    if (folder / "config.json").exists():
        return str(folder)
    config = BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.inner,
        max_position_embeddings=shape.positions,
    )
    rng = np.random.default_rng(SEED)
    named = {n: v.shape.as_list() for n, v in variables_by_name(PretrainingModel(config)).items()}
    named |= {"output_weights": [2, shape.hidden], "output_bias": [2]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    vocab_file = folder.with_suffix(".vocab.txt")
    vocab_file.write_text("\n".join(vocabulary(shape.vocabulary)) + "\n", "utf-8")
    weights = {name: random_weight(name, size, rng) for name, size in sorted(named.items())}
    checkpoint = Checkpoint(
        config=config,
        weights=weights,
        vocab_file=str(vocab_file),
        lower_case=True,
        strip_accents=None,
        source=str(folder),
        kind="hugging_face",
        labels=("0", "1"),
    )
    write_hugging_face(str(folder), checkpoint)
    return str(folder)


def random_weight(name: str, shape: list[int], rng: np.random.Generator) -> np.ndarray:
    """Truncated normal; biases are around 0 and the gains of LayerNorm around 1.

    Kernels keep the size of what they multiply, unlike BERT's own start, and those of queries and
    keys are larger, so that attention chooses: else all texts would get nearly the same answer, and
    a comparison of answers would find no mistake.
    """
    values = np.clip(rng.standard_normal(shape, np.float32), -2.0, 2.0)
    if len(shape) == 1:
        return values * np.float32(0.1) + np.float32(name.endswith("gamma"))
    if name.endswith("embeddings"):
        return values * np.float32(TABLE_DEVIATION)
    inputs = shape[-1 if name.endswith("weights") else 0]
    scale = CHOOSING if name.endswith(("query/kernel", "key/kernel")) else 1.0
    return values * np.float32(scale * inputs**-0.5)


# --------------------------------------------------------------------------------- made-up language


def syllables() -> list[str]:
    """Of the made-up language."""
    return [
        a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is")
    ]


def vocabulary(size: int) -> list[str]:
    """Special pieces, letters, marks, words, and syllables that words go on with."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL_PIECES, *letters, *(f"##{letter}" for letter in letters), ".", ",", "é"]
    rng = np.random.default_rng(SEED)
    known, syllable = set(pieces), syllables()
    while len(pieces) < size:
        word = "".join(rng.choice(syllable, rng.integers(1, 4)))
        word = f"##{word}" if rng.random() < 0.2 else word
        if word not in known:
            known.add(word)
            pieces.append(word)
    return pieces


def text(words: int, pieces: list[str]) -> str:
    """Documents of the made-up language: a sentence a line, an empty line between documents.

    Frequent words are far more frequent, one word in ten is not in the vocabulary, and one
    sentence in fifty has an accent.
    """
    rng = np.random.default_rng(SEED)
    whole = np.array([p for p in pieces if p.isalpha() and len(p) > 1])
    chosen = whole[np.minimum(rng.zipf(1.2, words) - 1, len(whole) - 1)]
    chosen = np.where(
        rng.random(words) < 0.1, np.char.add(chosen, "".join(syllables()[:3])), chosen
    )
    lines, first = [], 0
    while first < words:
        length = int(rng.integers(5, 30))
        accent = " café" if rng.random() < 0.02 else ""
        lines.append(" ".join(chosen[first : first + length]).capitalize() + accent + ".")
        if len(lines) % (SENTENCES_PER_DOCUMENT + 1) == SENTENCES_PER_DOCUMENT:
            lines.append("")
        first += length
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------- inputs


def make_inputs(
    workload: Workload, folder: pathlib.Path, given_text: str, vocab_file: str
) -> tuple[str, str]:
    """Writes what a workload needs; returns the checkpoint's folder and the data file."""
    folder.mkdir(parents=True, exist_ok=True)
    if workload.shape:
        checkpoint = make_checkpoint(SHAPES[workload.shape], folder / f"bert-{workload.shape}")
        data = folder / (workload.name.replace("/", "-") + ".npz")
        np.savez(data, **make_rows(workload))  # type: ignore[arg-type]
        return checkpoint, str(data)
    if workload.unit in ("FLOP", "bytes"):
        return "", ""
    pieces = (
        pathlib.Path(vocab_file).read_text("utf-8").splitlines()
        if vocab_file
        else vocabulary(VOCABULARY_SIZE)
    )
    words = TINY_TEXT_WORDS if workload.rows < 0 else TEXT_WORDS
    home = folder / "text"
    home.mkdir(exist_ok=True)
    (home / "vocab.txt").write_text("\n".join(pieces) + "\n", "utf-8")
    content = given_text or text(words, pieces)
    data = home / (workload.name.replace("/", "-") + ".txt")
    data.write_text(
        content if workload.kind != "tokenizer" else paragraphs(workload, content), "utf-8"
    )
    return str(home), str(data)


def paragraphs(workload: Workload, content: str) -> str:
    """The paragraphs, each on one line; of some kinds of text those in pure ASCII alone."""
    parts = content.replace("\r\n", "\n").split("\n\n")
    lines = [" ".join(part.split()) for part in parts if part.strip()]
    if workload.text != "as_it_is":
        lines = [line for line in lines if line.isascii()]
    return "".join(f"{line}{' é' if workload.text == 'accents' else ''}\n" for line in lines)
