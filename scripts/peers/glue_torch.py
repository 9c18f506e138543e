"""Fine-tunes a BertModel folder on a GLUE task with transformers + torch, by bert_tf's recipe.

    python scripts/peers/glue_torch.py --task rte --data_dir GLUE_DIR --weights HF_DIR \
        --seeds 1,2,3 --output results.json

The other side of the GLUE comparison: same weights, data and hyper-parameters, another library, in
plain float32 (no TF32, no autocast). GLUE_DIR holds SST-2, CoLA, STS-B and RTE with the official
train.tsv and dev.tsv. Letters: B examples of a batch, S positions, C outputs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Weights and tokenizer are local folders.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it.

import numpy as np
import scipy.stats
import sklearn.metrics
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase as Tokenizer

RECIPE = {"warmup_proportion": 0.1, "weight_decay": 0.01, "clip_norm": 1.0, "adam_epsilon": 1e-6}
INITIALIZER_RANGE = 0.02  # Of the classifier's kernel, truncated at two standard deviations.
WINDOW_BATCHES = 50  # Examples are sorted by length within windows of this many batches.
LABEL_WORDS = {"entailment": 0.0, "not_entailment": 1.0}  # RTE; the other labels are numbers.


class Task(NamedTuple):
    """Columns of a task's files (negative: from the end), number of outputs, recipe, metrics."""

    folder: str
    header_lines: int
    text_columns: tuple[int, ...]
    label_column: int
    outputs: int  # 1 is regression on the raw score.
    epochs: int
    learning_rate: float
    metrics: tuple[str, ...]


TASKS = {
    "sst2": Task("SST-2", 1, (0,), 1, 2, 1, 1e-4, ("accuracy",)),
    "cola": Task("CoLA", 0, (3,), 1, 2, 2, 5e-5, ("matthews",)),
    "stsb": Task("STS-B", 1, (-3, -2), -1, 1, 2, 5e-5, ("pearson", "spearman")),
    "rte": Task("RTE", 1, (1, 2), 3, 2, 2, 5e-5, ("accuracy",)),
}
METRICS = {
    "accuracy": sklearn.metrics.accuracy_score,
    "matthews": sklearn.metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: scipy.stats.pearsonr(labels, predictions)[0],
    "spearman": lambda labels, predictions: scipy.stats.spearmanr(labels, predictions)[0],
}


class Example(NamedTuple):
    """One tokenized example."""

    token_ids: torch.Tensor  # [S]
    segment_ids: torch.Tensor  # [S]
    label: float


def read_examples(
    path: Path, task: Task, tokenizer: Tokenizer, max_seq_length: int
) -> list[Example]:
    """Returns the examples of a TSV file, read without quoting; pairs lose their longer end."""
    with path.open(encoding="utf-8", newline="\n") as lines:
        rows = [line.rstrip("\r\n").split("\t") for line in lines][task.header_lines :]
    columns = [[row[column] for row in rows] for column in task.text_columns]
    pieces = [tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in columns]
    examples = []
    for row, *texts in zip(rows, *pieces, strict=True):
        while sum(map(len, texts)) > max_seq_length - 1 - len(texts):
            max(reversed(texts), key=len).pop()  # Of equals the second, as the original release.
        token_ids, segment_ids = [tokenizer.cls_token_id], [0]
        for segment, text in enumerate(texts):
            token_ids += [*text, tokenizer.sep_token_id]
            segment_ids += [segment] * (len(text) + 1)
        word = row[task.label_column]
        label = LABEL_WORDS[word] if word in LABEL_WORDS else float(word)
        examples.append(Example(torch.tensor(token_ids), torch.tensor(segment_ids), label))
    return examples


def epoch_batches(
    examples: list[Example], batch_size: int, rng: np.random.Generator
) -> list[list[Example]]:
    """Returns one epoch, shuffled, each batch of similar lengths; the last smaller one is kept."""
    order = [examples[index] for index in rng.permutation(len(examples))]
    batches = []
    for start in range(0, len(order), WINDOW_BATCHES * batch_size):
        window = order[start : start + WINDOW_BATCHES * batch_size]
        window.sort(key=lambda example: len(example.token_ids), reverse=True)
        batches += [window[at : at + batch_size] for at in range(0, len(window), batch_size)]
    return [batches[index] for index in rng.permutation(len(batches))]


def collate(batch: list[Example], device: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns features, each [B, S] padded with 0 to the longest example, and labels [B]."""
    token_ids = [example.token_ids for example in batch]
    columns = {
        "input_ids": token_ids,
        "token_type_ids": [example.segment_ids for example in batch],
        "attention_mask": [torch.ones_like(row) for row in token_ids],
    }
    features = {name: pad_sequence(rows, True).to(device) for name, rows in columns.items()}
    return features, torch.tensor([example.label for example in batch], device=device)


def batch_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Returns the mean loss of logits [B, C]: squared error if C is 1, else cross-entropy."""
    if logits.shape[1] == 1:
        return torch.nn.functional.mse_loss(logits[:, 0], labels)
    return torch.nn.functional.cross_entropy(logits, labels.long())


def learning_rate_at(step: int, total_steps: int, base: float) -> float:
    """Returns the original release's rate at a 0-based step: the decay counts from step 0."""
    warmup_steps = int(total_steps * RECIPE["warmup_proportion"])
    return base * (step / warmup_steps if step < warmup_steps else 1 - step / total_steps)


def load_model(weights: Path, outputs: int, device: str) -> torch.nn.Module:
    """Returns the pre-trained model in float32 with a new classifier; seed torch before."""
    model, report = transformers.BertForSequenceClassification.from_pretrained(
        weights,
        num_labels=outputs,
        dtype=torch.float32,
        attn_implementation="eager",  # Its gradients repeat themselves on a GPU.
        output_loading_info=True,
    )
    missing = [name for name in report["missing_keys"] if not name.startswith("classifier.")]
    if missing:
        raise ValueError(f"{weights} lacks {missing}; give a BertModel folder with its pooler.")
    limit = 2 * INITIALIZER_RANGE
    torch.nn.init.trunc_normal_(model.classifier.weight, 0.0, INITIALIZER_RANGE, -limit, limit)
    torch.nn.init.zeros_(model.classifier.bias)
    return model.to(device)


def make_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """Returns bias-corrected AdamW that decays all but biases and LayerNorm parameters."""
    decayed: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    groups = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, eps=RECIPE["adam_epsilon"], weight_decay=RECIPE["weight_decay"], betas=(0.9, 0.999)
    )


def train(
    model: torch.nn.Module, examples: list[Example], flags: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Trains in place; returns steps, seconds and the mean loss of the last 50 steps."""
    rng = np.random.default_rng(seed)
    total_steps = flags.epochs * math.ceil(len(examples) / flags.batch_size)
    total_steps = min(total_steps, flags.max_steps or total_steps)
    optimizer = make_optimizer(model)
    losses: list[torch.Tensor] = []
    start = time.perf_counter()
    model.train()
    while len(losses) < total_steps:
        for batch in epoch_batches(examples, flags.batch_size, rng)[: total_steps - len(losses)]:
            features, labels = collate(batch, flags.device)
            loss = batch_loss(model(**features).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), RECIPE["clip_norm"])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(len(losses), total_steps, flags.learning_rate)
            optimizer.step()
            losses.append(loss.detach())
    last_loss = torch.stack(losses[-50:]).mean().item()  # Waits for the device.
    seconds = round(time.perf_counter() - start, 2)
    return {"steps": total_steps, "train_seconds": seconds, "last_loss": last_loss}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, examples: list[Example], task: Task, device: str
) -> dict[str, float]:
    """Returns the task's metrics over all examples, as fractions."""
    examples = sorted(examples, key=lambda example: len(example.token_ids))  # Little padding.
    logits = []
    model.eval()
    for start in range(0, len(examples), 32):
        features, _ = collate(examples[start : start + 32], device)
        logits.append(model(**features).logits.cpu().numpy())
    scores = np.concatenate(logits)  # [E, C]
    predictions = scores[:, 0] if task.outputs == 1 else scores.argmax(axis=1)
    labels = np.array([example.label for example in examples])
    return {name: float(METRICS[name](labels, predictions)) for name in task.metrics}


def results(flags: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the JSON file holds: settings, versions, runs, mean and sample deviation."""
    settings = ("learning_rate", "epochs", "batch_size", "max_seq_length", "max_steps")
    modules = (torch, transformers, np, scipy, sklearn)
    scores = {name: [run[name] for run in runs] for name in TASKS[flags.task].metrics}
    on_gpu = flags.device.startswith("cuda")
    return {
        "task": flags.task,
        "hyper_parameters": {name: getattr(flags, name) for name in settings} | RECIPE,
        "versions": {module.__name__: str(module.__version__) for module in modules},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "runs": runs,
        "mean": {name: float(np.mean(row)) for name, row in scores.items()},
        "standard_deviation": {  # NaN is no JSON: null where there is one run only.
            name: statistics.stdev(row) if len(row) > 1 else None for name, row in scores.items()
        },
    }


def print_table(content: dict[str, Any]) -> None:
    """Prints a line a run, the mean and the sample standard deviation, metrics in percent."""
    names = list(content["mean"])
    print(content["task"].ljust(6) + "".join(name.rjust(10) for name in names) + "   seconds")
    for row in [*content["runs"], content["mean"], content["standard_deviation"]]:
        title = row.get("seed", "mean" if row is content["mean"] else "std")
        scores = ["-" if row[name] is None else f"{100 * row[name]:.2f}" for name in names]
        scores.append(f"{row['train_seconds']:.1f}" if "seed" in row else "")
        print(f"{title!s:6}" + "".join(score.rjust(10) for score in scores))


def parse_flags() -> argparse.Namespace:
    """Returns the flags with the task's epochs and rate and the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=sorted(TASKS), required=True)
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of SST-2, CoLA, ...")
    parser.add_argument("--weights", type=Path, required=True, help="folder of a BertModel")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated, a run each")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--learning_rate", type=float, help="default: the task's")
    parser.add_argument("--epochs", type=int, help="default: the task's")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=128)
    parser.add_argument("--max_steps", type=int, help="a shorter run, with a shorter schedule")
    flags = parser.parse_args()
    flags.epochs = flags.epochs or TASKS[flags.task].epochs
    flags.learning_rate = flags.learning_rate or TASKS[flags.task].learning_rate
    if flags.device == "auto":
        flags.device = "cuda" if torch.cuda.is_available() else "cpu"
    return flags


def main() -> None:
    """Runs every seed; the file is rewritten after each, under a temporary name first."""
    flags = parse_flags()
    task = TASKS[flags.task]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("highest")  # No TF32.
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(flags.weights)
    folder = flags.data_dir / task.folder
    training, development = (
        read_examples(folder / name, task, tokenizer, flags.max_seq_length)
        for name in ("train.tsv", "dev.tsv")
    )
    runs: list[dict[str, Any]] = []
    for seed in map(int, flags.seeds.split(",")):
        torch.manual_seed(seed)  # The classifier and the drop-outs, on CPU and GPU.
        model = load_model(flags.weights, task.outputs, flags.device)
        costs = train(model, training, flags, seed)
        metrics = evaluate(model, development, task, flags.device)
        runs.append({"seed": seed, **metrics, **costs})
        temporary = flags.output.with_name(flags.output.name + ".tmp")
        temporary.write_text(json.dumps(results(flags, runs), indent=2) + "\n", encoding="utf-8")
        temporary.replace(flags.output)
    print_table(results(flags, runs))


if __name__ == "__main__":
    main()
