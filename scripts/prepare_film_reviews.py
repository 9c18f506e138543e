"""Cuts the film-review sentences of vaderSentiment's source distribution into train, dev and test.

    pip download --no-deps --no-binary vaderSentiment vaderSentiment==3.3.2
    python scripts/prepare_film_reviews.py --source=vaderSentiment-3.3.2.tar.gz

Each sentence has the mean rating of 20 people, from -4 to 4 (Hutto and Gilbert 2014). Above 0 is
`positive`, below 0 `negative`; the few at 0 are left out. The split is fixed: it does not depend on
a seed, a version or the order of the file.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import os
import tarfile

from absl import flags

from bert_tf import command_line

SOURCE = flags.DEFINE_string("source", None, "vaderSentiment-3.3.2.tar.gz.", required=True)
OUTPUT = flags.DEFINE_string("output", "data/film_reviews", "Folder for the three JSONL files.")
ARCHIVE = "hutto_ICWSM_2014.tar.gz"
SENTENCES = "movieReviewSnippets_GroundTruth.txt"


def main(unused_argv: list[str]) -> None:
    """Writes the three files."""
    os.makedirs(OUTPUT.value, exist_ok=True)
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for line in read_sentences(SOURCE.value).split(b"\n"):
        fields = decode(line).rstrip("\r").split("\t", 2)
        if len(fields) == 3 and float(fields[1]) != 0.0:
            label = "positive" if float(fields[1]) > 0.0 else "negative"
            example = json.dumps(
                {"text": html.unescape(fields[2]).strip(), "label": label}, ensure_ascii=False
            )
            splits[split_of(fields[0])].append(example + "\n")
    for name, lines in splits.items():
        path = os.path.join(OUTPUT.value, f"{name}.jsonl")
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            file.writelines(lines)
        os.replace(path + ".tmp", path)
        print(f"{len(lines):6,} sentences in {path}")


def read_sentences(path: str) -> bytes:
    """The file of sentences, from the archive inside the source distribution."""
    try:
        with tarfile.open(path) as outer:
            inner = member(outer, ARCHIVE)
            with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
                return member(archive, SENTENCES)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"--source={path} is not vaderSentiment's archive: {error}") from None


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """The content of the file called `name`, wherever it lies in the archive."""
    for entry in archive.getmembers():
        if os.path.basename(entry.name) == name and entry.isfile():
            return archive.extractfile(entry).read()  # type: ignore[union-attr]
    raise ValueError(f"{archive.name!r} holds no {name}; is it version 3.3.2?")


def decode(line: bytes) -> str:
    """The file mixes UTF-8 and Windows-1252."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("cp1252", errors="replace")


def split_of(identifier: str) -> str:
    """A tenth each for dev and test, by a hash of the sentence's number."""
    bucket = hashlib.sha256(identifier.encode()).digest()[0] % 10
    return {0: "dev", 1: "test"}.get(bucket, "train")


if __name__ == "__main__":
    command_line.run_script(main)
