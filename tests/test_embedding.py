"""Texts to vectors: pooling by hand, the order of the texts, and what cannot work."""

from __future__ import annotations

import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import bert_tf
from bert_tf import embedding
from bert_tf.embedding import EmbeddingConfig
from tests.test_scripts import Outcome, run_script
from tests.tiny_run import CHECKPOINT

REPOSITORY = pathlib.Path(__file__).parents[1]
TEXTS = ["the cat sat", "", "a dog", "the cat sat on the mat and read the book", "a dog"]


@pytest.fixture(scope="module")
def encoder() -> bert_tf.BertEncoder:
    return bert_tf.load(str(CHECKPOINT))


def alone(encoder: bert_tf.BertEncoder, text: str) -> list[np.ndarray]:
    """Every layer [S, H] of one text, without any padding."""
    tokenizer = encoder.tokenizer
    packed = tokenizer.pack(tokenizer([text]), max_seq_length=40)  # type: ignore[misc,union-attr]
    return [layer[0].numpy() for layer in encoder(packed.token_ids.to_tensor()).layers]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_each_text_alone(
    encoder: bert_tf.BertEncoder, pooling: str, normalize: bool
) -> None:
    vectors = encoder.embed(TEXTS, pooling=pooling, normalize=normalize)
    assert isinstance(vectors, np.ndarray)
    assert vectors.dtype == np.float32
    by_hand = {"cls": lambda x: x[0], "mean": lambda x: x.mean(axis=0), "max": lambda x: x.max(0)}
    for text, vector in zip(TEXTS, vectors, strict=True):
        expected = by_hand[pooling](alone(encoder, text)[-1])
        if normalize:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_layers_are_joined_and_pieces_kept(encoder: bert_tf.BertEncoder) -> None:
    settings = {"pooling": "none", "layers": (-1, 0), "normalize": False}
    for text, vectors in zip(TEXTS, encoder.embed(TEXTS, **settings), strict=True):
        layers = alone(encoder, text)
        expected = np.concatenate([layers[-1], layers[0]], axis=-1)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_many_small_batches_and_windows(
    encoder: bert_tf.BertEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = encoder.embed(TEXTS * 5)
    monkeypatch.setattr(embedding, "WINDOW_TEXTS", 4)
    parts = encoder.embed(TEXTS * 5, batch_positions=10)
    np.testing.assert_allclose(parts, whole, atol=1e-6)


def test_memory_holds_a_window_however_long_texts_are(
    encoder: bert_tf.BertEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows end by texts or by characters, and parts of them by the numbers of their vectors."""
    assert [len(window) for window in embedding.windows(["a"] * 20_000)] == [8192, 8192, 3616]
    long = "a" * (embedding.WINDOW_CHARACTERS // 2)
    assert [len(window) for window in embedding.windows([long] * 5)] == [2, 2, 1]

    whole = encoder.embed(TEXTS, pooling="none")
    monkeypatch.setattr(embedding, "WINDOW_NUMBERS", 10 * 32)  # ten pieces
    lengths = np.array([6, 4, 5, 20, 4, 3])
    pieces = embedding.Embedder(encoder, EmbeddingConfig(pooling="none"))
    assert list(pieces.parts(lengths)) == [(0, 1), (1, 3), (3, 5), (5, 6)]
    means = embedding.Embedder(encoder, EmbeddingConfig())
    assert list(means.parts(lengths)) == [(0, 6)]
    for vectors, expected in zip(pieces(TEXTS), whole, strict=True):
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_reading_goes_no_further_than_a_window(
    encoder: bert_tf.BertEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "WINDOW_TEXTS", 4)
    taken = itertools.count()
    texts = (f"a cat {next(taken)}" for _ in itertools.repeat(None))  # no end
    stream = embedding.Embedder(encoder, EmbeddingConfig()).stream(texts)
    assert next(stream).shape == (32,)
    assert next(taken) == 4


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_row_of_padding_has_finite_gradients(pooling: str) -> None:
    vectors = tf.Variable(np.random.default_rng(0).normal(size=[2, 3, 4]).astype(np.float32))
    with tf.GradientTape() as tape:
        pooled = embedding.pool(vectors, tf.constant([[1, 1, 0], [0, 0, 0]]), pooling)
        total = tf.reduce_sum(embedding.normalized(pooled)[:, 0])
    np.testing.assert_array_equal(pooled[1], np.zeros(4))
    gradient = tf.convert_to_tensor(tape.gradient(total, vectors)).numpy()
    assert np.isfinite(gradient).all()
    assert gradient[0].any()
    assert not gradient[1].any()


def test_a_single_text_is_no_list(encoder: bert_tf.BertEncoder) -> None:
    with pytest.raises(ValueError, match="list of texts"):
        encoder.embed("a cat")


def test_no_text_and_bytes(encoder: bert_tf.BertEncoder) -> None:
    assert encoder.embed([]).shape == (0, 32)  # type: ignore[union-attr]
    both = encoder.embed([b"the cat sat", "the cat sat"])
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "sum"}, "pooling='sum' must be one of cls, mean, max, none"),
        ({"layers": (2,)}, r"layers=\[2\]: this encoder has the layers -2 to 1"),
        ({"layers": ()}, r"layers=\[\]"),
        ({"max_seq_length": 41}, r"max_seq_length=41 must be from 3 .* to 40"),
    ],
)
def test_mistakes(encoder: bert_tf.BertEncoder, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encoder.embed(TEXTS, **settings)


def test_an_encoder_without_a_tokenizer(encoder: bert_tf.BertEncoder) -> None:
    bare = bert_tf.BertEncoder(encoder.config)
    with pytest.raises(ValueError, match="has no tokenizer"):
        bare.embed(TEXTS)


def test_the_settings_are_compared(encoder: bert_tf.BertEncoder) -> None:
    encoder.embed(TEXTS)
    first = encoder.embedder
    encoder.embed(TEXTS)
    assert encoder.embedder is first
    assert first.config == EmbeddingConfig()  # type: ignore[union-attr]


def test_minilm_gives_the_vectors_of_sentence_transformers(minilm: str) -> None:
    """Mean of the last layer over the mask, length 1; `max_seq_length` as in the model's files."""
    golden = np.load(REPOSITORY / "tests" / "goldens" / "embeddings" / "vectors.npz")
    texts = [str(text) for text in golden["texts"]]
    vectors = bert_tf.load(minilm).embed(texts, max_seq_length=256)
    np.testing.assert_allclose(vectors, golden["vectors"], rtol=0.0, atol=1e-5)


def extract(*flags: str) -> Outcome:
    return run_script("extract_features", f"--checkpoint={CHECKPOINT}", *flags)


def test_files(encoder: bert_tf.BertEncoder, tmp_path: pathlib.Path) -> None:
    """A run of the script for each form; row n is line n."""
    (tmp_path / "in.txt").write_text("\n".join(TEXTS) + "\n")
    source = f"--input={tmp_path}/in.txt"
    done = extract(source, f"--output={tmp_path}/out.npy")
    assert done.code == 0, done.stderr
    expected = encoder.embed(TEXTS)
    made = np.load(tmp_path / "out.npy")
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert "5/5" in done.stderr

    done = extract(source, f"--output={tmp_path}/out.jsonl", "--pooling=none")
    assert done.code == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    assert lines[2]["tokens"] == ["[CLS]", "a", "dog", "[SEP]"]
    values = np.array(lines[2]["embedding"], np.float32)
    np.testing.assert_allclose(values, encoder.embed(TEXTS, pooling="none")[2], atol=1e-6)

    done = extract(
        source, f"--output={tmp_path}/new/out.tfrecord", "--layers=-1,-2", "--pooling=none"
    )
    assert done.code == 0, done.stderr
    records = list(tf.data.TFRecordDataset(str(tmp_path / "new/out.tfrecord")).as_numpy_iterator())
    features = tf.train.Example.FromString(records[2]).features.feature
    assert list(features["tokens"].bytes_list.value) == [b"[CLS]", b"a", b"dog", b"[SEP]"]
    pieces = encoder.embed(TEXTS, layers=(-1, -2), pooling="none")[2]
    values = np.reshape(features["embedding"].float_list.value, [4, 64])
    np.testing.assert_allclose(values, pieces, atol=1e-6)
    assert len(records) == len(TEXTS)
    assert not list(tmp_path.glob("*.tmp"))


def test_a_mistake_of_the_script(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in.txt").write_text("a\n")
    done = extract(f"--input={tmp_path}/in.txt", f"--output={tmp_path}/out.npy", "--pooling=none")
    assert done.code == 1
    assert "write .tfrecord or .jsonl" in done.stderr
    assert "Traceback" not in done.stderr
