"""The tables of README.md here, from the rows of runs that are committed.

    python experiments/core/tables.py   # writes them between their marks

The rows in core/ are of an experiment that was run before `airtune study`: one run a row, with the
target and what reaching it took.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airtune.study.methods import shipped_sets

CORE = Path(__file__).parent
TITLES = {"gsm8k": "GSM8K", "yahoo": "Yahoo Answers"}
ORDER = ("joint", "published", "rivals", "ablations")
KINDS = {name: one.kind for key in ORDER for name, one in shipped_sets()[key].items()}
"""Each method's kind, in the order of the tables."""
Shares = dict[str, Any]
DOCUMENT = Path(__file__).parent / "README.md"


def rows_of(name: str) -> list[dict[str, Any]]:
    """Return the committed rows: `results` or `cells`."""
    rows: list[dict[str, Any]] = json.loads((CORE / f"{name}.json").read_text())
    return rows


def table(rows: Sequence[dict[str, Any]], task: str) -> str:
    """Return one task's methods as a Markdown table: means over seeds, times as ratios.

    Seconds and bits are of other cells on every seed, so they are given as shares of what FedIT
    took for all of its rounds, and to the target of what the best baseline took, on the same
    seed. Means to the target are over the seeds that reached it.
    """
    groups = _of_task(rows, task)
    fedit, best = groups.get("fedit", {}), _best_baseline(groups)
    scored = any(row.get("accuracy") is not None for own in groups.values() for row in own.values())
    heads = ["method", "seeds", "rounds", "test loss", "above FedIT's", "worst client"]
    heads += ["accuracy"] * scored
    heads += ["time", "uplink", "TFLOP", "target reached", "time to it", "uplink to it"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, own in groups.items():
        against = [(row, fedit[seed]) for seed, row in own.items() if seed in fedit]
        times = _reached(groups, name)
        cells = [
            f"`{name}`",
            str(len(own)),
            str(next(iter(own.values()))["rounds"]),
            mean_text([row["final_loss"] for row in own.values()], 3),
            _spread([row["final_loss"] - other["final_loss"] for row, other in against]),
            mean_text([row["worst_client_loss"] for row in own.values()], 3),
            *([mean_text([row.get("accuracy") for row in own.values()])] * scored),
            *(
                mean_text([at_end(row, key) / at_end(other, key) for row, other in against])
                for key in ("elapsed_s", "uplink_bits")
            ),
            mean_text([at_end(row, "flops") / 1e12 for row in own.values()], 1),
            f"{len(times)} of {len(own.keys() & best.keys())}",
            mean_text(times),
            mean_text(_reached(groups, name, "uplink_bits_to_target")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


SHORT_METHODS = {
    "fedit": "whole models, equal bands",
    "flexlora": "whole models, ranks by speed",
    "in-turn": "the slowest in every other round",
    "deadline-4-bit": "the slowest sit out, 4 bits a value",
    "exact": "**joint plan: pruning and bands**",
    "exact-combined": "**joint plan, ranks by speed, 4 bits a value**",
}
"""The rows of the short table: FedIT, each task's best baseline, the best alternative, plans."""


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the short table: means over seeds; time and uplink of all rounds over FedIT's."""
    tasks = [task for task in TITLES if _of_task(rows, task)]
    heads = ["method", "what it does"]
    for task in tasks:
        heads += [f"{TITLES[task]}: test loss", "time", "uplink"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, meaning in SHORT_METHODS.items():
        cells = [f"`{name}`", meaning]
        for task in tasks:
            groups = _of_task(rows, task)
            own, fedit = groups.get(name, {}), groups.get("fedit", {})
            pairs = [(row, fedit[seed]) for seed, row in own.items() if seed in fedit]
            cells.append(mean_text([row["final_loss"] for row in own.values()], 3))
            cells += [
                mean_text([at_end(row, key) / at_end(other, key) for row, other in pairs])
                for key in ("elapsed_s", "uplink_bits")
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _reached(
    groups: dict[str, dict[int, dict[str, Any]]], name: str, key: str = "time_to_target_s"
) -> list[float]:
    """Return, for each seed that reached the target, its share of what the best baseline took."""
    best = _best_baseline(groups)
    return [
        row[key] / best[seed][key] for seed, row in groups[name].items() if row[key] is not None
    ]


def _of_task(rows: Sequence[dict[str, Any]], task: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return a task's rows by method and seed, methods in the order of `KINDS`."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for name in KINDS:
        own = {r["seed"]: r for r in rows if (r["task"], r["method"]) == (task, name)}
        if own:
            groups[name] = own
    return groups


def _best_baseline(groups: dict[str, dict[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """Return the runs, by seed, of the baseline with the lowest mean final loss.

    One baseline for all seeds: the lowest of each seed would be the luckiest of many noisy ends.
    Compared on the seeds that most baselines have, of those with all of them: another set of seeds
    is another set of cells, and a single run of a new seed must not choose.
    """
    baselines = [own for name, own in groups.items() if KINDS[name] == "baseline"]
    sets = Counter(frozenset(own) for own in baselines)
    if not sets:
        return {}
    # Of sets that as many have, the one that more others cover.
    seeds = max(sets, key=lambda one: (sets[one], sum(one <= own.keys() for own in baselines)))

    def end(own: dict[int, dict[str, Any]]) -> tuple[float, float]:
        # Of equal losses the one in less time: bands change the time and not the training.
        return (
            float(np.mean([own[seed]["final_loss"] for seed in seeds])),
            float(np.mean([at_end(own[seed], "elapsed_s") for seed in seeds])),
        )

    best = min((own for own in baselines if seeds <= own.keys()), key=end)
    return {seed: best[seed] for seed in sorted(seeds)}


def at_end(row: dict[str, Any], key: str) -> float:
    """Return what a curve (`elapsed_s`, `uplink_bits`, …) came to with the last round."""
    return float(row["curve"][key][-1])


def mean_text(values: Sequence[float | None], digits: int = 2) -> str:
    """Return the mean as text, a dash where there is none or a value is missing."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known and len(known) == len(values) else "–"


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:+.3f}" for value in values) or "–"
    return f"{np.mean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"


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


def cells_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the comparison as a Markdown table, means over seeds."""
    heads = ("cell", "method", "loss above FedIT's", "time", "time to its loss", "uplink to it")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for (cell, method), own in compared(rows).items():
        shares = (mean_text([one[key] for one in own]) for key in ("time", "time_to", "uplink_to"))
        loss = np.mean([one["loss"] for one in own])
        lines.append(f"| {cell} | `{method}` | {loss:+.3f} | {' | '.join(shares)} |")
    return "\n".join(lines)


def with_tables(document: str) -> str:
    """Return a document with the tables for which it has marks, `<!-- NAME -->`."""
    results = rows_of("results")
    made = {
        "results": short_table(results),
        **{task: table(results, task) for task in TITLES},
        "cells": cells_table(rows_of("cells")),
    }
    for name, text in made.items():
        before, mark, rest = document.partition(f"<!-- {name} -->\n")
        if mark:
            document = f"{before}{mark}{text}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return document


if __name__ == "__main__":
    DOCUMENT.write_text(with_tables(DOCUMENT.read_text()))
