"""Creates the files of pre-training instances: shard by shard, in several processes, restartable.

A shard of the text becomes a file of its own, whose bytes depend on the text, the settings and the
seed, and neither on the other shards nor on the number of processes. It is there or it is not:
what is being written has another name. A run that was stopped so goes on where it was.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool, ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from bert_tf.config import VERSION, read_json, write_json
from bert_tf.data import corpus as corpus_module
from bert_tf.data import token_shards
from bert_tf.data.corpus import Corpus
from bert_tf.data.instances import (
    Documents,
    InstanceConfig,
    Instances,
    PieceTable,
    build_pairs,
    make_instances,
    piece_table,
)
from bert_tf.data.records import serialize
from bert_tf.tokenization import Tokenizer, read_vocab

CHUNK_POSITIONS = 1 << 17  # of instances made at once: 1,024 of length 128
ENDINGS = {"records": ".tfrecord", "tokens": token_shards.ENDING}


@dataclasses.dataclass(frozen=True)
class CreationConfig:
    """What to make of which text."""

    input_file: str  # comma-separated patterns
    output_file: str  # NAME.tfrecord or NAME, for NAME-00000-of-00005.tfrecord
    vocab_file: str
    lower_case: bool = True
    random_seed: int = 12345
    language: str = ""  # of prose; "" is one sentence a line
    blank_lines: int = 1  # see Corpus
    shard_bytes: int = 4 << 20
    form: str = "records"  # or "tokens", of which training makes instances: data/token_shards.py
    instances: InstanceConfig = dataclasses.field(default_factory=InstanceConfig)

    @property
    def unit(self) -> str:
        """What is counted of the output."""
        return "documents" if self.form == "tokens" else "instances"

    @property
    def ending(self) -> str:
        """Of the output files."""
        return ENDINGS[self.form]

    @property
    def name(self) -> str:
        """Of the output files, without number and ending."""
        return self.output_file.removesuffix(self.ending)

    def shard_path(self, shard: int, num_shards: int) -> str:
        """The output file of a shard."""
        return f"{self.name}-{shard:05d}-of-{num_shards:05d}{self.ending}"


class Amount(NamedTuple):
    """How much was done."""

    text_bytes: int = 0
    instances: int = 0  # or documents, where only tokens are written
    tokens: int = 0  # padding not counted

    def plus(self, other: Amount) -> Amount:
        """The sum."""
        return Amount(*(a + b for a, b in zip(self, other, strict=True)))


def create_pretraining_data(config: CreationConfig, processes: int) -> Amount:
    """Makes those shards that are not there yet.

    Args:
        config: what to make.
        processes: that work at the same time; 1 works in this one.

    Raises:
        ValueError: the input, a setting, or what lies in the output's place cannot be used.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1.")
    corpus, shards = missing_shards(config)
    create = functools.partial(create_shard, config, corpus)
    processes = min(processes, len(shards))
    amounts = map(create, shards) if processes <= 1 else in_processes(create, shards, processes)
    return with_progress(amounts, len(shards), config.unit)


def missing_shards(config: CreationConfig) -> tuple[Corpus, list[int]]:
    """The text, and the numbers of those shards that are not there yet.

    Raises:
        ValueError: the input, a setting, or what lies in the output's place cannot be used.
    """
    check(config)
    corpus = corpus_module.find_corpus(
        config.input_file, config.shard_bytes, config.blank_lines, config.language
    )
    read_vocab(config.vocab_file)  # raises ValueError before others start
    claim_output(config, corpus)
    shards = [
        shard
        for shard in range(corpus.num_shards)
        if not tf.io.gfile.exists(config.shard_path(shard, corpus.num_shards))
    ]
    logging.info(
        "%d files, %.1f MB, %d shards; %d of them are there already.",
        len(corpus.paths),
        corpus.num_bytes / 1e6,
        corpus.num_shards,
        corpus.num_shards - len(shards),
    )
    return corpus, shards


def check(config: CreationConfig) -> None:
    """Raises ValueError where a setting cannot be used."""
    config.instances.check()
    if config.random_seed < 0:
        raise ValueError(f"random_seed={config.random_seed} must not be negative.")
    if not os.path.basename(config.name) or "," in config.output_file:
        raise ValueError(
            f"output_file={config.output_file!r} must be one name, such as data/books.tfrecord; "
            "the shards are called data/books-00000-of-00005.tfrecord and so on."
        )


def claim_output(config: CreationConfig, corpus: Corpus) -> None:
    """Writes the settings beside the output, or compares them with those that are there.

    Raises:
        ValueError: the files there were made from other text or with other settings.
    """
    path = f"{config.name}.json"
    settings = output_settings(config, corpus)
    if tf.io.gfile.exists(path):
        there = read_json(path)
        other = [
            f"{name}={there.get(name)!r} there and {settings.get(name)!r} here"
            for name in sorted({*there, *settings})
            if there.get(name) != settings.get(name)
        ]
        if other:
            raise ValueError(
                f"{path} says that the files there were made otherwise ({'; '.join(other)}). "
                f"Choose another --output_file, or remove {config.name}*."
            )
        return
    if tf.io.gfile.glob(f"{config.name}-?????-of-?????{config.ending}"):
        raise ValueError(
            f"{config.name}-*{config.ending} are there, but not {path}, which would say how they "
            "were made. Choose another --output_file, or remove them."
        )
    tf.io.gfile.makedirs(os.path.dirname(path) or ".")
    write_json(path, settings)


def output_settings(config: CreationConfig, corpus: Corpus) -> dict[str, Any]:
    """Everything on which the bytes of the output depend; files by name and size."""
    files = hashlib.sha256()
    for index, path in enumerate(corpus.paths):
        size = corpus.starts[index + 1] - corpus.starts[index]
        files.update(f"{os.path.basename(path)} {size}\n".encode())
    with tf.io.gfile.GFile(config.vocab_file, "rb") as file:
        vocabulary = hashlib.sha256(file.read())
    return {
        "version": VERSION,
        "input_bytes": corpus.num_bytes,
        "input_sha256": files.hexdigest(),
        "vocabulary_sha256": vocabulary.hexdigest(),
        "lower_case": config.lower_case,
        "language": config.language,
        "blank_lines": config.blank_lines,
        "num_shards": corpus.num_shards,
        "form": config.form,
    } | (
        {}
        if config.form == "tokens"
        else {"random_seed": config.random_seed, **dataclasses.asdict(config.instances)}
    )


# --------------------------------------------------------------------------------------- one shard


def create_shard(config: CreationConfig, corpus: Corpus, shard: int, attempt: str = "") -> Amount:
    """Writes the file of one shard; an empty one where there is no text.

    Args:
        config: what to make.
        corpus: of which text.
        shard: its number.
        attempt: part of the temporary name, where two may write the same shard at a time.

    Raises:
        ValueError: the text cannot be used, or the file cannot be written.
    """
    write = write_tokens if config.form == "tokens" else write_records
    path = config.shard_path(shard, corpus.num_shards)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}{attempt}.tmp")
    try:
        num_instances, tokens = write(config, corpus, shard, temporary)
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except tf.errors.OpError as error:
        raise ValueError(f"{path} cannot be written: {error.message}") from None
    start, end = (corpus_module.shard_start(corpus, number)[0] for number in (shard, shard + 1))
    return Amount(end - start, num_instances, tokens)


def write_tokens(config: CreationConfig, corpus: Corpus, shard: int, path: str) -> tuple[int, int]:
    """Writes the tokens of a shard; gives the number of documents and of tokens."""
    own = corpus_module.read_documents(corpus, shard)
    tokenize, _ = cached_tokenizer(config.vocab_file, config.lower_case)
    documents = corpus_module.tokenize_documents(own, len(own), tokenize)
    ids = document_ids(shard, corpus_module.origin_shard(corpus, shard), documents.num_own)
    written = token_shards.shard_of(documents, ids)
    token_shards.write_shard(path, written)
    return documents.num_own, len(documents.token_ids)


def document_ids(shard: int, origin: int, num_documents: int) -> np.ndarray:
    """Numbers that parts of one document have in common, int64.

    Args:
        shard: the number of this shard.
        origin: of the shard in which its first document begins.
        num_documents: of this shard.
    """
    ids = (np.int64(shard) << 32) + np.arange(1, num_documents + 1)
    ids[-1:] = np.int64(shard) << 32  # it may go on in the next shard
    if origin != shard:
        ids[:1] = np.int64(origin) << 32
    return ids


def write_records(config: CreationConfig, corpus: Corpus, shard: int, path: str) -> tuple[int, int]:
    """Writes the instances of a shard; gives their number and that of their tokens."""
    generator = np.random.Generator(np.random.PCG64([config.random_seed, shard]))
    num_instances = tokens = 0
    chunks = instance_chunks(config, shard_documents(config, corpus, shard), generator)
    with tf.io.TFRecordWriter(path) as writer:
        for chunk in chunks:
            for record in serialize(chunk):
                writer.write(record)
            num_instances += len(chunk.input_ids)
            tokens += int(chunk.input_mask.sum())
    return num_instances, tokens


def shard_documents(config: CreationConfig, corpus: Corpus, shard: int) -> Documents:
    """The tokenized documents of a shard, with those of another one where it has but one."""
    documents = corpus_module.read_documents(corpus, shard)
    num_own = len(documents)
    if num_own == 1 and config.instances.next_sentence:
        documents += corpus_module.other_documents(corpus, shard)
    tokenize, _ = cached_tokenizer(config.vocab_file, config.lower_case)
    return corpus_module.tokenize_documents(documents, num_own, tokenize)


def instance_chunks(
    config: CreationConfig, documents: Documents, generator: np.random.Generator
) -> Iterator[Instances]:
    """All instances of the documents in random order."""
    if not documents.num_own:
        return
    _, pieces = cached_tokenizer(config.vocab_file, config.lower_case)
    rng = random.Random(int(generator.integers(1 << 62)))
    pairs = build_pairs(documents, config.instances, rng)
    order = generator.permutation(len(pairs.a_start))
    step = max(1, CHUNK_POSITIONS // config.instances.max_seq_length)
    for start in range(0, len(order), step):
        chosen = pairs.at(order[start : start + step])
        yield make_instances(documents.token_ids, chosen, config.instances, pieces, generator)


@functools.lru_cache(maxsize=1)
def cached_tokenizer(
    vocab_file: str, lower_case: bool
) -> tuple[Callable[[tf.Tensor], tf.RaggedTensor], PieceTable]:
    """The tokenizer and its pieces, made once in each process."""
    tokenizer = Tokenizer(vocab_file, lower_case)
    return corpus_module.graph_tokenizer(tokenizer), piece_table(tokenizer)


# --------------------------------------------------------------------------------------- processes


def in_processes(
    create: Callable[[int], Amount], shards: list[int], processes: int
) -> Iterator[Amount]:
    """Calls `create` for each shard in processes of their own, and yields as they finish.

    Raises:
        ValueError: of `create`, or a process died.
    """
    context, parent = worker_context(), (os.getpid(),)
    with ProcessPoolExecutor(processes, context, start_worker, parent) as executor:
        try:
            futures = [executor.submit(create, shard) for shard in shards]
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise ValueError(
                "A worker process was killed, most often for lack of memory. Whole shards stay: "
                "run the same command again, with fewer --processes."
            ) from None
        finally:
            executor.shutdown(cancel_futures=True)


def worker_context() -> BaseContext:
    """How worker processes start.

    A forked one shares the memory of this one, and need not import TensorFlow again. But once
    TensorFlow has run, a fork would inherit its threads as locks that nobody opens: spawned then.
    """
    is_linux = sys.platform == "linux"
    has_threads = not is_linux or len(os.listdir("/proc/self/task")) > 1
    return multiprocessing.get_context("spawn" if has_threads else "fork")


def start_worker(parent: int) -> None:
    """One thread for each process, which ends with the process that started it."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    threading.Thread(target=leave_with, args=(parent,), daemon=True).start()


def leave_with(parent: int) -> None:
    """A killed parent closes no queue: its workers would wait for ever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def with_progress(amounts: Iterator[Amount], num_shards: int, unit: str) -> Amount:
    """Logs a line after each shard; gives the sum."""
    start, total = time.monotonic(), Amount()
    for number, amount in enumerate(amounts, start=1):
        total = total.plus(amount)
        seconds = time.monotonic() - start
        logging.info(
            "shard %d of %d: %s %s, %s %s/s, %s tokens/s, %.2f MB of text/s, %.0f s left",
            number,
            num_shards,
            f"{total.instances:,}",
            unit,
            f"{total.instances / seconds:,.0f}",
            unit,
            f"{total.tokens / seconds:,.0f}",
            total.text_bytes / seconds / 1e6,
            seconds / number * (num_shards - number),
        )
    return total
