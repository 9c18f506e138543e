"""Draws what a run measured: one curve for each number in metrics.jsonl (needs the extra `plots`).

python scripts/plot_metrics.py --workdir=runs/laptop            # writes runs/laptop/metrics.png
python scripts/plot_metrics.py --workdir=runs/a --workdir=runs/b --output=a-and-b.png
"""

from __future__ import annotations

import json
import os
from typing import Any

import tensorflow as tf
from absl import flags

from bert_tf import command_line

WORKDIRS = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a run; give several to compare them.", required=True
)
OUTPUT = flags.DEFINE_string("output", None, "PNG to write (default: WORKDIR/metrics.png).")

COLUMNS = 2  # of panels
EVALUATION = "eval/"  # names of what was measured on dev; drawn with that of training, dashed
PANEL_INCHES = (5.0, 3.2)

Curve = tuple[list[int], list[float]]  # steps and values


def main(unused_argv: list[str]) -> None:
    """Reads, draws and writes."""
    runs = {workdir.rstrip("/"): read_curves(workdir) for workdir in WORKDIRS.value}
    output = OUTPUT.value or os.path.join(WORKDIRS.value[0], "metrics.png")
    picture = draw(runs)
    temporary = output + ".tmp"
    with tf.io.gfile.GFile(temporary, "wb") as file:
        picture.savefig(file, dpi=120, format="png")
    tf.io.gfile.rename(temporary, output, overwrite=True)
    print(output)


def read_curves(workdir: str) -> dict[str, Curve]:
    """The numbers of `metrics.jsonl` by name; raises ValueError where there are none."""
    path = os.path.join(workdir, "metrics.jsonl")
    if not tf.io.gfile.exists(path):
        raise ValueError(f"{path} does not exist: --workdir must be the folder of a run.")
    curves: dict[str, Curve] = {}
    with tf.io.gfile.GFile(path) as file:
        for line in file.read().splitlines():
            values = json.loads(line)
            step = values.pop("step")
            for name, value in values.items():
                steps, numbers = curves.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(value)
    if not curves:
        raise ValueError(f"{path} is empty: the run has not measured anything yet.")
    return curves


def draw(runs: dict[str, dict[str, Curve]]) -> Any:  # noqa: ANN401 - of a library that may be absent
    """A matplotlib figure with a panel for each number."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "Pictures need matplotlib: pip install 'bert_tf[plots]' (or pip install matplotlib)."
        ) from None
    names = list(dict.fromkeys(n.removeprefix(EVALUATION) for run in runs.values() for n in run))
    rows = -(-len(names) // COLUMNS)
    figure = Figure((PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        panel.set_title(name)
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        for number, (workdir, curves) in enumerate(runs.items()):
            run_name = f"{os.path.basename(workdir)}: " if len(runs) > 1 else ""
            for kind, style in ((name, "-"), (EVALUATION + name, "o--")):
                if kind in curves:
                    label = run_name + ("dev" if kind != name else "training")
                    panel.plot(*curves[kind], style, color=f"C{number}", markersize=3, label=label)
        panel.legend(fontsize="small")
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    return figure


if __name__ == "__main__":
    command_line.run_script(main)
