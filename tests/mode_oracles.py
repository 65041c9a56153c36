"""Random problems with modes, and slow independent versions of their optimum."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from airtune.errors import InputError
from airtune.planning import ClientMode, PlanningProblem
from airtune.planning.optimum.search import exact
from oracles import random_problem


def mode_problem(
    rng: np.random.Generator,
    clients: int,
    modes: int,
    *,
    absent: float = 0.5,
    budgets: float = 0.0,
    **fixed: Any,
) -> PlanningProblem:
    """A random problem with up to this many modes a client, some of which cost too much to use."""
    base = random_problem(rng, clients, **{"kappa": float(rng.uniform(0.2, 1.0)), **fixed})
    lists = []
    for k in range(clients):
        mine = []
        for number in range(int(rng.integers(1, modes + 1))):
            work, bits = rng.uniform(0.1, 1.0), 2.0 ** -float(rng.integers(0, 4))
            mine.append(
                ClientMode(
                    name=f"m{number}",
                    cost=float(np.clip(1 - work * bits**0.1 + rng.uniform(-0.1, 0.1), 0.0, 0.95)),
                    compute_fixed_s=float(base.compute_fixed_s[k] * work),
                    compute_full_s=float(base.compute_full_s[k] * work),
                    payload_fixed_bits=float(base.payload_fixed_bits[k] * bits),
                    payload_full_bits=float(base.payload_full_bits[k] * bits),
                )
            )
        lists.append(None if rng.random() < 0.1 else tuple(mine))
    changes: dict[str, Any] = {"modes": tuple(lists)}
    if rng.random() < absent:
        cost = rng.uniform(0.5, 1.0, clients)
        changes["absent_cost"] = np.where(rng.random(clients) < 0.7, cost, np.inf)
    if rng.random() < budgets:
        changes |= powers(rng, replace(base, **changes))
    try:
        return replace(base, **changes)
    except InputError:  # no client makes progress at this κ
        return mode_problem(rng, clients, modes, absent=absent, budgets=budgets, **fixed)


def powers(rng: np.random.Generator, problem: PlanningProblem) -> dict[str, Any]:
    """Powers, and budgets that some clients can only keep by doing less."""
    compute, radio = rng.uniform(1, 30, problem.clients), rng.uniform(0.2, 5, problem.clients)
    band = np.full(problem.clients, problem.bandwidth_hz / problem.clients)
    pruning = problem.min_pruning
    spent = compute * problem.compute_s(pruning)
    spent = spent + radio * problem.payload_bits(pruning) / problem.rate_bps(band)
    budget = spent * rng.uniform(0.5, 2.0, problem.clients)
    return {
        "compute_power_w": compute,
        "transmit_power_w": radio,
        "energy_budget_j": np.where(rng.random(problem.clients) < 0.6, budget, np.inf),
    }


def best_of_all_assignments(problem: PlanningProblem) -> float:
    """The optimum by every assignment of modes, each planned by the planner without modes.

    J = T·N(Q) with Q = Q0 + Σ v·e, where Q0 is what the modes and the absent lose by themselves
    and v = w·(1 − cost): the same problem with κ' = κ·Σv/(1 − κ·Q0), times 1/(1 − κ·Q0).
    """
    table = problem.table
    options: list[list[int | None]] = []
    for k in range(problem.clients):
        mine: list[int | None] = list(np.flatnonzero(table.owner == k))
        options.append(mine + ([None] if np.isfinite(problem.absent_costs[k]) else []))
    best = np.inf
    for assignment in product(*options):
        best = min(best, _of_assignment(problem, assignment))
    return best


def _of_assignment(problem: PlanningProblem, assignment: tuple[int | None, ...]) -> float:
    here = np.array([k for k, mode in enumerate(assignment) if mode is not None])
    if not len(here):
        return np.inf
    row = np.array([assignment[k] for k in here])
    table = problem.table
    lost = sum(
        problem.weight[k] * (problem.absent_costs[k] if mode is None else table.cost[mode])
        for k, mode in enumerate(assignment)
    )
    through = problem.weight[here] * (1 - table.cost[row])
    rest = 1 - problem.kappa * lost
    limit = problem.max_pruning_loss
    if limit is None and rest <= 1e-9:
        return np.inf
    if through.sum() <= 0:
        through = np.full(len(here), 1e-300)
    kappa = problem.kappa * through.sum() / rest if limit is None else 0.0
    listen = 0.0 if problem.listen_s is None else problem.listen_s[here].max()
    try:
        smaller = PlanningProblem(
            bandwidth_hz=problem.bandwidth_hz,
            kappa=kappa,
            names=tuple(problem.names[k] for k in here),
            weight=through,
            snr_hz=problem.snr_hz[here],
            downlink_s=problem.downlink_s[here] + listen,
            compute_fixed_s=table.compute_fixed_s[row],
            compute_full_s=table.compute_full_s[row],
            payload_fixed_bits=table.payload_fixed_bits[row],
            payload_full_bits=table.payload_full_bits[row],
            min_pruning=table.min_pruning[row],
            max_pruning=table.max_pruning[row],
            max_spectral_efficiency=problem.efficiency[here],
            pruning_cost=None
            if problem.pruning_cost is None
            else tuple(problem.pruning_cost[k] for k in here),
            max_pruning_loss=None if limit is None else (limit - lost) / through.sum(),
        )
    except InputError:  # the bound on Q cannot be kept, or κQ is 1 even at the least pruning
        return np.inf
    if limit is None and kappa * smaller.pruning_loss(smaller.max_pruning) >= 1 - 1e-9:
        return _by_grid(smaller) / rest
    return exact(smaller, tolerance=1e-9).objective_s / (1.0 if limit is not None else rest)


def _by_grid(problem: PlanningProblem) -> float:
    """The optimum where some plans make no progress: the loss bounded at many values instead."""
    least = problem.pruning_loss(problem.min_pruning)
    most = min(problem.pruning_loss(problem.max_pruning), (1 - 1e-6) / problem.kappa)
    best = np.inf
    for _ in range(4):
        limits = np.linspace(least, most, 17)
        values = []
        for limit in limits:
            made = exact(replace(problem, kappa=0.0, max_pruning_loss=limit), tolerance=1e-9)
            rest = 1 - problem.kappa * made.pruning_loss
            values.append(made.round_latency_s / rest if rest > 0 else np.inf)
        top = int(np.argmin(values))
        best = min(best, values[top])
        least, most = limits[max(top - 1, 0)], limits[min(top + 1, 16)]
    return best
