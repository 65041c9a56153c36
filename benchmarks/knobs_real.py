"""Real runs of SmolLM2-135M behind ``benchmarks/knobs.py``: whether the cost model holds.

``real``: one run for each set of knobs, from one start, on the same batches and channels. Progress
is predicted before each round: its plan loses Q, so that it is worth 1 − Q of an unchanged round,
and a loss that the unchanged run has after m rounds is reached once Σ (1 − Q) = m. ``coverage``:
every client leaves the same share out, and only which units differ between the runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from airtune import planning
from airtune.engines.local import LocalEngine
from airtune.planning.assigning import assignments_of
from airtune.planning.inputs import Situation
from airtune.rounds.cell import Cell, Decision, open_cell
from airtune.rounds.cell import decide as decided
from airtune.rounds.loop import begin, step
from airtune.rounds.pilot import lost_share
from airtune.scenario import Scenario, load_scenario

REAL = Path(__file__).resolve().parents[1] / "experiments" / "knobs.toml"
UNCHANGED = "none"
SETS: dict[str, list[str]] = {
    UNCHANGED: ["planning.method=none"],
    "bandwidth, steps": ['planning.knobs=["bandwidth","steps"]'],
    "bandwidth, pruning": ['planning.knobs=["bandwidth","pruning"]'],
    "bandwidth, bits, rank": ['planning.knobs=["bandwidth","bits","rank"]'],
    "bandwidth, absence": ['planning.knobs=["bandwidth","absence"]'],
    "all but pruning and absence": ['planning.knobs=["bandwidth","bits","rank","steps"]'],
    "all but absence": ['planning.knobs=["bandwidth","bits","rank","steps","pruning"]'],
    "all, floor 0.25": ["planning.knobs=all", "participation.floor=0.25"],
}
TARGET_AFTER = 2
"""Rounds of the unchanged run whose loss all runs are to reach."""
WHOLE_ROUNDS, MOST_ROUNDS = 4, 8
SELECTIONS = ("importance", "rotating", "rolling")
COVERED_PRUNING, COVERED_ROUNDS = 0.5, 4


def real(
    source: str, seeds: list[int], known: list[dict[str, Any]], keep: Callable[[list], None]
) -> None:
    """Run every set of knobs that is not in `known`, up to the target's loss."""
    rows = list(known)
    for seed in seeds:
        for label, changes in SETS.items():
            if any(row["seed"] == seed and row["knobs"] == label for row in rows):
                continue
            scenario = _scenario(source, seed, changes)
            target = None
            if label != UNCHANGED:
                whole = next(r for r in rows if r["seed"] == seed and r["knobs"] == UNCHANGED)
                target = whole["losses"][TARGET_AFTER]
            rows.append({"seed": seed, "knobs": label, **_run(scenario, target)})
            print(f"seed {seed}, {label}: {rows[-1]['losses']}", flush=True)
            keep([with_prediction(row, rows) for row in rows])


def _scenario(source: str, seed: int, changes: list[str]) -> Scenario:
    return load_scenario(str(REAL), [f"seed={seed}", f"task.source={source}", *changes])


def _run(scenario: Scenario, target: float | None) -> dict[str, Any]:
    """Run until the loss is below the target's; without one, the unchanged run's rounds."""
    found: dict[str, Any] = {"rounds": []}

    def noting(cell: Cell, situation: Situation) -> Decision:
        made = decided(cell, situation)
        plan = made.plan
        # Of the examples, without the floor's weights: what the merged adapter should lose.
        weight = np.array([load.examples for load in situation.loads], dtype=float)
        weight = weight / weight.sum()
        found["rounds"].append(
            {
                "planned_loss": 0.0 if plan.losses is None else float(weight @ plan.losses),
                "predicted_s": plan.round_latency_s,
                "gap": plan.gap,
                "modes": [None if a is None else planned_mode(a) for a in made.assignments],
            }
        )
        return made

    with open_cell(scenario, engine=lambda own: LocalEngine(own, threads=1), decide=noting) as cell:
        state = begin(cell)
        latencies = []
        for _ in range(WHOLE_ROUNDS if target is None else MOST_ROUNDS):
            state, record = step(cell, state)
            latencies.append(record.round_latency_s)
            if target is not None and record.eval_loss is not None and record.eval_loss <= target:
                break
    return {**found, "losses": list(state.losses), "latencies_s": latencies, "target": target}


def planned_mode(assigned: Any) -> str:
    """Return what a client was told, in one line."""
    mode = assigned.mode
    return (
        f"{mode.local_steps} steps, rank {mode.rank}, {mode.bits_per_value} bits, "
        f"pruning {assigned.pruning:.2f}, {assigned.bandwidth_hz / 1e6:.2f} MHz"
    )


def with_prediction(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Add rounds and time to the target's loss, as planned and as they came."""
    whole = next(r for r in rows if r["seed"] == row["seed"] and r["knobs"] == UNCHANGED)
    losses, latencies = row["losses"], np.array(row["latencies_s"])
    lost = np.array([one["planned_loss"] for one in row["rounds"]])
    planned_s = np.array([one["predicted_s"] for one in row["rounds"]])
    target = whole["losses"][TARGET_AFTER]
    predicted = _crossing(np.concatenate([[0.0], np.cumsum(1.0 - lost)]), TARGET_AFTER)
    # Past what was run, rounds go on like those so far.
    if predicted is None:
        left = TARGET_AFTER - float(np.sum(1.0 - lost))
        predicted = len(lost) + left / float(np.mean(1.0 - lost))
    realised = _crossing(-np.array(losses), -target)
    share = lost_share(whole["losses"], losses) if len(losses) > 1 else None
    return {
        **row,
        "predicted_rounds": predicted,
        "realised_rounds": realised,
        "predicted_time_s": _time_after(predicted, planned_s),
        "realised_time_s": None if realised is None else _time_after(realised, latencies),
        "planned_loss": float(lost.mean()),
        "lost_share": share,
    }


def _crossing(values: np.ndarray, level: float) -> float | None:
    """Return the round at which rising values first reach a level, between rounds linearly."""
    for i in range(1, len(values)):
        if values[i] >= level:
            below = values[i - 1]
            return (
                i - 1 + float((level - below) / (values[i] - below)) if level > below else i - 1.0
            )
    return None


def _time_after(rounds: float, latencies_s: np.ndarray) -> float:
    ends = np.concatenate([[0.0], np.cumsum(latencies_s)])
    beyond = max(0.0, rounds - len(latencies_s)) * float(latencies_s.mean())
    return float(np.interp(rounds, np.arange(len(ends)), ends)) + beyond


def coverage(
    source: str, seeds: list[int], known: list[dict[str, Any]], keep: Callable[[list], None]
) -> None:
    """Cut all clients alike, with each selection of units."""
    rows = list(known)
    for seed in seeds:
        for selection in SELECTIONS:
            if any(row["seed"] == seed and row["selection"] == selection for row in rows):
                continue
            scenario = _scenario(source, seed, [f"pruning.selection={selection}"])
            with open_cell(
                scenario, engine=lambda own: LocalEngine(own, threads=1), decide=_cut_alike
            ) as cell:
                state = begin(cell)
                for _ in range(COVERED_ROUNDS):
                    state, _ = step(cell, state)
            rows.append({"seed": seed, "selection": selection, "losses": list(state.losses)})
            print(f"seed {seed}, {selection}: {state.losses}", flush=True)
            keep(rows)


def _cut_alike(cell: Cell, situation: Situation) -> Decision:
    plan = planning.plan(situation.problem, "none", bound=False)
    asked = replace(plan, pruning=np.full(len(situation.cohort), COVERED_PRUNING))
    told = assignments_of(asked, situation.modes, situation.link, situation.cohort)
    return Decision(asked, told)
