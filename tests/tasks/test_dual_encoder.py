"""Dual encoders: the loss in NumPy, over replicas, what is learnt, measured, exported, refused."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_text  # noqa: F401 - the ops of an export

import bert_tf
from bert_tf import restore, run_folder, weights
from bert_tf.config import RunConfig
from bert_tf.data import batches
from bert_tf.distribution import cpu_strategy
from bert_tf.export import saved_model
from bert_tf.layouts import UnpaddedLayout
from bert_tf.tasks import answers_of, ranking
from bert_tf.tasks.dual_encoder import DualEncoderTask
from bert_tf.training import Evaluator, Loop
from tests.tiny_run import CHECKPOINT, OTHERS, on_cpu, run_tiny, tiny_run

NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
SCALE = 20.0
# Seven pairs of the texts 0, 1, ...: the fourth repeats an anchor, the fifth its partner, the sixth
# has an anchor as partner, the last is padding. Third column: hard negatives.
IDS = np.array(
    [[0, 1, 9], [2, 3, 1], [4, 5, 0], [0, 6, 9], [7, 6, 8], [8, 2, 6], [0, 0, 0]], np.int32
)
WEIGHT = np.array([1, 1, 1, 1, 1, 1, 0], np.float32)


def some_vectors(hidden: int = 8) -> np.ndarray:
    """Float32 [7, 3, H]: equal texts have equal vectors."""
    table = np.random.default_rng(3).normal(size=[10, hidden]).astype(np.float32)
    return table[IDS]


def right_answers(i: int) -> set[int]:
    """The anchor of a pair, and whatever is a partner of this anchor."""
    return {IDS[i, 0]} | {IDS[j, 1] for j in range(6) if IDS[j, 0] == IDS[i, 0]}


def loss_by_hand(vectors: np.ndarray, texts: int) -> tuple[float, int]:
    """Pair by pair, candidate by candidate, in float64."""
    vectors = vectors.astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    total, hits = 0.0, 0
    for i in range(6):
        own = SCALE * vectors[i, 0] @ vectors[i, 1]
        others = []
        for j, k in itertools.product(range(6), range(1, texts)):
            if IDS[j, k] not in right_answers(i):
                others.append(SCALE * vectors[i, 0] @ vectors[j, k])
        total += np.log(np.exp(own) + np.exp(others).sum()) - own
        hits += own > max(others)
    return total, hits


@pytest.mark.parametrize("texts", [2, 3])
def test_the_loss_is_that_of_numpy(texts: int) -> None:
    vectors = some_vectors()[:, :texts]
    ids = tf.constant(IDS[:, :texts])
    loss, hits = ranking.loss_and_hits(tf.constant(vectors), ids, tf.constant(WEIGHT), SCALE)
    expected = loss_by_hand(vectors, texts)
    np.testing.assert_allclose([loss, hits], expected, rtol=1e-5)
    assert 0 < expected[1] < 6


def test_padding_changes_nothing_and_gets_no_gradient() -> None:
    vectors = tf.Variable(some_vectors())
    with tf.GradientTape() as tape:
        terms = ranking.loss_and_hits(vectors, tf.constant(IDS), tf.constant(WEIGHT), SCALE)
        loss = terms[0]
    gradient = tf.convert_to_tensor(tape.gradient(loss, vectors)).numpy()
    assert not gradient[6].any()
    assert (np.abs(gradient[:6]).max(axis=-1) > 0.0).all()
    changed = tf.concat([vectors[:6], tf.zeros([1, 3, 8])], axis=0)
    again = ranking.loss_and_hits(changed, tf.constant(IDS), tf.constant(WEIGHT), SCALE)
    np.testing.assert_array_equal(terms, again)


def test_two_replicas_have_the_loss_and_the_gradient_of_one() -> None:
    """Negatives are those of the global batch, and a vector learns as a negative elsewhere, too."""
    values = {"vectors": some_vectors(), "ids": IDS, "weight": WEIGHT}
    values = {name: np.concatenate([value, value[-1:]]) for name, value in values.items()}  # 8 rows

    def terms_and_gradient(batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(batch["vectors"])
            terms = ranking.loss_and_hits(batch["vectors"], batch["ids"], batch["weight"], SCALE)
            loss = terms[0]
        return terms, tape.gradient(loss, batch["vectors"])

    expected, gradient = terms_and_gradient({n: tf.constant(v) for n, v in values.items()})
    strategy = cpu_strategy(2)

    def half(context: tf.distribute.ValueContext) -> dict[str, tf.Tensor]:
        first = 4 * context.replica_id_in_sync_group
        return {name: tf.constant(value[first : first + 4]) for name, value in values.items()}

    parts = strategy.experimental_distribute_values_from_function(half)
    step = tf.function(lambda part: strategy.run(terms_and_gradient, args=(part,)), autograph=False)
    terms, gradients = step(parts)
    terms = [part.numpy() for part in strategy.experimental_local_results(terms)]
    assert terms[0][0] != pytest.approx(terms[1][0])
    np.testing.assert_allclose(np.sum(terms, axis=0), expected, rtol=1e-6)
    found = np.concatenate([g.numpy() for g in strategy.experimental_local_results(gradients)])
    np.testing.assert_allclose(found, gradient, atol=1e-6)


def test_ranks_are_those_of_a_plain_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "ROWS_AT_ONCE", 4)
    vectors = some_vectors()[:6, :2]
    vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    measured = ranking.measure(vectors, IDS[:6, :2], SCALE)
    assert measured["loss"] == pytest.approx(loss_by_hand(vectors, 2)[0] / 6, rel=1e-5)
    assert measured["recall_at_1"] == loss_by_hand(vectors, 2)[1] / 6
    ranks = []
    for i in range(6):
        scores = vectors[i, 0] @ vectors[:, 1].T
        wrong = [j for j in range(6) if IDS[j, 1] not in right_answers(i)]
        ranks.append(1 + sum(scores[j] >= scores[i] for j in wrong))
    assert measured["mean_reciprocal_rank"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    equal = ranking.measure(np.ones_like(vectors), IDS[:6, :2], SCALE)
    assert equal["recall_at_1"] == 0.0, "vectors that are all equal find nothing"


# ----------------------------------------------------------------------------------------- training


def write_pairs(folder: pathlib.Path) -> None:
    """Two words, and two others that stand for them; scores say how many of the words fit."""
    partner = dict(zip(OTHERS, OTHERS[1:] + OTHERS[:1], strict=True))
    texts = list(itertools.product(OTHERS, OTHERS))
    generator = np.random.default_rng(1)
    generator.shuffle(texts)
    for name, rows in (("train", texts[:112]), ("dev", texts[112:])):
        pairs = [{"a": " ".join(row), "b": " ".join(map(partner.get, row))} for row in rows]  # type: ignore[arg-type]
        lines = [json.dumps(pair | {"other": pair["a"]}) + "\n" for pair in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    lines = ["a\tb\tscore"]
    for row in texts[112:]:
        fitting = generator.integers(0, 3)
        words = [partner[word] if n < fitting else row[n] for n, word in enumerate(row)]
        lines.append(f"{' '.join(row)}\t{' '.join(words)}\t{fitting}")
    (folder / "scored.tsv").write_text("\n".join(lines) + "\n")


def pair_run(folder: pathlib.Path, **changes: dict[str, Any]) -> RunConfig:
    """A run on pairs without scores; 3 batches of 48 are an epoch, the smallest has padding."""
    if not (folder / "scored.tsv").exists():
        write_pairs(folder)
    values: dict[str, dict[str, Any]] = {
        "model": {"num_layers": 2} | NO_DROPOUT,
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "dev")}
        | {"test": str(folder / "scored.tsv")}
        | {"text_a": "a", "text_b": "b", "label": "", "max_seq_length": 12},
        "task": {"name": "dual_encoder"},
        "train": {"global_batch_size": 48},
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return tiny_run(folder, **values)


def tensors_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    newest = run_folder.newest_step(str(workdir / "checkpoints"))
    assert newest is not None
    return weights.read_tensors(newest + "/model.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pairs")
    run = pair_run(folder, train={"steps": 60, "save_every": 30}, optimizer={"learning_rate": 3e-3})
    run_tiny(run, folder / "run")
    return folder


def measured(opened: restore.OpenedRun, task: DualEncoderTask, split: str) -> dict[str, float]:
    examples = task.examples(split)
    outputs = Evaluator(task.run, on_cpu(), task, opened.model).predict(examples)
    return task.metrics(outputs, examples)


def test_it_learns_which_texts_belong_together(trained: pathlib.Path) -> None:
    opened = restore.open_run(str(trained / "run"))
    before = restore.open_checkpoint(opened.run)
    untrained = measured(before, before.task, "dev")  # type: ignore[arg-type]
    assert opened.metrics["mean_reciprocal_rank"] > 2 * untrained["mean_reciprocal_rank"]
    assert opened.metrics["loss"] < untrained["loss"]
    lines = [json.loads(line) for line in (trained / "run/metrics.jsonl").read_text().splitlines()]
    assert {"loss", "in_batch_accuracy"} <= lines[0].keys()
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(
    trained: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restore.open_run(str(trained / "run")).run
    advance = Loop.advance

    def dying(self: Loop, feed: batches.Feed) -> None:
        if self.state.progress.step >= 33:
            raise KeyboardInterrupt
        advance(self, feed)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "advance", dying)
        with pytest.raises(KeyboardInterrupt):
            run_tiny(run, tmp_path / "run")
    run_tiny(run, tmp_path / "run")
    for name, value in tensors_of(trained / "run").items():
        assert np.array_equal(value, tensors_of(tmp_path / "run")[name]), name
    texts = [(folder / "run/metrics.jsonl").read_text() for folder in (trained, tmp_path)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_a_run_on_two_replicas_is_that_on_one(tmp_path: pathlib.Path) -> None:
    sgd = {"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0}
    for replicas in (1, 2):
        # Every step sees hard negatives, and the third one has rows of padding.
        data = {"negative": "other"}
        run = pair_run(tmp_path, optimizer=sgd, train={"steps": 6}, data=data)
        run_tiny(run, tmp_path / f"on{replicas}", replicas)
    one, two = (tensors_of(tmp_path / f"on{replicas}") for replicas in (1, 2))
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, atol=1e-6, err_msg=name)


# ----------------------------------------------------------------------------------------- the data


def test_every_text_of_a_pair_is_read_by_itself(tmp_path: pathlib.Path) -> None:
    run = pair_run(tmp_path, data={"negative": "other"})
    opened = restore.open_checkpoint(run, UnpaddedLayout)
    task: Any = opened.task
    encoder = bert_tf.load(str(CHECKPOINT))
    examples = task.training_data()
    assert len(examples) == 112
    assert examples.targets["text_ids"].shape == (112, 3)
    assert np.array_equal(examples.targets["text_ids"][:, 0], examples.targets["text_ids"][:, 2])
    plan = batches.training_plan(examples.lengths, 48, (8, 12), seed=1, window=1, steps=3)
    for batch in batches.dataset(examples, plan[:], static=False):
        assert batch["token_ids"].shape[1:] == (3, 8)
        assert batch["text_ids"].shape == (48, 3)
        real = batch["weight"].numpy() > 0
        assert not batch["mask"].numpy()[~real].any()
        first, second = ([json.loads(row)[k] for row in open_lines(tmp_path)] for k in "ab")
        vectors = opened.model(batch)  # [B, 3, H]
        for k, texts in enumerate((first, second)):
            chosen = [texts[row] for row in batch["example"].numpy()[real]]
            expected = encoder.embed(chosen)
            np.testing.assert_allclose(vectors.numpy()[real, k], expected, atol=1e-5)


def open_lines(folder: pathlib.Path) -> list[str]:
    return (folder / "train.jsonl").read_text().splitlines()


def test_scores_choose_what_is_learnt_and_measure_it(trained: pathlib.Path) -> None:
    opened = restore.open_run(str(trained / "run"))
    scored = str(trained / "scored.tsv")
    data = dataclasses.replace(opened.run.data, train=scored, dev=scored, label="score")
    run = dataclasses.replace(opened.run, data=data)
    with pytest.raises(ValueError, match=r"scores from 0 to 2\. Only those that belong together"):
        DualEncoderTask(run, opened.task.config, opened.task.tokenizer).training_data()
    run = dataclasses.replace(run, task=dataclasses.replace(run.task, min_score=2.0))
    task = DualEncoderTask(run, opened.task.config, opened.task.tokenizer)
    rows = [line.split("\t") for line in (trained / "scored.tsv").read_text().splitlines()[1:]]
    assert len(task.training_data()) == sum(row[2] == "2" for row in rows)

    metrics = measured(opened, task, "dev")
    encoder = bert_tf.load(str(trained / "run"))
    vectors = [encoder.embed([row[k] for row in rows], max_seq_length=12) for k in (0, 1)]
    cosines = (vectors[0] * vectors[1]).sum(axis=1)
    expected = scipy.stats.spearmanr(cosines, [float(row[2]) for row in rows])[0]
    # Rounding decides the order of pairs of equal texts, whose cosines are all 1.
    assert metrics["spearman"] == pytest.approx(expected, abs=0.03)
    assert metrics["loss"] == pytest.approx(1.0 - metrics["pearson"] ** 2)
    assert task.metric_names == ("spearman", "pearson")


# ---------------------------------------------------------------------------------- what it answers


def test_the_export_takes_strings_and_gives_the_vectors_of_python(trained: pathlib.Path) -> None:
    opened = restore.open_run(str(trained / "run"))
    folder = saved_model.export_saved_model(opened, str(trained / "export"))
    model = tf.saved_model.load(folder)
    texts = ["the cat", "", "a dog sat on the mat and read the book in the new house"]
    expected = bert_tf.load(str(trained / "run")).embed(texts, max_seq_length=12)
    for name in ("embed", "serving_default"):
        outputs = model.signatures[name](text=tf.constant(texts))
        assert outputs.keys() == {"embedding"}
        np.testing.assert_allclose(outputs["embedding"], expected, atol=1e-5)
    assert model.signatures["embed"](text=tf.constant([], tf.string))["embedding"].shape == (0, 32)
    card = json.loads((pathlib.Path(folder) / saved_model.MODEL_CARD).read_text())
    assert card["embedding"] == {"size": 32, "pooling": "mean", "normalized": True}
    asked = set()
    for name, inputs in answers_of(opened.task, "be exported").warmup_requests():
        model.signatures[name](**{key: tf.constant(value) for key, value in inputs.items()})
        asked.add(name)
    assert asked == {"embed", "serving_default", "ids"}


def test_any_checkpoint_can_be_exported(tmp_path: pathlib.Path) -> None:
    task = {"pooling": "cls", "normalize": False}
    run = pair_run(tmp_path, task={"name": "dual_encoder"} | task, data={"train": "", "dev": ""})
    opened = restore.open_checkpoint(run)
    model = saved_model.float32_model(opened)
    embed = answers_of(opened.task, "be exported").signatures(model)["embed"]
    texts = ["the cat", "a new book"]
    expected = bert_tf.load(str(CHECKPOINT)).embed(texts, **task)  # type: ignore[arg-type]
    np.testing.assert_allclose(embed(tf.constant(texts))["embedding"], expected, atol=1e-5)


def test_predictions_are_cosines(trained: pathlib.Path) -> None:
    opened = restore.open_run(str(trained / "run"))
    answers = answers_of(opened.task, "label a file")
    examples = answers.examples("test")
    outputs = Evaluator(opened.run, on_cpu(), opened.task, opened.model).predict(examples)
    files = answers.files("test", examples, outputs)
    lines = [json.loads(line)["cosine"] for line in files["predictions.jsonl"]]
    assert len(lines) == 32
    np.testing.assert_allclose(lines, outputs["cosine"], atol=1e-6)
    assert -1.0 <= min(lines) < max(lines) <= 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"pooling": "none"}}, "task.pooling='none' must be one of mean, max, cls"),
        ({"task": {"scale": 0.0}}, "task.scale=0.0 must be above 0"),
        ({"task": {"glue": "sst2"}}, "task.glue='sst2' has no pairs with scores"),
        ({"data": {"max_seq_length": 2}}, "max_seq_length=2 leaves no room"),
        ({"data": {"max_seq_length": 41}}, "exceeds the position table"),
        ({"data": {"text_b": ""}}, "text_b is empty: a dual encoder learns from pairs"),
        ({"data": {"negative": "nothing"}}, r"no column 'nothing' \(config.data.negative\)"),
        ({"train": {"accumulation": 2}}, "train.accumulation=2 must be 1: the negatives"),
        ({"data": {"label": "score"}}, r"no column 'score' \(config.data.label\)"),
        ({"task": {"min_score": 4.0}}, r"has no scores, which config.task.min_score=4 needs"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, changes: dict[str, Any], message: str) -> None:
    changes["task"] = {"name": "dual_encoder"} | changes.get("task", {})
    run = pair_run(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        read_everything(run)


def read_everything(run: RunConfig) -> None:
    task, _ = restore.new_task(run)
    task.training_data()
    task.examples("dev")
