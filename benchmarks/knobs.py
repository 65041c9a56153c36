"""What each knob is worth: the optimum over every set of knobs in a cell of eight devices.

    python benchmarks/knobs.py --out benchmarks/results/knobs.json          # all parts
    python benchmarks/knobs.py --parts table --seeds 4
    python benchmarks/knobs.py --parts real --seeds 1 --source FOLDER       # GSM8K's train and test

Parts: ``table`` (J of each set of knobs, relative to no plan at all), ``broadcast`` (the same for
four seeds, with a broadcast that everyone waits for, and without one), ``change`` (the second round
with the adapter's change broadcast in 4 bits), ``scale`` (time and gap of ``exact`` with 64 modes a
client), and only where named ``real`` and ``coverage`` (training of
SmolLM2-135M: knobs_real.py; what is in the file is not run again). The first round is planned as
`airtune plan` does: its channel, the cell's devices, clients of equal weight, full batches. What
the knobs cost in learning is assumed, not measured: rank 8, 4, 2, 1 lose 0, 0.005, 0.02, 0.05; bits
16, 8, 4, 2 lose 0, 0, 0.005, 0.08; fewer steps lose in proportion; pruning loses its rate; sitting
out loses 1; κ = 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from airtune.planning import ClientMode, Plan, PlanningProblem, plan
from airtune.planning.costs import KnobCosts, Measured
from airtune.planning.inputs import Situation, situation_of_scenario
from airtune.planning.knobs import Setting
from airtune.planning.round_plan import plan_round
from airtune.scenario import load_scenario
from planner_cell import cell

CELL = Path(__file__).resolve().parents[1] / "experiments" / "scenarios" / "knobs-gsm8k.toml"
STEPS = 4
RANKS = {8: 0.0, 4: 0.005, 2: 0.02, 1: 0.05}
BITS = {16: 0.0, 8: 0.0, 4: 0.005, 2: 0.08}
EVERYTHING = ("bandwidth", "pruning", "steps", "rank", "bits", "absence")
SETS: dict[str, tuple[str, ...]] = {
    "bandwidth": ("bandwidth",),
    "bandwidth, pruning": ("bandwidth", "pruning"),
    "bandwidth, steps": ("bandwidth", "steps"),
    "bandwidth, bits, rank": ("bandwidth", "bits", "rank"),
    "bandwidth, absence": ("bandwidth", "absence"),
    "bandwidth, pruning, absence": ("bandwidth", "pruning", "absence"),
    "all but pruning and absence": ("bandwidth", "bits", "rank", "steps"),
    "all but absence": ("bandwidth", "bits", "rank", "steps", "pruning"),
    "bandwidth, bits, rank, absence": ("bandwidth", "bits", "rank", "absence"),
    "all but pruning": ("bandwidth", "bits", "rank", "steps", "absence"),
    "all but bandwidth": ("bits", "rank", "steps", "pruning", "absence"),
    "all": EVERYTHING,
}
BROADCASTS = ("for everyone", "left out")
SIZES = (4, 10, 100, 1000)
REPEATS = {4: 5, 10: 5, 100: 3, 1000: 1}


def name_of(setting: Setting) -> str:
    return f"{setting.steps} steps, rank {setting.rank}, {setting.bits} bits"


def settings() -> dict[str, Setting]:
    all_of_them = (Setting(*one) for one in product(range(1, STEPS + 1), RANKS, BITS))
    return {name_of(setting): setting for setting in all_of_them}


def loss_of(setting: Setting) -> float:
    return 1 - setting.steps / STEPS * (1 - RANKS[setting.rank]) * (1 - BITS[setting.bits])


def assumed_costs() -> KnobCosts:
    """What the knobs cost in learning; pruning costs its rate."""

    def of(values: dict[Any, float]) -> dict[Any, Measured]:
        return {value: Measured(cost=cost) for value, cost in values.items()}

    return KnobCosts(
        rank=of(RANKS),
        bits=of(BITS),
        steps=of({steps / STEPS: 1 - steps / STEPS for steps in range(1, STEPS + 1)}),
        absent=Measured(cost=1.0),
        pruning=of({1.0: 1.0}),
        provenance={"assumed": "benchmarks/knobs.py"},
    )


def with_broadcast(at: Situation, broadcast: str) -> Situation:
    """The round with its broadcast: sent to who listens, waited for by all, or left out."""
    rate = at.link.air.downlink_rate_bps
    if broadcast == "for who listens":
        return at
    rate = np.full_like(rate, rate.min() if broadcast == "for everyone" else rate.min() * 1e12)
    link = replace(at.link, air=replace(at.link.air, downlink_rate_bps=rate))
    problem = replace(at.problem, downlink_s=link.needed_s(link.everyone))
    return replace(at, link=link, problem=problem)


def planned(seed: int, costs: Path, planning: list[str], broadcast: str, round: int = 1) -> Plan:
    """The plan of a round in this cell; in a later one all have heard the one before."""
    changes = [f"seed={seed}", f"training.local_steps={STEPS}", "planning.kappa=1.0", *planning]
    if planning[0].startswith("planning.knobs"):
        changes.append(f"planning.costs={costs}")
    scenario = load_scenario(str(CELL), changes)
    situation = situation_of_scenario(scenario, round)
    return plan_round(scenario, with_broadcast(situation, broadcast)).plan


def table(
    seeds: list[int],
    sets: dict[str, tuple[str, ...]],
    broadcast: str,
    done: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """J of every set of knobs, and of the descent over all of them."""
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        costs.write_text(assumed_costs().model_dump_json(by_alias=True))
        for seed in seeds:
            none = planned(seed, costs, ["planning.method=none"], broadcast).objective_s
            asked = {
                label: [f"planning.knobs={json.dumps(knobs)}"] for label, knobs in sets.items()
            }
            asked["all, bcd-knobs"] = [*asked["all"], "planning.method=bcd-knobs"]
            for label, planning in asked.items():
                busy = time.process_time()
                made = planned(seed, costs, planning, broadcast)
                row = {
                    "seed": seed,
                    "knobs": label,
                    "broadcast": broadcast,
                    "objective_s": made.objective_s,
                    "relative": made.objective_s / none,
                    "gap": made.gap,
                    "loss": made.pruning_loss,
                    "absent": sum(mode is None for mode in made.modes or ()),
                    "downlink_share": float(made.downlink_s.max()) / made.round_latency_s,
                    "cpu_s": time.process_time() - busy,
                }
                rows.append(row)
            print(f"seed {seed}, broadcast {broadcast}: all {rows[-2]['relative']:.4f}", flush=True)
            done(rows)
    return rows


def change(seeds: list[int]) -> list[dict[str, Any]]:
    """J of the second round with the whole adapter broadcast, and with its change in 4 bits."""
    rows = []
    with TemporaryDirectory() as folder:
        costs = Path(folder) / "costs.json"
        costs.write_text(assumed_costs().model_dump_json(by_alias=True))
        for seed, label in product(seeds, ("all but absence", "all but pruning", "all")):
            asked = [f"planning.knobs={json.dumps(SETS[label])}"]
            few = [*asked, "aggregation.downlink_change_bits=4"]
            busy = time.process_time()
            whole = planned(seed, costs, asked, "for who listens", 2)
            between = time.process_time()
            made = planned(seed, costs, few, "for who listens", 2)
            row = {
                "seed": seed,
                "knobs": label,
                "ratio": made.objective_s / whole.objective_s,
                "gap": made.gap,
                "downlink_share": float(made.downlink_s.max()) / made.round_latency_s,
                "whole_downlink_share": float(whole.downlink_s.max()) / whole.round_latency_s,
                "cpu_s": time.process_time() - between,
                "whole_cpu_s": between - busy,
            }
            rows.append(row)
            print(row, flush=True)
    return rows


def with_modes(problem: PlanningProblem, absent: bool) -> PlanningProblem:
    """A cell of planner_cell.py with 64 modes a client."""
    lists = []
    for k in range(problem.clients):
        mine = []
        for name, one in settings().items():
            work, size = one.steps / STEPS, one.rank / 8 * one.bits / 16
            mine.append(
                ClientMode(
                    name=name,
                    cost=loss_of(one),
                    compute_fixed_s=float(problem.compute_fixed_s[k]) * work,
                    compute_full_s=float(problem.compute_full_s[k])
                    * work
                    * (0.95 + 0.05 * one.rank / 8),
                    payload_fixed_bits=float(problem.payload_fixed_bits[k]) * size,
                    payload_full_bits=float(problem.payload_full_bits[k]) * size,
                )
            )
        lists.append(tuple(mine))
    out = np.ones(problem.clients) if absent else None
    return replace(problem, kappa=1.0, modes=tuple(lists), absent_cost=out)


def scale(sizes: list[int]) -> list[dict[str, Any]]:
    rows = []
    for clients, absent in product(sizes, (False, True)):
        runs = []
        for seed in range(REPEATS[clients]):
            problem = with_modes(cell(clients, seed), absent)
            wall, busy = time.perf_counter(), time.process_time()
            made = plan(problem)
            wall, busy = time.perf_counter() - wall, time.process_time() - busy
            runs.append((wall, busy, made.gap, made.deadlines))
        row = {
            "clients": clients,
            "absence": absent,
            "wall_s": median(run[0] for run in runs),
            "cpu_s": median(run[1] for run in runs),
            "worst_gap": max(run[2] for run in runs),
            "nodes": median(run[3] for run in runs),
            "runs": len(runs),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["table", "broadcast", "change", "scale"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--source", help="folder of GSM8K, for the parts that train")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.source is None and {"real", "coverage"} & set(asked.parts):
        parser.error("--parts real and coverage need --source")
    earlier = json.loads(asked.out.read_text()) if asked.out and asked.out.exists() else {}
    found: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__}

    def keep(part: str, rows: list) -> None:
        found[part] = rows
        if asked.out is not None:
            kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
            asked.out.write_text(json.dumps({**kept, **found}, indent=1) + "\n")

    if "table" in asked.parts:
        seeds = list(range(asked.seeds))
        table(seeds, SETS, "for who listens", lambda rows: keep("table", rows))
    if "broadcast" in asked.parts:
        seeds, rows = list(range(min(asked.seeds, 4))), []
        for broadcast in BROADCASTS:
            rows += table(seeds, SETS, broadcast, lambda made: None)
            keep("broadcast", rows)
    if "change" in asked.parts:
        keep("change", change(list(range(min(asked.seeds, 4)))))
    if "scale" in asked.parts:
        keep("scale", scale(asked.clients))
    if {"real", "coverage"} & set(asked.parts):
        import knobs_real

        for part in ("real", "coverage"):
            if part in asked.parts:
                run = getattr(knobs_real, part)
                seeds, known = list(range(asked.seeds)), earlier.get(part, [])
                run(asked.source, seeds, known, partial(keep, part))


if __name__ == "__main__":
    main()
