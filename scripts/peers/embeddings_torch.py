"""Sentence embeddings in transformers + torch: sentence-transformers' recipe, to compare with.

    python scripts/peers/embeddings_torch.py --weights HF_DIR --input sentences.txt --output out.npy
    python scripts/peers/embeddings_torch.py --weights HF_DIR --golden tests/goldens/embeddings
    python scripts/peers/embeddings_torch.py --weights HF_DIR --stsb data/glue/STS-B/dev.tsv

The recipe is the one in the model card of all-MiniLM-L6-v2: the mean of the last layer over the
mask, then L2 normalisation. float32 on CPU, eager attention, no drop-out; batches are sorted by
length.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Everything is read from local folders.

import numpy as np
import scipy.stats
import torch
import transformers

# Written for the golden: short, empty, accents and CJK, the same in other case, over 256 pieces.
SENTENCES = (
    "Rain again.",
    "",
    "The ferryman counted his 27 coins twice, then pushed off from the muddy bank.",
    "Zoë's café in Kraków served crème brûlée, jalapeño soup and 東京 ramen.",
    "zoë's CAFÉ in kraków served crème brûlée, jalapeño soup and 東京 ramen.",
    "The caretaker walked slowly between the polished instruments. " * 40,
)


class Embedder:
    """Texts to vectors."""

    def __init__(self, weights: str, max_length: int, batch_size: int) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
        self.model = transformers.AutoModel.from_pretrained(
            weights, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self.max_length, self.batch_size = max_length, batch_size

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors float32 [N, H] of length 1."""
        order = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
        vectors = np.zeros([len(texts), self.model.config.hidden_size], np.float32)
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            vectors[rows] = self.embed([texts[row] for row in rows]).numpy()
        return vectors

    def embed(self, texts: list[str]) -> torch.Tensor:
        """The vectors of one batch."""
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        with torch.no_grad():
            sequence = self.model(**batch).last_hidden_state  # [B, S, H]
        mask = batch["attention_mask"].unsqueeze(-1).float()  # [B, S, 1]
        mean = (sequence * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, p=2, dim=1)


def stsb(path: str, embed: Embedder) -> None:
    """Prints the Spearman correlation of cosine and score on STS-B's dev.tsv."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    first, second = (embed([row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    cosines = (first * second).sum(axis=1)
    correlation = scipy.stats.spearmanr(cosines, [float(row["score"]) for row in rows])[0]
    print(f"spearman: {correlation:.6f} on {len(rows):,} pairs")


def main() -> None:
    """Does what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="Hugging Face folder")
    parser.add_argument("--input", help="UTF-8 file with a text a line")
    parser.add_argument("--output", help="NAME.npy")
    parser.add_argument("--golden", help="folder for vectors.npz of the sentences above")
    parser.add_argument("--stsb", help="STS-B's dev.tsv")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    flags = parser.parse_args()
    embed = Embedder(flags.weights, flags.max_length, flags.batch_size)
    if flags.golden:
        folder = Path(flags.golden)
        folder.mkdir(parents=True, exist_ok=True)
        vectors = embed(SENTENCES)
        np.savez_compressed(folder / "vectors.npz", texts=np.array(SENTENCES), vectors=vectors)
    if flags.stsb:
        stsb(flags.stsb, embed)
    if flags.input and flags.output:
        texts = Path(flags.input).read_text("utf-8").split("\n")
        np.save(flags.output, embed(texts[:-1] if texts[-1] == "" else texts))


if __name__ == "__main__":
    main()
