"""What is told of an exported model: where it comes from, what it takes and what it answers."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text

from bert_tf.config import VERSION, RunConfig
from bert_tf.data.glue import GLUE
from bert_tf.restore import OpenedRun
from bert_tf.tasks import answers_of
from bert_tf.tasks.classification import ClassificationTask
from bert_tf.tasks.contract import Signature, Task
from bert_tf.tasks.multi_task import MultiTask
from bert_tf.tasks.tagging import TaggingTask


def model_card(opened: OpenedRun, signatures: Mapping[str, Signature]) -> dict[str, Any]:
    """What somebody who finds the model wants to know, for JSON."""
    task, run = opened.task, opened.run
    return {
        "task": dataclasses.asdict(run.task),
        "signatures": {name: describe(signature) for name, signature in signatures.items()},
        "max_seq_length": run.data.max_seq_length,
        "lower_case": task.tokenizer.lower_case,
        "strip_accents": task.tokenizer.strip_accents,
        "bert_config": task.config.to_dict(),
        "data": dataclasses.asdict(run.data),
        **answers_of(task, "be exported").card(),
        "metrics": opened.metrics,
        "weights_from": opened.weights_from,
        "run": run.to_dict(),
        "versions": {
            "bert_tf": VERSION,
            "tensorflow": tf.__version__,
            "tensorflow_text": tf_text.__version__,
        },
    }


def describe(signature: Signature) -> dict[str, dict[str, str]]:
    """Types and shapes of inputs and outputs, such as `string [None]`."""
    inputs = {spec.name: spec for spec in tf.nest.flatten(signature.structured_input_signature)}
    specs = {"inputs": inputs, "outputs": signature.structured_outputs}
    return {
        kind: {name: f"{spec.dtype.name} {spec.shape.as_list()}" for name, spec in each.items()}
        for kind, each in specs.items()
    }


# ------------------------------------------------------------------------------------- for people

# What the Hugging Face Hub calls each task (several tasks have no name), and what a model does.
PIPELINES = {
    "classification": "text-classification",
    "dual_encoder": "sentence-similarity",
    "multiple_choice": "multiple-choice",
    "pretraining": "fill-mask",
    "question_answering": "question-answering",
    "tagging": "token-classification",
}
PURPOSES = {
    "classification": "classifies texts",
    "dual_encoder": "turns texts into vectors; those of similar texts have similar directions",
    "multi_task": "does several tasks on one encoder",
    "multiple_choice": "says which of several continuations or answers is the right one",
    "pretraining": "fills in masked words; it is there to be fine-tuned",
    "question_answering": "finds the span of a text that answers a question",
    "tagging": "gives every word of a text a tag",
}
KINDS = {
    "class": "Each text gets one of these labels",
    "multilabel": "Each text gets any number of these labels",
    "regression": "Each text gets a score, a number.",
}
HUB_METRICS = {  # of GLUE
    "accuracy": "accuracy",
    "f1": "f1",
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
LABELS_SHOWN = 50


def markdown_card(opened: OpenedRun, library: str = "", usage: str = "") -> str:
    """The model card as Markdown, `README.md` of an exported folder.

    What nobody told (licence, languages, people concerned) is left out, to be filled in.

    Args:
        opened: the run.
        library: what loads the files, by its name on the Hugging Face Hub.
        usage: the section that says how.
    """
    task, run = opened.task, opened.run
    size = task.config
    lines = [
        *front_matter(opened, library),
        "",
        f"# {title(run)}",
        "",
        f"A BERT ({size.num_hidden_layers} layers, hidden size {size.hidden_size}, "
        f"{size.num_attention_heads} heads, {size.vocab_size:,} pieces, "
        f"{'lower-cased' if task.tokenizer.lower_case else 'cased'}) that "
        f"{PURPOSES[run.task.name]}.",
        "",
        *answers_section(task),
        *(["## Use", "", usage, ""] if usage else []),
        *training_section(opened),
        *results_section(opened),
        "## Limits",
        "",
        *(f"- {line}" for line in limits(run)),
        "",
        "## Versions",
        "",
        f"Made with bert_tf {VERSION}, TensorFlow {tf.__version__}.",
        "",
    ]
    return "\n".join(lines)


def front_matter(opened: OpenedRun, library: str) -> list[str]:
    """What the Hub reads, as YAML; every value is written as JSON, which is YAML as well."""
    name = opened.run.task.name
    values: dict[str, Any] = {"tags": ["bert"]}
    if library:
        values["library_name"] = library
    if name in PIPELINES:
        values["pipeline_tag"] = PIPELINES[name]
    if opened.run.task.glue:
        values |= {"language": "en", "datasets": ["nyu-mll/glue"]}
        if opened.metrics:
            values["model-index"] = [{"name": title(opened.run), "results": [glue_result(opened)]}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in values.items()), "---"]


def glue_result(opened: OpenedRun) -> dict[str, Any]:
    """The best evaluation on the dev set of a GLUE task, as the Hub shows it."""
    return {
        "task": {"type": PIPELINES[opened.run.task.name]},
        "dataset": {
            "type": "nyu-mll/glue",
            "name": "GLUE",
            "config": opened.run.task.glue,
            "split": "validation",
        },
        "metrics": [
            {"type": hub_name, "value": opened.metrics[name]}
            for name, hub_name in HUB_METRICS.items()
            if name in opened.metrics
        ],
    }


def title(run: RunConfig) -> str:
    """The name of the data set, where it has one, and of the task."""
    name = run.task.name.replace("_", " ")
    return f"{GLUE[run.task.glue].folder}: {name}" if run.task.glue else name.capitalize()


def labels_of(task: Task) -> tuple[str, ...]:
    """The names of a model's outputs, in their order; empty where they have none."""
    if isinstance(task, ClassificationTask):
        return task.labels.names
    return task.tags.names if isinstance(task, TaggingTask) else ()


def answers_section(task: Task) -> list[str]:
    """What each task answers, where there is more to say than its purpose."""
    if isinstance(task, MultiTask):
        parts = [
            [f"## {name}", "", f"It {PURPOSES[part.run.task.name]}.", "", *answers_section(part)]
            for name, part in task.parts.items()
        ]
        return [line for part in parts for line in part]
    names = labels_of(task)
    what = "Each word gets one of these tags"
    if isinstance(task, ClassificationTask):
        what = KINDS[task.labels.kind]
    elif not names:
        return []
    more = f" and {len(names) - LABELS_SHOWN} more" if len(names) > LABELS_SHOWN else ""
    listed = ", ".join(f"`{name}`" for name in names[:LABELS_SHOWN])
    return [f"{what}: {listed}{more}." if names else what, ""]


def training_section(opened: OpenedRun) -> list[str]:
    """Data and settings; a checkpoint that nobody trained on has none."""
    run, start = opened.run, short_path(opened.run.model.init_checkpoint)
    if opened.weights_from == run.model.init_checkpoint:
        return ["## Training", "", f"The weights of `{start}`, as they are.", ""]
    optimizer, train = run.optimizer, run.train
    rows = {
        "started from": f"`{start}`" if start else "random weights",
        "data": "; ".join(sources(run)),
        "longest input": f"{longest(run)} pieces",
        "steps" if train.steps else "epochs": f"{train.steps or train.epochs:g}",
        "batch size": str(train.global_batch_size),
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, warm-up "
        f"{optimizer.warmup_proportion:.0%}, weight decay {optimizer.weight_decay:g}",
        "seed": str(train.seed),
    }
    if run.distillation.teacher:
        rows["teacher"] = f"`{short_path(run.distillation.teacher)}`"
    table = [f"| {name} | {value} |" for name, value in rows.items()]
    return ["## Training", "", "| setting | value |", "|---|---|", *table, ""]


def short_path(path: str) -> str:
    """The last two parts of a path: enough to know it by, and nothing of the machine."""
    return "/".join(path.rstrip("/").split("/")[-2:])


def parts_of(run: RunConfig) -> dict[str, RunConfig]:
    """The runs of several tasks by name; a run of one task is its own, without a name."""
    return {name: run.part(name) for name in run.tasks} or {"": run}


def longest(run: RunConfig) -> int:
    """Pieces of the longest input of any task."""
    return max(part.data.max_seq_length for part in parts_of(run).values())


def sources(run: RunConfig) -> list[str]:
    """The training data of each task: a GLUE task, or the names of files without their folders."""
    named = []
    for name, part in parts_of(run).items():
        files = [os.path.basename(file) for file in part.data.train.split(",")]
        of_task = f"GLUE {GLUE[part.task.glue].folder}" if part.task.glue else ", ".join(files)
        named.append(f"{name}: {of_task}" if name else of_task)
    return named


def results_section(opened: OpenedRun) -> list[str]:
    """Metrics of the best evaluation."""
    measured = {name: value for name, value in opened.metrics.items() if name != "step"}
    if not measured:
        return []
    at = f", at step {opened.metrics['step']:.0f}" if "step" in opened.metrics else ""
    table = [f"| {name} | {value:.4f} |" for name, value in measured.items()]
    chosen = "These weights are the best of all evaluations on the dev data"
    return [
        "## Results",
        "",
        f"{chosen}{at}; on other data expect a little less.",
        "",
        "| metric | value |",
        "|---|---|",
        *table,
        "",
    ]


def limits(run: RunConfig) -> list[str]:
    """What the model cannot do, as far as a run tells."""
    return [
        f"It is meant for inputs of up to {longest(run)} pieces; cut longer ones, or read them in "
        "windows.",
        "It knows the language and the kind of text of its training data. Elsewhere, and for "
        "groups of people whom these data describe unfairly, nothing was measured.",
    ]


def write_text(path: str, content: str) -> None:
    """Writes a file of a folder that has a temporary name so far."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(content)
