"""Independent slow versions and random cases that the planning tests compare with."""

from __future__ import annotations

import warnings
from itertools import product
from typing import Any

import numpy as np
from scipy.special import lambertw

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


def extreme_problem(rng: np.random.Generator) -> PlanningProblem:
    """A problem from the far ends of every range: SNR 1e2 to 1e18 Hz, payloads 0 to 1e13 bit, …"""
    count = int(rng.integers(1, 9))

    def some(low: float, high: float, zero: float) -> np.ndarray:
        return np.where(rng.random(count) < zero, 0.0, 10 ** rng.uniform(low, high, count))

    least = rng.choice((0.0, 0.0, 0.3, 0.5), count)
    weight = np.where(rng.random(count) < 0.1, 0.0, rng.uniform(0.1, 1.0, count))
    weight[0] = 1.0
    curves: list[Any] = [None] * count
    if rng.random() < 0.5:
        curves = [random_curve(rng) if rng.random() < 0.7 else None for _ in range(count)]
    values: dict[str, Any] = {
        "bandwidth_hz": 10 ** rng.uniform(3, 9),
        "names": tuple(f"c{k}" for k in range(count)),
        "weight": weight,
        "snr_hz": 10 ** rng.uniform(2, 18, count),
        "downlink_s": some(-3, 3, 0.5),
        "compute_fixed_s": some(-6, 6, 0.4),
        "compute_full_s": some(-6, 6, 0.3),
        "payload_fixed_bits": some(0, 13, 0.4),
        "payload_full_bits": some(0, 13, 0.3),
        "min_pruning": least,
        "max_pruning": np.maximum(least, rng.choice((0.3, 0.5, 0.7, 0.9, 1.0), count)),
        "pruning_cost": tuple(curves),
        "max_spectral_efficiency": np.where(
            rng.random(count) < 0.3, 10 ** rng.uniform(-2, 2, count), np.inf
        ),
    }
    if rng.random() < 0.2:
        same = {key: np.full(count, value[0]) for key, value in values.items()
                if isinstance(value, np.ndarray)}  # fmt: skip
        values.update(same)
    plain = PlanningProblem(kappa=0.0, **values)
    most, little = plain.pruning_loss(plain.max_pruning), plain.pruning_loss(plain.min_pruning)
    kappa = float(rng.choice((0.0, 0.1, 0.9, 0.999999))) / most if most > 1e-6 else 0.5
    limit = little + rng.random() * (most - little) if rng.random() < 0.25 else None
    return PlanningProblem(kappa=kappa, max_pruning_loss=limit, **values)


def band_of_rate(rate: np.ndarray, snr_hz: np.ndarray, efficiency: np.ndarray) -> np.ndarray:
    """The band for a rate by SciPy's Lambert W, infinity where no band has it."""
    with np.errstate(all="ignore"):
        gamma = rate * np.log(2) / snr_hz
        z = -lambertw(-gamma * np.exp(-gamma), -1).real / gamma - 1
        band = np.where(gamma < 1, snr_hz / z, np.inf)
        band = np.maximum(band, rate / efficiency)
    return np.where(rate <= 0, 0.0, band)


def grid_loss(problem: PlanningProblem, deadlines: np.ndarray, points: int = 49) -> np.ndarray:
    """Q at each deadline by a grid over pruning and greedy increments: feasible, never too small.

    Each client's band over pruning is replaced by its chords, which lie above it (it is convex);
    the linear problem that remains is solved by taking the cheapest increments first.
    """
    low, high = problem.min_pruning, problem.max_pruning
    corners = [np.linspace(low[k], high[k], points) for k in range(problem.clients)]
    for k, curve in enumerate(problem.pruning_cost or [None] * problem.clients):
        if curve is not None:
            corners[k] = np.concatenate([corners[k], np.clip(curve[:, 0], low[k], high[k])])
    width = max(map(len, corners))
    pruning = np.array([np.sort(np.pad(c, (0, width - len(c)), "edge"))[::-1] for c in corners])
    cost = np.array([problem.cost(column) for column in pruning.T]).T * problem.weight[:, None]
    fixed = np.array([problem.downlink_s + problem.compute_s(c) for c in pruning.T]).T
    payload = np.array([problem.payload_bits(c) for c in pruning.T]).T
    losses = np.full(len(deadlines), np.inf)
    for i, deadline in enumerate(deadlines):
        left = deadline - fixed
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = np.where(payload > 0, np.where(left > 0, payload / left, np.inf), 0.0)
        late = (left < 0) & (payload <= 0)
        snr, cap = problem.snr_hz[:, None], problem.efficiency[:, None]
        band = np.where(late, np.inf, band_of_rate(rate, snr, cap))
        spare = problem.bandwidth_hz - band[:, 0].sum()
        if not spare >= 0:
            continue
        with np.errstate(invalid="ignore"):
            asked = np.maximum(np.diff(band, axis=1), 0.0)
        saved = -np.diff(cost, axis=1)
        use = np.isfinite(asked) & (saved > 0)
        asked, saved = asked[use], saved[use]
        order = np.argsort(asked / saved)
        before = np.concatenate([[0.0], np.cumsum(asked[order])[:-1]])
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.clip((spare - before) / asked[order], 0.0, 1.0)
        share = np.where(asked[order] > 0, share, (before <= spare).astype(float))
        losses[i] = cost[:, 0].sum() - (share * saved[order]).sum()
    return losses


def grid_objective(problem: PlanningProblem, around_s: float) -> float:
    """The best N·T over a dense grid of deadlines, refined once around its best point."""
    deadlines = np.geomspace(0.02, 50.0, 48) * around_s
    deadlines = np.unique(np.concatenate([deadlines, around_s * np.linspace(0.97, 1.03, 25)]))
    best = np.inf
    for _ in range(2):
        with np.errstate(invalid="ignore"):
            value = deadlines / (1.0 - problem.kappa * grid_loss(problem, deadlines))
        value = np.where(np.isfinite(value) & (value > 0), value, np.inf)
        top = int(np.argmin(value))
        best = min(best, float(value[top]))
        left, right = deadlines[max(top - 1, 0)], deadlines[min(top + 1, len(deadlines) - 1)]
        deadlines = np.linspace(left, right, 25)
    return best


def cvxpy_loss(problem: PlanningProblem, deadline_s: float, solver: str = "CLARABEL") -> float:
    """Q at a deadline by CVXPY: the perspective of the logarithm as a relative entropy.

    (u0 + u1·x)/(τ − c·x) = −u1/c + (u0 + u1·τ/c)/(τ − c·x) is convex in x; r <= b·log2(1 + s/b).
    """
    import cvxpy as cp

    count = problem.clients
    total = problem.bandwidth_hz
    left = deadline_s - problem.downlink_s - problem.compute_fixed_s
    band, kept = cp.Variable(count), cp.Variable(count)
    rate = -cp.rel_entr(band, band + problem.snr_hz / total) / np.log(2)
    limits = [band >= 0, cp.sum(band) <= 1]
    limits += [kept >= 1 - problem.max_pruning, kept <= 1 - problem.min_pruning]
    costs = []
    for k in range(count):
        fixed, full = problem.payload_fixed_bits[k] / total, problem.payload_full_bits[k] / total
        slope = problem.compute_full_s[k]
        limits += [slope * kept[k] <= left[k]]
        if slope > 0:
            need = -full / slope + (fixed + full * left[k] / slope) * cp.inv_pos(
                left[k] - slope * kept[k]
            )
        else:
            need = (fixed + full * kept[k]) / left[k]
        limits += [need <= rate[k]]
        if np.isfinite(problem.efficiency[k]):
            limits += [need <= problem.efficiency[k] * band[k]]
        curve = None if problem.pruning_cost is None else problem.pruning_cost[k]
        if curve is None:
            costs.append(1 - kept[k])
        else:
            slopes = np.diff(curve[:, 1]) / np.diff(curve[:, 0])
            costs.append(
                cp.max(
                    cp.hstack(
                        [
                            c + g * (1 - kept[k] - x)
                            for (x, c), g in zip(curve, slopes, strict=False)
                        ]
                    )
                )
            )
    loss = problem.weight @ cp.hstack(costs)
    task = cp.Problem(cp.Minimize(loss), limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where it stopped short: the status says so too
        try:
            task.solve(solver=solver)
        except cp.SolverError:
            return float("nan")
    return float(loss.value) if task.status == cp.OPTIMAL else float("nan")


def brute_force_blocks(problem: PlanningProblem, block_hz: float, blocks: int) -> float:
    """The best N·T over every way to hand out whole blocks, the deadline by its corners."""
    best = np.inf
    for shares in product(range(blocks + 1), repeat=problem.clients):
        if sum(shares) <= blocks:
            band = np.array(shares) * block_hz
            best = min(best, corner_objective(problem, band))
    return best


def corner_objective(problem: PlanningProblem, band_hz: np.ndarray) -> float:
    """The best N·T at given bands: the deadline is where some client is at a corner of its cost."""
    rate = problem.rate_bps(band_hz)
    times = []
    for k in range(problem.clients):
        curve = None if problem.pruning_cost is None else problem.pruning_cost[k]
        corners = [problem.min_pruning[k], problem.max_pruning[k]]
        corners += [] if curve is None else curve[:, 0].tolist()
        for pruning in corners:
            if problem.min_pruning[k] <= pruning <= problem.max_pruning[k]:
                times.append(_time(problem, k, pruning, rate[k]))
    best = np.inf
    for deadline in times:
        pruning = np.empty(problem.clients)
        for k in range(problem.clients):
            pruning[k] = _least_pruning(problem, k, deadline * (1 + 1e-12), rate[k])
        if np.isfinite(pruning).all() and np.isfinite(deadline):
            best = min(best, deadline / (1 - problem.kappa * problem.pruning_loss(pruning)))
    return best


def _time(problem: PlanningProblem, k: int, pruning: float, rate: float) -> float:
    kept = 1 - pruning
    payload = problem.payload_fixed_bits[k] + problem.payload_full_bits[k] * kept
    upload = 0.0 if payload <= 0 else (payload / rate if rate > 0 else np.inf)
    compute = problem.compute_fixed_s[k] + problem.compute_full_s[k] * kept
    return float(problem.downlink_s[k] + compute + upload)


def _least_pruning(problem: PlanningProblem, k: int, deadline: float, rate: float) -> float:
    """By bisection: the time falls as the pruning grows."""
    low, high = float(problem.min_pruning[k]), float(problem.max_pruning[k])
    if _time(problem, k, high, rate) > deadline:
        return np.nan
    if _time(problem, k, low, rate) <= deadline:
        return low
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _time(problem, k, middle, rate) <= deadline:
            high = middle
        else:
            low = middle
    return high
