from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from bert_tf import run_folder
from bert_tf.checkpoints import read_checkpoint, read_pretrained
from bert_tf.config import RunConfig
from bert_tf.conversion import write_hugging_face, write_tf1
from bert_tf.data.question_windows import tokenize_questions
from bert_tf.data.squad import Answer, Question, Questions
from bert_tf.distribution import Preempted
from bert_tf.encoder import variables_by_name
from bert_tf.restore import open_run
from bert_tf.tasks.answer_spans import IMPOSSIBLE, best_spans, find_answers
from bert_tf.tasks.question_answering import QuestionAnsweringTask, window_losses
from bert_tf.training import Evaluator
from tests.tiny_questions import tiny_question_run
from tests.tiny_run import CHECKPOINT, on_cpu, run_tiny

# ------------------------------------------------------------------------------------------- spans

LENGTHS = (12, 9, 3, 2)
OWN = ((3, 11), (4, 6), (2, 2), (0, 0))  # where answers may start
LONGEST, COUNT = 4, 6


def some_logits() -> np.ndarray:
    return np.random.default_rng(3).normal(size=[len(LENGTHS), 12, 2]).astype(np.float32)


def all_spans(logits: np.ndarray, window: int) -> list[tuple[float, int, int]]:
    """Every allowed span of a window, the likeliest first."""
    starts = range(*OWN[window])
    return sorted(
        (
            (float(logits[window, i, 0] + logits[window, j, 1]), i, j)
            for i in starts
            for j in range(i, min(i + LONGEST, LENGTHS[window] - 1))
        ),
        reverse=True,
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_best_spans_are_the_best_of_all_pairs(jit_compile: bool) -> None:
    logits = some_logits()
    batch = {
        "mask": tf.constant(np.arange(12) < np.array(LENGTHS)[:, None], tf.int32),
        "starts_from": tf.constant([first for first, _ in OWN]),
        "starts_to": tf.constant([last for _, last in OWN]),
    }
    function = tf.function(best_spans, jit_compile=jit_compile, autograph=False)
    found = {
        name: value.numpy()
        for name, value in function(tf.constant(logits), batch, LONGEST, COUNT).items()
    }
    np.testing.assert_array_equal(found["null_logits"], logits[:, 0])
    for window in range(len(LENGTHS)):
        expected = all_spans(logits, window)
        assert bool(expected) == (window < 2)
        for place, (score, start, end) in enumerate(expected[:COUNT]):
            assert found["span_start"][window, place] == start
            assert found["span_end"][window, place] == end
            assert found["span_score"][window, place] == pytest.approx(score, abs=1e-6)
            assert found["start_logit"][window, place] == logits[window, start, 0]
            assert found["end_logit"][window, place] == pytest.approx(
                logits[window, end, 1], abs=1e-6
            )
        assert (found["span_score"][window, len(expected) :] == IMPOSSIBLE).all()
        if expected:
            mass = np.log(np.sum(np.exp([score for score, _, _ in expected])))
            assert found["span_mass"][window] == pytest.approx(mass, abs=1e-5)


def test_losses_are_the_mean_of_both_ends() -> None:
    logits = some_logits()
    batch = {"start": tf.constant([3, 0, 1, 0]), "end": tf.constant([5, 0, 2, 0])}
    losses = window_losses(tf.constant(logits), batch).numpy()
    shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for window in range(len(LENGTHS)):
        start, end = batch["start"][window], batch["end"][window]
        expected = -(shares[window, start, 0] + shares[window, end, 1]) / 2
        assert losses[window] == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------------------------------- the task


def task_of(run: RunConfig) -> QuestionAnsweringTask:
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    return QuestionAnsweringTask.from_data(run, pretrained.config, pretrained.tokenizer)


def predicted(task: QuestionAnsweringTask, examples: Any) -> dict[str, np.ndarray]:
    model = task.build_model()
    for number, weight in enumerate(variables_by_name(model).values()):
        weight.assign_add(tf.random.stateless_normal(weight.shape, [number, 1], stddev=0.2))
    return Evaluator(task.run, on_cpu(), task, model).predict(examples)


ODD_TEXTS = [
    ("house", "the cat " * 40 + "house red"),
    ("", ""),
    ("house " * 50, ""),
    ("", "red"),
    ("\u00a0\u2022", "\u00a0\u2022 \u00a0"),  # BERT's issue 417: empty n-best lists
    ("\u200b", "\u200b\u200b"),
    ("house", "Red\u0301 ÜN-house \u200b🙂 un\u00adhappy"),
]


@pytest.mark.parametrize("no_answer", [False, True])
def test_answers_are_slices_and_probabilities_sum_up(
    tmp_path: pathlib.Path, no_answer: bool
) -> None:
    task = task_of(tiny_question_run(tmp_path, no_answer, task={"n_best": 400}))
    rows = [Question(str(n), *texts, None) for n, texts in enumerate(ODD_TEXTS)]
    examples = tokenize_questions(task.tokenizer, Questions(rows, "odd"), task.run.data)
    found = list(find_answers(predicted(task, examples), examples, 400, no_answer))
    assert len(found) == len(rows)
    for row, answer in zip(rows, found, strict=True):
        for span in answer.spans:
            assert span.text == row.context[span.start : span.end] != ""
            assert 0 < span.probability < 1 + 1e-6
        likeliest = [span.probability for span in answer.spans]
        assert likeliest == sorted(likeliest, reverse=True)
        assert len({span.text for span in answer.spans}) == len(answer.spans)
        assert answer.decided(None).text == answer.best_text
        assert answer.decided(-1e12).text == ""
        assert answer.null.probability == 0.0 or no_answer
    assert [bool(answer.spans) for answer in found] == [True, False, False, True, True, False, True]
    # Without repeated texts these are all the spans that there are.
    total = sum(span.probability for span in found[6].spans) + found[6].null.probability
    assert total == pytest.approx(1.0, abs=1e-5)
    assert found[1].null.probability == (1.0 if no_answer else 0.0)


def test_two_windows_answer_like_one_wide_one(tmp_path: pathlib.Path) -> None:
    """Joined by score, with offsets into the whole text, each span from one window alone."""
    task = task_of(tiny_question_run(tmp_path))
    context = " ".join(["cat", "dog"] * 10 + ["house", "red"])
    row = Question("1", "house", context, (Answer("red", context.index("red")),))
    examples = tokenize_questions(task.tokenizer, Questions([row], "one"), task.run.data)
    assert len(examples) == 2
    outputs = predicted(task, examples)
    (found,) = find_answers(outputs, examples, 5, no_answer=False)
    window = int(np.argmax(outputs["span_score"][:, 0]))
    piece = outputs["span_start"][window, 0] + examples.piece_shift[window]
    words = context.split()
    assert found.spans[0].start == len(" ".join([*words[:piece], ""]))
    assert found.null_odds == pytest.approx(
        outputs["null_logits"].sum(axis=1).min() - outputs["span_score"].max(), abs=1e-5
    )


def test_dev_files_without_any_answer_are_refused(tmp_path: pathlib.Path) -> None:
    run = tiny_question_run(tmp_path)
    path = pathlib.Path(run.data.dev)
    document = json.loads(path.read_text())
    for paragraph in document["data"][0]["paragraphs"]:
        paragraph["qas"][0]["answers"] = [{"text": "", "answer_start": 0}]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="none of 15 questions has an answer"):
        task_of(run).examples("dev")


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [("task", "n_best", 0), ("task", "max_answer_length", 0), ("data", "doc_stride", 0)],
)
def test_settings_that_cannot_work(
    tmp_path: pathlib.Path, section: str, field: str, value: int
) -> None:
    run = tiny_question_run(tmp_path, **{section: {field: value}})
    with pytest.raises(ValueError, match=f"config.{section}.{field}={value} must be at least 1"):
        task_of(run)


def test_a_word_of_100_000_letters_and_a_text_of_100_000_words(tmp_path: pathlib.Path) -> None:
    task = task_of(tiny_question_run(tmp_path, data={"doc_stride": 17}))
    context = "cat " * 50_000 + "x" * 100_000 + " dog" * 50_000
    rows = Questions([Question("1", "house", context, None)], "long")
    examples = tokenize_questions(task.tokenizer, rows, task.run.data)
    assert examples.piece_splits.tolist() == [0, 100_001]
    assert len(examples) == 1 + -(-(100_001 - 20) // 17)
    assert (examples.targets["starts_to"] - examples.targets["starts_from"]).sum() == 100_001


# --------------------------------------------------------------------------------------- whole runs


def test_it_learns_and_saves_its_threshold(tmp_path: pathlib.Path) -> None:
    run = tiny_question_run(tmp_path, no_answer=True, train={"steps": 30, "eval_every": 10})
    best = run_tiny(run, tmp_path / "run")
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert losses[-1] < 0.97 * losses[0]
    opened = open_run(str(tmp_path / "run"))
    assert isinstance(opened.task, QuestionAnsweringTask)
    assert opened.task.no_answer_threshold == best["no_answer_threshold"] != 0.0
    evaluator = Evaluator(run, on_cpu(), opened.task, opened.model)
    examples = opened.task.examples("dev")
    measured = opened.task.metrics(evaluator.predict(examples), examples)
    assert measured["f1"] == pytest.approx(best["best_f1"], rel=1e-12)
    assert measured["best_f1"] == best["best_f1"]
    assert measured["loss"] == pytest.approx(best["loss"], abs=1e-6)


@pytest.mark.slow  # tests/test_training.py has the loop
def test_a_run_that_was_stopped_ends_with_the_same_bits(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_question_run(tmp_path, train={"save_every": 4, "eval_every": 6})
    run_tiny(run, tmp_path / "whole")
    saved, count = run_folder.write_step, [0]

    def dies_after_the_first(folder: str, *arguments: Any, **named: Any) -> None:
        saved(folder, *arguments, **named)
        count[0] += 1
        if count[0] == 1:
            raise Preempted("killed")

    monkeypatch.setattr(run_folder, "write_step", dies_after_the_first)
    with pytest.raises(Preempted):
        run_tiny(run, tmp_path / "halves")
    run_tiny(run, tmp_path / "halves")
    whole, halves = (
        run_folder.read_tensors(str(tmp_path / name / "checkpoints/step-00000012/model.ckpt"))
        for name in ("whole", "halves")
    )
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, halves[name], err_msg=name)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


@pytest.mark.parametrize(
    "write", [write_tf1, pytest.param(write_hugging_face, marks=pytest.mark.slow)]
)
def test_heads_of_published_checkpoints_are_taken_over(tmp_path: pathlib.Path, write: Any) -> None:
    """`cls/squad/output_weights` of the original release, `qa_outputs.weight` of Hugging Face."""
    checkpoint = read_checkpoint(str(CHECKPOINT))
    head = {
        "cls/squad/output_weights": np.full([2, 32], 0.25, np.float32),
        "cls/squad/output_bias": np.array([0.5, -0.5], np.float32),
    }
    published = dataclasses.replace(checkpoint, weights=checkpoint.weights | head)
    write(str(tmp_path / "published"), published)
    run = tiny_question_run(
        tmp_path,
        model={"init_checkpoint": str(tmp_path / "published")},
        train={"steps": 1},
        optimizer={"learning_rate": 0.0},
    )
    run_tiny(run, tmp_path / "run")
    weights = variables_by_name(open_run(str(tmp_path / "run")).model)
    assert "bert/pooler/dense/kernel" not in weights
    for name, value in head.items():
        np.testing.assert_array_equal(weights[name].numpy(), value)
