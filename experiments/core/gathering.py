"""From run directories to results.json: what each method took to reach the target."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import METHODS

from airtune.record import Record, RoundRecord, read_record
from airtune.record.files import write_durably
from airtune.record.schema import OK

PHASES = ("downlink_s", "compute_s", "upload_s")
TITLES = {"gsm8k": "GSM8K", "yahoo": "Yahoo Answers"}


def summary_of(folder: Path, task: str, method: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return what results.json needs of one finished run; nothing of the data itself."""
    record = read_record(folder)
    rounds = record.rounds
    last = rounds[-1]
    cell = record.description
    start = cell.initial_eval_loss if cell else None
    setup_flops = cell.setup_flops if cell else 0.0
    return {
        "task": task,
        "method": method,
        "seed": record.seed,
        "settings": list(settings),
        "commit": commit(),
        "final_loss": last.eval_loss,
        "worst_client_loss": last.metrics.get("worst_client_loss"),
        "exact_match": last.metrics.get("exact_match"),
        "accuracy": last.metrics.get("accuracy"),
        "rounds": len(rounds),
        "wall_s": sum(one.wall_s for one in rounds),
        "curve": {
            "loss": [start, *(one.eval_loss for one in rounds)],
            "elapsed_s": [0.0, *(one.elapsed_s for one in rounds)],
            "uplink_bits": _running([one.uplink_bits for one in rounds]),
            "downlink_bits": _running([one.downlink_bits for one in rounds]),
            "flops": [0.0, *(f + setup_flops for f in _running([o.flops for o in rounds])[1:])],
        },
        "predicted_latency_s": [one.predicted_latency_s for one in rounds],
        "round_latency_s": [one.round_latency_s for one in rounds],
        "budget_s": _budget(record),
    }


def _running(values: Sequence[float]) -> list[float]:
    return [0.0, *(float(total) for total in np.cumsum(values))]


def _budget(record: Record) -> dict[str, float]:
    """Mean seconds a round of one client's phases, and of waiting for the slowest."""

    def of(one: RoundRecord) -> list[float]:
        present = [client for client in one.clients if client.status == OK]
        phases = [float(np.mean([getattr(c, phase) for c in present])) for phase in PHASES]
        return [*phases, one.round_latency_s - sum(phases)]

    means = np.mean([of(one) for one in record.rounds], axis=0)
    return dict(zip((*PHASES, "waiting_s"), (float(value) for value in means), strict=True))


def collect(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each run the target and what reaching it took.

    The target, a task and seed each: the final loss, on that seed, of the task's best baseline.
    It is reached with the first round whose loss is not above it; None where no round is, and on
    seeds that the best baseline is not compared on.
    """
    targets = {
        (row["task"], seed): row["final_loss"]
        for task in dict.fromkeys(run["task"] for run in runs)
        for seed, row in _best_baseline(_of_task(runs, task)).items()
    }
    rows = []
    for run in sorted(runs, key=lambda r: (r["task"], list(METHODS).index(r["method"]), r["seed"])):
        target = targets.get((run["task"], run["seed"]))
        curve = run["curve"]
        reached = None if target is None else _first_at(run, target)
        taken = {
            f"{key}_to_target" if key != "elapsed_s" else "time_to_target_s": None
            if reached is None
            else curve[key][reached]
            for key in ("elapsed_s", "uplink_bits", "downlink_bits", "flops")
        }
        # Paths of the machine that ran it are left out.
        settings = [text for text in run["settings"] if not text.startswith("task.source=")]
        rows.append({**run, "settings": settings, "target_loss": target, **taken})
    return rows


def loss_curve(row: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return a run's seconds and losses, of the rounds that were evaluated."""
    curve = row["curve"]
    known = [
        (t, x) for t, x in zip(curve["elapsed_s"], curve["loss"], strict=True) if x is not None
    ]
    return [time for time, _ in known], [loss for _, loss in known]


def best_candidate(found: dict[Any, dict[str, Any]]) -> Any:
    """Return the candidate with the lowest held-out loss in the second half of a common time.

    A mean over time, because clients of few labels make the loss swing from round to round.
    """
    common = min(row["curve"]["elapsed_s"][-1] for row in found.values())
    times = np.linspace(common / 2, common, 101)

    def loss(pair: Any) -> float:
        return float(np.interp(times, *loss_curve(found[pair])).mean())

    return min(found, key=loss)


def write_results(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write results.json, one run a line."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    write_durably(path, f"[\n{lines}\n]\n".encode())


def commit() -> str:
    """Return the commit of the working tree, with `+changes` where it has any."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        ran = subprocess.run(("git", *arguments), cwd=here, capture_output=True, text=True)
        return ran.stdout.strip()

    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")


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


README_METHODS = {
    "fedit": "whole models, equal bands",
    "flexlora": "whole models, ranks by speed",
    "in-turn": "the slowest in every other round",
    "deadline-4-bit": "the slowest sit out, 4 bits a value",
    "exact": "**joint plan: pruning and bands**",
    "exact-combined": "**joint plan, ranks by speed, 4 bits a value**",
}
"""The rows of the README's table: FedIT, each task's best baseline, the best alternative, plans."""


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the README's table: means over seeds; time and uplink of all rounds over FedIT's."""
    tasks = [task for task in TITLES if _of_task(rows, task)]
    heads = ["method", "what it does"]
    for task in tasks:
        heads += [f"{TITLES[task]}: test loss", "time", "uplink"]
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for name, meaning in README_METHODS.items():
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


def _first_at(row: dict[str, Any], loss: float) -> int | None:
    """Return the first round whose loss is not above this; None if none is.

    From 1 on: the loss before training took nothing to reach. Rounds that were not evaluated are
    passed over.
    """
    losses = row["curve"]["loss"]
    return next((i for i, own in enumerate(losses) if i and own is not None and own <= loss), None)


def _reached(
    groups: dict[str, dict[int, dict[str, Any]]], name: str, key: str = "time_to_target_s"
) -> list[float]:
    """Return, for each seed that reached the target, its share of what the best baseline took."""
    best = _best_baseline(groups)
    return [
        row[key] / best[seed][key] for seed, row in groups[name].items() if row[key] is not None
    ]


def _of_task(rows: Sequence[dict[str, Any]], task: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Return a task's rows by method and seed, methods in the order of `METHODS`."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for name in METHODS:
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
    baselines = [own for name, own in groups.items() if METHODS[name].kind == "baseline"]
    sets = Counter(frozenset(own) for own in baselines)
    if not sets:
        return {}
    # Of sets that as many have, the one that more others cover.
    seeds = max(sets, key=lambda one: (sets[one], sum(one <= own.keys() for own in baselines)))

    def end(own: dict[int, dict[str, Any]]) -> tuple[float, float]:
        # Of equal losses the sooner: bands change the time and not the training.
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
