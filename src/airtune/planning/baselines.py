"""The plans that a good plan is compared with, on the same problem."""

from __future__ import annotations

import numpy as np

from airtune.planning.bcd import bandwidth_block, pruning_block
from airtune.planning.problem import Array, Plan, PlanningProblem, priced

# Points from which the golden section starts: J of one common rate may have several valleys.
_GRID = 17
# The golden section's ratio.
_GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)
# They leave 0.618^20 = 7e-5 of two steps of the grid: a rate to 1e-5, and J to its square.
_GOLDEN_STEPS = 20
# Halves a range of rates down to a double's digits.
_BISECTIONS = 60


def none(problem: PlanningProblem) -> Plan:
    """Every client at its min_pruning, equal bandwidth."""
    return priced(problem, "none", np.array(problem.min_pruning), _equal(problem))


def bandwidth_only(problem: PlanningProblem) -> Plan:
    """Every client at its min_pruning, the bandwidth planned."""
    pruning = np.array(problem.min_pruning)
    return priced(problem, "bandwidth-only", pruning, _best_band(problem, pruning))


def pruning_only(problem: PlanningProblem) -> Plan:
    """Equal bandwidth, the pruning rates planned."""
    band = _equal(problem)
    return priced(problem, "pruning-only", pruning_block(problem, band), band)


def uniform(problem: PlanningProblem) -> Plan:
    """One pruning rate for all (within each one's bounds), it and the bandwidth planned.

    A grid over the rate, then a golden section around its best point: the objective need not have
    one valley, so this is the best of a fine search, not a proven optimum.
    """
    low, high = float(problem.min_pruning.min()), float(problem.max_pruning.max())
    if problem.max_pruning_loss is not None:
        # T falls as the rate grows, so the largest rate that Q_max allows is the best one.
        low = _largest_allowed(problem, low, high)
        return _uniform_plan(problem, low)
    grid = np.linspace(low, high, _GRID)
    plans = [_uniform_plan(problem, float(rate)) for rate in grid]
    best = int(np.argmin([plan.objective_s for plan in plans]))
    left, right = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, _GRID - 1)])
    inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
    probes = [_uniform_plan(problem, rate) for rate in inner]
    plans += probes
    for _ in range(_GOLDEN_STEPS):
        if probes[0].objective_s <= probes[1].objective_s:
            right, inner[1], probes[1] = inner[1], inner[0], probes[0]
            moved = 0
            inner[0] = right - _GOLDEN * (right - left)
        else:
            left, inner[0], probes[0] = inner[0], inner[1], probes[1]
            moved = 1
            inner[1] = left + _GOLDEN * (right - left)
        probes[moved] = _uniform_plan(problem, inner[moved])
        plans.append(probes[moved])
    return min(plans, key=lambda plan: plan.objective_s)


def random(problem: PlanningProblem, rng: np.random.Generator) -> Plan:
    """Pruning rates uniform within the bounds, bandwidth shares uniform over the simplex.

    With ``max_pruning_loss`` the drawn rates are drawn back towards min_pruning until they fit.
    """
    low = problem.min_pruning
    span = rng.uniform(size=problem.clients) * (problem.max_pruning - low)
    limit = problem.max_pruning_loss
    if limit is not None and problem.pruning_loss(low + span) > limit:
        inside, outside = 0.0, 1.0
        for _ in range(_BISECTIONS):
            middle = 0.5 * (inside + outside)
            if problem.pruning_loss(low + middle * span) <= limit:
                inside = middle
            else:
                outside = middle
        span = inside * span
    share = rng.standard_exponential(problem.clients)
    return priced(problem, "random", low + span, share * (problem.bandwidth_hz / share.sum()))


def _equal(problem: PlanningProblem) -> Array:
    return np.full(problem.clients, problem.bandwidth_hz / problem.clients)


def _best_band(problem: PlanningProblem, pruning: Array) -> Array:
    fixed = problem.downlink_s + problem.compute_s(pruning)
    return bandwidth_block(problem, fixed, problem.payload_bits(pruning))[1]


def _uniform_plan(problem: PlanningProblem, rate: float) -> Plan:
    pruning = np.clip(rate, problem.min_pruning, problem.max_pruning)
    return priced(problem, "uniform", pruning, _best_band(problem, pruning))


def _largest_allowed(problem: PlanningProblem, low: float, high: float) -> float:
    def allowed(rate: float) -> bool:
        pruning = np.clip(rate, problem.min_pruning, problem.max_pruning)
        return problem.pruning_loss(pruning) <= (problem.max_pruning_loss or 0.0)

    if allowed(high):
        return high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
