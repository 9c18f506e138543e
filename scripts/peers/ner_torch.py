"""Fine-tunes a BertModel folder on CoNLL columns with transformers + torch, by bert_tf's recipe.

    python scripts/peers/ner_torch.py --train wnut17train.conll --dev emerging.dev.conll \
        --test emerging.test.annotated --weights HF_DIR --seeds 1,2,3 --output results.json

The other side of configs/wnut17_minilm.py: same weights, data and hyper-parameters, another
library, in plain float32. Files have a word in the first column, a tag of IOB2 in the last one,
tabs between them, and an empty line between sentences; longer ones than --max_seq_length are cut,
and the words that are lost count as O. The first piece of a word carries its tag. Scores are
seqeval's where it is installed (its default mode), by the same rule written here where it is not;
the file says which.
Letters: B sentences of a batch, S positions, C tags.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Weights and tokenizer are local folders.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with it.

import numpy as np
import torch
import transformers
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase as Tokenizer

try:
    from seqeval import metrics as seqeval_metrics
except ImportError:
    seqeval_metrics = None

RECIPE = {"warmup_proportion": 0.1, "weight_decay": 0.01, "clip_norm": 1.0, "adam_epsilon": 1e-6}
INITIALIZER_RANGE = 0.02  # Of the classifier's kernel, truncated at two standard deviations.
WINDOW_BATCHES = 50  # Sentences are sorted by length within windows of this many batches.
NO_TAG = -100  # What torch's cross-entropy leaves out.
METRICS = ("f1", "precision", "recall")


class Sentence(NamedTuple):
    """Words with their tags."""

    words: list[str]
    tags: list[str]


class Example(NamedTuple):
    """One tokenized sentence."""

    token_ids: torch.Tensor  # [S]
    tags: torch.Tensor  # [S], NO_TAG but at the first piece of a word
    places: list[int]  # Of the first piece of each word; 0 where it has none, or was cut off.


def read_sentences(path: Path) -> list[Sentence]:
    """Returns the sentences of a file of columns."""
    sentences = [Sentence([], [])]
    with path.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            fields = line.rstrip("\r\n").split("\t")
            if not line.strip():
                sentences.append(Sentence([], []))
            else:
                sentences[-1].words.append(fields[0])
                sentences[-1].tags.append(fields[-1])
    return [sentence for sentence in sentences if sentence.words]


def tag_names(sentences: list[Sentence]) -> list[str]:
    """Returns O and both tags of every type, in the order of bert_tf."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence.tags if tag != "O"})
    return ["O", *(f"{prefix}-{label}" for label in types for prefix in "BI")]


def tokenize(
    sentences: list[Sentence], names: list[str], tokenizer: Tokenizer, max_seq_length: int
) -> list[Example]:
    """Returns the examples; every word is tokenized by itself."""
    examples = []
    for sentence in sentences:
        token_ids, tags, places = [tokenizer.cls_token_id], [NO_TAG], []
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            fits = bool(pieces) and len(token_ids) < max_seq_length - 1
            places.append(len(token_ids) if fits else 0)
            token_ids += pieces
            tags += [names.index(tag), *[NO_TAG] * (len(pieces) - 1)] if pieces else []
        token_ids = [*token_ids[: max_seq_length - 1], tokenizer.sep_token_id]
        tags = [*tags[: max_seq_length - 1], NO_TAG]
        examples.append(Example(torch.tensor(token_ids), torch.tensor(tags), places))
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
    """Returns features and tags, each [B, S] padded to the longest sentence."""
    token_ids = [example.token_ids for example in batch]
    columns = {
        "input_ids": token_ids,
        "token_type_ids": [torch.zeros_like(row) for row in token_ids],
        "attention_mask": [torch.ones_like(row) for row in token_ids],
    }
    features = {name: pad_sequence(rows, True).to(device) for name, rows in columns.items()}
    tags = pad_sequence([example.tags for example in batch], True, NO_TAG)
    return features, tags.to(device)


def learning_rate_at(step: int, total_steps: int, base: float) -> float:
    """Returns the original release's rate at a 0-based step: the decay counts from step 0."""
    warmup_steps = int(total_steps * RECIPE["warmup_proportion"])
    return base * (step / warmup_steps if step < warmup_steps else 1 - step / total_steps)


def load_model(weights: Path, num_tags: int, device: str) -> torch.nn.Module:
    """Returns the pre-trained model in float32 with a new classifier; seed torch before."""
    model = transformers.BertForTokenClassification.from_pretrained(
        weights,
        num_labels=num_tags,
        dtype=torch.float32,
        attn_implementation="eager",  # Its gradients repeat themselves on a GPU.
    )
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
    total_steps = round(flags.epochs * math.ceil(len(examples) / flags.batch_size))
    total_steps = min(total_steps, flags.max_steps or total_steps)
    optimizer = make_optimizer(model)
    losses: list[torch.Tensor] = []
    start = time.perf_counter()
    model.train()
    while len(losses) < total_steps:
        for batch in epoch_batches(examples, flags.batch_size, rng)[: total_steps - len(losses)]:
            features, tags = collate(batch, flags.device)
            logits = model(**features).logits  # [B, S, C]
            # The mean over the words of the batch, as bert_tf's.
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tags.flatten())
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
def predict(
    model: torch.nn.Module, examples: list[Example], names: list[str], device: str
) -> list[list[str]]:
    """Returns the tags of all words; O for words that the model did not see."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index].token_ids))
    predicted: list[list[str]] = [[] for _ in examples]
    model.eval()
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        features, _ = collate([examples[row] for row in rows], device)
        best = model(**features).logits.argmax(dim=-1).cpu()  # [B, S]
        for row, tags in zip(rows, best.tolist(), strict=True):
            places = examples[row].places
            predicted[row] = [names[tags[place]] if place else "O" for place in places]
    return predicted


def spans(tags: list[str]) -> Iterator[tuple[str, int, int]]:
    """Yields type, first word and the one behind the last; an I without a B begins a span."""
    start, label = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        if label and (tag[0] != "I" or tag[2:] != label):
            yield label, start, place
            label = ""
        if tag != "O" and not label:
            start, label = place, tag[2:]


def scores(sentences: list[Sentence], predicted: list[list[str]]) -> dict[str, float]:
    """Returns F1, precision and recall of whole spans, as fractions."""
    tags = [sentence.tags for sentence in sentences]
    if seqeval_metrics is not None:
        return {
            name: float(getattr(seqeval_metrics, f"{name}_score")(tags, predicted))
            for name in METRICS
        }
    found = [set(spans(of_sentence)) for of_sentence in predicted]
    there = [set(spans(of_sentence)) for of_sentence in tags]
    right = sum(len(a & b) for a, b in zip(found, there, strict=True))
    precision = right / max(sum(map(len, found)), 1)
    recall = right / max(sum(map(len, there)), 1)
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}


def results(flags: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the JSON file holds: settings, versions, runs, mean and sample deviation."""
    settings = ("learning_rate", "epochs", "batch_size", "max_seq_length", "max_steps")
    values = {
        f"{split}_{name}": [run[f"{split}_{name}"] for run in runs]
        for split in ("dev", "test")
        for name in METRICS
    }
    on_gpu = flags.device.startswith("cuda")
    return {
        "hyper_parameters": {name: getattr(flags, name) for name in settings} | RECIPE,
        "scores_by": "seqeval" if seqeval_metrics is not None else "this script",
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, np)},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "runs": runs,
        "mean": {name: statistics.fmean(row) for name, row in values.items()},
        "standard_deviation": {  # NaN is no JSON: null where there is one run only.
            name: statistics.stdev(row) if len(row) > 1 else None for name, row in values.items()
        },
    }


def print_table(content: dict[str, Any]) -> None:
    """Prints a line a run, the mean and the sample standard deviation, in percent."""
    names = list(content["mean"])
    print("seed  " + "".join(name.rjust(16) for name in names))
    for row in [*content["runs"], content["mean"], content["standard_deviation"]]:
        title = row.get("seed", "mean" if row is content["mean"] else "std")
        cells = ["-" if row[name] is None else f"{100 * row[name]:.2f}" for name in names]
        print(f"{title!s:6}" + "".join(cell.rjust(16) for cell in cells))


def parse_flags() -> argparse.Namespace:
    """Returns the flags, the recipe's values where none are given."""
    parser = argparse.ArgumentParser(description=__doc__)
    for split in ("train", "dev", "test"):
        parser.add_argument(f"--{split}", type=Path, required=True, help="file of columns")
    parser.add_argument("--weights", type=Path, required=True, help="folder of a BertModel")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seeds", default="1,2,3", help="comma-separated, a run each")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=float, default=5.0)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_seq_length", type=int, default=256)
    parser.add_argument("--max_steps", type=int, help="a shorter run, with a shorter schedule")
    flags = parser.parse_args()
    if flags.device == "auto":
        flags.device = "cuda" if torch.cuda.is_available() else "cpu"
    return flags


def main() -> None:
    """Runs every seed; the file is rewritten after each, under a temporary name first."""
    flags = parse_flags()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("highest")  # No TF32.
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(flags.weights)
    splits = {name: read_sentences(getattr(flags, name)) for name in ("train", "dev", "test")}
    names = tag_names(splits["train"])
    examples = {
        name: tokenize(sentences, names, tokenizer, flags.max_seq_length)
        for name, sentences in splits.items()
    }
    runs: list[dict[str, Any]] = []
    for seed in map(int, flags.seeds.split(",")):
        torch.manual_seed(seed)  # The classifier and the drop-outs, on CPU and GPU.
        model = load_model(flags.weights, len(names), flags.device)
        run: dict[str, Any] = {"seed": seed} | train(model, examples["train"], flags, seed)
        for split in ("dev", "test"):
            predicted = predict(model, examples[split], names, flags.device)
            for name, value in scores(splits[split], predicted).items():
                run[f"{split}_{name}"] = value
        runs.append(run)
        temporary = flags.output.with_name(flags.output.name + ".tmp")
        temporary.write_text(json.dumps(results(flags, runs), indent=2) + "\n", encoding="utf-8")
        temporary.replace(flags.output)
    print_table(results(flags, runs))


if __name__ == "__main__":
    main()
