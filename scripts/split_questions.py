"""Cuts a file of SQuAD's form into a part to train on and one to measure, by whole articles.

    python scripts/split_questions.py --input=cs224n-dev-v2.0.json --output=data/squad/cs224n

writes data/squad/cs224n.train.json and data/squad/cs224n.dev.json. No text is in both: articles
that share one stay together. The same share and seed cut the same way every time. Questions that
share an id, as in TyDi QA's file, get ids of their own: predictions go by id.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse.csgraph
import tensorflow as tf
from absl import flags

from bert_tf import command_line
from bert_tf.config import write_json
from bert_tf.data.squad import member, read_document

INPUT = flags.DEFINE_string("input", None, "A file of SQuAD's form.", required=True)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where the parts go: OUTPUT.train.json, OUTPUT.dev.json.", required=True
)
DEV_SHARE = flags.DEFINE_float("dev_share", 0.15, "Of the questions, at most, for the dev part.")
SEED = flags.DEFINE_integer("seed", 1, "Decides which articles are for the dev part.")

Article = dict[str, Any]


def main(unused_argv: list[str]) -> None:
    """Writes both parts."""
    document = read_document(INPUT.value)
    articles = member(document, "data", list, INPUT.value)
    if changed := tell_apart(articles):
        print(f"{changed:,} questions had the id of an earlier one and got ids of their own")
    tf.io.gfile.makedirs(os.path.dirname(OUTPUT.value) or ".")
    parts = split(articles, DEV_SHARE.value, SEED.value)
    for name, part in parts.items():
        path = f"{OUTPUT.value}.{name}.json"
        write_json(path, document | {"data": part})
        print(f"{len(part):,} articles with {count(part):,} questions in {path}")


def split(articles: list[Article], dev_share: float, seed: int) -> dict[str, list[Article]]:
    """The articles of both parts, each in their order.

    Raises:
        ValueError: no article is small enough for the dev part, or none would be left to train on.
    """
    groups = group(articles)
    random.Random(seed).shuffle(groups)
    room, dev = dev_share * count(articles), set()
    for numbers in groups:
        if (size := count([articles[number] for number in numbers])) <= room:
            dev.update(numbers)
            room -= size
    parts = {
        "train": [article for number, article in enumerate(articles) if number not in dev],
        "dev": [article for number, article in enumerate(articles) if number in dev],
    }
    for name, part in parts.items():
        if not part:
            raise ValueError(
                f"{INPUT.value}: {len(articles)} articles with {count(articles)} questions leave "
                f"none for the {name} part at --dev_share={dev_share}; choose another share."
            )
    return parts


def tell_apart(articles: list[Article]) -> int:
    """Changes ids that were there before, the second "7" to "7-2"; returns how many those were."""
    seen: set[str] = set()
    repeats: collections.Counter[str] = collections.Counter()
    changed = 0
    for question in questions_of(articles):
        given = own = member(question, "id", str, INPUT.value)
        while own in seen:
            repeats[given] += 1
            own = f"{given}-{repeats[given] + 1}"
        changed += own != given
        question["id"] = own
        seen.add(own)
    return changed


def group(articles: list[Article]) -> list[list[int]]:
    """The numbers of articles that share a text, directly or by way of others, together."""
    numbers: dict[str, int] = {}  # of texts
    edges = [
        (number, numbers.setdefault(member(paragraph, "context", str, INPUT.value), len(numbers)))
        for number, article in enumerate(articles)
        for paragraph in paragraphs_of(article)
    ]
    nodes = len(articles) + len(numbers)
    places = ([number for number, _ in edges], [len(articles) + text for _, text in edges])
    graph = scipy.sparse.coo_array((np.ones(len(edges)), places), (nodes, nodes))
    _, labels = scipy.sparse.csgraph.connected_components(graph, directed=False)
    together: dict[int, list[int]] = {}
    for number, label in enumerate(labels[: len(articles)].tolist()):
        together.setdefault(label, []).append(number)
    return list(together.values())


def count(articles: list[Article]) -> int:
    """How many questions some articles have."""
    return sum(1 for _ in questions_of(articles))


def questions_of(articles: list[Article]) -> Iterator[dict[str, Any]]:
    """The questions of some articles; raises ValueError where something is missing."""
    for paragraph in itertools.chain.from_iterable(map(paragraphs_of, articles)):
        yield from member(paragraph, "qas", list, INPUT.value)


def paragraphs_of(article: Article) -> list[Any]:
    """The paragraphs of an article; raises ValueError where it has none."""
    return member(article, "paragraphs", list, INPUT.value)


if __name__ == "__main__":
    command_line.run_script(main)
