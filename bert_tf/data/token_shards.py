"""Token shards: text tokenized once, from which training makes pairs, masks and packs as it goes.

Every epoch then has new pairs of segments and new masks, no `dupe_factor` multiplies the files, and
mask rate, length and packing are settings of the training run. A shard is an `.npz` file of plain
arrays, two bytes a token; `scripts/create_pretraining_data.py --form=tokens` makes them.

The order is a pure function of (files, seed, step). Every epoch shuffles the shards and opens a
window of them at a time; the window's documents are paired, the pairs put into rows, and the rows
shuffled. An epoch has as many rows as its tokens would fill, so that every shard gives a known
number of rows and any step is found without those before it: what a pass through a window has more
is left for another epoch, and where it has less, a second pass with other pairs goes on.

Legend: B batch, R rows, G sequences of a row, S tokens of a row, P masked positions of a row, K
shards, E sequences.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import io
import random
import zipfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data import packing
from bert_tf.data.instances import (
    Documents,
    InstanceConfig,
    Pairs,
    PieceTable,
    build_pairs,
    make_instances,
    sequence_lengths,
)
from bert_tf.data.pretraining import RecordFeed, one_share_each
from bert_tf.distribution import Accelerator

ENDING = ".tokens.npz"
WINDOW_SHARDS = 8  # whose rows are shuffled together: 32 MiB of text, 65,000 rows of 128 tokens
CHUNK_ROWS = 256  # made at once
READERS = 16  # threads that look into files when a run starts

Features = dict[str, np.ndarray]  # a batch, or rows of one: each [R, ...]


# -------------------------------------------------------------------------------------- the files


class TokenShard(NamedTuple):
    """Tokenized documents as a file has them."""

    token_ids: np.ndarray  # uint16 or int32 [tokens]
    sentence_lengths: np.ndarray  # int32 [sentences], in tokens
    document_lengths: np.ndarray  # int32 [documents], in sentences
    document_ids: np.ndarray  # int64 [documents]; equal where shards hold parts of one document


def shard_of(documents: Documents, document_ids: np.ndarray) -> TokenShard:
    """What a file has of tokenized documents."""
    narrow = len(documents.token_ids) == 0 or documents.token_ids.max() < 1 << 16
    return TokenShard(
        documents.token_ids.astype(np.uint16 if narrow else np.int32),
        np.diff(documents.sentence_starts).astype(np.int32),
        np.diff(documents.document_starts).astype(np.int32),
        document_ids,
    )


def write_shard(path: str, shard: TokenShard) -> None:
    """Writes a file, local or `gs://`."""
    content = io.BytesIO()
    np.savez(content, **shard._asdict())
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content.getvalue())


def read_shard(path: str, config: BertConfig) -> TokenShard:
    """Reads a file; raises ValueError where it is no shard, or of another vocabulary."""
    try:
        with tf.io.gfile.GFile(path, "rb") as file, load_arrays(file.read()) as arrays:
            shard = TokenShard(*(arrays[name] for name in TokenShard._fields))
    except (
        KeyError,
        OSError,
        EOFError,
        ValueError,
        zipfile.BadZipFile,
        tf.errors.OpError,
    ) as error:
        raise ValueError(
            f"{path} is not a whole file of tokens ({error}); make or copy it again: "
            "scripts/create_pretraining_data.py --form=tokens."
        ) from None
    if len(shard.token_ids) and shard.token_ids.max() >= config.vocab_size:
        raise ValueError(
            f"{path} has the token {shard.token_ids.max()}, but the model has {config.vocab_size} "
            "(vocab_size); make the shards with the vocabulary of this model."
        )
    return shard


def load_arrays(content: bytes) -> np.lib.npyio.NpzFile:
    """The arrays of an `.npz` file, which may hold nothing that runs code."""
    return np.load(io.BytesIO(content), allow_pickle=False)


def join(shards: list[TokenShard]) -> tuple[Documents, np.ndarray]:
    """The documents of several shards as one collection, and their ids."""
    together = TokenShard(*(np.concatenate(parts) for parts in zip(*shards, strict=True)))
    return (
        Documents(
            together.token_ids.astype(np.int32),
            [0, *np.cumsum(together.sentence_lengths, dtype=np.int64).tolist()],
            [0, *np.cumsum(together.document_lengths, dtype=np.int64).tolist()],
            len(together.document_ids),
        ),
        together.document_ids,
    )


# ------------------------------------------------------------------------------------- one window


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How rows are made of documents."""

    instances: InstanceConfig
    max_sequences: int  # of a row; 1 is no packing
    pieces: PieceTable

    @property
    def row_predictions(self) -> int:
        """Masked positions of a row, P.

        Each sequence rounds its own share, and has at least one.
        """
        config, sequences = self.instances, self.max_sequences
        most = int(config.max_seq_length * config.masked_lm_prob) + sequences
        return min(sequences * config.max_predictions_per_seq, max(most, sequences))

    def signature(self) -> dict[str, tf.TensorSpec]:
        """Types and shapes of rows; see `make_rows`."""
        length, words = self.instances.max_seq_length, self.row_predictions
        sizes = {
            **dict.fromkeys(("token_ids", "segment_ids", "mask"), length),
            **dict.fromkeys(("masked_positions", "masked_ids", "masked_weights"), words),
            **dict.fromkeys(
                ("cls_positions", "next_sentence_labels", "next_sentence_weights"),
                self.max_sequences,
            ),
        }
        spec = {
            name: tf.TensorSpec([None, size], tf.float32 if name.endswith("weights") else tf.int32)
            for name, size in sizes.items()
        }
        return spec | {"weight": tf.TensorSpec([None], tf.float32)}


@dataclasses.dataclass(frozen=True)
class Window:
    """Rows that are decided, but not yet made."""

    recipe: Recipe
    token_ids: np.ndarray  # int32, of all documents
    pairs: Pairs  # [E]
    rows: np.ndarray  # int64 [R, G], numbers of pairs, in random order
    seed: tuple[int, ...]

    @classmethod
    def of(
        cls, shards: list[TokenShard], recipe: Recipe, num_rows: int, seed: tuple[int, ...]
    ) -> Window:
        """Pairs segments and packs them until there are `num_rows` rows.

        Raises:
            ValueError: the window is one document, so that no pair can be from two.
        """
        documents, document_ids = join(shards)
        if recipe.instances.next_sentence and len(np.unique(document_ids)) < 2:
            raise ValueError(
                f"{len(shards)} token shards that are used together are one document, and a random "
                "next sentence must come from another one; cut the text into documents "
                "(--blank_lines of scripts/create_pretraining_data.py)."
            )
        generator = np.random.Generator(np.random.PCG64([*seed, 0]))
        passes: list[Pairs] = []
        rows: list[np.ndarray] = []
        while sum(map(len, rows)) < num_rows:
            rng = random.Random(int(generator.integers(1 << 62)))
            made = build_pairs(documents, recipe.instances, rng)
            if recipe.instances.next_sentence:
                made = made.at(from_two_documents(made, documents, document_ids))
            made = made.at(generator.permutation(len(made.a_start)))
            lengths = sequence_lengths(made, recipe.instances)
            packed = packing.pack(lengths, recipe.instances.max_seq_length, recipe.max_sequences)
            packed[packed >= 0] += sum(len(pairs.a_start) for pairs in passes)
            rows.append(packed[generator.permutation(len(packed))])
            passes.append(made)
        pairs = Pairs(*(np.concatenate(columns) for columns in zip(*passes, strict=True)))
        return cls(recipe, documents.token_ids, pairs, np.concatenate(rows)[:num_rows], seed)

    def make(self, chunk: int) -> Features:
        """Rows number `chunk * CHUNK_ROWS` and so on, masked."""
        generator = np.random.Generator(np.random.PCG64([*self.seed, 1 + chunk]))
        rows = self.rows[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]
        return make_rows(self.token_ids, self.pairs, rows, self.recipe, generator)


def from_two_documents(pairs: Pairs, documents: Documents, document_ids: np.ndarray) -> np.ndarray:
    """Whether random next sentences are not from another part of the same document: bool [E]."""
    starts = np.asarray(documents.sentence_starts)[documents.document_starts[:-1]]
    id_of_a, id_of_b = (
        document_ids[np.searchsorted(starts, start, side="right") - 1]
        for start in (pairs.a_start, pairs.b_start)
    )
    return ~pairs.random_next | (id_of_a != id_of_b)


def make_rows(
    token_ids: np.ndarray,
    pairs: Pairs,
    rows: np.ndarray,
    recipe: Recipe,
    generator: np.random.Generator,
) -> Features:
    """Masks the pairs and puts them one after the other into their rows.

    Args:
        token_ids: of all documents.
        pairs: of which `rows` has the numbers.
        rows: int64 [R, G].
        recipe: how.
        generator: of all draws.

    Returns:
        `token_ids`, `segment_ids` and `mask` int32 [R, S] (the mask numbers the sequences of a row
        from 1; see `PackedLayout`), `masked_positions`, `masked_ids` int32 and `masked_weights`
        float32 [R, P], `cls_positions`, `next_sentence_labels` int32 and `next_sentence_weights`
        float32 [R, G], `weight` float32 [R].
    """
    present = rows >= 0  # [R, G]
    made = make_instances(
        token_ids, pairs.at(rows[present]), recipe.instances, recipe.pieces, generator
    )
    lengths = np.zeros(rows.shape, np.int64)
    lengths[present] = made.input_mask.sum(axis=1)
    first = np.cumsum(lengths, axis=1) - lengths  # [R, G] where each sequence begins in its row
    row_of, number_of = np.nonzero(present)  # [E]
    first_of = first[present]  # [E]

    tokens = {
        "token_ids": made.input_ids,
        "segment_ids": made.segment_ids,
        "mask": made.input_mask * (number_of + 1)[:, np.newaxis],
    }
    sequence, column = np.nonzero(made.input_mask)
    places = row_of[sequence], first_of[sequence] + column
    features: Features = {}
    for name, values in tokens.items():
        features[name] = np.zeros((len(rows), recipe.instances.max_seq_length), np.int32)
        features[name][places] = values[sequence, column]

    words = {
        "masked_positions": made.masked_lm_positions + first_of[:, np.newaxis],
        "masked_ids": made.masked_lm_ids,
        "masked_weights": made.masked_lm_weights,
    }
    sequence, column = np.nonzero(made.masked_lm_weights)
    row = row_of[sequence]  # ascending
    places = row, np.arange(len(row)) - np.searchsorted(row, row)
    for name, values in words.items():
        dtype = np.float32 if name == "masked_weights" else np.int32
        features[name] = np.zeros((len(rows), recipe.row_predictions), dtype)
        features[name][places] = values[sequence, column]

    labels, weights = np.zeros(rows.shape, np.int32), np.zeros(rows.shape, np.float32)
    if made.next_sentence_labels is not None:
        labels[present], weights[present] = made.next_sentence_labels, 1.0
    return features | {
        "cls_positions": np.where(present, first, 0).astype(np.int32),
        "next_sentence_labels": labels,
        "next_sentence_weights": weights,
        "weight": np.ones(len(rows), np.float32),
    }


# ------------------------------------------------------------------------------------- the stream


@dataclasses.dataclass(frozen=True, eq=False)
class TokenShards:
    """A corpus of token shards, and how to stream it."""

    files: tuple[str, ...]
    num_tokens: np.ndarray  # int64 [K]
    checksums: np.ndarray  # int64 [K]
    recipe: Recipe
    config: BertConfig
    window_shards: int = WINDOW_SHARDS

    @classmethod
    def index(cls, files: tuple[str, ...], recipe: Recipe, config: BertConfig) -> TokenShards:
        """Reads every file once.

        Raises:
            ValueError: a setting is out of range, a file is damaged or of another vocabulary, or
                all files are parts of one document.
        """
        recipe.instances.check()
        if recipe.max_sequences < 1:
            raise ValueError(
                f"config.task.packed_sequences={recipe.max_sequences} must be at least 1."
            )

        def look(file: str) -> tuple[int, int, np.ndarray]:
            shard = read_shard(file, config)
            checksum = zlib.crc32(
                shard.token_ids.tobytes(), zlib.crc32(shard.sentence_lengths.tobytes())
            )
            return len(shard.token_ids), checksum, shard.document_ids[:2]

        with concurrent.futures.ThreadPoolExecutor(READERS) as executor:
            tokens, checksums, ids = zip(*executor.map(look, files), strict=True)
        if recipe.instances.next_sentence and len(np.unique(np.concatenate(ids))) < 2:
            raise ValueError(
                f"{files[0]} and the other files are one document, and a random next sentence must "
                "come from another one: use more text, or cut it into documents (--blank_lines)."
            )
        counts = np.array(tokens, np.int64)
        used = np.flatnonzero(counts)
        return cls(
            tuple(files[number] for number in used),
            counts[used],
            np.array(checksums, np.int64)[used],
            recipe,
            config,
        )

    @property
    def shard_rows(self) -> np.ndarray:
        """Rows that each shard adds to an epoch, int64 [K]."""
        return -(-self.num_tokens // self.recipe.instances.max_seq_length)

    def __len__(self) -> int:
        """Rows of an epoch: as many as the tokens of the corpus would fill."""
        return int(self.shard_rows.sum())

    def fingerprint(self) -> int:
        """A checksum of all tokens."""
        return zlib.crc32(np.stack([self.num_tokens, self.checksums]).tobytes())

    def feed(
        self, run: RunConfig, first_step: int, total_steps: int, accelerator: Accelerator
    ) -> RecordFeed:
        """The batches from `first_step` on; there is no last one."""
        train = run.train
        if run.data.service:
            raise ValueError(
                f"config.data.service={run.data.service!r} cannot make batches of token shards, "
                "which this process's Python makes; leave it out, or write TFRecord files "
                "(scripts/create_pretraining_data.py without --form=tokens)."
            )
        batches = self.dataset(train.global_batch_size, train.seed, first_step)
        return RecordFeed.of(batches, accelerator, "")

    def dataset(self, global_batch_size: int, seed: int, first_step: int = 0) -> tf.data.Dataset:
        """Endless batches of one static shape, from `first_step` on; see `make_rows`."""
        with tf.device("CPU:0"):  # none of this may take the accelerator's memory
            chunks = tf.data.Dataset.from_generator(
                lambda: self.rows(seed, first_step * global_batch_size),
                output_signature=self.recipe.signature(),
            )
            batches = chunks.unbatch().batch(global_batch_size, drop_remainder=True)
        return batches.prefetch(tf.data.AUTOTUNE).with_options(one_share_each())

    def rows(self, seed: int, first_row: int) -> Iterator[Features]:
        """The endless sequence of rows from one of them on, in chunks."""
        epoch, place = divmod(first_row, len(self))
        # The next window is prepared while this one is used.
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            windows = self.windows(seed, epoch)
            skipped = 0
            for window in windows:
                if skipped + window.num_rows > place:
                    break
                skipped += window.num_rows
            place -= skipped
            opened = executor.submit(self.open, window)
            for following in windows:
                ahead, opened = opened.result(), executor.submit(self.open, following)
                for chunk in range(place // CHUNK_ROWS, -(-len(ahead.rows) // CHUNK_ROWS)):
                    features = ahead.make(chunk)
                    start = max(0, place - chunk * CHUNK_ROWS)
                    yield {name: values[start:] for name, values in features.items()}
                place = 0

    def windows(self, seed: int, epoch: int) -> Iterator[WindowPlan]:
        """The windows of all epochs from `epoch` on."""
        count = -(-len(self.files) // self.window_shards)
        while True:
            generator = np.random.Generator(np.random.PCG64([seed, epoch]))
            order = generator.permutation(len(self.files))
            # Of about equal size, so that the last one has other documents to draw from as well.
            for number, shards in enumerate(np.array_split(order, count)):
                rows = int(self.shard_rows[shards].sum())
                yield WindowPlan(tuple(shards.tolist()), rows, (seed, epoch, number))
            epoch += 1

    def open(self, plan: WindowPlan) -> Window:
        """Reads the shards of a window and decides its rows."""
        shards = [read_shard(self.files[number], self.config) for number in plan.shards]
        return Window.of(shards, self.recipe, plan.num_rows, plan.seed)

    def log_share(self, seed: int) -> None:
        """Logs how many tokens of the rows are real, and how many would be without packing."""
        window = self.open(next(self.windows(seed, 0)))
        length = self.recipe.instances.max_seq_length
        chosen = window.rows[window.rows >= 0]
        tokens = int(sequence_lengths(window.pairs.at(chosen), self.recipe.instances).sum())
        logging.info(
            "Rows of %d tokens: %.2f sequences each; %.1f %% of a row is real tokens (%.1f %% with "
            "one sequence in each).",
            length,
            len(chosen) / len(window.rows),
            100 * tokens / (len(window.rows) * length),
            100 * tokens / (len(chosen) * length),
        )


class WindowPlan(NamedTuple):
    """A few shards, and how many rows to make of them."""

    shards: tuple[int, ...]
    num_rows: int
    seed: tuple[int, ...]
