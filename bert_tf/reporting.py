"""What a run shows while it goes: the progress line and TensorBoard."""

from __future__ import annotations

import os
import time

import tensorflow as tf
from absl import logging

# What the train loop sums up on the device, and the host between two lines of the log.
SUMS = ("loss", "weight", "tokens", "positions", "steps")


class Reporter:
    """Turns the sums of an interval into a progress line and TensorBoard scalars."""

    def __init__(self, workdir: str | None, total_steps: int, step: int) -> None:
        """`workdir` None writes no TensorBoard (workers that are not the chief)."""
        self.total_steps = total_steps
        self.first_step = self.last_step = step
        self.started = self.last_time = time.monotonic()
        self.paused = 0.0
        folder = None if workdir is None else os.path.join(workdir, "tensorboard")
        self.writer = tf.summary.create_file_writer(folder) if folder else None

    def pause(self, seconds: float) -> None:
        """Takes evaluation and saving out of the speed of training."""
        self.last_time += seconds
        self.paused += seconds

    def training(self, step: int, sums: dict[str, float], scalars: dict[str, float]) -> None:
        """Shows one interval: `sums` since the last call, `scalars` as in metrics.jsonl."""
        seconds = max(time.monotonic() - self.last_time, 1e-9)
        speed = {
            "steps_per_second": sums["steps"] / seconds,
            "examples_per_second": sums["weight"] / seconds,
            "tokens_per_second": sums["tokens"] / seconds,
            "padding": 1.0 - sums["tokens"] / max(sums["positions"], 1.0),
        }
        self.scalars(step, scalars | {f"speed/{name}": value for name, value in speed.items()})
        logging.info(
            "step %d/%d  loss %.4f  lr %.2e  %.1f examples/s  %s tokens/s  padding %.0f%%  ETA %s",
            step,
            self.total_steps,
            scalars["loss"],
            scalars["learning_rate"],
            speed["examples_per_second"],
            f"{speed['tokens_per_second']:,.0f}",
            100 * speed["padding"],
            self.eta(step),
        )
        self.last_time, self.last_step = time.monotonic(), step

    def eta(self, step: int) -> str:
        """Time left at the average speed so far, evaluation and saving included."""
        done = max(step - self.first_step, 1)
        seconds = (time.monotonic() - self.started) / done * (self.total_steps - step)
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars for TensorBoard."""
        if self.writer is None:
            return
        with self.writer.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self.writer.flush()
