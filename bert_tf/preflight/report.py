"""What is asked of the TPU compiler, what it answers, and how that is shown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from bert_tf.config import TrainConfig

# GiB that a program may use on each device, as the compiler says where one does not fit. A chip of
# v2 to v4 is two devices, one of v5e, v5p and v6e is one. v5p is not checked by this libtpu: its
# data sheet's 95 GiB.
HBM = {"v2": 7.48, "v3": 15.48, "v4": 15.25, "v5e": 15.75, "v5p": 95.0, "v6e": 31.25}
TPU_ROWS = 8  # sizes of a batch on a device that are tried: multiples of these
PRECISION = 1 / 8  # of the largest batch, at which the search ends


@dataclasses.dataclass(frozen=True)
class Request:
    """One recipe on one kind of TPU."""

    run: dict[str, Any]  # of RunConfig
    config: dict[str, Any]  # fields of BertConfig
    topology: str  # such as v5e:2x2
    classes: int  # or choices, where the recipe leaves them to the data
    all_widths: bool  # of batches, or the largest alone; each is a program of its own
    evaluate: bool  # whether the evaluation step is compiled, too
    largest_batch: bool  # search for it instead


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the compiler says of one program."""

    program: str  # "train" or "evaluate", and the name of one of several tasks
    batch_size: int  # global
    replicas: int
    width: int
    seconds: float  # of compiling
    hbm_used: float  # GiB on each device
    hbm_available: float
    flops: float  # of one step on one device; 0 where it does not fit
    bytes_accessed: float
    problems: list[str]  # sentences; there should be none
    largest: list[tuple[float, str]]  # GiB and name of the largest buffers

    @property
    def fits(self) -> bool:
        """Whether the device's memory holds it."""
        return self.hbm_used <= self.hbm_available


def shown(answer: Answer) -> str:
    """An answer for people."""
    share = answer.hbm_used / answer.hbm_available
    lines = [
        f"{answer.program}: batch {answer.batch_size} on {answer.replicas} device(s), "
        f"{answer.width} tokens a row: {'fits' if answer.fits else 'DOES NOT FIT'}, "
        f"{answer.hbm_used:.2f} of {answer.hbm_available:.2f} GiB on each ({share:.0%})",
    ]
    if answer.flops:
        lines.append(
            f"  {answer.flops / 1e12:.2f} TFLOP and {answer.bytes_accessed / 1e9:.1f} GB of memory "
            f"traffic a step and device; compiled in {answer.seconds:.0f} s"
        )
    lines += [f"  {size:6.3f} GiB  {name}" for size, name in answer.largest]
    lines += [f"  PROBLEM: {problem}" for problem in answer.problems]
    if not answer.fits:
        lines.append(
            "  Lower --global_batch_size, set --config.train.accumulation=2 or more, or "
            "--config.model.recompute=True; --largest_batch finds what fits."
        )
    return "\n".join(lines)


def search(
    train: TrainConfig, replicas: int, compile_at: Callable[[int], list[Answer]]
) -> Iterator[Answer]:
    """Compiles at other batch sizes until the largest that fits is known, to an eighth.

    Memory grows with the batch nearly in a line, so a size a little to each side of where the line
    through two tries reaches the limit is mostly all there is to try; else the interval is halved.

    Yields:
        The answer at each size that was tried; that of the largest that fits comes last again.
    """
    step = TPU_ROWS * replicas * train.accumulation
    size = max(train.global_batch_size // step, 1) * step
    fitting, refused, best = 0, 0, None
    shares: dict[int, float] = {}  # of the memory, by size
    while True:
        answers = compile_at(size)
        yield from answers
        shares[size] = max(answer.hbm_used / answer.hbm_available for answer in answers)
        fits = all(answer.fits for answer in answers)
        if fits:
            fitting, best = size, answers
        else:
            refused = size
        if refused == step:
            return  # not even the smallest
        if refused and refused - fitting <= max(step, fitting * PRECISION):
            break
        beyond = refused or 64 * fitting  # tries are below it
        guess = limit(shares) * (1 + (PRECISION if fits else -PRECISION) / 3)
        if not fitting + step <= guess < beyond:
            guess = (fitting + refused) / 2 if refused else 2 * fitting
        size = max(int(guess) // step, 1) * step
    yield from best or []


def limit(shares: dict[int, float]) -> float:
    """The size where the line through the last two of these points reaches 1; inf: not known."""
    if len(shares) < 2:
        return math.inf
    (size, share), (other, other_share) = list(shares.items())[-2:]
    slope = (other_share - share) / (other - size)
    return size + (1 - share) / slope if slope > 0 else math.inf
