"""Multiple choice from files to answers: what is learnt, continued, predicted and exported."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import prediction, restore
from bert_tf.config import RunConfig
from bert_tf.data.multiple_choice import ChoiceExamples
from bert_tf.export import saved_model
from bert_tf.tasks import answers_of
from bert_tf.tasks.multiple_choice import MultipleChoiceTask
from bert_tf.training import Evaluator
from tests.tiny_run import BAD, GOOD, OTHERS, on_cpu, run_tiny, tiny_run

CHOICES = 3
ODD_CHOICES = [["", "red"], ["word " * 400, "x" * 300], ["Re\u0301d 映画", "\u200b"]]


def write_choices(path: pathlib.Path, count: int, seed: int) -> None:
    """Of every example one choice has a good word, all others bad ones."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        label = int(random.integers(CHOICES))
        choices = []
        for number in range(CHOICES):
            words = list(random.choice(OTHERS, size=random.integers(0, 5)))
            place = random.integers(0, len(words) + 1)
            words.insert(place, random.choice(GOOD if number == label else BAD))
            choices.append(" ".join(words))
        context = " ".join(random.choice(OTHERS, size=random.integers(1, 6)))
        row = {"context": context, "start": "it is", "choices": choices, "label": label}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines))


def choice_run(folder: pathlib.Path, **changes: Any) -> RunConfig:
    (folder / "train.jsonl").touch()  # tiny_run then writes no reviews
    files = {name: folder / f"choices_{name}.jsonl" for name in ("train", "dev", "test")}
    for seed, (name, path) in enumerate(files.items()):
        write_choices(path, 48 if name == "train" else 15, seed)
    data = {name: str(path) for name, path in files.items()}
    values: dict[str, Any] = {
        "data": data | {"text_a": "context", "text_b": "start"},
        "model": {"num_layers": 1},
        "task": {"name": "multiple_choice"},
        "optimizer": {"learning_rate": 3e-3},
        "train": {"steps": 40, "save_every": 20, "log_every": 10},
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return tiny_run(folder, **values)


@dataclasses.dataclass
class Trained:
    run: RunConfig
    folder: pathlib.Path
    metrics: dict[str, float]

    @functools.cached_property
    def opened(self) -> restore.OpenedRun:
        return restore.open_run(str(self.folder / "run"))

    @functools.cached_property
    def measured(self) -> tuple[ChoiceExamples, dict[str, np.ndarray]]:
        """The dev examples and what is predicted for them, in padded rows."""
        task: Any = self.opened.task
        examples = task.examples("dev")
        return examples, Evaluator(task.run, on_cpu(), task, self.opened.model).predict(examples)

    @functools.cached_property
    def served(self) -> Any:
        return tf.saved_model.load(
            saved_model.export_saved_model(self.opened, str(self.folder / "export"))
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("choices")
    run = choice_run(folder)
    return Trained(run, folder, run_tiny(run, folder / "run"))


def test_it_learns(trained: Trained) -> None:
    assert trained.metrics["accuracy"] > 0.8
    lines = (trained.folder / "run/metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert losses[-1] < 0.5 < losses[0]


def test_stopped_and_continued_it_ends_with_the_same_bits(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    stopped, last = tmp_path / "run", "checkpoints/step-00000040"
    shutil.copytree(trained.folder / "run", stopped)
    shutil.rmtree(stopped / "best")
    shutil.rmtree(stopped / last)
    assert run_tiny(trained.run, stopped) == trained.metrics
    for name in (f"{last}/model.ckpt.data-00000-of-00001", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (trained.folder / "run" / name).read_bytes()


def test_losses_and_metrics_are_those_of_numpy(trained: Trained) -> None:
    task: Any = trained.opened.task
    examples, outputs = trained.measured
    logits, labels = outputs["logits"], examples.targets["label"]
    assert logits.shape == (15, CHOICES)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    losses = -np.log(shares[np.arange(15), labels])
    np.testing.assert_allclose(outputs["probabilities"], shares, atol=1e-6)
    np.testing.assert_allclose(outputs["loss"], losses, atol=1e-5)
    metrics = task.metrics(outputs, examples)
    assert metrics["accuracy"] == (logits.argmax(axis=1) == labels).mean()
    assert metrics["loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert metrics["accuracy"] == trained.metrics["accuracy"]

    batch = {"label": tf.constant([0, 1, 2]), "weight": tf.constant([1.0, 1.0, 0.0])}
    given = tf.constant(logits[:3])
    sums = task.term_sums(lambda *_, **__: given, batch, tf.constant([1, 2]))
    expected = -np.log(shares[0, 0]) - np.log(shares[1, 1])
    assert sums.numpy() == pytest.approx([expected], rel=1e-5)
    assert task.term_weights(batch).numpy() == [2.0]


def test_files_and_served_model_say_the_same(trained: Trained) -> None:
    """Rows are padded here and without padding in the export: the same numbers."""
    opened = trained.opened
    answers = answers_of(opened.task, "label a file")
    assert not answers.examples("dev").targets
    files = answers.files("dev", *trained.measured)
    (path,) = prediction.write_files(str(trained.folder), files)
    lines = [json.loads(line) for line in pathlib.Path(path).read_text("utf-8").splitlines()]
    signatures = trained.served.signatures
    rows = [json.loads(row) for row in pathlib.Path(trained.run.data.dev).read_text().splitlines()]
    columns = {name: tf.constant([row[name] for row in rows]) for name in ("context", "start")}
    served = signatures["serving_default"](
        choices=tf.constant([row["choices"] for row in rows]), **columns
    )
    assert served["probabilities"].shape == [15, CHOICES]
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        assert line["choice"] == row["choices"][line["label"]]
        assert served["label"][number] == line["label"]
        assert served["choice"][number].numpy().decode() == line["choice"]
        shares = served["probabilities"][number].numpy()
        np.testing.assert_allclose(shares, line["probabilities"], atol=2e-6)
    features = answers.text_features(  # type: ignore[attr-defined]
        [tf.constant(["the cat"]), tf.constant(["it is"])], tf.constant([["red", "old", "new"]])
    )
    by_ids = signatures["ids"](**{name: grid[0] for name, grid in features.items()})
    one = signatures["serving_default"](
        context=tf.constant(["the cat"]),
        start=tf.constant(["it is"]),
        choices=tf.constant([["red", "old", "new"]]),
    )
    np.testing.assert_allclose(by_ids["scores"], one["logits"][0], atol=1e-5)


def test_odd_choices_any_number_of_them_and_none(trained: Trained) -> None:
    signature = trained.served.signatures["serving_default"]
    same = tf.constant(["the cat"] * len(ODD_CHOICES))
    outputs = signature(context=same, start=same, choices=tf.constant(ODD_CHOICES))
    np.testing.assert_allclose(tf.reduce_sum(outputs["probabilities"], axis=1), 1.0, atol=1e-6)
    nothing = tf.constant([], tf.string)
    outputs = signature(context=nothing, start=nothing, choices=tf.zeros([0, 5], tf.string))
    assert outputs["probabilities"].shape == [0, 5]
    for choices, message in (
        (tf.zeros([3, 0], tf.string), "choices have no columns"),
        (tf.constant(ODD_CHOICES[:2]), "context and start and choices differ in number"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signature(context=same, start=same, choices=choices)
    requests = dict(answers_of(trained.opened.task, "be exported").warmup_requests())
    assert np.shape(requests["serving_default"]["choices"]) == (8, 4)
    assert set(requests["serving_default"]) == {"context", "start", "choices"}


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("data", {"max_seq_length": 4}, "max_seq_length=4 leaves no room"),
        ("data", {"max_seq_length": 41}, "max_seq_length=41 exceeds the position table"),
        ("data", {"dev": ""}, "config.data.dev is empty"),
        ("task", {"glue": "sst2"}, "glue='sst2' is for config.task.name=classification"),
    ],
)
def test_settings_that_cannot_work(
    trained: Trained, section: str, fields: dict[str, Any], message: str
) -> None:
    values = trained.run.to_dict()
    values[section] |= fields
    opened = trained.opened
    with pytest.raises(ValueError, match=message):
        MultipleChoiceTask.from_data(
            RunConfig.from_dict(values), opened.task.config, opened.task.tokenizer
        ).examples("dev")
