"""What each knob is worth: the optimum over every set of knobs on the core experiment's cell.

    python benchmarks/knobs.py --out benchmarks/results/knobs.json          # both parts
    python benchmarks/knobs.py --parts table --seeds 4

Parts: ``table`` (J of each set of knobs, relative to no plan at all), ``scale`` (time and gap of
``exact`` with 64 modes a client). A round's costs are counted for the cell's devices and its first
round's channel; batches are taken as full. What the knobs cost in learning is assumed, not
measured: rank 8, 4, 2, 1 lose 0, 0.005, 0.02, 0.05; bits 16, 8, 4, 2 lose 0, 0, 0.005, 0.08; fewer
steps lose in proportion; sitting out loses 1; κ = 1.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from airtune import channel
from airtune.models.devices import profile_of
from airtune.models.workload import StepTokens, affine_coefficients
from airtune.planning import ClientMode, PlanningProblem, plan
from airtune.planning.inputs import (
    BYTES_PER_WEIGHT,
    NOMINAL_LABEL_SHARE,
    link_of,
    problem_of_scenario,
    shape_of_model,
)
from airtune.planning.knobs import Setting, restricted
from airtune.randomness import generator
from airtune.scenario import Scenario, load_scenario
from planner import cell

CORE = Path(__file__).resolve().parents[1] / "experiments" / "core" / "gsm8k.toml"
STEPS = 4
RANKS = {8: 0.0, 4: 0.005, 2: 0.02, 1: 0.05}
BITS = {16: 0.0, 8: 0.0, 4: 0.005, 2: 0.08}
EVERYTHING = ("bandwidth", "pruning", "steps", "rank", "bits", "absence")
SETS: dict[str, tuple[str, ...]] = {
    "none": (),
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
SIZES = (4, 10, 100, 1000)
REPEATS = {4: 5, 10: 5, 100: 3, 1000: 1}


def name_of(setting: Setting) -> str:
    return f"{setting.steps} steps, rank {setting.rank}, {setting.bits} bits"


def settings() -> dict[str, Setting]:
    all_of_them = (Setting(*one) for one in product(range(1, STEPS + 1), RANKS, BITS))
    return {name_of(setting): setting for setting in all_of_them}


def loss_of(setting: Setting) -> float:
    return 1 - setting.steps / STEPS * (1 - RANKS[setting.rank]) * (1 - BITS[setting.bits])


def modes_of_device(scenario: Scenario, device: int) -> tuple[ClientMode, ...]:
    """The modes of one of the scenario's devices, counted from the model's shape."""
    profile = profile_of(scenario.client_devices[device])
    rows, length = scenario.training.batch_size, scenario.task.max_tokens
    step = StepTokens(rows, length, int(rows * length * NOMINAL_LABEL_SHARE))
    made = []
    for name, setting in settings().items():
        costs = affine_coefficients(
            shape_of_model(scenario),
            (step,) * setting.steps,
            lora_rank=setting.rank,
            bits_per_value=setting.bits,
            bits_per_scale=0 if setting.bits == 16 else 32,
            bytes_per_weight=BYTES_PER_WEIGHT[scenario.model.dtype],
            max_pruning=scenario.pruning.max_pruning,
        )
        made.append(
            ClientMode(
                name=name,
                cost=loss_of(setting),
                compute_fixed_s=costs.flops_fixed / profile.effective_flops,
                compute_full_s=costs.flops_full / profile.effective_flops,
                payload_fixed_bits=costs.payload_fixed_bits,
                payload_full_bits=costs.payload_full_bits,
                min_pruning=costs.min_pruning(profile.memory_bytes),
                max_pruning=scenario.pruning.max_pruning,
            )
        )
    return tuple(made)


def core_problem(seed: int) -> PlanningProblem:
    """The core cell's first round with every mode; the broadcast waits for those who listen."""
    scenario = load_scenario(str(CORE), [f"seed={seed}", f"training.local_steps={STEPS}"])
    base = problem_of_scenario(scenario)
    devices = scenario.client_devices
    air = channel.draw(
        scenario.cell,
        devices,
        channel.place(scenario.cell, devices, generator(seed, "placement")),
        generator(seed, "fading", round=1),
        round=1,
    )
    bits = link_of(scenario, shape_of_model(scenario), air).downlink_bits
    return replace(
        base,
        kappa=1.0,
        downlink_s=np.zeros(base.clients),
        listen_s=bits / air.downlink_rate_bps,
        absent_cost=np.ones(base.clients),
        modes=tuple(modes_of_device(scenario, k) for k in range(base.clients)),
    )


def table(seeds: list[int], done: Callable[[list], None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        problem = core_problem(seed)
        known = settings()
        none = plan(restricted(problem, (), known)).objective_s
        for label, knobs in SETS.items():
            made = plan(restricted(problem, knobs, known))
            rows.append(
                {
                    "seed": seed,
                    "knobs": label,
                    "objective_s": made.objective_s,
                    "relative": made.objective_s / none,
                    "gap": made.gap,
                    "loss": made.pruning_loss,
                    "absent": sum(mode is None for mode in made.modes or ()),
                    "solve_s": made.solve_s,
                }
            )
        every = restricted(problem, EVERYTHING, known)
        descent = plan(every, "bcd-knobs", bound=False).objective_s
        rows.append({"seed": seed, "knobs": "all, bcd-knobs", "relative": descent / none})
        print(f"seed {seed}: all {rows[-2]['relative']:.4f}", flush=True)
        done(rows)
    return rows


def with_modes(problem: PlanningProblem, absent: bool) -> PlanningProblem:
    """A cell of planner.py with 64 modes a client."""
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
    parser.add_argument("--parts", nargs="+", default=["table", "scale"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"python": platform.python_version(), "numpy": np.__version__}

    def keep(part: str, rows: list) -> None:
        found[part] = rows
        if asked.out is not None:
            kept = json.loads(asked.out.read_text()) if asked.out.exists() else {}
            asked.out.write_text(json.dumps({**kept, **found}, indent=1) + "\n")

    if "table" in asked.parts:
        table(list(range(asked.seeds)), lambda rows: keep("table", rows))
    if "scale" in asked.parts:
        keep("scale", scale(asked.clients))


if __name__ == "__main__":
    main()
