"""Question answering by the scripts, as a user calls them."""

from __future__ import annotations

import json
import pathlib
import random
from typing import Any

import official_squad
import pytest
import tensorflow as tf

from tests.test_scripts import HERE, ok, run_script, write_recipe
from tests.tiny_questions import tiny_question_run, write_questions

# ml_collections loads recipes with it on every Python before 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


@pytest.mark.parametrize("no_answer", [pytest.param(False, marks=pytest.mark.slow), True])
def test_train_evaluate_predict_export(tmp_path: pathlib.Path, no_answer: bool) -> None:
    run = tiny_question_run(
        tmp_path, no_answer, train={"steps": 4, "deterministic": False}, runtime=HERE
    )
    flag = f"--workdir={tmp_path / 'run'}"
    ok(run_script("train", write_recipe(tmp_path, run), flag))
    ok(run_script("evaluate", flag))
    measured = json.loads((tmp_path / "run/eval_dev.json").read_text())
    ok(run_script("predict", flag, f"--input={run.data.dev}", f"--output={tmp_path / 'answers'}"))
    answers = json.loads((tmp_path / "answers/predictions.json").read_text())
    dataset = json.loads(pathlib.Path(run.data.dev).read_text())["data"]
    if no_answer:
        odds = json.loads((tmp_path / "answers/null_odds.json").read_text())
        official = official_squad.evaluate_2(dataset, answers, odds, 1e12)
        assert 100 * measured["exact_match"] == pytest.approx(official["exact"], rel=1e-12)
    else:
        official = official_squad.evaluate_1(dataset, answers)
        assert 100 * measured["exact_match"] == pytest.approx(official["exact_match"], rel=1e-12)
    assert 100 * measured["f1"] == pytest.approx(official["f1"], rel=1e-12)
    report = ok(run_script("export", flag)).stdout
    assert '{"instances": [{"question": "some text", "context": "some text"}]}' in report
    served = tf.saved_model.load(str(tmp_path / "run/export/1")).signatures["serving_default"]
    paragraphs = dataset[0]["paragraphs"]
    said = served(
        question=tf.constant([paragraph["qas"][0]["question"] for paragraph in paragraphs]),
        context=tf.constant([paragraph["context"] for paragraph in paragraphs]),
    )["answer"].numpy()
    ids = [paragraph["qas"][0]["id"] for paragraph in paragraphs]
    assert [text.decode() for text in said] == [answers[number] for number in ids]


def test_an_answer_that_is_not_there_is_one_paragraph(tmp_path: pathlib.Path) -> None:
    run = tiny_question_run(tmp_path, runtime=HERE)
    path = pathlib.Path(run.data.train)
    document = json.loads(path.read_text())
    document["data"][0]["paragraphs"][4]["qas"][0]["answers"][0]["answer_start"] += 1
    path.write_text(json.dumps(document))
    outcome = run_script("train", write_recipe(tmp_path, run), f"--workdir={tmp_path / 'run'}")
    assert outcome.code == 1
    (message,) = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    assert "question 'answers_train-4'" in message
    assert not (tmp_path / "run/checkpoints").exists()


def test_files_without_answers_cannot_be_measured(tmp_path: pathlib.Path) -> None:
    run = tiny_question_run(tmp_path, train={"steps": 1, "deterministic": False}, runtime=HERE)
    flag = f"--workdir={tmp_path / 'run'}"
    ok(run_script("train", write_recipe(tmp_path, run), flag))
    path = tmp_path / "open.jsonl"
    path.write_text('{"id": "a", "question": "house", "context": "the house is red"}\n')
    outcome = run_script("evaluate", flag, f"--input={path}")
    assert outcome.code == 1
    assert "question 'a' has no `answers`" in outcome.stderr
    outcome = run_script("evaluate", flag, "--split=test", f"--input={path}")
    assert outcome.code == 1
    assert "has no answers to measure against; scripts/predict.py" in outcome.stderr


def test_articles_that_share_a_text_stay_together(tmp_path: pathlib.Path) -> None:
    paragraph = {"qas": [{"id": "a", "question": "?", "answers": []}]}
    # Of the first ten, each shares a text with the next one.
    shared = [(f"text {number}", f"text {number + 1}") for number in range(10)]
    alone = [(f"own text {number}",) for number in range(20)]
    articles = [
        {"paragraphs": [paragraph | {"context": text} for text in texts]}
        for texts in shared + alone
    ]
    source = tmp_path / "all.json"
    for seed in range(4):
        random.Random(seed).shuffle(articles)
        source.write_text(json.dumps({"version": "1.1", "data": articles}))
        flags = [f"--input={source}", f"--output={tmp_path / 'part'}", "--dev_share=0.5"]
        printed = ok(run_script("split_questions", *flags, f"--seed={seed}")).stdout
        assert "39 questions had the id of an earlier one" in printed
        parts = [
            json.loads((tmp_path / f"part.{name}.json").read_text()) for name in ("train", "dev")
        ]
        ids = {
            question["id"]
            for part in parts
            for article in part["data"]
            for each in article["paragraphs"]
            for question in each["qas"]
        }
        assert ids == {"a"} | {f"a-{number}" for number in range(2, 41)}
        train, dev = map(texts_of, parts)
        assert not train & dev
        assert len(train | dev) == 31
        assert len({f"text {number}" for number in range(11)} & dev) in (0, 11)


def texts_of(document: dict[str, Any]) -> set[str]:
    return {p["context"] for article in document["data"] for p in article["paragraphs"]}


def test_splitting_by_articles(tmp_path: pathlib.Path) -> None:
    articles = []
    for number in range(10):
        write_questions(tmp_path / f"{number}.json", 4, number)
        articles += json.loads((tmp_path / f"{number}.json").read_text())["data"]
    source = tmp_path / "all.json"
    source.write_text(json.dumps({"version": "1.1", "data": articles}))
    flags = [f"--input={source}", f"--output={tmp_path / 'part'}", "--dev_share=0.25"]
    outcome = ok(run_script("split_questions", *flags))
    assert "2 articles with 8 questions" in outcome.stdout
    parts = {
        name: json.loads((tmp_path / f"part.{name}.json").read_text()) for name in ("train", "dev")
    }
    assert parts["dev"]["version"] == "1.1"
    together = parts["train"]["data"] + parts["dev"]["data"]
    assert sorted(map(json.dumps, together)) == sorted(map(json.dumps, articles))
    assert not texts_of(parts["train"]) & texts_of(parts["dev"])
    outcome = run_script("split_questions", *flags[:2], "--dev_share=0.01")
    assert outcome.code == 1
    assert "none for the dev part at --dev_share=0.01" in outcome.stderr
