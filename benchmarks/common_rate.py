"""What one pruning rate for all is worth in a plan, and what a rate for each promises: not trained.

    python benchmarks/common_rate.py --source FOLDER     # CLINC150's train.csv and test.csv

`heard` of experiments/cells.toml where computing binds and of experiments/clinc150.toml where links
do, every eighth round's channel. J = N·T of three plans relative to that without pruning: a rate
for each client, and one for all by the two cost curves, the pilot's and those that the devices
measure before training. Rows go to results/common_rate.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import airtune as at
from airtune.planning.problem import Plan
from airtune.planning.round_plan import plan_round
from airtune.rounds.situation import situation_of
from airtune.rounds.state import State
from airtune.scenario import Scenario
from airtune.scenario.pruning import PruningSection
from airtune.study import load_study
from airtune.study.jobs import Job, jobs_of

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent / "experiments"
RESULTS = HERE / "results" / "common_rate.json"
CELLS = ("links bind", "computing binds")
NOTHING = 1e-9
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"rates": "own", "max_pruning": NOTHING},
    "own": {"rates": "own", "cost": "measured"},
    "common": {"rates": "common", "cost": "linear"},
    "common, curves before training": {"rates": "common", "cost": "measured"},
}


def main() -> None:
    """Plan the rounds and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", type=Path, required=True, help="CLINC150's folder")
    parser.add_argument("--seed", type=int, default=12)
    parser.add_argument("--rounds", type=int, nargs="+", default=[0, 8, 16])
    given = parser.parse_args()
    rows = [
        row | {"cell": cell}
        for cell, job in _jobs(given.source, given.seed)
        for row in _planned(job, given.rounds)
    ]
    asked = f"--source FOLDER --seed {given.seed} --rounds {' '.join(map(str, given.rounds))}"
    made = {"command": f"python benchmarks/common_rate.py {asked}", "rows": rows}
    RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _jobs(source: Path, seed: int) -> list[tuple[str, Job]]:
    found = []
    for study in ("clinc150", "cells"):
        loaded = load_study(EXPERIMENTS / f"{study}.toml", [f"task.source={source.resolve()}"])
        for job in jobs_of(loaded):
            cell = dict(job.point).get("cell", "links bind")
            if job.method == "heard" and job.seed == seed and cell in CELLS:
                found.append((cell, job))
    return found


def _planned(job: Job, rounds: list[int]) -> list[dict[str, Any]]:
    scenario = Scenario.model_validate(job.values)
    measured = scenario.model_copy(update={"pruning": _pruning(scenario, {"cost": "measured"})})
    rows = []
    with at.open_cell(measured) as cell:
        state = State(0, 0.0, cell.engine.initial_adapter(), {}, (None,))
        for number in rounds:
            situation = situation_of(cell, replace(state, round=number), cell.profiles)
            whole_s = None
            for kind, changes in KINDS.items():
                asked = scenario.model_copy(update={"pruning": _pruning(scenario, changes)})
                began = process_time()
                plan = plan_round(asked, situation, cell.knob_costs).plan
                whole_s = plan.objective_s if whole_s is None else whole_s
                rows.append(_row(number, kind, plan, whole_s, process_time() - began))
                print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    return rows


def _pruning(scenario: Scenario, changes: dict[str, Any]) -> PruningSection:
    return scenario.pruning.model_copy(update=changes)


def _row(round: int, kind: str, plan: Plan, whole_s: float, took_s: float) -> dict[str, Any]:
    assert plan.gap is not None
    return {
        "round": round,
        "kind": kind,
        "objective_s": round_to(plan.objective_s, 3),
        "relative": round_to(plan.objective_s / whole_s, 3),
        "rates": [round_to(rate, 3) for rate in plan.pruning.tolist()],
        "gap": round_to(plan.gap, 6),
        "processor_s": round_to(took_s, 2),
    }


def round_to(value: float, digits: int) -> float:
    """Return a number as it is written."""
    return float(f"{value:.{digits}f}")


if __name__ == "__main__":
    main()
