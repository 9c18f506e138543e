from __future__ import annotations

import dataclasses
import json
from typing import Any

from bert_tf.config import DataConfig, DistillationConfig, ModelConfig, TrainConfig
from bert_tf.export.card import markdown_card
from bert_tf.export.usage import with_onnxruntime, with_transformers
from bert_tf.restore import OpenedRun
from bert_tf.tasks.classification import Labels
from bert_tf.tasks.contract import Task
from tests.test_conformance import classification, tagging
from tests.tiny_exports import SINGLE, questions, several, three_classes, vectors


def card(task: Task, metrics: dict[str, float] | None = None, /, **sections: Any) -> str:
    """The card of a run with other settings, by section."""
    run = dataclasses.replace(task.run, **sections)
    task = dataclasses.replace(task, run=run)
    opened = OpenedRun(run, task, None, metrics or {}, "runs/x/best/step-40")  # type: ignore[arg-type]
    return markdown_card(opened, "transformers", "HOW TO")


def front_matter(text: str) -> dict[str, Any]:
    lines = text.split("---\n")[1].splitlines()
    return {key: json.loads(value) for key, value in (line.split(": ", 1) for line in lines)}


def test_what_is_known_is_said() -> None:
    text = card(
        three_classes(),
        {"accuracy": 0.875, "loss": 0.5, "step": 40},
        model=ModelConfig(init_checkpoint="/home/me/bert/uncased_L-2/"),
        data=DataConfig(train="/home/me/secret/train.csv,more.csv", max_seq_length=12),
        train=TrainConfig(steps=50, seed=7),
        distillation=DistillationConfig(teacher="/home/me/runs/large"),
    )
    for part in (
        "2 layers, hidden size 16",
        "Each text gets one of these labels: `bad`, `fair`, `good`.",
        "## Use\n\nHOW TO\n",
        "| started from | `bert/uncased_L-2` |",
        "| data | train.csv, more.csv |",
        "| steps | 50 |",
        "| seed | 7 |",
        "| teacher | `runs/large` |",
        "at step 40",
        "| accuracy | 0.8750 |\n| loss | 0.5000 |",
        "up to 12 pieces",
    ):
        assert part in text
    assert "/home/me" not in text
    assert "step | 40" not in text


def test_what_is_unknown_is_not_said() -> None:
    text = card(three_classes())
    assert front_matter(text) == {
        "tags": ["bert"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
    }
    assert "## Results" not in text


def test_the_hub_shows_results_of_glue() -> None:
    task = classification(Labels("regression"))
    settings = dataclasses.replace(task.run.task, glue="stsb")
    text = card(task, {"spearman": 0.85, "pearson": 0.86, "loss": 0.5, "step": 3}, task=settings)
    values = front_matter(text)
    assert (values["language"], values["datasets"]) == ("en", ["nyu-mll/glue"])
    (result,) = values["model-index"][0]["results"]
    assert result["dataset"]["config"] == "stsb"
    assert result["metrics"] == [
        {"type": "pearsonr", "value": 0.86},
        {"type": "spearmanr", "value": 0.85},
    ]
    assert "| data | GLUE STS-B |" in text


def test_a_checkpoint_that_nobody_trained_on() -> None:
    task = vectors("mean")
    run = dataclasses.replace(task.run, model=ModelConfig(init_checkpoint="data/minilm"))
    opened = OpenedRun(run, dataclasses.replace(task, run=run), None, {}, "data/minilm")  # type: ignore[arg-type]
    text = markdown_card(opened)
    assert "The weights of `data/minilm`, as they are." in text
    assert "optimizer" not in text
    assert "## Use" not in text


def test_several_tasks() -> None:
    text = card(several(classes=(0, False), tags=(1, False)))
    assert "## classes" in text
    assert "## tags" in text
    assert "Each word gets one of these tags: `O`, `B-a`, `I-a`." in text
    assert "pipeline_tag" not in front_matter(text)


def test_many_labels_are_cut() -> None:
    text = card(classification(Labels("class", tuple(f"label {n}" for n in range(60)))))
    assert "`label 49` and 10 more." in text


def test_usage_depends_on_the_task() -> None:
    for name, part in {
        "classes": "top_k=None)\n",
        "scores": 'function_to_apply="none"',
        "tags": 'aggregation_strategy="first"',
        "questions": "AutoModelForQuestionAnswering",
        "choices": "AutoModelForMultipleChoice",
        "mean vectors": "SentenceTransformer",
    }.items():
        assert part in with_transformers(SINGLE[name]())
    assert "no answer" not in with_transformers(questions())
    assert "more than 0.5000 above" in with_transformers(questions(no_answer=True))
    assert with_transformers(tagging()) == with_transformers(SINGLE["tags"]())


def test_usage_of_onnx_names_the_models() -> None:
    text = with_onnxruntime(["a.onnx", "b.onnx"], 128, pad_id=3)
    assert "enable_truncation(128)" in text
    assert "pad_id=3" in text
    assert "Each task has a model: a.onnx, b.onnx." in text
    assert "Each task" not in with_onnxruntime(["model.onnx"], 128, pad_id=0)
