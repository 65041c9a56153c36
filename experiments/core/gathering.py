"""From run directories to results.json: what each method took to reach the target."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from methods import METHODS

from airtune.record import Record, RoundRecord, read_record
from airtune.record.files import write_durably
from airtune.record.schema import OK

PHASES = ("downlink_s", "compute_s", "upload_s")


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

    The target, a task and seed each: the lowest final loss of the baselines, which all share
    that seed's draws. It is reached with the first round whose loss is not above it; None where
    no round is.
    """
    rows = []
    for run in sorted(runs, key=lambda r: (r["task"], list(METHODS).index(r["method"]), r["seed"])):
        rivals = [
            other["final_loss"]
            for other in runs
            if (other["task"], other["seed"]) == (run["task"], run["seed"])
            and METHODS[other["method"]].kind == "baseline"
        ]
        target = min(rivals, default=None)
        curve = run["curve"]
        reached = None
        if target is not None:
            reached = next((i for i, loss in enumerate(curve["loss"]) if loss <= target), None)
        taken = {
            f"{key}_to_target" if key != "elapsed_s" else "time_to_target_s": None
            if reached is None
            else curve[key][reached]
            for key in ("elapsed_s", "uplink_bits", "downlink_bits", "flops")
        }
        rows.append({**run, "target_loss": target, **taken})
    return rows


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


def sentence(rows: Sequence[dict[str, Any]], task: str) -> str:
    """Say how much sooner than FedIT `exact` has FedIT's final loss; the README holds this.

    Of every seed that both have; a seed in which `exact` never gets there is not passed over.
    """
    runs = {(row["method"], row["seed"]): row for row in rows if row["task"] == task}
    seeds = sorted(seed for method, seed in runs if method == "exact" and ("fedit", seed) in runs)
    times, bits, losses = [], [], []
    for seed in seeds:
        exact, fedit = (runs[method, seed]["curve"] for method in ("exact", "fedit"))
        target = fedit["loss"][-1]
        reached = next((i for i, loss in enumerate(exact["loss"]) if loss <= target), None)
        if reached is None:
            return f"On {task}, `exact` does not reach FedIT's final loss on seed {seed}."
        times.append((exact["elapsed_s"][reached], fedit["elapsed_s"][-1]))
        bits.append(exact["uplink_bits"][reached] / fedit["uplink_bits"][-1])
        losses.append(target)
    ours_s, theirs_s = np.mean(times, axis=0)
    count = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
    title = {"gsm8k": "GSM8K", "yahoo": "Yahoo Answers"}.get(task, task)
    return (
        f"On {title} ({count}), joint planning has FedIT's final test loss of "
        f"{np.mean(losses):.3f} after {ours_s:.0f} s of virtual time instead of {theirs_s:.0f} s "
        f"({1 - ours_s / theirs_s:.0%} less), with {1 - np.mean(bits):.0%} fewer uplink bits."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return means over seeds as a Markdown table, a task and method a row."""
    keys = ("time_to_target_s", "uplink_bits_to_target", "final_loss", "worst_client_loss")
    lines = ["| task | method | seeds | reached | " + " | ".join(keys) + " |"]
    lines.append("|" + " --- |" * (len(keys) + 4))
    groups = dict.fromkeys((row["task"], row["method"]) for row in rows)
    for task, method in groups:
        own = [row for row in rows if (row["task"], row["method"]) == (task, method)]
        reached = sum(row["time_to_target_s"] is not None for row in own)
        cells = []
        for key in keys:
            values = [row[key] for row in own]
            whole = all(value is not None for value in values)
            cells.append(f"{np.mean(values):.4g}" if whole else "–")
        lines.append(f"| {task} | {method} | {len(own)} | {reached} | {' | '.join(cells)} |")
    return "\n".join(lines)
