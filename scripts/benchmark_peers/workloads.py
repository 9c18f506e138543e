"""What is measured: shapes of models, workloads, made-up rows, batches, and their arithmetic.

Read by the driver and by every worker, in environments that share nothing but NumPy.
Legend: L layers, H hidden, F feed-forward, S tokens of a row, P predictions of a row, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import numpy as np

SEED = 20181011
CLS, SEP, MASK = 2, 3, 4  # ids in the made-up vocabulary
SPECIAL_PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PREDICTED_SHARE = 0.15  # of the tokens of a row, as in the paper
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM, EPSILON = 1e-5, 0.01, 1.0, 1e-6
CHECKED_ROWS = 8  # of a training batch, whose losses and gradients are compared
MATRIX_SIDE = 4096  # of the products of the ceiling
COPIED_BYTES = 1 << 28
LINES = 1024  # of text that a tokenizer is given at a time


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of an encoder; the activation is GELU by tanh, which all libraries have."""

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int = 30522
    positions: int = 512


SHAPES = {
    "base": Shape(12, 768, 12, 3072),
    "minilm": Shape(6, 384, 12, 1536),
    "tiny": Shape(2, 32, 4, 64, vocabulary=200, positions=64),  # to try things
}

# How many of SST-2's 67,349 training sentences have 0, 1, 2, ... tokens, [CLS] and [SEP] included,
# under the uncased vocabulary of 30,522 pieces. The mean is 13.3.
SST2_LENGTHS = (
    *(0, 0, 0, 1978, 5322, 6065, 5345, 4749, 4155, 3713, 3267, 2947, 2650, 2413, 2138, 1950),
    *(1777, 1661, 1515, 1373, 1285, 1132, 1106, 1046, 909, 820, 806, 733, 692, 628, 538, 491),
    *(442, 448, 400, 337, 304, 286, 242, 195, 203, 192, 155, 148, 130, 89, 82, 85, 73, 55, 42),
    *(50, 40, 36, 19, 21, 22, 15, 8, 6, 3, 2, 5, 5, 1, 2, 2),
)
SST2_SENTENCES = sum(SST2_LENGTHS)


@dataclasses.dataclass(frozen=True)
class Workload:
    """One row of the table of workloads."""

    kind: str  # what a worker is asked for; a key of each worker's table
    shape: str = ""  # a key of SHAPES
    batch: int = 1
    length: int = 128  # the most tokens of a row
    rows: int = 1
    lengths: str = "full"  # of the rows: "full", "sst2", or "short" (even from 1/8 to all)
    packed: bool = False  # whether several short rows may share one; no peer can
    predictions: int = 0  # P, at most
    unit: str = "sequences"
    text: str = "as_it_is"  # of a tokenizer: all, rows in pure "ascii", or those with "accents"

    @property
    def name(self) -> str:
        """KIND/SHAPE/..., as reports have it."""
        details = {"full": f"{self.batch}x{self.length}", "sst2": "sst2", "short": "short"}
        has_rows = self.shape and self.kind != "optimizer"
        parts = [self.kind, self.shape, details[self.lengths] if has_rows else ""]
        parts += ["packed" if self.packed else "", self.text if self.text != "as_it_is" else ""]
        return "/".join(part for part in parts if part)


def all_workloads(epoch_sentences: int) -> list[Workload]:
    """Everything that is measured, in order.

    A sentence costs BERT-base 8 times what it costs MiniLM, which so gets 4 times as many.
    """
    base, minilm = epoch_sentences // 4, epoch_sentences
    return [
        Workload("matmul_float32", unit="FLOP"),
        Workload("matmul_bfloat16", unit="FLOP"),
        Workload("memory_copy", unit="bytes"),
        Workload("forward", "base", 1, rows=1),
        Workload("forward", "base", 8, rows=8),
        Workload("forward", "base", 32, rows=32),
        Workload("forward", "base", 8, 384, rows=8),
        Workload("forward", "base", 32, rows=base, lengths="sst2"),
        Workload("fine_tuning", "minilm", 32, rows=32),
        Workload("fine_tuning", "minilm", 32, rows=minilm, lengths="sst2"),
        Workload("fine_tuning", "base", 32, rows=32),
        Workload("fine_tuning", "base", 32, rows=base, lengths="sst2"),
        Workload("pretraining", "base", 8, rows=8, predictions=20),
        Workload("pretraining", "base", 8, rows=32, lengths="short", predictions=20),
        Workload("pretraining", "base", 8, rows=32, lengths="short", packed=True, predictions=20),
        Workload("optimizer", "base", unit="steps"),
        Workload("start_up", "minilm", 32, rows=32, unit="starts"),
        Workload("tokenizer", unit="pieces"),
        Workload("tokenizer", unit="pieces", text="ascii"),
        Workload("tokenizer", unit="pieces", text="accents"),
        Workload("pretraining_data", unit="instances"),
    ]


def tiny_workloads() -> list[Workload]:
    """The same kinds at a shape that runs in no time, to see whether all works."""
    return [
        Workload("memory_copy", unit="bytes"),
        Workload("forward", "tiny", 8, 32, rows=8),
        Workload("forward", "tiny", 8, 32, rows=24, lengths="sst2"),
        Workload("fine_tuning", "tiny", 8, 32, rows=24, lengths="sst2"),
        Workload("pretraining", "tiny", 8, 32, rows=8, predictions=5),
        Workload(
            "pretraining", "tiny", 8, 32, rows=16, lengths="short", packed=True, predictions=5
        ),
        Workload("optimizer", "tiny", unit="steps"),
        Workload("start_up", "tiny", 8, 32, rows=8, unit="starts"),
        Workload("tokenizer", rows=-1, unit="pieces"),
        Workload("pretraining_data", rows=-1, unit="instances"),
    ]


# ----------------------------------------------------------------------------------------- variants


@dataclasses.dataclass(frozen=True)
class Variant:
    """Settings that a library is measured with; each worker lists its own."""

    precision: str = "float32"
    compiled: bool = False  # torch.compile, XLA; onnxruntime: layers joined by its optimizer
    worker: str = ""  # WORKER_worker.py runs it, where the library's own does not
    order: str = "sorted"  # of rows of several lengths: "sorted", "as_they_come", or "padded"

    @property
    def name(self) -> str:
        """As reports have it."""
        order = {"sorted": "", "as_they_come": ", unsorted", "padded": ", all padded"}[self.order]
        worker = f", {self.worker}" if self.worker else ""
        return self.precision + (", compiled" if self.compiled else "") + worker + order


# ----------------------------------------------------------------------------- made-up rows of text


def draw_lengths(workload: Workload, rng: np.random.Generator) -> np.ndarray:
    """Tokens of each row, [rows]."""
    if workload.lengths == "full":
        return np.full(workload.rows, workload.length)
    if workload.lengths == "short":
        return rng.integers(workload.length // 8, workload.length + 1, workload.rows)
    counts = np.array(SST2_LENGTHS)
    drawn = rng.choice(len(counts), workload.rows, p=counts / counts.sum())
    return np.minimum(drawn, workload.length)


def make_rows(workload: Workload) -> dict[str, np.ndarray]:
    """Rows of random ids, one after the other, with labels and, for pre-training, masked words.

    `token_ids` int32 [R], `row_splits` int64 [rows + 1], `labels` int32 [rows];
    `masked_positions`, `masked_ids` int32 and `masked_weights` float32 [rows, P].
    """
    shape, rng = SHAPES[workload.shape], np.random.default_rng(SEED)
    lengths = draw_lengths(workload, rng)
    row_splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    token_ids = rng.integers(len(SPECIAL_PIECES), shape.vocabulary, row_splits[-1], np.int32)
    token_ids[row_splits[:-1]], token_ids[row_splits[1:] - 1] = CLS, SEP
    rows = {
        "token_ids": token_ids,
        "row_splits": row_splits,
        "labels": rng.integers(0, 2, workload.rows, np.int32),
    }
    if not workload.predictions:
        return rows
    size = (workload.rows, workload.predictions)
    positions, weights = np.zeros(size, np.int32), np.zeros(size, np.float32)
    for row, length in enumerate(lengths):
        count = min(workload.predictions, max(1, round(length * PREDICTED_SHARE)), length - 2)
        positions[row, :count] = np.sort(rng.choice(length - 2, count, replace=False)) + 1
        weights[row, :count] = 1.0
    ids = token_ids[row_splits[:-1, np.newaxis] + positions] * (weights > 0)
    masked = (row_splits[:-1, np.newaxis] + positions)[weights > 0]
    token_ids[masked] = MASK
    return rows | {
        "masked_positions": positions,
        "masked_ids": ids.astype(np.int32),
        "masked_weights": weights,
    }


def first_rows(rows: dict[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """The first rows alone."""
    first = {name: values[:count] for name, values in rows.items()}
    row_splits = rows["row_splits"][: count + 1]
    return first | {"row_splits": row_splits, "token_ids": rows["token_ids"][: row_splits[-1]]}


def plan(lengths: np.ndarray, batch: int, order: str) -> list[np.ndarray]:
    """Numbers of the rows of each batch; the last may be smaller."""
    rows = np.arange(len(lengths))
    if order == "sorted":
        rows = np.argsort(-lengths, kind="stable")
    return [rows[first : first + batch] for first in range(0, len(rows), batch)]


def cut_batch(
    rows: dict[str, np.ndarray], numbers: np.ndarray, width: int = 0, multiple: int = 1
) -> dict[str, np.ndarray]:
    """The rows `numbers` [B]: `token_ids`, `segment_ids`, `mask` int32 [B, S], and the rest.

    S is the longest of them, or `width`, rounded up to a `multiple`.
    """
    starts, ends = rows["row_splits"][numbers], rows["row_splits"][numbers + 1]
    width = max(width, int((ends - starts).max()))
    width += -width % multiple
    mask = np.arange(width) < (ends - starts)[:, np.newaxis]  # [B, S]
    grid = np.zeros(mask.shape, np.int32)
    grid[mask] = np.concatenate([rows["token_ids"][a:b] for a, b in zip(starts, ends, strict=True)])
    others = {k: v[numbers] for k, v in rows.items() if k not in ("token_ids", "row_splits")}
    features = {
        "token_ids": grid,
        "segment_ids": np.zeros_like(grid),
        "mask": mask.astype(np.int32),
    }
    return features | others


def make_batches(
    rows: dict[str, np.ndarray], workload: Workload, variant: Variant
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """All rows in batches as a library without a plan of its own has them, and their order [rows].

    What is compiled is compiled for each width by XLA: so it gets few of them.
    """
    planned = plan(np.diff(rows["row_splits"]), workload.batch, variant.order)
    width = workload.length if variant.order == "padded" else 0
    multiple = 32 if variant.compiled else 1
    batches = [cut_batch(rows, numbers, width, multiple) for numbers in planned]
    return batches, np.concatenate(planned)


# --------------------------------------------------------------------------------------- arithmetic


def forward_flops(shape: Shape, lengths: np.ndarray, predictions: np.ndarray | int = 0) -> float:
    """Operations of a plain forward pass over rows of these lengths; padding counts for nothing.

    Two for each weight of a layer and token (4 H^2 + 2 H F weights), 4 S H for each token's
    attention, 2 H^2 for a row's pooler, and 2 (H^2 + H V) for each prediction of a masked word.
    """
    weights = 4 * shape.hidden**2 + 2 * shape.hidden * shape.inner
    lengths = lengths.astype(np.float64)
    of_layer = 2 * weights * lengths + 4 * shape.hidden * lengths**2
    of_word = 2 * (shape.hidden**2 + shape.hidden * shape.vocabulary)
    rows = shape.layers * of_layer.sum() + 2 * shape.hidden**2 * len(lengths)
    return float(rows + of_word * np.sum(predictions))


def work(workload: Workload, rows: dict[str, np.ndarray]) -> float:
    """FLOP of one run, or bytes for the optimizer; 0 where neither says anything.

    A training step is three forward passes. AdamW reads gradient, weight and two moments, and
    writes all but the gradient: 28 bytes for each weight.
    """
    if workload.kind == "optimizer":
        return 28.0 * parameters(SHAPES[workload.shape])
    if workload.kind not in ("forward", "fine_tuning", "pretraining"):
        return 0.0
    shape, lengths = SHAPES[workload.shape], np.diff(rows["row_splits"])
    if workload.kind == "pretraining":
        return 3 * forward_flops(shape, lengths, rows["masked_weights"])
    return forward_flops(shape, lengths) * (3 if workload.kind == "fine_tuning" else 1)


def parameters(shape: Shape) -> int:
    """Weights of an encoder with its pooler and a classifier of two classes."""
    hidden, inner = shape.hidden, shape.inner
    layer = (
        4 * hidden * (hidden + 1) + hidden * inner + inner + inner * hidden + hidden + 4 * hidden
    )
    tables = (shape.vocabulary + shape.positions + 2 + 2) * hidden
    return shape.layers * layer + tables + hidden * (hidden + 1) + 2 * (hidden + 1)
