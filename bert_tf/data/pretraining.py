"""Pre-training examples from TFRecord files with the features of the original release.

A corpus of them may be larger than memory, so records are streamed, in an order that is a pure
function of (files, seed, step): files are cut into blocks of successive records; every epoch
shuffles the blocks and, of each `window_blocks` blocks in that order, the records. Epochs follow
one another without a gap, so step s has the records [s * B, (s + 1) * B) of one endless sequence.
To begin at any step is to open the one window that it falls into, with nothing to save but the
step. Memory holds up to three windows of serialised records, about 150 MB for any corpus.

Batches are as wide as the records: nine rows of ten are full by design (short_seq_prob), so that
cutting a batch to its longest row would save nothing but a static shape.

Legend: B batch, S sequence, P masked positions, E examples, K blocks.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from bert_tf.config import BertConfig, RunConfig
from bert_tf.data.batches import Examples, distribute
from bert_tf.distribution import Accelerator

BLOCK_RECORDS = 1024
WINDOW_BLOCKS = 64  # 65,536 records are shuffled together
FRAME_BYTES = 16  # of a TFRecord beside its data: length, and two checksums
READ_BUFFER = 1 << 20  # bytes
PARALLEL_FILES = 8

# Names of the original release, and ours in a batch.
OF_TOKENS = {"input_ids": "token_ids", "input_mask": "mask", "segment_ids": "segment_ids"}  # [B, S]
OF_MASKED = {
    "masked_lm_positions": "masked_positions",
    "masked_lm_ids": "masked_ids",
    "masked_lm_weights": "masked_weights",
}  # [B, P]
NUMBERS = ("token_ids", "masked_ids", "segment_ids", "masked_positions")  # each has a limit
WEIGHTS = "masked_lm_weights"  # the one feature that is float32
NEXT_SENTENCE = "next_sentence_labels"  # [B, 1]; 0: B follows A

without_autograph = tf.autograph.experimental.do_not_convert
AUTOTUNE = tf.data.AUTOTUNE


@dataclasses.dataclass(frozen=True)
class RecordShape:
    """Sizes of every record of a corpus."""

    length: int  # S
    predictions: int  # P
    next_sentence: bool  # whether next_sentence_labels is read

    def features(self) -> dict[str, tf.io.FixedLenFeature]:
        """What `tf.io.parse_example` is told."""
        spec = {name: tf.io.FixedLenFeature([self.length], tf.int64) for name in OF_TOKENS}
        for name in OF_MASKED:
            dtype = tf.float32 if name == WEIGHTS else tf.int64
            spec[name] = tf.io.FixedLenFeature([self.predictions], dtype)
        if self.next_sentence:
            spec[NEXT_SENTENCE] = tf.io.FixedLenFeature([1], tf.int64)
        return spec

    def parse(self, records: tf.Tensor) -> dict[str, tf.Tensor]:
        """Serialised records [B] to a batch of int32 and float32, each [B, ...]."""
        parsed = tf.io.parse_example(records, self.features())
        batch = {
            ours: tf.cast(parsed[name], tf.float32 if name == WEIGHTS else tf.int32)
            for name, ours in (OF_TOKENS | OF_MASKED).items()
        }
        nothing = tf.zeros_like(batch["token_ids"][:, :1])  # [B, 1]
        following = parsed[NEXT_SENTENCE] if self.next_sentence else nothing
        return batch | {
            "cls_positions": nothing,
            "next_sentence_labels": tf.cast(following, tf.int32),
            "next_sentence_weights": tf.cast(nothing, tf.float32) + float(self.next_sentence),
        }


# ------------------------------------------------------------------------------------- the files


def read_shape(files: tuple[str, ...], run: RunConfig, config: BertConfig) -> RecordShape:
    """Sizes of the records, by the first record of every file.

    Raises:
        ValueError: a file is empty or damaged, lacks a feature, was made for another length,
            vocabulary or number of predictions, or differs from the other files.
    """
    shapes = {file: check_record(file, first_record(file), run, config) for file in files}
    shape = shapes[files[0]]
    for file, other in shapes.items():
        if other != shape:
            raise ValueError(
                f"{file} has {other.predictions} masked positions a record and {files[0]} has "
                f"{shape.predictions}; make all files with the same --max_predictions_per_seq."
            )
    return shape


def first_record(file: str) -> bytes:
    """The first record; raises ValueError where there is none."""
    try:
        records = list(tf.data.TFRecordDataset(file).take(1).as_numpy_iterator())
    except tf.errors.OpError as error:
        raise damaged(file, error) from None
    if not records:
        raise ValueError(f"{file} holds no record; remove it, or make it again.")
    return records[0]


def damaged(file: str, error: tf.errors.OpError) -> ValueError:
    """The error for a file that cannot be read to its end."""
    return ValueError(
        f"{file} is not a whole TFRecord file ({error.message}); it was cut off, is compressed, or "
        "is something else. Make or copy it again."
    )


def check_record(file: str, record: bytes, run: RunConfig, config: BertConfig) -> RecordShape:
    """The sizes of one record; raises ValueError where this run cannot use it."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError(f"{file}: the first record is no tf.train.Example ({error}).") from None
    next_sentence = run.task.next_sentence
    wanted = [*OF_TOKENS, *OF_MASKED, *([NEXT_SENTENCE] if next_sentence else [])]
    values = {
        name: np.array(
            features[name].float_list.value if name == WEIGHTS else features[name].int64_list.value
        )
        for name in wanted
        if name in features
    }
    missing = [name for name in wanted if not len(values.get(name, ()))]
    if missing:
        remedy = " or set config.task.next_sentence=False" if missing == [NEXT_SENTENCE] else ""
        raise ValueError(
            f"{file}: records have no {', '.join(missing)} (of the original release's types); make "
            f"them with scripts/create_pretraining_data.py{remedy}."
        )
    length, predictions = len(values["input_ids"]), len(values[WEIGHTS])
    if length != run.data.max_seq_length:
        raise ValueError(
            f"{file} has records of {length} tokens, but config.data.max_seq_length="
            f"{run.data.max_seq_length}; set it to {length}, or make records of that length."
        )
    for names, size in ((OF_TOKENS, length), (OF_MASKED, predictions)):
        for name in names:
            if len(values[name]) != size:
                raise ValueError(f"{file}: {name} has {len(values[name])} values, not {size}.")
    arrays = {ours: values[name][np.newaxis] for name, ours in (OF_TOKENS | OF_MASKED).items()}
    check_values(arrays, file, config)
    return RecordShape(length, predictions, next_sentence)


def check_values(arrays: dict[str, np.ndarray], source: str, config: BertConfig) -> None:
    """Raises ValueError for numbers that the model has no row for, and for padding in between."""
    worst = {name: arrays[name].max() for name in NUMBERS}
    worst |= {name: arrays[name].min() for name in NUMBERS if arrays[name].min() < 0}
    check_numbers(worst, source, arrays["mask"].shape[1], config)
    mask = arrays["mask"]
    if (np.diff(mask, axis=1) > 0).any() or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{source}: input_mask must be ones followed by zeros.")


def check_numbers(worst: Mapping[str, int], source: str, length: int, config: BertConfig) -> None:
    """Raises ValueError where the largest of some numbers has no row in the model."""
    limits = {
        "token_ids": (config.vocab_size, "vocab_size"),
        "masked_ids": (config.vocab_size, "vocab_size"),
        "segment_ids": (config.type_vocab_size, "type_vocab_size"),
        "masked_positions": (length, "the length of a record"),
    }
    for name, (limit, meaning) in limits.items():
        if not 0 <= worst[name] < limit:
            raise ValueError(
                f"{source}: {name} has the value {worst[name]}, which must be from 0 to "
                f"{limit - 1} ({meaning}); make the records with the vocabulary of this model."
            )


def read_examples(files: tuple[str, ...], shape: RecordShape, config: BertConfig) -> Examples:
    """All records of a few files, in memory, in the order of the files: held-out data.

    Raises:
        ValueError: a record is damaged or has numbers that the model has no row for.
    """
    parts: list[dict[str, np.ndarray]] = []
    for file in files:
        records = tf.data.TFRecordDataset(file).batch(BLOCK_RECORDS).map(shape.parse)
        try:
            parts += list(records.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise damaged(file, error) from None
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    check_values(arrays, f"{files[0]} and others" if len(files) > 1 else files[0], config)
    mask = arrays.pop("mask").astype(bool)
    row_splits = np.concatenate([[0], np.cumsum(mask.sum(axis=1), dtype=np.int64)])
    token_ids, segment_ids = arrays.pop("token_ids")[mask], arrays.pop("segment_ids")[mask]
    return Examples(token_ids, segment_ids, row_splits, arrays)


# ------------------------------------------------------------------------------------ the stream


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """A corpus of records on disk: which blocks it has, and how to stream them."""

    files: tuple[str, ...]
    shape: RecordShape
    block_file: np.ndarray  # int32 [K], number of the file
    block_offset: np.ndarray  # int64 [K], bytes from the beginning of the file
    block_records: np.ndarray  # int64 [K]
    window_blocks: int = WINDOW_BLOCKS

    @classmethod
    def index(
        cls,
        files: tuple[str, ...],
        shape: RecordShape,
        config: BertConfig,
        block_records: int = BLOCK_RECORDS,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> Records:
        """Finds the blocks by reading all files once, which also compares every checksum.

        Raises:
            ValueError: a file is damaged, or has numbers that the model has no row for.
        """

        @without_autograph
        def count(file: tf.Tensor) -> tf.data.Dataset:
            blocks = tf.data.TFRecordDataset(tf.gather(files, file), buffer_size=READ_BUFFER)
            return blocks.batch(block_records).map(
                lambda records: (
                    *(file, tf.size(records, tf.int64), framed_bytes(records)),
                    *largest_numbers(shape.parse(records)),
                )
            )

        counted = tf.data.Dataset.range(len(files)).interleave(
            count, PARALLEL_FILES, num_parallel_calls=AUTOTUNE, deterministic=True
        )
        try:
            found = np.array(list(counted.as_numpy_iterator()), np.int64)
        except tf.errors.OpError as error:
            raise damaged(find_damaged(files, shape), error) from None
        found = found[np.argsort(found[:, 0], kind="stable")]  # by file, in the order of the file
        for file, _, _, *largest in found.tolist():
            worst = dict(zip(NUMBERS, largest, strict=True))
            check_numbers(worst, files[file], shape.length, config)
        offsets = np.zeros(len(found), np.int64)
        for number in range(len(files)):
            own = np.flatnonzero(found[:, 0] == number)
            offsets[own] = np.cumsum(found[own, 2]) - found[own, 2]
        return cls(files, shape, found[:, 0], offsets, found[:, 1], window_blocks)

    def __len__(self) -> int:
        """Records of the corpus, E."""
        return int(self.block_records.sum())

    @property
    def windows(self) -> int:
        """Windows of an epoch."""
        return -(-len(self.block_file) // self.window_blocks)

    def fingerprint(self) -> int:
        """A checksum of the blocks and of the first record of each file."""
        blocks = np.stack([self.block_file, self.block_offset, self.block_records])
        fingerprint = zlib.crc32(np.ascontiguousarray(blocks, np.int64).tobytes())
        for file in self.files:
            fingerprint = zlib.crc32(first_record(file), fingerprint)
        return fingerprint

    def feed(
        self, run: RunConfig, first_step: int, total_steps: int, accelerator: Accelerator
    ) -> RecordFeed:
        """The batches from `first_step` on; there is no last one."""
        train = run.train
        batches = self.dataset(train.global_batch_size, train.seed, first_step)
        return RecordFeed.of(batches, accelerator, run.data.service)

    def dataset(self, global_batch_size: int, seed: int, first_step: int = 0) -> tf.data.Dataset:
        """Endless batches of one static shape, from `first_step` on.

        Each element is a dict: `token_ids`, `segment_ids`, `mask` int32 [B, S], `weight` float32
        [B], `masked_positions`, `masked_ids` int32 [B, P], `masked_weights` float32 [B, P], and of
        one sequence in each row, G = 1: `cls_positions`, `next_sentence_labels` int32 [B, G],
        `next_sentence_weights` float32 [B, G].
        """
        window, skipped = self.locate(first_step * global_batch_size, seed)

        @without_autograph
        def parse(records: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.shape.parse(records) | {"weight": tf.ones([global_batch_size])}

        with tf.device("CPU:0"):  # none of this may take the accelerator's memory
            windows = tf.data.Dataset.range(window, np.iinfo(np.int64).max)
            records = windows.map(self.window_reader(seed)).prefetch(1).unbatch().skip(skipped)
            batches = records.batch(global_batch_size, drop_remainder=True)
            batches = batches.map(parse, num_parallel_calls=AUTOTUNE).prefetch(AUTOTUNE)
        return batches.with_options(one_share_each())

    def locate(self, record: int, seed: int) -> tuple[int, int]:
        """Where record number `record` of the endless sequence is: window, and place in it."""
        epoch, place = divmod(record, len(self))
        sizes = self.block_records[block_order(len(self.block_file), seed, epoch).numpy()]
        starts = np.concatenate([[0], np.cumsum(sizes)])[:: self.window_blocks]
        window = int(np.searchsorted(starts, place, side="right")) - 1
        return epoch * self.windows + window, int(place - starts[window])

    def window_reader(self, seed: int) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function from the number of a window to its records in their order, string [n]."""
        files, blocks = tf.constant(self.files), len(self.block_file)
        table = tuple(
            tf.constant(column, tf.int64)
            for column in (self.block_file, self.block_offset, self.block_records)
        )

        @without_autograph
        def read_block(block: tf.Tensor) -> tf.data.Dataset:
            file, offset, records = (tf.gather(column, block) for column in table)
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=[tf.gather(files, file)],
                compression_type="",
                buffer_size=READ_BUFFER,
                byte_offsets=[offset],
                metadata="",
            )
            spec = tf.TensorSpec([], tf.string)
            return tf.data.experimental.from_variant(variant, spec).take(records)

        @without_autograph
        def read_window(number: tf.Tensor) -> tf.Tensor:
            order = block_order(blocks, seed, number // self.windows)
            first = number % self.windows * self.window_blocks
            own = tf.data.Dataset.from_tensor_slices(order[first : first + self.window_blocks])
            records = own.interleave(
                read_block, PARALLEL_FILES, num_parallel_calls=PARALLEL_FILES, deterministic=True
            )
            whole = records.batch(int(self.block_records.max()) * self.window_blocks)
            # Negative numbers, so that no window is shuffled as the blocks of an epoch are.
            return shuffled(whole.get_single_element(), seed, -1 - number)

        return read_window


def one_share_each() -> tf.data.Options:
    """Every worker reads all rows and keeps its share of each batch: see data.batches."""
    options = tf.data.Options()
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def largest_numbers(batch: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    """The largest of each of `NUMBERS`, int64; where there are negative ones, one of these."""
    return [
        tf.cast(
            tf.where(tf.reduce_min(values) < 0, tf.reduce_min(values), tf.reduce_max(values)),
            tf.int64,
        )
        for values in (batch[name] for name in NUMBERS)
    ]


def framed_bytes(records: tf.Tensor) -> tf.Tensor:
    """Bytes of a file that these records [n] take, int64."""
    return tf.reduce_sum(tf.cast(tf.strings.length(records), tf.int64) + FRAME_BYTES)


def find_damaged(files: tuple[str, ...], shape: RecordShape) -> str:
    """The first file that cannot be read to its end, or has records of another form."""
    for file in files:
        records = tf.data.TFRecordDataset(file).batch(BLOCK_RECORDS).map(shape.parse)
        try:
            records.reduce(0, lambda count, _: count + 1)
        except tf.errors.OpError:
            return file
    return os.path.dirname(files[0])  # it can now: somebody is writing there


def block_order(blocks: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """The blocks of an epoch in their order, int64 [K]."""
    return shuffled(tf.range(blocks, dtype=tf.int64), seed, epoch)


def shuffled(values: tf.Tensor, seed: int, number: int | tf.Tensor) -> tf.Tensor:
    """The values [n] in an order that depends on (n, seed, number) alone."""
    pair = tf.stack([tf.constant(seed, tf.int64), tf.cast(number, tf.int64)])
    return tf.random.experimental.stateless_shuffle(values, pair)


@dataclasses.dataclass(frozen=True)
class RecordFeed:
    """The one iterator of a stream: all its batches have the same shape."""

    iterator: tf.data.Iterator

    @classmethod
    def of(
        cls, batches: tf.data.Dataset, accelerator: Accelerator, data_service: str
    ) -> RecordFeed:
        """Hands out an endless data set to all replicas."""
        return cls(iter(distribute(batches, accelerator, data_service)))

    def next(self, most: int) -> tuple[tf.data.Iterator, int]:
        """The iterator, for as many steps as are wanted."""
        return self.iterator, most
