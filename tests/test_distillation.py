"""Distillation: the loss, the teacher's logits and their cache, whole runs, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import string
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import distillation, restore, run_folder, runner
from bert_tf import teacher as teachers
from bert_tf.checkpoints import read_pretrained
from bert_tf.config import BertConfig, DistillationConfig, RunConfig
from bert_tf.distillation import DistilledClassification, DistilledTagging, soft_losses
from bert_tf.distribution import Accelerator
from bert_tf.encoder import variables_by_name
from bert_tf.run_folder import Progress
from bert_tf.tasks import TASKS, answers_of
from bert_tf.tasks.classification import ClassificationTask, Labels
from bert_tf.tasks.tagging import TaggingTask, Tags
from bert_tf.tokenization import Tokenizer
from bert_tf.training import Evaluator
from tests.tiny_run import on_cpu, tiny_run

# The teachers' vocabulary: they spell every word, and the student does not.
LETTERS = string.ascii_lowercase + string.digits
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *("##" + c for c in LETTERS)]
CONFIG = BertConfig(
    vocab_size=len(PIECES),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=48,
)
UNLABELLED = ["the happy cat", "a blue house was old", "red", "dog ran on the mat"] * 3
TAGGED = "the\tO\nhappy\tB-person\n\u200b\tO\nmat\tO\n\nold\tB-place\nnew\tI-place\ncat\tO\n\n"
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


# ------------------------------------------------------------------------------------- the teachers


def spelling(folder: pathlib.Path) -> Tokenizer:
    path = folder / "letters.txt"
    path.write_text("\n".join(PIECES) + "\n")
    return Tokenizer(str(path))


def save_teacher(folder: pathlib.Path, task: Any) -> str:
    """A run folder as training leaves it, with random weights."""
    workdir = str(folder)
    run_folder.prepare(workdir, task.run)
    run_folder.save_assets(workdir, task)
    random = np.random.default_rng(5)
    weights = {
        name: random.normal(float(name.endswith("gamma")), 0.3, variable.shape).astype(np.float32)
        for name, variable in variables_by_name(task.build_model()).items()
    }
    run_folder.write_step(f"{workdir}/best", Progress(step=9), weights, keep=1)
    return workdir


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Classifies reviews; its labels stand in another order than the student's."""
    folder = tmp_path_factory.mktemp("teacher")
    run = tiny_run(folder, data={"max_seq_length": 40})
    labels = Labels("class", ("good", "bad"))
    return save_teacher(folder / "run", ClassificationTask(run, CONFIG, spelling(folder), labels))


def student_run(folder: pathlib.Path, teacher: str, **changes: Any) -> RunConfig:
    unlabelled = folder / "unlabelled.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    # Whatever stands in a column of labels is not looked at.
    lines = [{"text": text, "label": None} for text in UNLABELLED[:2]]
    lines += [{"text": text} for text in UNLABELLED[2:]]
    unlabelled.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values: dict[str, Any] = {
        "model": {"num_layers": 1},
        "optimizer": {"learning_rate": 5e-3},
        "train": {"steps": 8, "save_every": 4, "log_every": 2},
        "distillation": {
            "teacher": teacher,
            "temperature": 2.0,
            "alpha": 0.7,
            "unlabelled": str(unlabelled),
        },
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return tiny_run(folder, **values)


def student_of(run: RunConfig, home: pathlib.Path, replicas: int = 1) -> Any:
    """The task of the student, with its teacher."""
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    task = TASKS[run.task.name].from_data(run, pretrained.config, pretrained.tokenizer)
    return distillation.with_teacher(task, str(home), on_cpu(replicas))


# ----------------------------------------------------------------------------------------- the loss


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def expected_losses(
    kind: str, student: np.ndarray, teacher: np.ndarray, temperature: float
) -> np.ndarray:
    """`soft_losses`, one example and one class after the other."""
    losses = []
    for row, taught in zip(student, teacher, strict=True):
        if kind == "regression":
            losses.append((row[0] - taught[0]) ** 2)
            continue
        if kind == "class":
            pairs = [(softmax(taught / temperature), softmax(row / temperature))]
        else:
            ours, theirs = (1 / (1 + np.exp(-each / temperature)) for each in (row, taught))
            pairs = [((p, 1 - p), (q, 1 - q)) for p, q in zip(theirs, ours, strict=True)]
        total = 0.0
        for shares, others in pairs:
            total += sum(p * np.log(p / q) for p, q in zip(shares, others, strict=True))
        losses.append(temperature**2 * total / len(pairs))
    return np.array(losses)


@pytest.mark.parametrize("temperature", [1.0, 3.5])
@pytest.mark.parametrize("kind", ["class", "multilabel", "regression"])
def test_soft_losses_are_those_of_numpy(kind: str, temperature: float) -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(0.0, 2.0, [2, 6, 1 if kind == "regression" else 3])
    found = soft_losses(kind, *map(tf.constant, (student, teacher)), temperature)
    np.testing.assert_allclose(found, expected_losses(kind, student, teacher, temperature))
    same = soft_losses(kind, *map(tf.constant, (teacher, teacher)), temperature)
    np.testing.assert_allclose(same, np.zeros(6), atol=1e-12)


def parts_of(task: Any, logits: np.ndarray, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Sums and weights of the terms: those of the whole batch and of its halves."""
    found = []
    for part in (slice(None), slice(0, 2), slice(2, None)):
        tensors = {name: tf.constant(values[part]) for name, values in batch.items()}
        given = tf.constant(logits[part])
        sums = task.term_sums(lambda *_, given=given, **__: given, tensors, tf.constant([1, 2]))
        found.append([sums.numpy(), task.term_weights(tensors).numpy()])
    return np.array(found)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_loss_mixes_teacher_and_labels(tmp_path: pathlib.Path, alpha: float) -> None:
    run = RunConfig(distillation=DistillationConfig("t", temperature=2.0, alpha=alpha))
    labels = Labels("class", ("a", "b", "c"))
    task = DistilledClassification(run, CONFIG, spelling(tmp_path), labels, None)  # type: ignore[arg-type]
    logits, taught = np.random.default_rng(2).normal(0.0, 2.0, [2, 5, 3]).astype(np.float32)
    batch = {
        "teacher": taught,
        "label": np.array([2, 0, 1, 0, 0], np.int32),
        "labelled": np.array([1.0, 1.0, 0.0, 0.0, 0.0], np.float32),
        "weight": np.array([1.0, 1.0, 1.0, 1.0, 0.0], np.float32),
    }
    whole, first, second = parts_of(task, logits, batch)
    soft = expected_losses("class", logits, taught, 2.0)[:4].sum()
    hard = -np.log(softmax(logits)[[0, 1], [2, 0]]).sum()
    np.testing.assert_allclose(whole[0], [alpha * soft, (1 - alpha) * hard], rtol=1e-5)
    np.testing.assert_array_equal(whole[1], [4.0, 2.0])
    np.testing.assert_allclose(first + second, whole, rtol=1e-6)
    assert task.terms == ("soft_loss", "hard_loss")


# --------------------------------------------------------------------------------------- whole runs


@dataclasses.dataclass(frozen=True)
class Distilled:
    run: RunConfig
    workdir: pathlib.Path
    metrics: dict[str, float]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory: pytest.TempPathFactory, teacher: str) -> Distilled:
    folder = tmp_path_factory.mktemp("student")
    run, workdir = student_run(folder, teacher), folder / "run"
    _, metrics = runner.train_once(run, str(workdir), on_cpu(), str(workdir))
    return Distilled(run, workdir, metrics)


def test_a_student_learns_from_a_teacher(distilled: Distilled, teacher: str) -> None:
    text = (distilled.workdir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps = [line for line in lines if "soft_loss" in line]
    assert [line["step"] for line in steps] == [2, 4, 6, 8]
    for line in steps:
        # Both are means over two steps, of all and of labelled examples.
        assert line["loss"] == pytest.approx(line["soft_loss"] + line["hard_loss"], rel=0.05)
    assert steps[-1]["soft_loss"] < 0.8 * steps[0]["soft_loss"]
    opened = restore.open_run(str(distilled.workdir))
    assert type(opened.task) is ClassificationTask
    assert opened.task.config.num_hidden_layers == 1
    (path,) = (distilled.workdir / "teacher").glob("*.npy")
    cached = np.load(path)
    assert cached.shape == (96 + len(UNLABELLED), 2)
    there = restore.open_run(teacher)
    tokenizer: Any = there.task.tokenizer
    pieces = tokenizer.pack(tokenizer(tf.constant(UNLABELLED[:2])), None, 40).token_ids
    features = {
        "token_ids": pieces.to_tensor(),
        "segment_ids": tf.zeros_like(pieces.to_tensor()),
        "mask": tf.ones_like(pieces).to_tensor(),
    }
    np.testing.assert_allclose(cached[96:98], there.model(features), atol=1e-5)


def test_a_run_that_goes_on_does_not_ask_the_teacher_again(
    distilled: Distilled, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, last = tmp_path / "run", "checkpoints/step-00000008"
    shutil.copytree(distilled.workdir, stopped)
    shutil.rmtree(stopped / "best")
    shutil.rmtree(stopped / last)

    def unwanted(*_: Any) -> None:
        raise AssertionError("the teacher was opened")

    monkeypatch.setattr(restore, "open_run", unwanted)
    _, again = runner.train_once(distilled.run, str(stopped), on_cpu(), str(stopped))
    assert again == distilled.metrics
    for name in (f"{last}/model.ckpt.data-00000-of-00001", "metrics.jsonl"):
        assert (stopped / name).read_bytes() == (distilled.workdir / name).read_bytes()


@pytest.mark.slow  # every replica is traced
def test_two_replicas_make_the_steps_of_one(tmp_path: pathlib.Path, teacher: str) -> None:
    run = student_run(
        tmp_path,
        teacher,
        model=NO_DROPOUT,
        task={"dropout": 0.0},
        optimizer={"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0},
        train={"steps": 3},
        distillation={"cache": str(tmp_path / "cache")},
    )
    found = []
    for replicas in (1, 2):
        workdir = str(tmp_path / f"on-{replicas}")
        runner.train_once(run, workdir, on_cpu(replicas), workdir)
        path = f"{workdir}/checkpoints/step-00000003/model.ckpt"
        found.append(run_folder.read_tensors(path))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-6, err_msg=name)


# ---------------------------------------------------------------------------------------- the cache


def copied(distilled: Distilled, tmp_path: pathlib.Path) -> tuple[Any, pathlib.Path]:
    """The student with a teacher and a cache of its own, which may be changed."""
    run = distilled.run
    given = tmp_path / "teacher_run"
    shutil.copytree(run.distillation.teacher, given)
    shutil.copytree(distilled.workdir / "teacher", tmp_path / "cache")
    settings = dataclasses.replace(
        run.distillation, teacher=str(given), cache=str(tmp_path / "cache")
    )
    return student_of(dataclasses.replace(run, distillation=settings), tmp_path), given


@pytest.mark.parametrize("name", ["best/step-00000009/model.ckpt.data-00000-of-00001", "vocab.txt"])
def test_the_logits_of_a_teacher_that_has_changed_are_refused(
    distilled: Distilled, tmp_path: pathlib.Path, name: str
) -> None:
    student, given = copied(distilled, tmp_path)
    content = bytearray((given / name).read_bytes())
    content[len(content) // 2] ^= 1
    (given / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"cache holds logits for another teacher than .*_run"):
        student.training_data()


def test_the_logits_of_other_texts_are_refused(
    distilled: Distilled, tmp_path: pathlib.Path
) -> None:
    student, _ = copied(distilled, tmp_path)
    fewer = dataclasses.replace(student.run.distillation, unlabelled="")
    student = dataclasses.replace(student, run=dataclasses.replace(student.run, distillation=fewer))
    with pytest.raises(ValueError, match="holds logits for 108 other texts than the 96 of this"):
        student.training_data()


def test_workers_that_do_not_see_the_same_cache(
    distilled: Distilled, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = copied(distilled, tmp_path)
    monkeypatch.setattr(Accelerator, "numbers_of_workers", lambda self, count: [count, 1])
    with pytest.raises(ValueError, match=r"of 1 files of logits the workers lack 0, 1 in .*/cache"):
        student.training_data()


def test_a_damaged_file_of_logits_is_named(distilled: Distilled, tmp_path: pathlib.Path) -> None:
    student, _ = copied(distilled, tmp_path)
    (path,) = (tmp_path / "cache").glob("*.npy")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"logits-00000-of-00001\.npy cannot be read .*remove it"):
        student.training_data()


def test_other_rounding_of_the_teacher_is_no_other_data(
    distilled: Distilled, tmp_path: pathlib.Path
) -> None:
    student, _ = copied(distilled, tmp_path)
    before = student.training_data()
    (path,) = (tmp_path / "cache").glob("*.npy")
    np.save(path, np.load(path) * np.float32(1 + 1e-6))
    after = student.training_data()
    assert (before.targets["teacher"] != after.targets["teacher"]).any()
    assert after.fingerprint() == before.fingerprint()
    changed = dataclasses.replace(after, checksum="another teacher")
    assert changed.fingerprint() != before.fingerprint()


def test_a_pass_that_was_killed_goes_on(
    distilled: Distilled, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, _ = copied(distilled, tmp_path)
    whole = student.training_data()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(teachers, "TEXTS_PER_FILE", 40)
    read, asked = teachers.READERS["classification"], []

    def counted(task: Any, evaluator: Any, texts: Any) -> np.ndarray:
        asked.append(len(texts))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return read(task, evaluator, texts)

    monkeypatch.setitem(teachers.READERS, "classification", counted)
    with pytest.raises(KeyboardInterrupt):
        student.training_data()
    names = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert names == ["logits-00000-of-00003.npy", "teacher.json"]
    again = student.training_data()
    assert asked == [40, 40, 40, 28]
    np.testing.assert_allclose(again.targets["teacher"], whole.targets["teacher"], atol=1e-5)
    # The student's labels are sorted; the teacher's were not.
    cached = np.concatenate([np.load(path) for path in sorted((tmp_path / "cache").glob("*.npy"))])
    np.testing.assert_array_equal(again.targets["teacher"], cached[:, ::-1])
    np.testing.assert_array_equal(again.targets["labelled"], [1.0] * 96 + [0.0] * 12)


# ------------------------------------------------------------------------------------------ tagging


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tags words by their letters, in windows of 12 of them."""
    folder = tmp_path_factory.mktemp("tagger")
    run = tiny_run(folder, data={"max_seq_length": 14}, task={"name": "tagging"})
    tags = Tags(("B-place", "I-place", "O", "B-person", "I-person"), True, "O")
    return save_teacher(folder / "run", TaggingTask(run, CONFIG, spelling(folder), tags))


def tagging_student(folder: pathlib.Path, teacher: str, **task: Any) -> Any:
    (folder / "train.jsonl").touch()  # tiny_run then writes no reviews
    files = {name: folder / f"{name}.conll" for name in ("train", "dev", "more")}
    files["train"].write_text(TAGGED * 4)
    files["dev"].write_text(TAGGED)
    files["more"].write_text("the\nbook\nis\nnew\n\u200b\n")
    run = tiny_run(
        folder,
        data={"train": str(files["train"]), "dev": str(files["dev"]), "max_seq_length": 16},
        model={"num_layers": 1},
        task={"name": "tagging"} | task,
        train={"steps": 2, "global_batch_size": 4},
        distillation={"teacher": teacher, "alpha": 0.5, "unlabelled": str(files["more"])},
    )
    return student_of(run, folder)


def test_a_tagger_learns_word_by_word_from_another_vocabulary(
    tmp_path: pathlib.Path, tagger: str
) -> None:
    student = tagging_student(tmp_path, tagger)
    assert isinstance(student, DistilledTagging)
    examples = student.training_data()
    grid, known = examples.targets["teacher"], examples.targets["taught"] > 0
    assert len(examples) == 9
    assert known.sum() == 4 * 6 + 4, "all words but those that vanish"
    assert (examples.targets["word_labels"] > 0).sum() == 4 * 6, "more.conll has no tags"
    # The teacher itself, reading the file of words without tags.
    opened = restore.open_run(tagger)
    data = dataclasses.replace(opened.run.data, test=str(tmp_path / "more.conll"))
    task: Any = dataclasses.replace(  # type: ignore[type-var]
        opened.task, run=dataclasses.replace(opened.run, data=data)
    )
    answers = answers_of(task, "label a file")
    read = answers.examples("test")
    outputs = Evaluator(task.run, on_cpu(), task, opened.model).predict(read)
    (line,) = answers.files("test", read, outputs)["predictions.jsonl"]
    words = json.loads(line)["words"]
    shares = softmax(grid[8][known[8]])
    labels = [student.tags.names[number] for number in shares.argmax(axis=1)]
    assert [word["label"] for word in words] == [*labels, "O"]
    scores = [word["score"] for word in words]
    np.testing.assert_allclose(scores, [*shares.max(axis=1), 0.0], atol=1e-5)

    _, metrics = runner.train_once(student.run, str(tmp_path / "run"), on_cpu(), str(tmp_path))
    assert metrics["step"] == 2
    assert sorted(path.name for path in (tmp_path / "teacher").iterdir()) == [
        "logits-00000-of-00001.npy",
        "teacher.json",
    ]


def test_the_loss_of_a_tagger(tmp_path: pathlib.Path, tagger: str) -> None:
    """Words that only the teacher, or only the labels know, count in one of the terms."""
    student = tagging_student(tmp_path, tagger, split_words=True)
    logits = np.random.default_rng(4).normal(size=[3, 6, 5]).astype(np.float32)  # [B, S, C]
    taught = np.random.default_rng(5).normal(size=[3, 2, 5]).astype(np.float32)  # [B, W, C]
    batch = {
        "first_pieces": np.array([[1, 4], [2, 0], [3, 5]], np.int32),
        "word_labels": np.array([[1, 5], [0, 0], [2, 3]], np.int32),
        "taught": np.array([[1, 0], [1, 0], [1, 1]], np.float32),
        "teacher": taught,
        "weight": np.array([1.0, 1.0, 0.0], np.float32),
    }
    whole, first, second = parts_of(student, logits, batch)
    seen = np.array([logits[0, 1], logits[1, 2]])
    soft = expected_losses("class", seen, taught[:2, 0], 1.0).sum()
    hard = -np.log(softmax(logits[0, [1, 4]])[[0, 1], [0, 4]]).sum()
    np.testing.assert_allclose(whole[0], [0.5 * soft, 0.5 * hard], rtol=1e-5)
    np.testing.assert_array_equal(whole[1], [2.0, 2.0])
    np.testing.assert_allclose(first + second, whole, rtol=1e-6)


# ------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "nowhere"}, r"teacher='nowhere' is not the folder of a run \(it has no run"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be above 0"),
        ({"temperature": float("inf")}, "temperature=inf must be above 0"),
        ({"alpha": 1.5}, r"alpha=1\.5 must be from 0"),
        ({"alpha": -0.1}, r"alpha=-0\.1 must be from 0"),
        ({"teacher": ""}, "unlabelled='.*' needs a teacher"),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: pathlib.Path, teacher: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        student_of(student_run(tmp_path, teacher, distillation=settings), tmp_path)


def test_teachers_of_something_else_are_refused(
    tmp_path: pathlib.Path, teacher: str, tagger: str
) -> None:
    with pytest.raises(ValueError, match="is a run of the task 'tagging', the student of 'class"):
        student_of(student_run(tmp_path, tagger), tmp_path)
    (tmp_path / "others").mkdir()
    others = ClassificationTask(
        tiny_run(tmp_path), CONFIG, spelling(tmp_path), Labels("class", ("good", "poor"))
    )
    folder = save_teacher(tmp_path / "others", others)
    with pytest.raises(
        ValueError, match="answers class: 'good', 'poor'; but the student learns class: 'bad', 'go"
    ):
        student_of(student_run(tmp_path, folder), tmp_path)
    shutil.rmtree(pathlib.Path(folder) / "best")
    with pytest.raises(ValueError, match="holds no trained weights"):
        student_of(student_run(tmp_path, folder), tmp_path)
    run = student_run(tmp_path, teacher, task={"name": "multiple_choice"})
    with pytest.raises(ValueError, match="only classification and tagging learn from a teacher"):
        student_of(run, tmp_path)


def test_unlabelled_text_of_another_form_is_refused(tmp_path: pathlib.Path, teacher: str) -> None:
    run = student_run(tmp_path, teacher, distillation={"unlabelled": str(tmp_path / "no.jsonl")})
    with pytest.raises(ValueError, match=r"no\.jsonl is not a file"):
        student_of(run, tmp_path).training_data()
    (tmp_path / "no.jsonl").write_text('{"sentence": "the cat"}\n')
    with pytest.raises(ValueError, match=r"no\.jsonl has no column 'text'"):
        student_of(run, tmp_path).training_data()


def test_without_a_teacher_nothing_changes(tmp_path: pathlib.Path) -> None:
    task = student_of(tiny_run(tmp_path), tmp_path)
    assert type(task) is ClassificationTask
