from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from bert_tf.config import read_json
from bert_tf.data.squad import Question, Questions
from bert_tf.encoder import variables_by_name
from bert_tf.export import saved_model
from bert_tf.restore import OpenedRun
from bert_tf.tasks.answer_spans import find_answers
from bert_tf.tasks.question_answering_answers import QuestionAnsweringAnswers
from bert_tf.training import Evaluator
from tests.tasks.test_question_answering import ODD_TEXTS, task_of
from tests.tiny_questions import tiny_question_run
from tests.tiny_run import on_cpu

Arrays = dict[str, np.ndarray]


class Exported:
    """A model of random weights, exported and loaded, and what files say of the same texts."""

    def __init__(self, folder: pathlib.Path, no_answer: bool) -> None:
        task = task_of(tiny_question_run(folder, no_answer))
        self.model = model = task.build_model()
        for number, weight in enumerate(variables_by_name(model).values()):
            weight.assign_add(tf.random.stateless_normal(weight.shape, [number, 1], stddev=0.3))
        self.evaluator = Evaluator(task.run, on_cpu(), task, model)
        # At the median of their odds, two of the four texts that have words are answered.
        rows = [Question(str(n), *texts, None) for n, texts in enumerate(ODD_TEXTS)]
        examples = task.tokenize(Questions(rows, "odd"))
        found = find_answers(self.evaluator.predict(examples), examples, 1, no_answer)
        threshold = float(np.median([each.null_odds for each in found if each.spans]))
        self.task = dataclasses.replace(task, no_answer_threshold=threshold)
        opened = OpenedRun(task.run, self.task, model, {}, "runs/x/best/step-00000040")
        self.folder = saved_model.export_saved_model(opened, str(folder / "export"))
        self.loaded = tf.saved_model.load(self.folder)

    def ask(self, texts: list[tuple[str, str]]) -> Arrays:
        question, context = zip(*texts, strict=True) if texts else ((), ())
        outputs = self.loaded.signatures["serving_default"](
            question=tf.constant(question, tf.string), context=tf.constant(context, tf.string)
        )
        return {name: value.numpy() for name, value in outputs.items()}

    def files(self, folder: pathlib.Path, texts: list[tuple[str, str]]) -> dict[str, list[str]]:
        """What scripts/predict.py writes."""
        lines = [
            json.dumps({"id": str(number), "question": question, "context": context})
            for number, (question, context) in enumerate(texts)
        ]
        path = folder / "texts.jsonl"
        path.write_text("\n".join(lines))
        run = tiny_question_run(folder, self.task.run.task.no_answer, data={"test": str(path)})
        answers = QuestionAnsweringAnswers(dataclasses.replace(self.task, run=run))
        examples = answers.examples("test")
        return answers.files("test", examples, self.evaluator.predict(examples))


@pytest.fixture(scope="module", params=[False, True], ids=["answers", "answers or none"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported"), request.param)


def test_served_answers_are_those_of_the_files(exported: Exported, tmp_path: pathlib.Path) -> None:
    served = exported.ask(ODD_TEXTS)
    files = exported.files(tmp_path, ODD_TEXTS)
    lines = [json.loads(line) for line in files["predictions.jsonl"]]
    assert [line["id"] for line in lines] == [str(number) for number in range(len(ODD_TEXTS))]
    no_answer = exported.task.run.task.no_answer
    for number, (line, (_, context)) in enumerate(zip(lines, ODD_TEXTS, strict=True)):
        answer = served["answer"][number].decode()
        assert answer == line["answer"]
        for name in ("start", "end"):
            assert served[name][number] == line[name]
        for name in ("score", *(["no_answer_probability"] if no_answer else [])):
            assert served[name][number] == pytest.approx(line[name], abs=1e-5)
        begin, end = served["start"][number], served["end"][number]
        assert context[begin:end] == answer
        begin, end = served["start_byte"][number], served["end_byte"][number]
        assert context.encode()[begin:end] == answer.encode()
    assert ("no_answer_probability" in served) == no_answer
    said = [bool(line["answer"]) for line in lines]
    if no_answer:
        assert sum(said) == 2, "the threshold must matter"
    else:
        assert said == [True, False, False, True, True, False, True]


def test_official_files(exported: Exported, tmp_path: pathlib.Path) -> None:
    files = exported.files(tmp_path, ODD_TEXTS)
    no_answer = exported.task.run.task.no_answer
    names = ["predictions.jsonl", "predictions.json", "nbest_predictions.json"]
    assert list(files) == names + ["null_odds.json"] * no_answer
    official = {name: json.loads("\n".join(files[name])) for name in list(files)[1:]}
    lines = {line["id"]: line for line in map(json.loads, files["predictions.jsonl"])}
    assert official["predictions.json"] == {id: line["answer"] for id, line in lines.items()}
    for number, spans in official["nbest_predictions.json"].items():
        assert spans, "never empty"
        assert {"text", "probability", "start_logit", "end_logit"} <= spans[0].keys()
        texts = [span["text"] for span in spans]
        assert ("" in texts) == (no_answer or texts == [""])
        best = next((span["text"] for span in spans if span["text"]), "")
        if no_answer:
            is_none = official["null_odds.json"][number] > exported.task.no_answer_threshold
            best = "" if is_none else best
        assert best == lines[number]["answer"]


def test_answers_do_not_depend_on_the_batch(exported: Exported) -> None:
    together = exported.ask(ODD_TEXTS)
    for number, texts in enumerate(ODD_TEXTS):
        alone = exported.ask([texts])
        for name, values in alone.items():
            if values.dtype == np.float32:
                assert values[0] == pytest.approx(together[name][number], abs=1e-5), name
            else:
                assert values[0] == together[name][number], name


def test_no_questions_have_no_answers(exported: Exported) -> None:
    served = exported.ask([])
    assert all(value.shape == (0,) for value in served.values())


def test_a_text_of_100_000_words_passes_in_parts(exported: Exported) -> None:
    answer = "the d7 cat"
    context = "old mat " * 25_000 + answer + " new dog" * 25_000
    served = exported.ask([("house", context), ("house", "a red cat")])
    assert context[served["start"][0] : served["end"][0]] == served["answer"][0].decode()
    short = exported.ask([("house", "a red cat")])
    assert served["answer"][1] == short["answer"][0]


def test_a_different_number_of_questions_and_texts_is_refused(exported: Exported) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="question and context differ"):
        exported.loaded.signatures["serving_default"](
            question=tf.constant(["a", "b"]), context=tf.constant(["a"])
        )


def test_ids_answer_logits(exported: Exported) -> None:
    token_ids = tf.constant([[2, 5, 3, 6, 7, 3, 0], [2, 3, 8, 9, 10, 11, 3]])
    mask = tf.cast(token_ids > 0, tf.int32)
    segment_ids = tf.constant([[0, 0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]])
    outputs = exported.loaded.signatures["ids"](
        token_ids=token_ids, segment_ids=segment_ids, mask=mask
    )
    features = {"token_ids": token_ids, "segment_ids": segment_ids, "mask": mask}
    expected = exported.model(features).numpy()  # [N, S, 2]
    assert outputs.keys() == {"start_logits", "end_logits"}
    real = mask.numpy() > 0
    for place, name in enumerate(("start_logits", "end_logits")):
        np.testing.assert_allclose(
            outputs[name].numpy()[real], expected[..., place][real], rtol=0.0, atol=1e-5
        )


def test_warm_up_requests_can_be_replayed(exported: Exported) -> None:
    requests = list(QuestionAnsweringAnswers(exported.task).warmup_requests())
    assert {name for name, _ in requests} == {"serving_default", "ids"}
    for name, inputs in requests:
        exported.loaded.signatures[name](
            **{key: tf.constant(value) for key, value in inputs.items()}
        )


def test_model_card(exported: Exported) -> None:
    card = read_json(f"{exported.folder}/{saved_model.MODEL_CARD}")
    assert card["signatures"]["serving_default"]["inputs"].keys() == {"question", "context"}
    assert ("no_answer_threshold" in card) == exported.task.run.task.no_answer
    threshold = exported.task.no_answer_threshold
    assert card.get("no_answer_threshold", threshold) == threshold


def test_ids_that_stand_for_two_questions_cannot_be_answered(
    exported: Exported, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "twice.jsonl"
    path.write_text('{"id": "a", "question": "", "context": ""}\n' * 2)
    run = tiny_question_run(tmp_path, data={"train": str(path)})
    with pytest.raises(ValueError, match="two questions have the id 'a'"):
        QuestionAnsweringAnswers(task_of(run)).examples("train")
