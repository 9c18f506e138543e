"""From results to a table, a verdict, a JSON file and a picture."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from typing import Any

from driver import Result

OWN = "bert_tf"
HIGHEST_LOAD = 1.5  # of the machine, before anything was started
CEILINGS = ("matmul_float32", "matmul_bfloat16", "memory_copy")
COLUMNS = (
    "library",
    "settings",
    "median (s)",
    "from - to (s)",
    "CPU (s)",
    "per second",
    "of the ceiling",
    "memory (GB)",
    "difference",
    "note",
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One workload with all its results."""

    workload: str
    kind: str
    unit: str
    work: float  # FLOP or bytes of a run; 0: there is no ceiling
    results: list[Result]


def median_wall(result: Result) -> float | None:
    """Of the rounds, else of the qualifying; None where nothing was measured."""
    if result.walls:
        return statistics.median(result.walls)
    return result.qualifying.get("wall")


def best_by_peer(results: list[Result]) -> dict[str, Result]:
    """The settings of each library that were fastest in the rounds."""
    best: dict[str, Result] = {}
    for result in results:
        if result.walls and not result.note:
            other = best.get(result.peer)
            if other is None or statistics.median(result.walls) < statistics.median(other.walls):
                best[result.peer] = result
    return best


def ceilings(measured: list[Measured]) -> dict[str, float]:
    """FLOP/s or bytes/s: the best that any library reached."""
    found = {}
    for one in measured:
        if one.kind in CEILINGS:
            walls = [(result.units, median_wall(result)) for result in one.results]
            speeds = [units / wall for units, wall in walls if wall]
            if speeds:
                found[one.kind] = max(speeds)
    return found


def share_of_ceiling(one: Measured, wall: float, known: dict[str, float]) -> float | None:
    """Of what the machine could do in that time; of the faster of both matrix products."""
    if not one.work:
        return None
    names = CEILINGS[2:] if one.kind == "optimizer" else CEILINGS[:2]
    limits = [known[name] for name in names if name in known]
    return one.work / wall / max(limits) if limits else None


# ---------------------------------------------------------------------------------------- the table


def table(one: Measured, known: dict[str, float]) -> str:
    """Markdown: the fastest first, then what was not measured."""
    ordered = sorted(one.results, key=lambda result: median_wall(result) or float("inf"))
    rows = [cells(one, result, known) for result in ordered]
    unit = f"{one.unit} per second"
    titles = [unit if title == "per second" else title for title in COLUMNS]
    lines = [titles, ["---"] * len(titles), *rows]
    return f"### {one.workload}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(one: Measured, result: Result, known: dict[str, float]) -> list[str]:
    """A row of the table."""
    wall = median_wall(result)
    if wall is None:
        return [result.peer, result.variant, *["-"] * 7, result.note]
    share = share_of_ceiling(one, wall, known)
    spread = f"{min(result.walls):.4g} - {max(result.walls):.4g}" if result.walls else "-"
    cpu = statistics.median(result.cpus) if result.cpus else result.qualifying["cpu"]
    return [
        result.peer,
        result.variant,
        f"{wall:.4g}",
        spread,
        f"{cpu:.4g}",
        f"{result.units / wall:,.4g}",
        "-" if share is None else f"{share:.1%}",
        f"{result.peak_memory / 1e9:.2f}",
        "-" if result.difference is None else f"{result.difference:.1e}",
        result.note,
    ]


def verdict(one: Measured) -> str:
    """How fast bert_tf is beside the fastest peer, both at their best; "" where one is missing."""
    best = best_by_peer(one.results)
    own = best.pop(OWN, None)
    if own is None or not best or one.kind in CEILINGS:
        return ""
    speeds = {peer: result.units / statistics.median(result.walls) for peer, result in best.items()}
    peer = max(speeds, key=lambda name: speeds[name])
    other = best[peer]
    ratio = own.units / statistics.median(own.walls) / speeds[peer]
    ranges = [
        [result.units / wall for wall in result.walls] for result in (own, other)
    ]  # of speeds
    overlap = min(ranges[0]) <= max(ranges[1]) and min(ranges[1]) <= max(ranges[0])
    return (
        f"{one.workload}: bert_tf ({own.variant}) has {ratio:.2f} times the speed of {peer} "
        f"({other.variant}), the fastest peer"
        + ("; their ranges overlap, so neither is faster for sure." if overlap else ".")
    )


def verdicts(measured: list[Measured], load: float) -> list[str]:
    """One for each workload, or why there is none."""
    if load > HIGHEST_LOAD:
        return [
            f"No verdict: the machine's load was {load:.2f} before the benchmark began, above "
            f"{HIGHEST_LOAD}; other programs took part in every figure."
        ]
    return [line for line in map(verdict, measured) if line]


def check_load(load: float, allowed: bool) -> None:
    """Raises ValueError where the machine is busy."""
    if load > HIGHEST_LOAD and not allowed:
        raise ValueError(
            f"the machine's load is {load:.2f}, above {HIGHEST_LOAD}: wait until other programs "
            "have ended, or measure all the same with --allow_load, without a verdict."
        )


# ---------------------------------------------------------------------------------------- the files


def markdown(measured: list[Measured], about: dict[str, Any], missing: dict[str, str]) -> str:
    """The whole report."""
    known = ceilings(measured)
    lines = [f"{name}: {value}" for name, value in about.items()]
    lines += [f"{peer} is missing: {reason}" for peer, reason in missing.items()]
    lines += [
        f"ceiling, {name}: {speed / 1e9:,.1f} {'GB/s' if name == CEILINGS[2] else 'GFLOP/s'}"
        for name, speed in known.items()
    ]
    parts = ["\n".join(f"- {line}" for line in lines)]
    parts += [table(one, known) for one in measured]
    parts.append("\n".join(f"- {line}" for line in verdicts(measured, about["load before"])))
    return "\n\n".join(parts) + "\n"


def write_json(
    path: pathlib.Path, measured: list[Measured], about: dict[str, Any], missing: dict[str, str]
) -> None:
    """Everything, under a temporary name first."""
    known = ceilings(measured)
    content = {
        "about": about,
        "missing": missing,
        "ceilings": known,
        "workloads": [dataclasses.asdict(one) for one in measured],
        "verdicts": verdicts(measured, about["load before"]),
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    temporary.replace(path)


def draw(path: pathlib.Path, measured: list[Measured]) -> None:
    """Bars: speeds of all libraries at their best, as multiples of bert_tf's (extra `plots`)."""
    from matplotlib.figure import Figure  # not installed everywhere

    chosen = []
    for one in measured:
        best = best_by_peer(one.results)
        if one.kind not in CEILINGS and OWN in best:
            chosen.append((one, best))
    peers = [OWN, *sorted({peer for _, best in chosen for peer in best if peer != OWN})]
    figure = Figure(figsize=(9.0, 1.5 + 0.22 * len(peers) * max(len(chosen), 1)), layout="tight")
    axes = figure.subplots()
    height = 0.8 / len(peers)
    for number, peer in enumerate(peers):
        speeds, low, high = [], [], []
        for _, best in chosen:
            own = best[OWN].units / statistics.median(best[OWN].walls)
            walls, units = (best[peer].walls, best[peer].units) if peer in best else ([], 0.0)
            speed = units / statistics.median(walls) / own if walls else 0.0
            speeds.append(speed)
            low.append(speed - units / max(walls) / own if walls else 0.0)
            high.append(units / min(walls) / own - speed if walls else 0.0)
        places = [row + number * height for row in range(len(chosen))]
        axes.barh(places, speeds, height, label=peer, xerr=[low, high])
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(chosen))])
    axes.set_yticklabels([one.workload for one, _ in chosen])
    axes.invert_yaxis()
    axes.set_xlabel("speed as a multiple of bert_tf's; lines from slowest to fastest round")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)
