"""The core's main methods in other cells: really trained, each against FedIT in the same cell.

    python experiments/core/cells.py --gsm8k FOLDER

Each cell differs from the core's own in one thing. Rates and ranks are the core's (`--tuned`).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import run
from gathering import at_end, collect, mean_text, write_results

from airtune.errors import InputError
from airtune.scenario import Scenario, load_scenario

HERE = Path(__file__).parent
COMPARED = ("fedit", "exact", "exact-combined", "exact-combined-or-out", "deadline-4-bit")
OWN = "the core's own"

Shares = dict[str, float | None]


def cells(base: Scenario) -> dict[str, list[str]]:
    """Return each cell's changes to the core's scenario."""
    kinds = range(len(base.devices))
    doubled = [f"devices.{kind}.count={2 * base.devices[kind].count}" for kind in kinds]
    return {
        "a tenth of the spectrum": _bands(base, 0.1),
        "ten times the spectrum": _bands(base, 10.0),
        "twice the clients": [*doubled, f"task.train_examples={2 * base.task.train_examples}"],
        "devices alike": [f"devices.{kind}.profile=laptop-cpu" for kind in kinds],
        "iid data": ["partition.kind=iid"],
    }


def _bands(base: Scenario, factor: float) -> list[str]:
    up = base.cell.uplink_bandwidth_hz
    down = base.cell.downlink_bandwidth_hz
    return [
        f"cell.uplink_bandwidth_hz={factor * up!r}",
        f"cell.downlink_bandwidth_hz={factor * down!r}",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, write cells.json and the figure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gsm8k", type=Path, help="as for run.py")
    parser.add_argument("--smoke", action="store_true", help="the tiny model instead, in seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/cells"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--cells", help="separated by commas; default: all")
    options = parser.parse_args(arguments)
    try:
        seeds = run.seeds_of(options.seeds)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    task = "smoke" if options.smoke else "gsm8k"
    known = cells(load_scenario(HERE / f"{task}.toml"))
    names = options.cells.split(",") if options.cells else list(known)
    for name in names:
        if name not in known:
            print(f"--cells '{name}': allowed are {', '.join(known)}", file=sys.stderr)
            return 2
    rows = _of_core(task, seeds)
    for name in names:
        out = options.out / name.replace(" ", "-")
        asked = ["--out", str(out), "--methods", ",".join(COMPARED), "--seeds", options.seeds]
        asked += ["--smoke", "--no-search"] if options.smoke else ["--tuned"]
        asked += ["--gsm8k", str(options.gsm8k)] if options.gsm8k else []
        asked += [text for change in known[name] for text in ("--set", change)]
        if status := run.main(asked):
            return status
        made = json.loads((out / "results.json").read_text())
        rows += [{"cell": name, **row} for row in made]
        # After each cell: what was made is not lost with what comes later.
        write_results(rows, options.out / "cells.json")
        draw(rows, options.out / "cells.svg")
    print(table(rows))
    return 0


def _of_core(task: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return the committed runs of the core's own cell, with FedIT alone to set the target."""
    runs = [
        row
        for row in json.loads((HERE / "results.json").read_text())
        if row["task"] == task and row["method"] in COMPARED and row["seed"] in seeds
    ]
    return [{"cell": OWN, **row} for row in collect(runs)]


def compared(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[Shares]]:
    """Return each cell and method with, a seed each, what it took as shares of what FedIT took.

    `loss`: its final loss above FedIT's; `time`: of all its rounds; `time_to`, `uplink_to`: to
    FedIT's final loss, None where it did not get there.
    """
    fedit = {(row["cell"], row["seed"]): row for row in rows if row["method"] == "fedit"}
    found: dict[tuple[str, str], list[Shares]] = {}
    for row in rows:
        if row["method"] == "fedit":
            continue
        other = fedit[row["cell"], row["seed"]]
        found.setdefault((row["cell"], row["method"]), []).append(
            {
                "loss": row["final_loss"] - other["final_loss"],
                "time": at_end(row, "elapsed_s") / at_end(other, "elapsed_s"),
                "time_to": _share(row, other, "time_to_target_s"),
                "uplink_to": _share(row, other, "uplink_bits_to_target"),
            }
        )
    return found


def _share(row: dict[str, Any], other: dict[str, Any], key: str) -> float | None:
    return None if row[key] is None else row[key] / other[key]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison as a Markdown table, means over seeds."""
    heads = ("cell", "method", "loss above FedIT's", "time", "time to its loss", "uplink to it")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for (cell, method), own in compared(rows).items():
        shares = (mean_text([one[key] for one in own]) for key in ("time", "time_to", "uplink_to"))
        loss = np.mean([one["loss"] for one in own])
        lines.append(f"| {cell} | `{method}` | {loss:+.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw, a line a cell, each method's time and uplink bits to FedIT's final loss.

    A point a seed that got there, as shares of what FedIT took on the same seed.
    """
    names = list(dict.fromkeys(row["cell"] for row in rows))
    methods = [method for method in COMPARED if method != "fedit"]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    titles = {"time_to": "virtual time", "uplink_to": "uplink bits"}
    for place, (key, title) in zip(axes, titles.items(), strict=True):
        for number, method in enumerate(methods):
            points = [
                (share, names.index(cell) + 0.12 * (number - 1.5))
                for (cell, name), own in compared(rows).items()
                if name == method
                for one in own
                if (share := one[key]) is not None
            ]
            shares, heights = [x for x, _ in points], [y for _, y in points]
            place.plot(shares, heights, "o", color=f"C{number}", label=method)
        place.axvline(1.0, color="grey", linewidth=0.8)
        place.set_xscale("log")
        place.set_xlabel(f"{title} to FedIT's final loss, FedIT's = 1")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    axes[1].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
