"""Does an exported folder answer what the run answers? Run by the libraries it was made for.

    python scripts/peers/check_export.py --folder exported --answers answers.npz

The folder is of `--format=hugging_face` (transformers, sentence-transformers) or of
`--format=onnx` (onnxruntime, tokenizers), and answers.npz is of export_answers.py. Compared are the
token ids of every text, by the tokenizer of the folder, and the numbers that the model answers to
the ids of the run, at real positions. Exits with 1 where numbers differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Everything is read from local folders.

import numpy as np

Arrays = dict[str, np.ndarray]
TOLERANCE = 1e-4
INPUTS = ("token_ids", "segment_ids", "mask")
BATCH_SIZE = 64


def onnx_model(folder: Path) -> Callable[[Arrays], Arrays]:
    """Answers of model.onnx."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return lambda rows: dict(zip(names, session.run(names, rows), strict=True))


def onnx_ids(folder: Path, texts: list[tuple[str, ...]], length: int) -> list[list[int]]:
    """Token ids by tokenizer.json alone."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    return [tokenizer.encode(text[0], (*text[1:], None)[0]).ids for text in texts]


def torch_model(folder: Path, texts: list[tuple[str, ...]]) -> Callable[[Arrays], Arrays]:
    """Answers of the class that config.json names; of a BertModel, its sentence-transformer."""
    import torch
    import transformers

    (name,) = json.loads((folder / "config.json").read_text())["architectures"]
    if name == "BertModel":
        import sentence_transformers

        encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
        vectors = iter(encoder.encode([text for (text,) in texts]))
        return lambda rows: {"embedding": np.stack([next(vectors) for _ in rows["mask"]])}
    model = getattr(transformers, name).from_pretrained(folder).eval()
    model_inputs = ("input_ids", "token_type_ids", "attention_mask")

    def answer(rows: Arrays) -> Arrays:
        given = {
            key: torch.tensor(rows[own]) for key, own in zip(model_inputs, INPUTS, strict=True)
        }
        if name == "BertForMultipleChoice":
            given = {key: grid[:, None] for key, grid in given.items()}  # [N, 1, S]
        with torch.no_grad():
            outputs = {key: value.numpy() for key, value in model(**given).items()}
        if name == "BertForMultipleChoice":
            outputs["scores"] = outputs.pop("logits")[:, 0]
        return outputs

    return answer


def torch_ids(folder: Path, texts: list[tuple[str, ...]], length: int) -> list[list[int]]:
    """Token ids by transformers' AutoTokenizer."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return [tokenizer(*text, truncation=True, max_length=length)["input_ids"] for text in texts]


def largest_difference(
    name: str, found: np.ndarray, expected: np.ndarray, mask: np.ndarray
) -> float:
    """At real positions, where there are positions."""
    by_position = found.shape[:2] == mask.shape and name != "embedding"
    return float(np.abs(found - expected)[mask > 0 if by_position else ...].max())


def main() -> None:
    """Prints what was compared."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    flags = parser.parse_args()
    with np.load(flags.answers) as stored:
        answers = dict(stored)
    texts = [tuple(row) for row in answers.pop("texts").tolist()]
    rows = {name: answers.pop(name).astype(np.int64) for name in INPUTS}  # [N, S]
    is_onnx = (flags.folder / "model.onnx").exists()
    make_ids = onnx_ids if is_onnx else torch_ids
    own = [
        row[mask > 0].tolist() for row, mask in zip(rows["token_ids"], rows["mask"], strict=True)
    ]
    found_ids = make_ids(flags.folder, texts, rows["mask"].shape[1])
    same = sum(found == expected for found, expected in zip(found_ids, own, strict=True))
    print(f"token ids: {same} of {len(own)} texts are equal")
    answer = onnx_model(flags.folder) if is_onnx else torch_model(flags.folder, texts)
    parts = [
        answer({name: grid[first : first + BATCH_SIZE] for name, grid in rows.items()})
        for first in range(0, len(own), BATCH_SIZE)
    ]
    worst = 0.0
    for name in sorted(answers.keys() & parts[0].keys()):
        found = np.concatenate([part[name] for part in parts])
        difference = largest_difference(name, found, answers[name], rows["mask"])
        print(f"{name} {list(found.shape)}: differs by {difference:.1e} at most")
        worst = max(worst, difference)
    sys.exit(int(worst > TOLERANCE or not answers.keys() & parts[0].keys()))


if __name__ == "__main__":
    main()
