"""What weights by past contributions do to the plans of a run: planned, not trained.

    python benchmarks/fairness.py --source FOLDER      # CLINC150's train.csv and test.csv

The studies' cell where links bind (experiments/few-texts.toml, `heard`), its channels and curves,
one plan a round. For each set of knobs and α: the mean length T of a round, T·Σ w/x̄ and T/Σ w·x̄
(x̄ the mean contribution of a client), and the least x̄. Rows go to results/fairness.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import airtune as at
from airtune.planning.fairness import Contributed
from airtune.planning.inputs import Situation
from airtune.planning.round_plan import plan_round
from airtune.rounds.situation import situation_of
from airtune.rounds.state import State
from airtune.scenario import Scenario
from airtune.study import load_study
from airtune.study.jobs import jobs_of

HERE = Path(__file__).parent
STUDY = HERE.parent / "experiments" / "few-texts.toml"
RESULTS = HERE / "results" / "fairness.json"
HEARD = ("bandwidth", "steps", "rank", "bits")
KNOBS: dict[str, tuple[str, ...]] = {
    "all but pruning and absence": HEARD,
    "all but absence": (*HEARD, "pruning"),
    "all but pruning": (*HEARD, "absence"),
    "all": (*HEARD, "pruning", "absence"),
}
ALPHAS = (0.0, 2.0, 4.0)


def main() -> None:
    """Plan the rounds and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", type=Path, required=True, help="CLINC150's folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[12, 15])
    parser.add_argument("--rounds", type=int, default=24)
    given = parser.parse_args()
    rows = []
    for job in jobs_of(load_study(STUDY, [f"task.source={given.source.resolve()}"])):
        if job.method != "heard" or job.seed not in given.seeds:
            continue
        scenario = Scenario.model_validate(job.values)
        with at.open_cell(scenario) as cell:
            state = State(0, 0.0, cell.engine.initial_adapter(), {}, (None,))
            rounds = [
                situation_of(cell, replace(state, round=number), cell.profiles)
                for number in range(given.rounds)
            ]
            for label, knobs in KNOBS.items():
                for alpha in ALPHAS:
                    asked = _asked(scenario, knobs, alpha)
                    row = {"seed": job.seed, "knobs": label, "alpha": alpha}
                    rows.append(row | _followed(cell, asked, rounds))
                    print(" | ".join(str(value) for value in rows[-1].values()), flush=True)
    seeds = " ".join(map(str, given.seeds))
    asked_for = f"--source FOLDER --seeds {seeds} --rounds {given.rounds}"
    made = {"command": f"python benchmarks/fairness.py {asked_for}", "rows": rows}
    RESULTS.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")


def _asked(scenario: Scenario, knobs: tuple[str, ...], alpha: float) -> Scenario:
    planning = scenario.planning.model_copy(update={"knobs": knobs})
    fairness = scenario.participation.model_copy(update={"fairness": alpha})
    return scenario.model_copy(update={"planning": planning, "participation": fairness})


def _followed(cell: at.Cell, asked: Scenario, rounds: list[Situation]) -> dict[str, Any]:
    so_far, total_s = Contributed(), 0.0
    for situation in rounds:
        known = replace(situation, contributed=so_far.means(situation.cohort))
        made = plan_round(asked, known, cell.knob_costs).plan
        assert made.losses is not None
        so_far = so_far.after(len(made.losses), situation.cohort, 1.0 - made.losses)
        total_s += made.round_latency_s
    round_s, mean = total_s / len(rounds), np.array(so_far.total) / len(rounds)
    weight = rounds[0].problem.weight
    with np.errstate(divide="ignore"):
        each = float(round_s * (weight / mean).sum())
    return {
        "round_s": round(round_s, 3),
        "for_each_s": round(each, 2) if mean.min() > 1e-6 else None,
        "for_the_mean_s": round(round_s / float(weight @ mean), 2),
        "least_mean": round(float(mean.min()), 3),
    }


if __name__ == "__main__":
    main()
