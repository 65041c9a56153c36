"""Independent slow versions and random cases that the planning tests compare with."""

from __future__ import annotations

from typing import Any

import numpy as np

from airtune.planning import PlanningProblem


def random_problem(
    rng: np.random.Generator, clients: int | None = None, **fixed: Any
) -> PlanningProblem:
    """A random problem: some clients bound by compute, some by the air, some curves, some caps."""
    count = int(rng.integers(1, 13)) if clients is None else clients
    low = rng.uniform(0, 0.3, count) * (rng.random(count) < 0.5)
    high = np.where(rng.random(count) < 0.1, low, rng.uniform(0.4, 0.9, count))
    curves: list[Any] = [None] * count
    if rng.random() < 0.5:
        curves = [random_curve(rng) if rng.random() < 0.6 else None for _ in range(count)]
    cap = np.where(rng.random(count) < 0.2, rng.uniform(0.5, 8.0, count), np.inf)
    values: dict[str, Any] = {
        "bandwidth_hz": 10 ** rng.uniform(5, 8),
        "kappa": rng.uniform(0.05, 0.95),
        "names": tuple(f"c{k}" for k in range(count)),
        "weight": rng.dirichlet(np.full(count, 2.0)),
        "snr_hz": 10 ** rng.uniform(4, 10, count),
        "downlink_s": rng.uniform(0, 1, count) * (rng.random(count) < 0.7),
        "compute_fixed_s": rng.uniform(0, 3, count),
        "compute_full_s": 10 ** rng.uniform(-1, 2, count),
        "payload_fixed_bits": 10 ** rng.uniform(3, 6, count) * (rng.random(count) < 0.8),
        "payload_full_bits": 10 ** rng.uniform(4, 9, count) * (rng.random(count) < 0.95),
        "min_pruning": low,
        "max_pruning": high,
        "max_spectral_efficiency": cap,
        "pruning_cost": tuple(curves),
    }
    values.update(fixed)
    return PlanningProblem(**values)


def random_curve(rng: np.random.Generator) -> np.ndarray:
    """A convex non-decreasing piecewise linear curve from (0, 0) to pruning 1, at most 1 high."""
    corners = int(rng.integers(1, 5))
    rate = np.concatenate([[0.0], np.sort(rng.uniform(0.02, 0.98, corners - 1)), [1.0]])
    slope = np.sort(rng.exponential(1.0, corners))
    if rng.random() < 0.3:
        slope[0] = 0.0
    cost = np.concatenate([[0.0], np.cumsum(slope * np.diff(rate))])
    if cost[-1] > 0:
        cost *= rng.uniform(0.2, 1.0) / cost[-1]
    return np.column_stack([rate, cost])
