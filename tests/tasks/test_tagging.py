"""Tagging from files to answers: what is learnt, predicted, exported and refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import conlleval
import numpy as np
import pytest
import tensorflow as tf

from bert_tf import prediction, restore
from bert_tf.config import DataConfig, RunConfig
from bert_tf.data.conll import read_tagged
from bert_tf.data.tagging import continuations, read_pieces
from bert_tf.export import saved_model
from bert_tf.layouts import PaddedLayout
from bert_tf.spans import to_iob2
from bert_tf.tasks import answers_of
from bert_tf.tasks.tagging import TaggingTask, Tags
from bert_tf.tokenization import Tokenizer
from bert_tf.training import Evaluator
from tests.tiny_run import CHECKPOINT, OTHERS, on_cpu, run_tiny, tiny_run

PEOPLE, PLACES = ("happy", "red"), ("blue", "old", "new")
LENGTH = 16  # of windows: most texts fit into one
WIDTH = LENGTH - 2


def sentences(seed: int, count: int) -> list[list[tuple[str, str]]]:
    """Words with tags: some words are people, others places, one to three in a row."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words: list[tuple[str, str]] = []
        for _ in range(generator.integers(1, 6)):
            words += [(word, "O") for word in generator.choice(OTHERS, generator.integers(0, 3))]
            names, kind = ((PEOPLE, "person"), (PLACES, "place"))[generator.integers(2)]
            chosen = generator.choice(names, generator.integers(1, 4))
            words += [(w, f"{'BI'[min(n, 1)]}-{kind}") for n, w in enumerate(chosen)]
            words.append(("the", "O"))
        made.append(words)
    return made


def columns(made: Sequence[Sequence[tuple[str, str]]]) -> str:
    return "\n".join("".join(f"{word}\t{tag}\n" for word, tag in words) for words in made)


def tagging_run(folder: pathlib.Path, **changes: Any) -> RunConfig:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").touch()  # tiny_run then writes no reviews
    for seed, (name, count) in enumerate([("train", 96), ("dev", 24), ("test", 24)]):
        (folder / f"{name}.conll").write_text(columns(sentences(seed, count)))
    data = {name: str(folder / f"{name}.conll") for name in ("train", "dev", "test")}
    values: dict[str, Any] = {
        "data": data | {"max_seq_length": LENGTH, "window_stride": 5},
        "task": {"name": "tagging"},
        "optimizer": {"learning_rate": 3e-3},
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return tiny_run(folder, **values)


@dataclasses.dataclass
class Trained:
    folder: pathlib.Path
    metrics: dict[str, float]

    def opened(self, **task: Any) -> restore.OpenedRun:
        """The run with other settings of its task."""
        opened = restore.open_run(str(self.folder / "run"))
        run = opened.run
        run = dataclasses.replace(run, task=dataclasses.replace(run.task, **task))
        return dataclasses.replace(
            opened,
            run=run,
            task=dataclasses.replace(opened.task, run=run),  # type: ignore[type-var]
        )

    def predicted(self, source: pathlib.Path, **task: Any) -> list[dict[str, Any]]:
        """What predict.py writes for a file."""
        opened = self.opened(**task)
        data = dataclasses.replace(opened.run.data, test=str(source))
        run = dataclasses.replace(opened.run, data=data)
        return predict(dataclasses.replace(opened.task, run=run), opened.model, self.folder)  # type: ignore[type-var]


def predict(task: Any, model: tf.Module, folder: pathlib.Path) -> list[dict[str, Any]]:
    answers = answers_of(task, "label a file")
    examples = answers.examples("test")
    outputs = Evaluator(task.run, on_cpu(), task, model).predict(examples)
    (path,) = prediction.write_files(str(folder), answers.files("test", examples, outputs))
    return [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("tagging")
    run = tagging_run(folder, train={"steps": 60, "save_every": 60})
    return Trained(folder, run_tiny(run, folder / "run"))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(CHECKPOINT))


def lines_of(path: pathlib.Path, *rows: Any) -> pathlib.Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# ----------------------------------------------------------------------------------------- training


def test_it_learns_and_is_measured_as_conlleval_measures(trained: Trained) -> None:
    assert trained.metrics["f1"] > 0.7
    lines = trained.predicted(trained.folder / "dev.conll")
    expected = [[tag for _, tag in words] for words in sentences(1, 24)]
    predicted = [[word["label"] for word in line["words"]] for line in lines]
    printed = conlleval.report(zip(expected, predicted, strict=True))
    values = {name: 100 * value for name, value in trained.metrics.items()}
    assert printed.splitlines()[1] == (
        f"accuracy: {values['accuracy']:6.2f}%; precision: {values['precision']:6.2f}%; "
        f"recall: {values['recall']:6.2f}%; FB1: {values['f1']:6.2f}"
    )
    words = sum(map(len, expected))
    assert printed.startswith(f"processed {words} tokens with ")


@pytest.mark.slow  # tests/test_training.py has the loop
def test_stopped_and_continued_it_ends_with_the_same_bits(tmp_path: pathlib.Path) -> None:
    run = tagging_run(tmp_path, train={"steps": 8, "save_every": 4, "log_every": 4})
    whole = run_tiny(run, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    run_tiny(run, stopped)
    for part in ("best", "checkpoints/step-00000008"):
        for file in sorted((stopped / part).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (stopped / part).rmdir()
    again = run_tiny(run, stopped)
    assert again == whole
    name = "checkpoints/step-00000008/model.ckpt.data-00000-of-00001"
    assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_loss_counts_every_word_once_whatever_the_windows(trained: Trained) -> None:
    opened = trained.opened()
    task: Any = opened.task
    assert isinstance(task, TaggingTask)
    examples = task.examples("dev")
    assert len(examples) > 24, "some texts must have several windows"
    labels = examples.targets["word_labels"]
    assert (labels > 0).sum() == sum(map(len, sentences(1, 24)))
    outputs = Evaluator(task.run, on_cpu(), task, opened.model).predict(examples)
    logits = outputs["logits"]
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    losses = -np.take_along_axis(logs, np.maximum(labels - 1, 0)[..., None], -1)[..., 0]
    expected = (losses * (labels > 0)).sum() / (labels > 0).sum()
    assert task.metrics(outputs, examples)["loss"] == pytest.approx(float(expected), rel=1e-5)

    batch = {name: tf.constant(value[:8]) for name, value in examples.targets.items()}
    width = int(examples.lengths[:8].max())
    splits = examples.row_splits
    rows = [examples.token_ids[splits[e] : splits[e + 1]] for e in range(8)]
    batch["token_ids"] = tf.constant([np.pad(row, (0, width - len(row))) for row in rows])
    batch["mask"] = tf.constant([[int(n < len(row)) for n in range(width)] for row in rows])
    batch["segment_ids"] = tf.zeros_like(batch["token_ids"])
    batch["weight"] = tf.constant([1.0] * 7 + [0.0])
    opened.model.head.rate = 0.0  # type: ignore[attr-defined]
    total = task.term_sums(opened.model, batch, tf.constant([1, 2]))
    assert total.shape == (1,)
    assert task.term_weights(batch).numpy() == [(labels[:7] > 0).sum()]


# ------------------------------------------------------------------------------- words and windows


def test_words_have_their_first_piece_and_their_place(tokenizer: Tokenizer, tmp_path: Any) -> None:
    path = tmp_path / "a.conll"
    path.write_text("the\tO\nunhappy\tB-a\n\u200b\tO\ncat.\tI-a\n\ncafé\tO\n", "utf-8")
    text = read_pieces(tokenizer, read_tagged(str(path), DataConfig()))
    assert text.texts == ["the unhappy \u200b cat.", "café"]
    places = list(zip(text.starts.tolist(), text.ends.tolist(), strict=True))
    assert [text.texts[n // 4][a:b] for n, (a, b) in enumerate(places)] == [
        "the", "unhappy", "\u200b", "cat.", "café",
    ]  # fmt: skip
    assert text.first_pieces[2] == -1
    first = [tokenizer(tf.constant([w])).to_list()[0][0] for w in ("the", "unhappy", "cat", "café")]
    assert text.token_ids[text.first_pieces[[0, 1, 3, 4]]].tolist() == first
    assert text.tags == ["O", "B-a", "O", "B-a", "O"], "as conlleval reads it"


def test_texts_are_split_as_in_the_served_graph(tokenizer: Tokenizer, tmp_path: Any) -> None:
    spans = [{"start": 4, "end": 12, "label": "a"}, {"start": 15, "end": 16, "label": "b"}]
    rows = [{"text": "the cat's mat, unhappy", "spans": spans}, {"text": " ", "spans": []}]
    source = read_tagged(str(lines_of(tmp_path / "a.jsonl", *rows)), DataConfig(label="spans"))
    text = read_pieces(tokenizer, source)
    words = [text.texts[0][a:b] for a, b in zip(text.starts, text.ends, strict=True)]
    assert words == ["the", "cat", "'", "s", "mat", ",", "unhappy"]
    # The first span ends inside of "mat", the second one begins with "unhappy".
    assert text.tags == ["O", "B-a", "I-a", "I-a", "I-a", "O", "B-b"]
    assert text.words_of.tolist() == [0, 7, 7]


def test_parts_of_words_are_learnt_where_asked(tokenizer: Tokenizer, tmp_path: Any) -> None:
    (tmp_path / "a.conll").write_text("the\tO\ncat-dog.mat\tB-a\nsat\tI-a\nunhappy\tO\n")
    data = {"train": str(tmp_path / "a.conll"), "max_seq_length": LENGTH}
    for split, expected in ((False, "O B-a I-a O"), (True, "O B-a I-a I-a I-a I-a I-a O")):
        run = RunConfig.from_dict({"data": data, "task": {"split_words": split}})
        tags = Tags(("O", "B-a", "I-a"), True, "O")
        task = TaggingTask(run, None, tokenizer, tags)  # type: ignore[arg-type]
        examples = task.training_data()
        labels = examples.targets["word_labels"][0]
        assert [tags.names[label - 1] for label in labels] == expected.split()
        pieces = examples.token_ids[examples.targets["first_pieces"][0]]
        assert not continuations(tokenizer)[pieces].any()


def test_long_texts_are_decided_in_windows(trained: Trained) -> None:
    """By hand: each word from the window in which its poorer side of context is longest."""
    words = [word for text in sentences(5, 12) for word, _ in text]
    (line,) = trained.predicted(lines_of(trained.folder / "long.jsonl", {"text": words}))
    opened = trained.opened()
    ids = [row[0] for row in opened.task.tokenizer(tf.constant(words)).to_list()]
    starts = [*range(0, len(ids) - WIDTH, 5), len(ids) - WIDTH]
    for place, word in enumerate(line["words"]):
        own = max(
            (s for s in starts if s <= place < s + WIDTH),
            key=lambda s: (min(place - s, s + WIDTH - 1 - place), -s),
        )
        window = tf.constant([[2, *ids[own : own + WIDTH], 3]])
        logits = opened.model({"token_ids": window, "segment_ids": None, "mask": None})
        probabilities = tf.nn.softmax(logits[0, 1 + place - own]).numpy()
        assert word["label"] == opened.task.tags.names[probabilities.argmax()]  # type: ignore[attr-defined]
        assert word["score"] == pytest.approx(float(probabilities.max()), abs=1e-5)


# ------------------------------------------------------------------------------------------ answers

TEXTS = [
    "the cat sat on the red happy mat, the new book",
    "",
    " \t ",
    "Happy RED caf\u00e9; \u200b\u4e2d\u6587 ok\U0001f600ay the unhappy-dog",
    "the red old blue book was on the mat. " * 9,
    "\u200b",
]


@pytest.mark.parametrize("constrained", [False, True])
def test_served_text_is_answered_as_predict_answers(trained: Trained, constrained: bool) -> None:
    source = lines_of(trained.folder / "texts.jsonl", *({"text": text} for text in TEXTS))
    lines = trained.predicted(source, constrained=constrained)
    opened = trained.opened(constrained=constrained)
    output = trained.folder / f"export-{constrained}"
    model = tf.saved_model.load(saved_model.export_saved_model(opened, str(output)))
    ask = lambda texts: model.signatures["serving_default"](tf.constant(texts, tf.string))  # noqa: E731
    outputs = {name: value.numpy() for name, value in ask(TEXTS).items()}
    longest = max(len(line["words"]) for line in lines)
    assert {value.shape for value in outputs.values()} == {(len(TEXTS),), (len(TEXTS), longest)}
    for row, line in enumerate(lines):
        count = outputs["num_words"][row]
        assert count == len(line["words"])
        for place, word in enumerate(line["words"]):
            assert outputs["words"][row, place].decode() == word["text"]
            assert outputs["labels"][row, place].decode() == word["label"]
            assert outputs["scores"][row, place] == pytest.approx(word["score"], abs=1e-5)
            assert (outputs["starts"][row, place], outputs["ends"][row, place]) == (
                word["start"], word["end"],
            )  # fmt: skip
            assert TEXTS[row][word["start"] : word["end"]] == word["text"]
        assert not outputs["words"][row, count:].any()
        assert not outputs["scores"][row, count:].any()
        if constrained:
            tags = [word["label"] for word in line["words"]]
            assert tags == to_iob2(tags)
    for texts in ([], [""]):
        nothing = ask(texts)
        assert nothing["words"].shape == (len(texts), 0)
        assert nothing["num_words"].numpy().tolist() == [0] * len(texts)
    requests = answers_of(opened.task, "be exported").warmup_requests()
    for name, inputs in requests:
        model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})


def test_ids_are_answered_piece_by_piece(trained: Trained) -> None:
    opened = trained.opened()
    answers = answers_of(opened.task, "be exported")
    signature = answers.signatures(saved_model.float32_model(opened))["ids"]
    rows = np.array([[2, 30, 31, 32, 3], [2, 40, 3, 0, 0]], np.int32)
    mask = (rows > 0).astype(np.int32)
    inputs = {"token_ids": rows, "segment_ids": rows * 0, "mask": mask}
    outputs = signature(**{name: tf.constant(value) for name, value in inputs.items()})
    alone = opened.model(
        {"token_ids": tf.constant(rows[1:, :3]), "segment_ids": None, "mask": None}
    )
    np.testing.assert_allclose(outputs["logits"][1, :3], alone[0], atol=1e-5)
    labels = outputs["labels"].numpy()
    assert labels[1, 3:].tolist() == [b"", b""]
    assert (labels != b"").sum() == mask.sum()


def test_spans_of_predictions(trained: Trained) -> None:
    for line in trained.predicted(trained.folder / "test.conll"):
        words = {word["start"]: word for word in line["words"]}
        for span in line["spans"]:
            assert line["text"][span["start"] : span["end"]] == span["text"]
            inside = [w for w in words.values() if span["start"] <= w["start"] < span["end"]]
            assert span["score"] == min(word["score"] for word in inside)
            assert {word["label"][2:] for word in inside} == {span["label"]}
        outside = [word for word in words.values() if word["label"] != "O"]
        assert len(outside) == sum(len(span["text"].split()) for span in line["spans"])


def test_words_that_vanish_are_outside(trained: Trained) -> None:
    source = trained.folder / "vanish.conll"
    source.write_text("red\n\u200b\nhappy\n\n\u200b\n", "utf-8")
    lines = trained.predicted(source)
    assert [word["text"] for word in lines[0]["words"]] == ["red", "\u200b", "happy"]
    assert lines[0]["words"][1] == {
        "text": "\u200b", "start": 4, "end": 5, "label": "O", "score": 0.0,
    }  # fmt: skip
    assert [word["label"] for word in lines[1]["words"]] == ["O"]


@pytest.mark.slow
def test_a_document_of_100_000_words(trained: Trained) -> None:
    words = [word for text in sentences(3, 9_000) for word, _ in text][:100_000]
    source = lines_of(trained.folder / "book.jsonl", {"text": " ".join(words)})
    (line,) = trained.predicted(source)
    assert len(line["words"]) == 100_000
    opened = trained.opened()
    signature = answers_of(opened.task, "be exported").signatures(saved_model.float32_model(opened))
    outputs = signature["serving_default"](tf.constant([" ".join(words)]))
    labels = [label.decode() for label in outputs["labels"].numpy()[0]]
    assert labels == [word["label"] for word in line["words"]]


# ---------------------------------------------------------------------------------- parts of speech


def test_parts_of_speech(tmp_path: pathlib.Path) -> None:
    for name in ("train", "dev"):
        made = [[(word, "DET" if word == "the" else "NN") for word, _ in text]
                for text in sentences(1, 48)]  # fmt: skip
        (tmp_path / f"{name}.txt").write_text(columns(made))
    data = {name: str(tmp_path / f"{name}.txt") for name in ("train", "dev")}
    run = tagging_run(tmp_path, data=data | {"max_seq_length": 32}, train={"steps": 20})
    metrics = run_tiny(run, tmp_path / "run")
    assert set(metrics) - {"step"} == {"accuracy", "loss"}
    assert metrics["accuracy"] > 0.9
    opened = restore.open_run(str(tmp_path / "run"), PaddedLayout)
    task: Any = opened.task
    assert (task.tags.names, task.tags.fallback) == (("DET", "NN"), "NN")
    assert "spans" not in predict(task, opened.model, tmp_path)[0]
    constrained = dataclasses.replace(run.task, constrained=True)
    with pytest.raises(ValueError, match="is for tags of spans"):
        run_tiny(dataclasses.replace(run, task=constrained), tmp_path / "other")


# ------------------------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"max_seq_length": 41}, "max_position_embeddings=40"),
        ("data", {"max_seq_length": 2}, "leaves no room"),
        ("data", {"window_stride": 15}, "must be from 1 to 14"),
        ("data", {"train": ""}, r"config\.data\.train is empty"),
        ("data", {"label": "7"}, "there is no column 7"),
        ("task", {"glue": "sst2"}, "for config.task.name=classification"),
        ("data", {"text_b": "x"}, "reads single texts"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: pathlib.Path, section: str, fields: dict[str, Any], message: str
) -> None:
    run = tagging_run(tmp_path)
    values = run.to_dict()
    values[section] |= fields
    with pytest.raises(ValueError, match=message):
        run_tiny(RunConfig.from_dict(values), tmp_path / "run")


def test_tags_that_training_has_not_seen(trained: Trained) -> None:
    opened = trained.opened()
    path = trained.folder / "unseen.conll"
    path.write_text("the\tO\n\nred\tB-persan\n")
    data = dataclasses.replace(opened.run.data, test=str(path))
    task: Any = dataclasses.replace(opened.task, run=dataclasses.replace(opened.run, data=data))  # type: ignore[type-var]
    with pytest.raises(
        ValueError, match=r"line 3: the tag 'B-persan' of the word 'red'.*'B-person'"
    ):
        task.examples("test")
    path.write_text("the\nred\n")
    with pytest.raises(ValueError, match=r"has no tags to measure against"):
        task.examples("test")


def test_one_tag_alone_is_nothing_to_learn(tmp_path: pathlib.Path) -> None:
    run = tagging_run(tmp_path)
    (tmp_path / "train.conll").write_text("the\tO\nred\tO\n")
    with pytest.raises(ValueError, match="all 2 words have the tag 'O'"):
        run_tiny(run, tmp_path / "run")


def test_labels_file_that_is_none(tmp_path: pathlib.Path) -> None:
    (tmp_path / "labels.json").write_text('{"names": ["O"]}')
    with pytest.raises(ValueError, match=r"labels\.json does not describe the tags of words"):
        Tags.load(str(tmp_path / "labels.json"))
