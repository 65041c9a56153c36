"""From a choice per client to a real plan: its pruning, its bands, and its own best deadline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.mode_plans import keeps_budgets
from airtune.planning.optimum.batch import batch_of
from airtune.planning.optimum.choices import Choices
from airtune.planning.optimum.prices import best_prices
from airtune.planning.optimum.pricing import limits_at
from airtune.planning.optimum.search import locally_best
from airtune.planning.problem import Array, Chosen, Plan, PlanningProblem, priced

# Deadlines tried at once: one batch costs hardly more than one point.
_POINTS = 9
# Each turn leaves two of the eight parts of the range of ln T: sixteen leave 1e-10 of T.
_MAX_ROUNDS = 16
# Around the search's own deadline; its intervals are narrower than this from the start.
_WIDE = 1.3


def modes_of(choices: Choices, chosen: NDArray[np.intp]) -> Chosen:
    """Return the plan's modes for one choice a client."""
    return tuple(None if choices.absent[row] else int(choices.mode[row]) for row in chosen)


def pruning_for(
    problem: PlanningProblem, modes: Chosen, bandwidth_hz: Array, left_s: float
) -> Array:
    """Return the least pruning (K,) with which each client's mode meets a deadline and its budget.

    Args:
        problem: the problem.
        modes: each client's mode.
        bandwidth_hz: (K,) bands.
        left_s: the deadline less the end of the broadcast that ``listen_s`` asks for.
    """
    table = problem.table
    here = np.array([mode is not None for mode in modes])
    row = np.array([0 if mode is None else mode for mode in modes], dtype=np.intp)
    rate = problem.rate_bps(np.where(here, bandwidth_hz, 0.0))
    fixed_s, full_s = table.compute_fixed_s[row], table.compute_full_s[row]
    fixed, full = table.payload_fixed_bits[row], table.payload_full_bits[row]
    power, radio = table.compute_power_w[row], table.transmit_power_w[row]
    with np.errstate(all="ignore"):
        fixed_up = np.where(fixed > 0, fixed / rate, 0.0)
        full_up = np.where(full > 0, full / rate, 0.0)
        kept = (left_s - problem.downlink_s - fixed_s - fixed_up) / (full_s + full_up)
        spent = problem.energy_budgets - power * fixed_s - np.where(radio > 0, radio * fixed_up, 0)
        per = power * full_s + np.where(radio > 0, radio * full_up, 0.0)
        kept = np.minimum(kept, np.where(per > 0, spent / per, np.inf))
    pruning = np.where(full_s + full > 0, 1.0 - np.nan_to_num(kept, nan=0.0), 0.0)
    pruning = np.clip(pruning, table.min_pruning[row], table.max_pruning[row])
    return np.where(here, pruning, 0.0)


def plan_at(
    problem: PlanningProblem,
    choices: Choices,
    chosen: NDArray[np.intp],
    bandwidth_hz: Array,
    left_s: float,
) -> Plan | None:
    """Return the plan of one choice and band a client; None if it breaks a budget."""
    modes = modes_of(choices, chosen)
    band = np.where(choices.silent[chosen], 0.0, bandwidth_hz)
    used = float(band.sum())
    if used > 0:
        # What is left of the band is shared in proportion.
        band = band * (problem.bandwidth_hz / used)
    made = priced(problem, "exact", pruning_for(problem, modes, band, left_s), band, chosen=modes)
    return made if keeps_budgets(problem, made) else None


def polished(
    problem: PlanningProblem,
    choices: Choices,
    chosen: NDArray[np.intp],
    deadline_s: float,
    broadcast_s: float,
    tolerance: float,
) -> Plan | None:
    """Return the best plan near a deadline with the same modes.

    A grid of deadlines, solved all at once, is drawn together around its best one.
    """
    small = _without_choice(problem, choices, chosen, broadcast_s)
    if small is not None:
        return _descended(problem, choices, chosen, small, broadcast_s, tolerance)
    rows = _rows_of(choices, chosen)
    low, high = deadline_s / _WIDE, deadline_s * _WIDE
    best: Plan | None = None
    y = np.log(choices.snr_hz[rows] * problem.clients / problem.bandwidth_hz)
    price = -np.log(problem.bandwidth_hz * problem.clients)
    for turn in range(_MAX_ROUNDS):
        times = np.geomspace(low, high, _POINTS)
        plans = _plans_at(problem, choices, rows, times, broadcast_s, price, y, tolerance)
        values = [np.inf if plan is None else _value(problem, plan) for plan in plans]
        top = int(np.argmin(values))
        found = plans[top]
        if found is None:
            return best
        gained = np.inf if best is None else best.objective_s - found.objective_s
        if best is None or _value(problem, found) < _value(problem, best):
            best = found
        low, high = float(times[max(top - 1, 0)]), float(times[min(top + 1, _POINTS - 1)])
        spread = max(value for value in values[max(top - 1, 0) : top + 2])
        close = spread - values[top] <= 0.02 * tolerance * values[top]
        if close or (turn > 8 and gained <= 0.0):
            return best
    return best


def _without_choice(
    problem: PlanningProblem, choices: Choices, chosen: NDArray[np.intp], broadcast_s: float
) -> PlanningProblem | None:
    """Return the problem of those who take part, each in its mode; None where it is none.

    J = T·N(Q), and Q = Q0 + Σ v·e with Q0 what modes and absence lose by themselves and
    v = w·(1 − cost): the problem without modes with κ' = κ·Σv/(1 − κ·Q0), times a constant.
    """
    if problem.energy_budget_j is not None or problem.equal_bands:
        return None
    modes = modes_of(choices, chosen)
    here = np.array([k for k, mode in enumerate(modes) if mode is not None], dtype=np.intp)
    row = np.array([mode for mode in modes if mode is not None], dtype=np.intp)
    table, weight = problem.table, problem.weight
    through = weight[here] * (1.0 - table.cost[row])
    inside = float(through.sum())
    out = np.ones(problem.clients, dtype=bool)
    out[here] = False
    lost = float((weight * np.where(out, problem.absent_costs, 0.0))[out].sum())
    lost += float(weight[here] @ table.cost[row])
    rest, limit = 1.0 - problem.kappa * lost, problem.max_pruning_loss
    if not len(here) or inside <= 0 or rest <= 1e-9:
        return None
    kappa = problem.kappa * inside / rest
    most = problem.costs_of(here, table.max_pruning[row])
    if limit is None and kappa * float(through @ most) / inside >= 1.0 - 1e-6:
        return None
    curves = problem.pruning_cost
    try:
        return PlanningProblem(
            bandwidth_hz=problem.bandwidth_hz,
            kappa=kappa if limit is None else 0.0,
            names=tuple(problem.names[k] for k in here),
            weight=through,
            snr_hz=problem.snr_hz[here],
            downlink_s=problem.downlink_s[here] + broadcast_s,
            compute_fixed_s=table.compute_fixed_s[row],
            compute_full_s=table.compute_full_s[row],
            payload_fixed_bits=table.payload_fixed_bits[row],
            payload_full_bits=table.payload_full_bits[row],
            min_pruning=table.min_pruning[row],
            max_pruning=table.max_pruning[row],
            max_spectral_efficiency=problem.efficiency[here],
            pruning_cost=None if curves is None else tuple(curves[k] for k in here),
            max_pruning_loss=None if limit is None else max(limit - lost, 0.0) / inside,
        )
    except InputError:  # the bound on Q is less than these modes lose
        return None


def _descended(
    problem: PlanningProblem,
    choices: Choices,
    chosen: NDArray[np.intp],
    small: PlanningProblem,
    broadcast_s: float,
    tolerance: float,
) -> Plan | None:
    """Return the plan of a problem without a choice, put back among all clients."""
    made = locally_best(small, tolerance=0.05 * tolerance)
    here = np.flatnonzero(~choices.absent[chosen])
    band, pruning = np.zeros(problem.clients), np.zeros(problem.clients)
    band[here], pruning[here] = made.bandwidth_hz, made.pruning
    return priced(problem, "exact", pruning, band, chosen=modes_of(choices, chosen))


def _value(problem: PlanningProblem, plan: Plan) -> float:
    limit = problem.max_pruning_loss
    if limit is not None and plan.pruning_loss > limit * (1.0 + 1e-9):
        return np.inf
    return plan.objective_s


def _rows_of(choices: Choices, chosen: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return all choices of the modes that are chosen: a mode has one a piece of its cost curve."""
    mode = np.where(choices.absent, -1, choices.mode)
    return np.flatnonzero(mode == mode[chosen][choices.owner])


def _plans_at(
    problem: PlanningProblem,
    choices: Choices,
    rows: NDArray[np.intp],
    times: Array,
    broadcast_s: float,
    price: float,
    y: Array,
    tolerance: float,
) -> list[Plan | None]:
    count = len(times)
    batch = batch_of(choices, [rows] * count, np.full(count, broadcast_s), problem.bandwidth_hz)
    limits = limits_at(batch, times)
    start = np.clip(np.tile(y, count), limits.most, limits.least)
    with np.errstate(over="ignore"):
        least = np.where(limits.sends, batch.rows.snr_hz * np.exp(-limits.least), 0.0)
    asked = batch.per_node(batch.least(np.where(limits.alive, least, np.inf)))
    prices = best_prices(
        batch, limits, np.full(count, price), start, np.full(count, 1e-3 * tolerance)
    )
    plans: list[Plan | None] = []
    for n, time in enumerate(times):
        if not asked[n] <= problem.bandwidth_hz * (1.0 + 1e-12):
            plans.append(None)
            continue
        mine = batch.head_node == n
        rich, poor = prices.rich.band[mine], prices.poor.band[mine]
        more = float(rich.sum() - poor.sum())
        spare = problem.bandwidth_hz - float(poor.sum())
        share = min(max(spare / more, 0.0), 1.0) if more > 0 else 0.0
        band = poor + share * (rich - poor)
        chosen = batch.index[prices.poor.row[mine]]
        plans.append(plan_at(problem, choices, chosen, band, float(time) - broadcast_s))
    return plans
