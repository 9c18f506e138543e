"""Writes tests/goldens/hf: numbers of transformers + torch that the test suite compares with.

    python scripts/peers/hf_outputs.py --weights HF_DIR --output tests/goldens/hf

All outputs are float32 on CPU with eager attention and no drop-out. Two sources:
  minilm.npz: published weights (a BertModel folder, --weights) on real sentences, as one padded
    batch and each sentence alone;
  tiny_pretraining/, tiny_classifier/, tiny.npz: small random models in the Hugging Face layout
    with every parameter, biases and LayerNorm too, moved off its initial value.
"""

from __future__ import annotations

import argparse
import json
import os
import string
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # Everything is read from local folders.

import numpy as np
import torch
import transformers

# (first text, second text or ""): short, medium, accents and CJK, a pair, symbols, ~100 pieces.
SENTENCES = (
    ("Rain again.", ""),
    ("The ferryman counted his 27 coins twice, then pushed off from the muddy bank.", ""),
    ("Zoë's café in Kraków served crème brûlée, jalapeño soup and 東京 ramen.", ""),
    ("Who repairs the bridge?", "A crew of masons repairs the bridge every spring, before dawn."),
    ("Unputdownable e-mails: $3.50 (50% off!) \U0001f600 @ http://example.org/?q=x_y", ""),
    (
        "When the observatory reopened after eleven years of restoration, the old caretaker walked "
        "slowly between the polished instruments, explaining to anybody who would listen how the "
        "great telescope had once been dragged uphill by oxen, how its lens survived two "
        "earthquakes, a burglary and a leaking roof, and why, on moonless winter nights, he still "
        "preferred the unaided eye, a thick woollen blanket and a thermos of strong tea to every "
        "photograph that the astronomers had ever pinned to the corridor's crumbling walls.",
        "",
    ),
)

SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_PIECES = """the of on in to is was it and not who which cat dog mat sat ran read book house red
blue happy old new un ##ed ##er ##ing ##ly ##able ##ness ##est ##happy ##read"""
TINY_VOCAB_SIZE = 120
TINY_LENGTHS = (40, 23, 9, 2)  # Real tokens of each row; 40 is also all positions there are.
NOISE = 0.2  # Standard deviation added to every parameter; the initial 0.02 hides most mistakes.


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns the tensor as a NumPy array, integers as int32."""
    array = tensor.detach().numpy()
    return array.astype(np.int32) if array.dtype == np.int64 else array


def shown_positions(mask: torch.Tensor) -> torch.Tensor:
    """Returns [B, 6]: the first four and the last two real positions of each row of mask [B, S]."""
    lengths = mask.sum(dim=1, keepdim=True)
    return torch.cat([torch.arange(4).expand(len(mask), 4), lengths - 2, lengths - 1], dim=1)


def run_encoder(
    model: transformers.BertModel, features: dict[str, torch.Tensor], positions: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns sequence [B, 6, H] at positions, pooled [B, H] and cls_by_layer [B, L + 1, H]."""
    with torch.no_grad():
        output = model(**features, output_hidden_states=True)
    rows = torch.arange(len(positions))[:, None]
    return {
        "sequence": output.last_hidden_state[rows, positions],
        "pooled": output.pooler_output,
        "cls_by_layer": torch.stack([states[:, 0] for states in output.hidden_states], dim=1),
    }


def minilm_arrays(weights: Path) -> dict[str, np.ndarray]:
    """Returns inputs and outputs of the published weights; see tests/goldens/hf/README.md."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    model = transformers.BertModel.from_pretrained(
        weights, attn_implementation="eager", dtype=torch.float32
    )
    # One at a time: a batch cannot mix single texts and pairs.
    rows = [tokenizer(first, second or None) for first, second in SENTENCES]
    batch = dict(tokenizer.pad(rows, padding="longest", return_tensors="pt"))
    positions = shown_positions(batch["attention_mask"])
    padded = run_encoder(model, batch, positions)
    singles = []
    for row, positions_of_row in zip(rows, positions, strict=True):
        features = {name: torch.tensor([values]) for name, values in row.items()}
        singles.append(run_encoder(model, features, positions_of_row[None]))
    alone = {name: torch.cat([single[name] for single in singles]) for name in padded}
    exact = run_encoder(model.double(), batch, positions)  # After the float32 runs: it converts.
    gap = max((padded[name] - exact[name]).abs().max().item() for name in padded)
    print(f"minilm: float32 is within {gap:.1e} of the same model in float64")
    return {
        "first_texts": np.array([first for first, _ in SENTENCES]),
        "second_texts": np.array([second for _, second in SENTENCES]),
        "token_ids": to_numpy(batch["input_ids"]),
        "segment_ids": to_numpy(batch["token_type_ids"]),
        "mask": to_numpy(batch["attention_mask"]),
        "positions": to_numpy(positions),
        **{f"padded_{name}": to_numpy(tensor) for name, tensor in padded.items()},
        "alone_sequence": to_numpy(alone["sequence"]),
        "alone_pooled": to_numpy(alone["pooled"]),
    }


def tiny_config(**extra: int) -> transformers.BertConfig:
    """Returns the shape of the tiny random models."""
    return transformers.BertConfig(
        vocab_size=TINY_VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        attn_implementation="eager",
        **extra,
    )


def add_noise(model: torch.nn.Module) -> None:
    """Adds normal noise to every parameter in place; tied parameters are moved once."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape))


def tiny_vocabulary() -> list[str]:
    """Returns 120 pieces: special ones, letters, digits, marks, continuations and words."""
    characters = string.ascii_lowercase + string.digits + ".,!?'-"
    continued = [f"##{character}" for character in string.ascii_lowercase + string.digits]
    pieces = [*SPECIAL_PIECES, *characters, *continued, *WORD_PIECES.split()]
    pieces += [f"[unused{index}]" for index in range(TINY_VOCAB_SIZE - len(pieces))]
    return pieces


def save_tiny(model: transformers.PreTrainedModel, folder: Path) -> None:
    """Writes the model and its vocabulary in the Hugging Face layout."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(tiny_vocabulary()) + "\n", encoding="utf-8")
    settings = {"do_lower_case": True, "model_max_length": 40, "tokenizer_class": "BertTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tiny_inputs() -> dict[str, torch.Tensor]:
    """Returns input_ids, token_type_ids and attention_mask [4, 40]: random pieces, two segments."""
    lengths = torch.tensor(TINY_LENGTHS)[:, None]
    mask = (torch.arange(max(TINY_LENGTHS)) < lengths).long()
    token_ids = torch.randint(len(SPECIAL_PIECES), TINY_VOCAB_SIZE, mask.shape) * mask
    token_ids[:, 0] = SPECIAL_PIECES.index("[CLS]")
    segment_ids = (torch.arange(max(TINY_LENGTHS)) >= lengths // 2).long() * mask
    return {"input_ids": token_ids, "token_type_ids": segment_ids, "attention_mask": mask}


def tiny_arrays(output_folder: Path) -> dict[str, np.ndarray]:
    """Saves the two tiny models under output_folder and returns their inputs and outputs."""
    torch.manual_seed(0)
    pretraining = transformers.BertForPreTraining(tiny_config()).eval()
    classifier = transformers.BertForSequenceClassification(tiny_config(num_labels=3)).eval()
    for model, name in ((pretraining, "tiny_pretraining"), (classifier, "tiny_classifier")):
        add_noise(model)
        save_tiny(model, output_folder / name)
    features = tiny_inputs()
    with torch.no_grad():
        encoded = pretraining.bert(**features, output_hidden_states=True)
        predicted = pretraining(**features)
        classified = classifier(**features)
    return {
        "token_ids": to_numpy(features["input_ids"]),
        "segment_ids": to_numpy(features["token_type_ids"]),
        "mask": to_numpy(features["attention_mask"]),
        "hidden_states": to_numpy(torch.stack(encoded.hidden_states)),
        "sequence": to_numpy(encoded.last_hidden_state),
        "pooled": to_numpy(encoded.pooler_output),
        "masked_lm_logits": to_numpy(predicted.prediction_logits),
        "next_sentence_logits": to_numpy(predicted.seq_relationship_logits),
        "classifier_logits": to_numpy(classified.logits),
    }


def main() -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--weights", type=Path, required=True, help="folder of a MiniLM-L6 BertModel"
    )
    parser.add_argument("--output", type=Path, default=Path("tests/goldens/hf"))
    flags = parser.parse_args()
    flags.output.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(flags.output / "minilm.npz", **minilm_arrays(flags.weights))  # type: ignore[arg-type]
    np.savez_compressed(flags.output / "tiny.npz", **tiny_arrays(flags.output))  # type: ignore[arg-type]
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")


if __name__ == "__main__":
    main()
