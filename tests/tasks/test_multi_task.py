"""Several tasks on one encoder: which step is of which, what it moves, and what is answered."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from bert_tf import restore, run_folder
from bert_tf.checkpoints import read_pretrained
from bert_tf.config import BertConfig, DataConfig, RunConfig
from bert_tf.data.mixture import MARK, SeveralExamples, draw_tasks, step_shares, task_of
from bert_tf.distribution import Accelerator, cpu_strategy
from bert_tf.encoder import variables_by_name
from bert_tf.export import saved_model
from bert_tf.layouts import PaddedLayout
from bert_tf.run_folder import start
from bert_tf.tasks import answers_of
from bert_tf.tasks.multi_task import MultiTask, check_settings
from bert_tf.tasks.question_answering import QuestionAnsweringTask
from bert_tf.training import make_train_steps
from tests.tasks.test_tagging import columns, sentences
from tests.test_scripts import HERE, ok, run_script, write_recipe
from tests.test_training import final_tensors
from tests.tiny_run import on_cpu, run_tiny, tiny_run, write_reviews

# ml_collections loads recipes with it on every Python before 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

SIZES = {"names": 60, "reviews": 96}
STILL = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def parts_of(folder: pathlib.Path, dropout: float = 0.1) -> dict[str, dict[str, Any]]:
    """Names of people at layer 1 of 2 with the shortcut, and reviews at the top."""
    if not (folder / "train.conll").exists():
        write_reviews(folder, train=SIZES["reviews"])
        for seed, (name, count) in enumerate([("train", SIZES["names"]), ("dev", 9), ("test", 9)]):
            (folder / f"{name}.conll").write_text(columns(sentences(seed, count)))
    splits = ("train", "dev", "test")
    return {
        "reviews": {
            "data": {name: str(folder / f"{name}.jsonl") for name in splits}
            | {"max_seq_length": 24},
            "task": {"dropout": dropout},
        },
        "names": {
            "data": {name: str(folder / f"{name}.conll") for name in splits}
            | {"max_seq_length": 32},
            "task": {"name": "tagging", "dropout": dropout},
            "layer": 1,
            "shortcut": True,
            "loss_weight": 0.5,
        },
    }


def several(folder: pathlib.Path, dropout: float = 0.1, **changes: Any) -> RunConfig:
    """A run of both; `changes` are fields by section, or whole sections."""
    values = tiny_run(folder, model={"num_layers": 2}).to_dict()
    values |= {"task": {"name": "multi_task"}, "tasks": parts_of(folder, dropout)}
    for section, fields in changes.items():
        values[section] = values[section] | fields
    if not dropout:
        values["model"] |= STILL
    return RunConfig.from_dict(values)


def lines_of(path: pathlib.Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def opened_task(run: RunConfig) -> MultiTask:
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    return MultiTask.from_data(run, pretrained.config, pretrained.tokenizer)


@dataclasses.dataclass(frozen=True)
class Trained:
    folder: pathlib.Path
    run: RunConfig
    metrics: dict[str, float]

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / "run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("several")
    train = {"steps": 120, "save_every": 55, "log_every": 40}
    draws = {"steps_per_draw": 3}
    optimizer = {"learning_rate": 3e-3}
    # HERE: where the processor has bfloat16, scripts would else compute in it, unlike this process.
    run = several(folder, 0.0, train=train, multi_task=draws, optimizer=optimizer, runtime=HERE)
    return Trained(folder, run, run_tiny(run, folder / "run"))


# --------------------------------------------------------------------- which step is of which task


@pytest.mark.parametrize(
    ("sampling", "shares", "expected"),
    [
        ("size", {}, [0.1, 0.9]),
        ("square_root", {}, [0.25, 0.75]),
        ("shares", {"a": 3.0, "b": 1.0}, [0.75, 0.25]),
    ],
)
def test_tasks_are_drawn_in_proportion(
    sampling: str, shares: dict[str, float], expected: list[float]
) -> None:
    parts = {name: {"share": shares.get(name, 0.0)} for name in "ab"}
    run = RunConfig.from_dict(
        {"task": {"name": "multi_task"}, "multi_task": {"sampling": sampling}, "tasks": parts}
    )
    found = step_shares(run, {"a": 1_000, "b": 9_000})
    assert list(found.values()) == pytest.approx(expected)
    drawn = collections.Counter(draw_tasks(found, seed=3, steps=40_000, steps_per_draw=1))
    # Four standard deviations of a binomial of this size are 1%.
    assert drawn["a"] / 40_000 == pytest.approx(expected[0], abs=0.01)


def test_draws_depend_on_seed_and_step_alone() -> None:
    shares = {"a": 0.2, "b": 0.5, "c": 0.3}
    drawn = draw_tasks(shares, 1, 1000, 1)
    assert draw_tasks(shares, 1, 300, 1) == drawn[:300]
    assert draw_tasks(shares, 2, 1000, 1) != drawn
    blocks = draw_tasks(shares, 1, 2995, 3)
    assert blocks[::3] == drawn[:999]
    assert all(len({*blocks[n : n + 3]}) == 1 for n in range(0, 2995, 3))


def test_batches_are_those_of_each_task_alone_wherever_they_begin(tmp_path: pathlib.Path) -> None:
    """With static widths, as on TPU: a batch's task and width are part of its type."""
    run = several(tmp_path)
    examples = opened_task(run).training_data()
    accelerator = Accelerator("tpu", cpu_strategy(1), "float32")
    steps = 26

    def batches_from(first: int, most: int) -> list[tuple[str, np.ndarray]]:
        feed, found = examples.feed(run, first, steps, accelerator), []
        while len(found) < steps - first:
            iterator, count = feed.next(min(most, steps - first - len(found)))
            assert 1 <= count <= most
            specs = iterator.element_spec
            assert all(spec.shape.is_fully_defined() for spec in specs.values())
            for batch in itertools.islice(iterator, count):
                found.append((task_of(specs), batch["token_ids"].numpy()))
        return found

    whole = batches_from(0, 50)
    shares = step_shares(run, {name: len(part) for name, part in examples.parts.items()})
    assert [name for name, _ in whole] == draw_tasks(shares, run.train.seed, steps, 1)
    assert {name for name, _ in whole} == {"names", "reviews"}
    for (name, rows), (again, same) in zip(whole[11:], batches_from(11, 3), strict=True):
        assert name == again
        assert np.array_equal(rows, same)
    for name, part in examples.parts.items():
        own = [rows for of, rows in whole if of == name]
        alone = part.feed(run.part(name), 0, len(own), on_cpu())
        iterator, count = alone.next(len(own))
        assert count == len(own)
        for rows, batch in zip(own, iterator, strict=True):
            width = batch["token_ids"].shape[1]
            assert np.array_equal(rows[:, :width], batch["token_ids"])
            assert not rows[:, width:].any()


def test_a_task_without_a_step_is_refused(tmp_path: pathlib.Path) -> None:
    parts = parts_of(tmp_path)
    parts["names"]["share"], parts["reviews"]["share"] = 1e-9, 1.0
    run = several(tmp_path, multi_task={"sampling": "shares"}, tasks=parts)
    examples = opened_task(run).training_data()
    with pytest.raises(ValueError, match=r"'names'.* is in none of the 12 steps: train longer"):
        examples.feed(run, 0, 12, on_cpu())


# ---------------------------------------------------------------------------------- what is learnt


def test_it_learns_all_tasks_and_measures_each(trained: Trained) -> None:
    metrics = trained.metrics
    assert metrics["reviews/accuracy"] > 0.8
    assert metrics["names/f1"] > 0.25
    assert metrics["average"] == pytest.approx(
        (metrics["reviews/accuracy"] + metrics["names/f1"]) / 2
    )
    assert metrics["loss"] == pytest.approx(metrics["reviews/loss"] + 0.5 * metrics["names/loss"])
    lines = lines_of(trained.workdir / "metrics.jsonl")
    for name in ("names/loss", "reviews/loss"):
        assert lines[2][name] < 0.7 * lines[0][name]
    assert "eval/names/recall" in lines[-1]


def test_a_step_moves_what_its_task_uses_and_nothing_else(tmp_path: pathlib.Path) -> None:
    now = {"warmup_proportion": 0.0, "weight_decay": 0.1}
    run = several(tmp_path, optimizer=now, train={"accumulation": 2})
    task, accelerator = opened_task(run), on_cpu()
    state = start(run, str(tmp_path), accelerator, task, read_pretrained(run.model), 12)
    train_steps = make_train_steps(run, accelerator, task, state.model, state.optimizer)
    layers = {"names": ("layer_0/",), "reviews": ("layer_0/", "layer_1/", "pooler/")}
    slots = {"adam_m", "adam_v", "uses"}
    for name, part in task.training_data().parts.items():
        before = state.tensors()
        iterator, _ = part.feed(run.part(name), 0, 2, accelerator).next(2)
        train_steps(iterator, tf.constant(2))
        after = state.tensors()
        own = (f"{name}/", "bert/embeddings/", *layers[name])
        for key, value in before.items():
            moved = not np.array_equal(value, after[key])
            used = any(f"/{place}" in f"/{key}" for place in own)
            assert moved == (used or key == "global_step"), f"{name}: {key}"
    moved_by_both, by_one = "bert/embeddings/LayerNorm/beta", "names/output_bias"
    assert (after[f"{moved_by_both}/uses"], after[f"{by_one}/uses"]) == (4, 2)
    assert {key.rpartition("/")[2] for key in after if key.startswith("names/")} == {
        "output_weights", "output_bias", *slots,
    }  # fmt: skip


def test_stopped_and_continued_it_ends_with_the_same_bits(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    """From step 110, inside of three steps of one task."""
    again = tmp_path / "run"
    shutil.copytree(trained.workdir, again)
    for part in ("best", "checkpoints/step-00000120"):
        shutil.rmtree(again / part)
    assert run_tiny(trained.run, again) == trained.metrics
    whole, continued = final_tensors(trained.workdir), final_tensors(again)
    assert whole.keys() == continued.keys()
    for name, value in whole.items():
        assert np.array_equal(value, continued[name]), name
    texts = [(folder / "metrics.jsonl").read_text() for folder in (trained.workdir, again)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_replicas_and_accumulation_give_the_same_update(tmp_path: pathlib.Path) -> None:
    rates = {"name": "sgd", "learning_rate": 0.05, "warmup_proportion": 0.0}
    found = []
    for replicas, accumulation in ((1, 1), (2, 2)):
        train = {"steps": 4, "accumulation": accumulation}
        run = several(tmp_path, 0.0, optimizer=rates, train=train)
        workdir = tmp_path / f"run-{replicas}"
        run_tiny(run, workdir, replicas)
        found.append(final_tensors(workdir))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_one_task_of_a_kind_is_what_it_is_alone(tmp_path: pathlib.Path) -> None:
    parts = parts_of(tmp_path)
    run = several(tmp_path)
    short = dataclasses.replace(run.train, steps=5, log_every=1)
    run = dataclasses.replace(run, train=short, tasks={"reviews": run.tasks["reviews"]})
    plain = tiny_run(tmp_path, model={"num_layers": 2}, data=parts["reviews"]["data"])
    plain = dataclasses.replace(plain, train=short)
    metrics, alone = run_tiny(run, tmp_path / "run"), run_tiny(plain, tmp_path / "plain")
    assert {name: metrics[f"reviews/{name}"] for name in ("accuracy", "loss")} == {
        name: alone[name] for name in ("accuracy", "loss")
    }
    tensors, expected = final_tensors(tmp_path / "run"), final_tensors(tmp_path / "plain")
    for name, value in expected.items():
        own = name if name in tensors else f"reviews/{name}"
        assert np.array_equal(tensors[own], value), name
    losses = [
        [line.get("loss") for line in lines_of(tmp_path / name / "metrics.jsonl")]
        for name in ("run", "plain")
    ]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------ what is read


def test_heads_read_their_layers(tmp_path: pathlib.Path) -> None:
    """By hand, from the outputs of the shared encoder."""
    parts = parts_of(tmp_path)
    parts["low"] = parts["reviews"] | {"layer": 1, "shortcut": True}
    parts["tags"] = parts["names"] | {"layer": 2, "shortcut": False}
    run = several(tmp_path, tasks=parts)
    task = opened_task(run)
    model: Any = task.build_model(PaddedLayout)
    weights = variables_by_name(model)
    for name, variable in weights.items():
        if "output" in name or "pooler" in name:
            variable.assign(
                keras.initializers.RandomNormal(stddev=1.0, seed=len(name))(variable.shape)
            )
    mask = tf.constant([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ids = tf.constant([[2, 30, 31, 32, 3], [2, 40, 3, 0, 0]])
    features = {"token_ids": ids, "segment_ids": ids * 0, "mask": mask}
    output = model.encoder(**features)
    below, embeddings = output.layers[0], output.embeddings  # [B, S, H]

    def linear(name: str, vectors: tf.Tensor) -> np.ndarray:
        kernel, bias = weights[f"{name}/output_weights"], weights[f"{name}/output_bias"]
        return (tf.matmul(vectors, kernel, transpose_b=True) + bias).numpy()

    kernel, bias = weights["low/pooler/dense/kernel"], weights["low/pooler/dense/bias"]
    pooled = tf.tanh(below[:, 0] @ kernel + bias)
    mean = tf.stack([tf.reduce_mean(embeddings[0], 0), tf.reduce_mean(embeddings[1, :3], 0)])
    expected = {
        "reviews": linear("reviews", output.pooled),
        "low": linear("low", tf.concat([pooled, mean], axis=-1)),
        "names": linear("names", tf.concat([below, embeddings], axis=-1)),
        "tags": linear("tags", output.sequence),
    }
    for name, logits in expected.items():
        assert np.ptp(logits) > 0.5
        np.testing.assert_allclose(model.parts[name](features), logits, atol=1e-5, err_msg=name)
        batch = features | {MARK + name: ids[:, 0], "first_pieces": ids[:, :1] * 0 + 1}
        found = task.predict(model, batch)["logits"]
        np.testing.assert_allclose(found, logits[:, 1:2] if logits.ndim == 3 else logits, atol=1e-5)


def test_a_pooler_that_nobody_reads_is_no_weight(tmp_path: pathlib.Path) -> None:
    parts = {"names": parts_of(tmp_path)["names"]}
    run = several(tmp_path)
    run = dataclasses.replace(run, tasks=several(tmp_path, tasks=parts).tasks)
    run = dataclasses.replace(run, tasks={"names": run.tasks["names"]})
    names = variables_by_name(opened_task(run).build_model())
    assert not [name for name in names if "pooler" in name]


# ---------------------------------------------------------------------------------------- answers


def test_each_signature_answers_as_predict_answers(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    workdir, flag = str(trained.workdir), f"--workdir={trained.workdir}"
    ok(run_script("predict", flag, f"--output={tmp_path}", "--accelerator=cpu"))
    found = {name: lines_of(tmp_path / name / "predictions.jsonl") for name in ("reviews", "names")}
    opened = restore.open_run(workdir)
    folder = saved_model.export_saved_model(opened, str(tmp_path / "export"))
    served = tf.saved_model.load(folder)
    assert set(served.signatures) == {"reviews", "reviews_ids", "names", "names_ids"}
    texts = [line["text"] for line in lines_of(trained.folder / "test.jsonl")]
    outputs = served.signatures["reviews"](text=tf.constant(texts))
    expected = [[*line["probabilities"].values()] for line in found["reviews"]]
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)
    assert [label.decode() for label in outputs["label"].numpy()] == [
        line["label"] for line in found["reviews"]
    ]
    texts = [line["text"] for line in found["names"]]
    outputs = served.signatures["names"](text=tf.constant(texts))
    for row, line in enumerate(found["names"]):
        labels = [word["label"] for word in line["words"]]
        assert [name.decode() for name in outputs["labels"][row].numpy()][: len(labels)] == labels
    tokens = opened.task.tokenizer.pack(opened.task.tokenizer(texts), max_seq_length=32)
    ids = tokens.token_ids.to_tensor()
    features = {"token_ids": ids, "segment_ids": ids * 0, "mask": tf.cast(ids > 0, tf.int32)}
    pieces = served.signatures["names_ids"](**features)["logits"]
    logits = opened.model.parts["names"](features)  # type: ignore[attr-defined]
    real = features["mask"].numpy() > 0
    np.testing.assert_allclose(pieces.numpy()[real], logits.numpy()[real], atol=1e-5)
    card = json.loads((pathlib.Path(folder) / saved_model.MODEL_CARD).read_text())
    assert (card["tasks"]["names"]["layer"], card["tasks"]["reviews"]["layer"]) == (1, 2)
    assert card["max_seq_length"] == 32
    for name, inputs in answers_of(opened.task, "be exported").warmup_requests():
        if name.endswith("_ids"):
            continue  # of the same graphs as alone
        assert name in served.signatures
        assert set(inputs) == {"text"}


def test_one_task_of_the_run(trained: Trained, tmp_path: pathlib.Path) -> None:
    flag = f"--workdir={trained.workdir}"
    printed = ok(run_script("evaluate", flag, "--task=names")).stdout
    assert f"f1: {trained.metrics['names/f1']:.4f}" in printed
    assert (trained.workdir / "eval_dev_names.json").exists()
    own = f"--input={trained.folder / 'dev.jsonl'}"
    output = f"--output={tmp_path}"
    ok(run_script("predict", flag, own, output, "--task=reviews"))
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 22
    outcome = run_script("predict", flag, output, own)
    assert outcome.code == 1
    assert "is for one of the tasks names, reviews; say for which with --task=" in outcome.stderr
    opened = restore.open_run(str(trained.workdir))
    with pytest.raises(ValueError, match="--task=tags is no task of this run; it has names, rev"):
        restore.narrow(opened, "tags")
    with pytest.raises(ValueError, match="this run is of one task alone"):
        restore.narrow(restore.narrow(opened, "names"), "names")


def test_best_of_several_seeds_brings_the_files_of_its_tasks(
    trained: Trained, tmp_path: pathlib.Path
) -> None:
    run_folder.copy_for_serving(str(trained.workdir), str(tmp_path))
    task: Any = restore.open_run(str(tmp_path)).task
    assert task.parts["reviews"].labels.names == ("bad", "good")


def test_what_a_task_tuned_comes_back_with_it(tmp_path: pathlib.Path) -> None:
    tasks = {"squad": {"task": {"name": "question_answering", "no_answer": True}}}
    run = RunConfig.from_dict({"task": {"name": "multi_task"}, "tasks": tasks})
    part = QuestionAnsweringTask(run.part("squad"), None, None)  # type: ignore[arg-type]
    task = MultiTask(run, None, None, {"squad": part})  # type: ignore[arg-type]
    tuned = restore.with_tuned(task, {"average": 0.5, "squad/no_answer_threshold": 1.5})
    assert tuned.parts["squad"].no_answer_threshold == 1.5  # type: ignore[attr-defined]


def test_examples_without_labels_are_not_measured(trained: Trained) -> None:
    opened = restore.open_run(str(trained.workdir))
    empty = {name: np.zeros([0]) for name in ("names/logits", "names/loss", "reviews/logits")}
    examples = opened.task.examples("dev")
    assert isinstance(examples, SeveralExamples)
    assert len(examples) == sum(map(len, examples.parts.values()))
    names, parts = opened.task.parts, {"reviews": opened.task.parts["reviews"]}  # type: ignore[attr-defined]
    assert set(names) == {"names", "reviews"}
    task = dataclasses.replace(opened.task, parts=parts)
    with pytest.raises(ValueError, match="examples of the task 'reviews' have no labels"):
        task.metrics(empty, examples)


# ------------------------------------------------------------------------------------ bad settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names.layer": 3}, r"config\.tasks\.names\.layer=3 must be from 1 to 2, the layers"),
        ({"names.layer": -1}, r"layer=-1 must be"),
        ({"names.task.name": "pretraining"}, "'pretraining' cannot be learnt with others"),
        ({"names.task.name": "multi_task"}, "'multi_task' cannot be learnt with others"),
        ({"names.task.feature_layers": 1}, "feature_layers=1 reads an encoder that does not"),
        ({"names.loss_weight": 0.0}, "loss_weight=0.0 must be above 0"),
        ({"names.share": 0.5}, r"share=0.5 has no effect with .*sampling=size"),
        (
            {"names.share": 0.5, "sampling": "shares"},
            r"tasks\.reviews\.share=0.0, but with .* each",
        ),
        ({"sampling": "even"}, "'even' must be one of size, square_root, shares"),
        ({"steps_per_draw": 0}, "steps_per_draw=0 must be at least 1"),
        ({"names.laye": 3}, r"config\.tasks\.names\.laye does not exist. Did you mean 'layer'"),
        ({"names.layer": "top"}, r"config\.tasks\.names\.layer='top' must be int"),
        ({"names.data.trian": ""}, r"config\.tasks\.names\.data\.trian does not exist"),
        ({"bert": {}}, "'bert' in config.tasks cannot name a task"),
        ({"two words": {}}, "'two words' in config.tasks cannot name a task"),
        ({"names_ids": {}}, "'names_ids' is the name of a signature of the task 'names'"),
    ],
)
def test_settings_that_cannot_work(changes: dict[str, Any], message: str) -> None:
    tasks = {"names": {"task": {"name": "tagging"}, "layer": 1}, "reviews": {}}
    run = RunConfig.from_dict({"task": {"name": "multi_task"}, "tasks": tasks})
    values = run.to_dict()
    for key, value in changes.items():
        *path, last = key.split(".")
        place = values["multi_task"] if key in values["multi_task"] else values["tasks"]
        for name in path:
            place = place[name]
        place[last] = value
    with pytest.raises(ValueError, match=message):
        check_settings(RunConfig.from_dict(values), BertConfig(9, num_hidden_layers=2))


def test_errors_of_a_task_say_which(tmp_path: pathlib.Path) -> None:
    run = several(tmp_path)
    names = dataclasses.replace(
        run.tasks["names"], data=DataConfig(train="absent.conll", max_seq_length=32)
    )
    run = dataclasses.replace(run, tasks=run.tasks | {"names": names})
    with pytest.raises(ValueError, match=r"task 'names' \(.*config\.tasks\.names\.\*\): .*absent"):
        opened_task(run)


def test_tasks_and_the_name_of_the_task_go_together() -> None:
    for values in ({"task": {"name": "multi_task"}}, {"tasks": {"a": {}}}):
        with pytest.raises(ValueError, match="do not go together"):
            RunConfig.from_dict(values)


def test_fields_of_a_task_on_the_command_line(tmp_path: pathlib.Path) -> None:
    run = several(tmp_path, runtime=HERE)
    flags = (write_recipe(tmp_path, run), f"--workdir={tmp_path / 'run'}")
    for field, message in (
        ("tasks.others.layer=1", "config.tasks.others is no task of the recipe"),
        ("tasks.names.lair=1", "no field of a run. Did you mean config.tasks.names.layer?"),
        ("tasks.names=1", "config.tasks.names is no field of a run"),
        ("tasks.names.layer=7", "config.tasks.names.layer=7 must be from 1 to 2"),
    ):
        outcome = run_script("train", *flags, f"--config.{field}")
        assert outcome.code == 1
        assert message in outcome.stderr
