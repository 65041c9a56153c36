"""How planned time to a loss moves with bandwidth, clients and heterogeneity: no training.

    python experiments/core/sweeps.py --gsm8k FOLDER

Each point is N(Q)·T of a round's plan, in seconds for the progress of one
unpruned round, the geometric mean over ten cells (placement and
fading drawn anew). The cost curve is the
one that the core's runs plan with, measured on the shared calibration text.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from gathering import commit

from airtune import planning
from airtune.errors import InputError, RunError
from airtune.planning import PlanningProblem
from airtune.planning.inputs import problem_of_scenario
from airtune.record.files import write_durably
from airtune.scenario import load_scenario

HERE = Path(__file__).parent
METHODS = ("exact", "bcd", "uniform", "bandwidth-only", "pruning-only", "none")
CELLS = 10
KAPPA = 1.2
BANDWIDTHS_HZ = np.geomspace(2e6, 2e8, 9)
TIMES_AS_MANY = (1, 2, 4, 8, 16)
SPREADS = np.linspace(0.0, 1.5, 7)

Curve = Sequence[Sequence[float]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan every point, write sweeps.json and the figure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gsm8k", type=Path, required=True, help="as for run.py")
    parser.add_argument("--out", type=Path, default=Path("runs/core"))
    options = parser.parse_args(arguments)
    try:
        curve = measured_curve(options.gsm8k)
        found = {"commit": commit(), "kappa": KAPPA, "pruning_cost": curve, "sweeps": sweeps(curve)}
        (options.out / "figures").mkdir(parents=True, exist_ok=True)
        write_durably(options.out / "sweeps.json", (json.dumps(found, indent=1) + "\n").encode())
    except (InputError, RunError) as error:
        print(error, file=sys.stderr)
        return 2
    draw(found["sweeps"], options.out / "figures" / "sweeps.svg")
    return 0


def measured_curve(source: Path) -> Curve:
    """Calibrate on the shared text and return its cost curve."""
    from airtune.training.worker import Worker

    settings = [f"task.source={json.dumps(str(source.resolve()))}", "pruning.cost=measured"]
    federation = Worker(load_scenario(HERE / "gsm8k.toml", settings)).federation
    curve = federation.clients[0].pruning_cost
    assert curve is not None
    return [list(point) for point in curve]


def sweeps(curve: Curve) -> dict[str, Any]:
    """Return, a sweep each, its axis and every method's N(Q)·T in seconds."""
    return {
        "bandwidth_hz": _sweep(
            curve, BANDWIDTHS_HZ, lambda cell, value: replace(cell(1), bandwidth_hz=float(value))
        ),
        "clients": _sweep(curve, TIMES_AS_MANY, lambda cell, value: cell(int(value)), per=8),
        "spread": _sweep(curve, SPREADS, lambda cell, value: spread(cell(1), float(value))),
    }


def _sweep(
    curve: Curve,
    values: Sequence[float] | np.ndarray,
    made: Callable[[Callable[[int], PlanningProblem], float], PlanningProblem],
    per: int = 1,
) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for value in values:
        problems = [made(partial(_cell, curve, seed), value) for seed in range(CELLS)]
        for method in METHODS:
            plans = [planning.plan(problem, method, bound=False) for problem in problems]
            seconds[method].append(float(np.exp(np.mean(np.log([p.objective_s for p in plans])))))
    return {"values": [float(per * value) for value in values], "objective_s": seconds}


def _cell(curve: Curve, seed: int, times: int) -> PlanningProblem:
    """Return the core's cell with so many times its devices."""
    base = load_scenario(HERE / "gsm8k.toml", [])
    counts = [
        f"devices.{index}.count={times * device.count}" for index, device in enumerate(base.devices)
    ]
    # Planning reads no data: the number of examples only has to do for so many clients.
    counts.append(f"task.train_examples={times * base.task.train_examples}")
    problem = problem_of_scenario(load_scenario(HERE / "gsm8k.toml", [f"seed={seed}", *counts]))
    costs = (np.array(curve),) * problem.clients
    return replace(problem, kappa=KAPPA, pruning_cost=costs)


def spread(problem: PlanningProblem, exponent: float) -> PlanningProblem:
    """Return the problem with devices as unlike as they are (1), alike (0), or in between.

    Each compute time is raised to the exponent around the geometric mean of all.
    """
    whole_s = problem.compute_fixed_s + problem.compute_full_s
    factor = (whole_s / np.exp(np.log(whole_s).mean())) ** (exponent - 1.0)
    return replace(
        problem,
        compute_fixed_s=problem.compute_fixed_s * factor,
        compute_full_s=problem.compute_full_s * factor,
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the three sweeps side by side."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    titles = {
        "bandwidth_hz": "uplink bandwidth, Hz",
        "clients": "clients",
        "spread": "spread of the devices' speeds (1: as they are)",
    }
    for place, (name, title) in zip(axes, titles.items(), strict=True):
        for method in METHODS:
            heavy = 2.2 if method == "exact" else 1.2
            sweep = found[name]
            place.plot(sweep["values"], sweep["objective_s"][method], label=method, linewidth=heavy)
        place.set_xlabel(title)
        place.set_yscale("log")
        if name != "spread":
            place.set_xscale("log")
    axes[0].set_ylabel("planned s for an unpruned round's progress")
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
