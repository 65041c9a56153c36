"""What it costs when some clients train submodels and others the whole model.

Four clients, 20 rounds, the pilot's scenario (experiments/pilot-clinc150.toml): nobody is pruned,
all are, or two of the four. The loss is that of 128 held-out training texts, and of 24 of each
client's own. A trial takes about six minutes on one core; those that are in the results are kept.

    python benchmarks/mixed_cuts.py --source FOLDER      # CLINC150's train.csv and test.csv
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import airtune as at
from airtune import planning
from airtune.planning.assigning import assignments_of
from airtune.planning.inputs import Situation
from airtune.rounds.cell import Decision
from airtune.rounds.pilot import held_out

HERE = Path(__file__).parent
PILOT = HERE.parent / "experiments" / "pilot-clinc150.toml"
RESULTS = HERE / "results" / "mixed_cuts.json"
ROUNDS = 20


@dataclass(frozen=True)
class Trial:
    """Pruning rates of the first two and the last two clients, and what else is set."""

    first: float
    last: float
    settings: tuple[str, ...] = ()


KEPT = ("aggregation.coverage_power=100",)
"""Entries that not all clients hold stay as they are."""
TRIALS = (
    Trial(0.0, 0.0),
    Trial(0.4, 0.4),
    Trial(0.6, 0.6),
    Trial(0.0, 0.4),
    Trial(0.0, 0.4, ("aggregation.rule=fedmp",)),
    Trial(0.0, 0.4, KEPT),
    Trial(0.0, 0.6),
    Trial(0.0, 0.6, KEPT),
    Trial(0.0, 0.6, ("aggregation.coverage_power=1", "pruning.selection=rotating")),
)


def main() -> None:
    """Run the trials that the results lack."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", type=Path, required=True, help="CLINC150's folder")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    for trial in TRIALS:
        told: dict[str, Any] = {"first": trial.first, "last": trial.last, "seed": given.seed}
        told["settings"] = list(trial.settings)
        if any(told == {key: row[key] for key in told} for row in rows):
            continue
        rows.append(told | _run(trial, given.source.resolve(), given.seed))
        command = f"python benchmarks/mixed_cuts.py --source FOLDER --seed {given.seed}"
        RESULTS.write_text(json.dumps({"command": command, "rows": rows}, indent=1) + "\n")
        print(told, rows[-1]["losses"][-1], flush=True)


def _run(trial: Trial, source: Path, seed: int) -> dict[str, Any]:
    common = ["task.client_eval_examples=24", "aggregation.normalize_steps=true"]
    sets = [f"task.source={source}", *common, *trial.settings]
    scenario = held_out(at.load_scenario(PILOT, sets), seed, ROUNDS)

    def decide(cell: at.Cell, situation: Situation) -> Decision:
        plan = planning.plan(situation.problem, "none", bound=False)
        rates = np.array([trial.first] * 2 + [trial.last] * 2)
        asked = replace(plan, pruning=rates)
        modes = list(situation.modes)
        return Decision(asked, assignments_of(asked, modes, situation.link, situation.cohort))

    with at.open_cell(scenario, decide=decide) as cell:
        state = at.begin(cell)
        for _ in range(scenario.rounds):
            state, record = at.step(cell, state)
    return {
        "losses": [round(loss, 4) for loss in state.losses if loss is not None],
        "clients": [round(client.eval_loss or 0.0, 3) for client in record.clients],
    }


if __name__ == "__main__":
    main()
