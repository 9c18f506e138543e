r"""Raw text in files, cut into shards, read as documents of sentences.

The files in sorted order are one long row of bytes, cut into shards of about the same size at the
ends of documents: a document belongs to the shard in which it starts. Where no document starts in a
whole shard, that shard begins at a line, and so a document that is longer than a shard is read as
several: no shard is longer than two, whatever the text. The cuts depend on the files alone.

A file holds one sentence a line, with blank lines between documents, as for the original release;
or prose: paragraphs between blank lines, which `sentencex` splits into sentences. (It is maintained
by Wikimedia, knows the abbreviations of many languages, and reads 80 MB/s; the breaker of
tensorflow-text ends a sentence after "Mr.".) The end of a file ends a document.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from bert_tf.data.files import find_files
from bert_tf.data.instances import Documents
from bert_tf.data.text import BLOCK_BYTES, BYTE_ORDER_MARK
from bert_tf.tokenization import Tokenizer

TOKENIZED_CHARACTERS = 1 << 17  # at once: the tokenizer takes about 100 bytes for each

Document = list[str]  # sentences


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Files and how they are cut and read."""

    paths: tuple[str, ...]
    starts: tuple[int, ...]  # of the files in the row of bytes; the end of the last comes last
    num_shards: int
    blank_lines: int  # so many in a row end a document; 0: only the end of a file does
    language: str  # of prose, such as "en"; "" for one sentence a line

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return self.starts[-1]


def find_corpus(patterns: str, shard_bytes: int, blank_lines: int, language: str) -> Corpus:
    """The files of comma-separated patterns, local or `gs://`.

    Raises:
        ValueError: a pattern without a file, only empty files, or a setting out of range.
    """
    if shard_bytes < 1:
        raise ValueError(f"A shard of {shard_bytes} bytes is too small; the default is 4 MiB.")
    if blank_lines < 0:
        raise ValueError(f"blank_lines={blank_lines} must not be negative.")
    if language:
        check_language(language)
    paths = find_files(patterns, "--input_file")
    sizes = [tf.io.gfile.stat(path).length for path in paths]
    starts = tuple(itertools.accumulate(sizes, initial=0))
    if not starts[-1]:
        raise ValueError(f"{patterns} is empty: there is no text to learn from.")
    return Corpus(paths, starts, max(1, round(starts[-1] / shard_bytes)), blank_lines, language)


# ---------------------------------------------------------------------------------------- the cuts


def shard_start(corpus: Corpus, shard: int) -> tuple[int, bool]:
    """Where a shard begins in the row of bytes, and whether a document begins there."""
    if shard >= corpus.num_shards:
        return corpus.num_bytes, True
    low, high = (number * corpus.num_bytes // corpus.num_shards for number in (shard, shard + 1))
    if low in corpus.starts:
        return low, True
    next_file = corpus.starts[bisect.bisect_right(corpus.starts, low)]
    if corpus.blank_lines:
        text = b"".join(read_files(corpus, low, min(high, next_file)))
        blank = rb"\n(?:[ \t\r]*\n){%d,}" % corpus.blank_lines
        if found := re.search(blank, text):
            return low + found.end(), True
    if next_file < high:
        return next_file, True
    return next_line(corpus, low), False


def next_line(corpus: Corpus, position: int) -> int:
    """The first start of a line or of a file from `position` on."""
    position -= 1  # a newline just before makes `position` itself the start
    file_end = corpus.starts[bisect.bisect_right(corpus.starts, position)]
    for block in read_files(corpus, position, file_end):
        if (found := block.find(b"\n")) >= 0:
            return position + found + 1
        position += len(block)
    return file_end


def read_files(corpus: Corpus, start: int, end: int) -> Iterator[bytes]:
    """The bytes of [start, end) in blocks, none of which reaches into two files."""
    first = bisect.bisect_right(corpus.starts, start) - 1
    for path, file_start, file_end in zip(
        corpus.paths[first:], corpus.starts[first:], corpus.starts[first + 1 :], strict=False
    ):
        if file_start >= end:
            return
        position, stop = max(start, file_start), min(end, file_end)
        with tf.io.gfile.GFile(path, "rb") as file:
            file.seek(position - file_start)
            while position < stop:
                block = file.read(min(BLOCK_BYTES, stop - position))
                if not block:
                    raise ValueError(f"{path} became shorter while it was read; start again.")
                position += len(block)
                yield block


# ----------------------------------------------------------------------------------- the documents


def read_documents(corpus: Corpus, shard: int) -> list[Document]:
    """The documents of a shard, none of them without sentences.

    Raises:
        ValueError: a line is not UTF-8; names file and line.
    """
    start, end = shard_start(corpus, shard)[0], shard_start(corpus, shard + 1)[0]
    split = sentence_splitter(corpus.language)
    documents = []
    first = bisect.bisect_right(corpus.starts, start) - 1
    for path, file_start, file_end in zip(
        corpus.paths[first:], corpus.starts[first:], corpus.starts[first + 1 :], strict=False
    ):
        low, high = max(start, file_start), min(end, file_end)
        if low < high:
            text = decode(path, low - file_start, b"".join(read_files(corpus, low, high)))
            lines = [line.strip() for line in text.split("\n")]
            documents += [split(part) for part in split_documents(lines, corpus.blank_lines)]
    return [document for document in documents if document]


def decode(path: str, offset: int, content: bytes) -> str:
    """The text of a part of a file, without a byte order mark."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        with tf.io.gfile.GFile(path, "rb") as file:
            while offset > 0 and (block := file.read(min(BLOCK_BYTES, offset))):
                line += block.count(b"\n")
                offset -= len(block)
        raise ValueError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8 "
            f"({error.reason}). Save the file as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"
            " (or `-f UTF-16`) from what it is."
        ) from None
    return text if offset else text.removeprefix(BYTE_ORDER_MARK.decode())


def split_documents(lines: list[str], blank_lines: int) -> Iterator[list[str]]:
    """Cuts lines where at least `blank_lines` in a row are blank."""
    start = blank = 0
    for number, line in enumerate(lines):
        if line and blank_lines and blank >= blank_lines:
            yield lines[start:number]
            start = number
        blank = 0 if line else blank + 1
    yield lines[start:]


def sentence_splitter(language: str) -> Callable[[list[str]], Document]:
    """The function from the stripped lines of a document to its sentences."""
    if not language:
        return lambda lines: [line for line in lines if line]
    segment = prose_segmenter()

    def split_prose(lines: list[str]) -> Document:
        paragraphs = (
            " ".join(group) for has_text, group in itertools.groupby(lines, bool) if has_text
        )
        pieces = (piece.strip() for text in paragraphs for piece in segment(language, text))
        return [piece for piece in pieces if piece]

    return split_prose


def prose_segmenter() -> Callable[[str, str], Sequence[str]]:
    """`sentencex.segment(language, text)`; raises ValueError where it is not installed."""
    try:
        import sentencex
    except ImportError:
        raise ValueError(
            "Prose needs the library that finds its sentences: pip install 'bert_tf[pretraining]' "
            "(or pip install sentencex)."
        ) from None
    return sentencex.segment


def check_language(language: str) -> None:
    """Raises ValueError for what cannot be the code of a language."""
    if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]+)*", language):
        raise ValueError(
            f"prose={language!r} must be the code of the language of the text, such as en or de."
        )
    prose_segmenter()


def origin_shard(corpus: Corpus, shard: int) -> int:
    """Where the document that a shard begins with begins: it is the last one there."""
    while not shard_start(corpus, shard)[1]:
        shard -= 1
    return shard


def other_documents(corpus: Corpus, shard: int) -> list[Document]:
    """Documents for the random next sentences of a shard that has only one document itself.

    They come from the next shard in which a document begins.

    Raises:
        ValueError: the whole corpus is one document.
    """
    origin = origin_shard(corpus, shard)
    for step in range(1, corpus.num_shards + 1):
        other = (shard + step) % corpus.num_shards
        if shard_start(corpus, other)[1]:
            documents = read_documents(corpus, other)
            if other == origin:
                documents = documents[:-1]
            if documents:
                return documents
    raise ValueError(
        "The corpus is a single document, and a random next sentence must come from another one. "
        "Put blank lines between documents (how many is --blank_lines), or give several files."
    )


# ------------------------------------------------------------------------------------------ tokens


def tokenize_documents(
    documents: list[Document], num_own: int, tokenize: Callable[[tf.Tensor], tf.RaggedTensor]
) -> Documents:
    """Tokenizes sentences; those without a token vanish, and documents without any.

    Args:
        documents: of text.
        num_own: the first so many make instances.
        tokenize: string [N] -> int32 [N, (tokens)].
    """
    sentences = [sentence for document in documents for sentence in document]
    counts = [len(document) for document in documents]
    token_ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for batch in batches(sentences):
        pieces = tokenize(tf.constant(batch, tf.string))
        token_ids.append(pieces.flat_values.numpy())
        lengths.append(pieces.row_lengths().numpy())
    length = np.concatenate(lengths)
    document = np.repeat(np.arange(len(documents)), counts)[length > 0]
    counts_left = np.bincount(document, minlength=len(documents))
    return Documents(
        np.concatenate(token_ids),
        np.concatenate([[0], np.cumsum(length[length > 0])]).tolist(),
        np.concatenate([[0], np.cumsum(counts_left[counts_left > 0])]).tolist(),
        int((counts_left[:num_own] > 0).sum()),
    )


def batches(sentences: list[str]) -> Iterator[list[str]]:
    """Cuts the sentences into lists of few characters, of one sentence at least."""
    start = characters = 0
    for number, sentence in enumerate(sentences):
        if characters and characters + len(sentence) > TOKENIZED_CHARACTERS:
            yield sentences[start:number]
            start, characters = number, 0
        characters += len(sentence)
    if start < len(sentences):
        yield sentences[start:]


def graph_tokenizer(tokenizer: Tokenizer) -> Callable[[tf.Tensor], tf.RaggedTensor]:
    """The tokenizer as one graph, traced once."""
    return tf.function(tokenizer, input_signature=[tf.TensorSpec([None], tf.string)])
