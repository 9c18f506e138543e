"""A tiny run for the tests of the loop, the scripts and the export: data, settings, one call."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np

from bert_tf.checkpoints import read_pretrained
from bert_tf.config import RunConfig
from bert_tf.distribution import Accelerator, cpu_strategy
from bert_tf.tasks import TASKS
from bert_tf.training import train

# 120 pieces, hidden 32, 2 layers, 4 heads, 40 positions, with a pooler.
CHECKPOINT = pathlib.Path(__file__).parent / "goldens" / "hf" / "tiny_pretraining"
GOOD, BAD = ("happy", "red", "new"), ("unhappy", "blue", "old")
OTHERS = ("the", "cat", "dog", "sat", "on", "mat", "ran", "read", "book", "house", "is", "was")


def write_reviews(folder: pathlib.Path, train: int = 96, dev: int = 22) -> None:
    """Writes train.jsonl, dev.jsonl and test.jsonl: one word of each sentence decides its label."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(7)
    for name, count in (("train", train), ("dev", dev), ("test", dev)):
        lines = []
        for number in range(count):
            words = list(random.choice(OTHERS, size=random.integers(1, 12)))
            words.insert(random.integers(0, len(words) + 1), random.choice((GOOD, BAD)[number % 2]))
            label = ("good", "bad")[number % 2]
            lines.append(json.dumps({"text": " ".join(words), "label": label}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))


def tiny_run(folder: pathlib.Path, **changes: dict[str, Any]) -> RunConfig:
    """Settings that train in seconds; `changes` are fields by section, for example train={...}."""
    if not (folder / "train.jsonl").exists():
        write_reviews(folder)
    values: dict[str, dict[str, Any]] = {
        # One layer: what takes seconds is to trace and compile a step.
        "model": {"init_checkpoint": str(CHECKPOINT), "num_layers": 1},
        "data": {name: str(folder / f"{name}.jsonl") for name in ("train", "dev", "test")}
        | {"max_seq_length": 24},
        "optimizer": {"learning_rate": 1e-3},
        "train": {
            "global_batch_size": 16,
            "steps": 12,
            "steps_per_loop": 3,
            "log_every": 4,
            "save_every": 5,
            "eval_batch_size": 8,
        },
    }
    for section, fields in changes.items():
        values[section] = values.get(section, {}) | fields
    return RunConfig.from_dict(values)


def on_cpu(replicas: int = 1, dtype: str = "float32") -> Accelerator:
    """An accelerator of logical CPU devices."""
    return Accelerator("cpu", cpu_strategy(replicas), dtype)


def run_tiny(
    run: RunConfig, workdir: pathlib.Path, replicas: int = 1, dtype: str = "float32"
) -> dict[str, float]:
    """Trains, or continues, in `workdir`."""
    pretrained = read_pretrained(run.model)
    assert pretrained.tokenizer is not None
    task = TASKS[run.task.name].from_data(run, pretrained.config, pretrained.tokenizer)
    return train(run, str(workdir), on_cpu(replicas, dtype), task, pretrained)
