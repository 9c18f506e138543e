"""Token shards: what training makes of them, in which order, and from any step on."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import BertConfig
from bert_tf.data import creation, token_shards
from bert_tf.data.creation import create_pretraining_data
from bert_tf.data.instances import InstanceConfig, PieceTable, piece_table
from bert_tf.data.token_shards import (
    Features,
    Recipe,
    TokenShard,
    TokenShards,
    Window,
    read_shard,
    write_shard,
)
from bert_tf.encoder import BertEncoder
from bert_tf.layouts import PackedLayout, PaddedLayout
from bert_tf.tokenization import Tokenizer
from tests.data.test_creation import write_inputs

CONFIG = BertConfig(
    vocab_size=120,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)
CLS, SEP, MASK = 2, 3, 4
PIECES = PieceTable(CLS, SEP, MASK, np.zeros(120, bool))
INSTANCES = InstanceConfig(max_seq_length=32, max_predictions_per_seq=5, dupe_factor=1)


def shard(number: int, documents: int = 30) -> TokenShard:
    """Random documents; every token of a document says which one it is, but for special ids."""
    random = np.random.default_rng(number)
    sentences = [random.integers(1, 9, random.integers(1, 8)) for _ in range(documents)]
    tokens = [np.full(lengths.sum(), 5 + d) for d, lengths in enumerate(sentences)]
    return TokenShard(
        np.concatenate(tokens).astype(np.uint16),
        np.concatenate(sentences).astype(np.int32),
        np.array([len(lengths) for lengths in sentences], np.int32),
        np.arange(documents) + 1000 * number,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("shards")
    paths = tuple(str(folder / f"x-{number}.tokens.npz") for number in range(5))
    for number, path in enumerate(paths):
        write_shard(path, shard(number))
    return paths


def open_files(files: tuple[str, ...], max_sequences: int = 3) -> TokenShards:
    shards = TokenShards.index(files, Recipe(INSTANCES, max_sequences, PIECES), CONFIG)
    return dataclasses.replace(shards, window_shards=2)


def rows_of(batches: Iterator[Features], count: int) -> Features:
    """The first `count` batches as one."""
    taken = [next(batches) for _ in range(count)]
    return {name: np.concatenate([batch[name] for batch in taken]) for name in taken[0]}


# --------------------------------------------------------------------------------------- the rows


@pytest.mark.parametrize("max_sequences", [1, 3])
def test_rows_hold_whole_sequences(files: tuple[str, ...], max_sequences: int) -> None:
    shards = open_files(files, max_sequences)
    rows = rows_of(shards.dataset(16, seed=1).as_numpy_iterator(), 20)
    assert rows["mask"].max() == max_sequences
    for row in range(len(rows["mask"])):
        count = int(rows["next_sentence_weights"][row].sum())
        mask = rows["mask"][row]
        assert mask.max() == count
        for number in range(count):
            places = np.flatnonzero(mask == number + 1)
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
            assert places[0] == rows["cls_positions"][row, number]
            ids = original_ids(rows, row)[places]
            assert ids[0] == CLS
            assert np.flatnonzero(ids == SEP).tolist()[-1] == len(ids) - 1
            middle = int(np.flatnonzero(ids == SEP)[0])
            segments = rows["segment_ids"][row, places]
            assert segments.tolist() == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
            # Both segments are of one document, or of two: as the label says.
            first, second = set(ids[1:middle]), set(ids[middle + 1 : -1])
            assert len(first) == len(second) == 1
            if rows["next_sentence_labels"][row, number] == 0:
                assert first == second
    assert (rows["mask"] > 0).mean() > (0.9 if max_sequences > 1 else 0.5)


def original_ids(rows: Features, row: int) -> np.ndarray:
    """The ids of a row with the masked words put back."""
    ids = rows["token_ids"][row].copy()
    chosen = rows["masked_weights"][row] > 0
    ids[rows["masked_positions"][row, chosen]] = rows["masked_ids"][row, chosen]
    return ids


@pytest.mark.parametrize("max_sequences", [1, 3])
def test_each_sequence_has_its_own_share_of_masked_words(
    files: tuple[str, ...], max_sequences: int
) -> None:
    rows = rows_of(open_files(files, max_sequences).dataset(16, seed=1).as_numpy_iterator(), 20)
    for row, mask in enumerate(rows["mask"]):
        chosen = rows["masked_positions"][row][rows["masked_weights"][row] > 0]
        assert np.all(np.diff(chosen) > 0)
        owners = mask[chosen]
        for number in range(1, mask.max() + 1):
            length = (mask == number).sum()
            assert (owners == number).sum() == min(5, max(1, round(length * 0.15)))


def test_masked_words_alone_need_no_second_document(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "a.tokens.npz")
    one = shard(0, documents=1)._replace(sentence_lengths=np.full(100, 9, np.int32))
    write_shard(
        path,
        one._replace(token_ids=np.full(900, 7, np.uint16), document_lengths=np.array([100])),
    )
    instances = dataclasses.replace(INSTANCES, next_sentence=False)
    shards = TokenShards.index((path,), Recipe(instances, 3, PIECES), CONFIG)
    rows = rows_of(shards.dataset(8, seed=1).as_numpy_iterator(), 10)
    assert not rows["segment_ids"].any()
    assert not rows["next_sentence_weights"].any()
    for row, mask in enumerate(rows["mask"]):
        ids = original_ids(rows, row)
        for number in range(1, mask.max() + 1):
            own = ids[mask == number]
            assert own.tolist() == [CLS, *[7] * (len(own) - 2), SEP]
    assert (rows["mask"] > 0).mean() > 0.9


def test_half_of_the_next_sentences_are_foreign(files: tuple[str, ...]) -> None:
    rows = rows_of(open_files(files).dataset(64, seed=1).as_numpy_iterator(), 40)
    weights = rows["next_sentence_weights"]
    # A lone last sentence always gets a foreign one, as in the original: short documents, more.
    share = (rows["next_sentence_labels"] * weights).sum() / weights.sum()
    assert 0.5 < share < 0.8


def test_the_longest_rows_have_room_for_their_masked_words() -> None:
    """Sequences round up: `row_predictions` must hold the sum, whatever they are."""
    for rate in (0.01, 0.15, 0.4):
        for sequences in (1, 2, 5):
            instances = dataclasses.replace(
                INSTANCES, masked_lm_prob=rate, max_predictions_per_seq=32
            )
            recipe = Recipe(instances, sequences, PIECES)
            window = Window.of([shard(7), shard(8)], recipe, 200, (1, 2, 3))
            rows = window.make(0)
            assert rows["masked_weights"].shape == (200, recipe.row_predictions)
            lengths = [(rows["mask"] == n + 1).sum(axis=1) for n in range(sequences)]
            wanted = sum(np.where(n > 0, np.maximum(1, np.rint(n * rate)), 0) for n in lengths)
            assert np.array_equal(rows["masked_weights"].sum(axis=1), wanted)


# --------------------------------------------------------------------- no sequence sees another one


def test_a_packed_row_gives_what_unpacked_rows_give(files: tuple[str, ...]) -> None:
    rows = rows_of(open_files(files).dataset(16, seed=2).as_numpy_iterator(), 1)
    packed = BertEncoder(CONFIG, PackedLayout)
    alone = BertEncoder(CONFIG, PaddedLayout)
    assert rows["mask"].max() >= 2
    packed_output = packed(rows["token_ids"], rows["segment_ids"], rows["mask"])
    alone(rows["token_ids"])
    alone.set_weights(packed.get_weights())
    for row, mask in enumerate(rows["mask"]):
        for number in range(1, mask.max() + 1):
            own = mask == number
            output = alone(
                rows["token_ids"][row : row + 1, own], rows["segment_ids"][row : row + 1, own]
            )
            for got, expected in zip(packed_output.layers, output.layers, strict=True):
                np.testing.assert_allclose(got[row][own], expected[0], atol=1e-5)
            cls = rows["cls_positions"][row, number - 1]
            pooled = packed.pool(packed_output.sequence[row : row + 1, cls])
            np.testing.assert_allclose(pooled, output.pooled, atol=1e-5)


def test_one_sequence_a_row_is_a_padded_row() -> None:
    ids = tf.constant([[CLS, 7, 8, SEP, 0, 0], [CLS, 7, 8, 9, 10, SEP]])
    mask = tf.constant([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    packed, padded = BertEncoder(CONFIG, PackedLayout), BertEncoder(CONFIG, PaddedLayout)
    first = packed(ids, None, mask).sequence
    padded(ids)
    padded.set_weights(packed.get_weights())
    real = mask.numpy() > 0
    np.testing.assert_allclose(
        first.numpy()[real], padded(ids, None, mask).sequence.numpy()[real], atol=1e-6
    )


# -------------------------------------------------------------------------------------- the order


def test_an_epoch_has_as_many_rows_as_its_tokens_fill(files: tuple[str, ...]) -> None:
    shards = open_files(files)
    tokens = [len(read_shard(file, CONFIG).token_ids) for file in files]
    assert shards.num_tokens.tolist() == tokens
    assert len(shards) == sum(-(-count // 32) for count in tokens)


@pytest.mark.parametrize("step", [1, 7, 40])
def test_a_stream_begins_at_any_step(files: tuple[str, ...], step: int) -> None:
    shards = open_files(files)
    assert step == 1 or step * 10 > 0.3 * len(shards)
    whole = rows_of(shards.dataset(10, seed=5).as_numpy_iterator(), step + 6)
    later = rows_of(shards.dataset(10, seed=5, first_step=step).as_numpy_iterator(), 6)
    for name, values in later.items():
        assert np.array_equal(values, whole[name][step * 10 :]), name


def test_epochs_have_other_pairs_and_masks(files: tuple[str, ...]) -> None:
    shards = open_files(files[:2])
    epoch = -(-len(shards) // 10)
    first = rows_of(shards.dataset(10, seed=0).as_numpy_iterator(), epoch)
    second = rows_of(shards.dataset(10, seed=0, first_step=epoch).as_numpy_iterator(), epoch)
    seen = {row.tobytes() for row in first["token_ids"]}
    assert sum(row.tobytes() in seen for row in second["token_ids"]) < 0.02 * len(seen)
    other = rows_of(shards.dataset(10, seed=1).as_numpy_iterator(), 3)
    assert not np.array_equal(other["token_ids"], first["token_ids"][:30])


def test_all_shapes_but_the_number_of_rows_are_static(files: tuple[str, ...]) -> None:
    for name, spec in open_files(files).dataset(8, seed=0).element_spec.items():
        assert spec.shape.is_fully_defined(), name


def test_parts_of_one_document_are_no_foreign_sentences() -> None:
    """Two shards of one long document and a short one: only the short one is foreign to it."""
    parts = [shard(0, documents=1), shard(1, documents=1), shard(2, documents=2)]
    parts[1] = parts[1]._replace(token_ids=parts[1].token_ids + 50, document_ids=np.array([0]))
    parts[2] = parts[2]._replace(token_ids=parts[2].token_ids + 20)
    recipe = Recipe(dataclasses.replace(INSTANCES, masked_lm_prob=0.01), 1, PIECES)
    rows = Window.of(parts, recipe, 100, (0, 0, 0)).make(0)
    both = 0
    for row, ids in enumerate(rows["token_ids"]):
        tokens = set(original_ids(rows, row)) - {0, CLS, SEP}
        both += {5, 55} <= tokens
        assert len(ids) == 32
    assert both == 0


# --------------------------------------------------------------------------------------- mistakes


def test_what_is_no_shard_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "a.tokens.npz"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"a\.tokens\.npz is not a whole file of tokens"):
        read_shard(str(path), CONFIG)
    write_shard(str(path), shard(0))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="is not a whole file of tokens"):
        read_shard(str(path), CONFIG)
    np.savez(path, token_ids=np.zeros(3, object))
    (tmp_path / "a.tokens.npz.npz").rename(path) if not path.exists() else None
    with pytest.raises(ValueError, match="is not a whole file of tokens"):
        read_shard(str(path), CONFIG)


def test_another_vocabulary_is_refused(files: tuple[str, ...]) -> None:
    small = dataclasses.replace(CONFIG, vocab_size=20)
    with pytest.raises(ValueError, match=r"has the token 34, but the model has 20 \(vocab_size\)"):
        TokenShards.index(files, Recipe(INSTANCES, 1, PIECES), small)


def test_one_document_in_all_is_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "a.tokens.npz")
    write_shard(path, shard(0, documents=1))
    with pytest.raises(ValueError, match="are one document"):
        TokenShards.index((path,), Recipe(INSTANCES, 1, PIECES), CONFIG)


def test_no_sequence_in_a_row_is_refused(files: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="packed_sequences=0 must be at least 1"):
        TokenShards.index(files, Recipe(INSTANCES, 0, PIECES), CONFIG)


# ----------------------------------------------------------------------------------- the creation


def test_created_from_text(tmp_path: pathlib.Path) -> None:
    """The tokens of the text, the same bytes for any number of processes, and a stopped run."""
    config = dataclasses.replace(
        write_inputs(tmp_path), form="tokens", output_file=f"{tmp_path}/out/x"
    )
    made = create_pretraining_data(config, processes=1)
    folder = tmp_path / "out"
    paths = sorted(folder.glob("*.tokens.npz"))
    assert len(paths) == 8
    model = dataclasses.replace(CONFIG, vocab_size=14)
    shards = [read_shard(str(path), model) for path in paths]
    assert made.tokens == sum(len(shard.token_ids) for shard in shards)
    assert made.instances == sum(len(shard.document_ids) for shard in shards) == 120
    tokenizer = Tokenizer(config.vocab_file, True)
    text = "\n".join((tmp_path / f"{name}.txt").read_text() for name in "abc")
    expected = tokenizer(tf.constant(text.split("\n"))).flat_values
    assert np.array_equal(np.concatenate([shard.token_ids for shard in shards]), expected)

    before = {path.name: path.read_bytes() for path in paths}
    paths[3].unlink()
    create_pretraining_data(config, processes=2)
    assert {path.name: path.read_bytes() for path in paths} == before
    recipe = Recipe(INSTANCES, 2, piece_table(tokenizer))
    index = TokenShards.index(tuple(map(str, paths)), recipe, model)
    assert len(next(iter(index.dataset(4, seed=1)))["token_ids"]) == 4


def test_ids_of_a_document_in_several_shards() -> None:
    """The last document of shard 2 fills shard 3 and ends in shard 4."""
    second = creation.document_ids(2, 2, 3)
    third, fourth = creation.document_ids(3, 2, 1), creation.document_ids(4, 2, 2)
    assert second[-1] == third[0] == fourth[0]
    assert len(np.unique(np.concatenate([second, third, fourth]))) == 4
    assert len(creation.document_ids(5, 5, 0)) == 0
    assert token_shards.ENDING == ".tokens.npz"
