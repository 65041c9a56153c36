"""What each client can choose from, as the search over modes sees it: linear choices.

A choice is a mode on one linear piece of its pruning cost; a mode with a cost curve of several
pieces becomes as many choices, and the least of them is the mode. In a choice the client keeps ξ
beyond its least share, lo <= ξ <= hi, loses L − G·(ξ − lo), and meets

    the deadline:  ξ <= ((T − d − a)·r(b) − v)/(c·r(b) + u)
    the budget:    ξ <= (E·r(b) − v')/(c'·r(b) + u').

A choice with nothing to prune is written as in reduced.py: v = 0, u its payload, lo = hi = 1, and a
c of our choice that is taken off a.

**Dominated modes are dropped.** Mode j dominates mode m of the same client if its cost, its four
coefficients, its two powers and its min_pruning are no larger and its max_pruning no smaller. Then
whatever (ρ, b) is allowed in m is allowed in j, takes no longer, draws no more and loses no more: a
plan with m stays a plan, and no worse, with j.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.channel.rate import LN2
from airtune.planning.problem import Array, PlanningProblem

# A range of pruning rates that rounding alone can make is a point.
_TINY_RANGE = 1e-12


@dataclass(frozen=True, eq=False)
class Choices:
    """All choices, client after client; every array is (I,).

    Attributes:
        owner: whose it is. ``mode``: its row in the problem's table (0 for sitting out).
        ready: a, s, without the broadcast of ``listen_s``. ``fixed``: v, bit. ``compute``: c, s.
        ``full``: u, bit.
        energy: E, J. ``energy_fixed``, ``energy_compute``, ``energy_full``: v', c', u'.
        ``budgeted``: whether the budget depends on the band.
        low, high: range of ξ. ``loss``: w·L. ``gain``: w·G.
        silent: it sends nothing. ``absent``: it sits out. ``most_pruned``: ρ at ξ = lo.
        snr_hz: s. ``cap``: η·ln 2. ``log_cap_snr``: ln(2^η − 1). ``capped``: any is finite.
        listen_s: when its client's broadcast would end.
    """

    owner: NDArray[np.intp]
    mode: NDArray[np.intp]
    ready: Array
    fixed: Array
    compute: Array
    full: Array
    energy: Array
    energy_fixed: Array
    energy_compute: Array
    energy_full: Array
    budgeted: NDArray[np.bool_]
    low: Array
    high: Array
    loss: Array
    gain: Array
    silent: NDArray[np.bool_]
    absent: NDArray[np.bool_]
    most_pruned: Array
    snr_hz: Array
    cap: Array
    log_cap_snr: Array
    capped: bool
    listen_s: Array

    @property
    def bounded(self) -> NDArray[np.bool_]:
        """Whether the budget bounds ξ; without energy for what is kept it bounds the band alone."""
        return self.budgeted & ((self.energy_compute > 0) | (self.energy_full > 0))


def choices_of(problem: PlanningProblem) -> Choices:
    """Return all choices of a problem; dominated modes are left out."""
    table = problem.table
    rows = np.flatnonzero(_undominated(problem))
    # Pieces of the cost curves, cut to each mode's range.
    row, left, right, slope = _pieces(problem, rows)
    who = table.owner[row]
    base_cost = problem.costs_of(who, right)
    through = 1.0 - table.cost[row]
    moves = (table.compute_full_s[row] + table.payload_full_bits[row] > 0) & (slope > 0)
    flexible = moves & (right - left > _TINY_RANGE)
    # Where pruning changes nothing, or costs nothing, there is one rate to take.
    pinned = np.where(table.compute_full_s[row] + table.payload_full_bits[row] > 0, right, left)
    rate = np.where(flexible, right, pinned)
    loss = 1.0 - through * (1.0 - np.where(flexible, base_cost, problem.costs_of(who, rate)))
    kept = 1.0 - rate
    seconds = table.compute_fixed_s[row] + table.compute_full_s[row] * kept
    bits = table.payload_fixed_bits[row] + table.payload_full_bits[row] * kept
    silent = (bits <= 0) & ~(flexible & (table.payload_full_bits[row] > 0))
    share = problem.rate_bps(np.full(problem.clients, problem.bandwidth_hz / problem.clients))[who]
    with np.errstate(divide="ignore", invalid="ignore"):
        stand_in = np.where(bits > 0, bits / share, 1.0)
    rigid = ~flexible
    sends_rigid = rigid & ~silent
    power, radio = table.compute_power_w[row], table.transmit_power_w[row]
    budget = problem.energy_budgets[who]
    left_j = budget - power * seconds
    budgeted = np.isfinite(budget) & (radio > 0) & ~silent
    low = np.where(sends_rigid, 1.0, 0.0)
    high = np.where(flexible, right - left, low)
    full = np.where(sends_rigid, bits, np.where(flexible, table.payload_full_bits[row], 0.0))
    fixed = np.where(rigid, 0.0, bits)
    compute = np.where(sends_rigid, stand_in, np.where(flexible, table.compute_full_s[row], 0.0))
    energy = left_j + np.where(sends_rigid, radio * stand_in, 0.0)
    energy_compute = np.where(sends_rigid, radio * stand_in, power * compute)
    whole = problem.rate_bps(np.full(problem.clients, problem.bandwidth_hz))[who]
    high = np.minimum(
        high,
        _affordable(
            np.isfinite(budget), energy, radio * fixed, energy_compute, radio * full, whole, high
        ),
    )
    parts = {
        "owner": who,
        "mode": row,
        "ready": problem.downlink_s[who] + seconds - np.where(sends_rigid, stand_in, 0.0),
        "fixed": fixed,
        "compute": compute,
        "full": full,
        "energy": np.where(budgeted, energy, 1.0),
        "energy_fixed": np.where(budgeted, radio * fixed, 0.0),
        "energy_compute": np.where(budgeted, energy_compute, 0.0),
        "energy_full": np.where(budgeted, radio * full, 0.0),
        "budgeted": budgeted,
        "low": low,
        "loss": problem.weight[who] * loss,
        "gain": np.where(flexible, problem.weight[who] * through * slope, 0.0),
        "silent": silent,
        "absent": np.zeros(len(who), dtype=bool),
        "most_pruned": rate,
    }
    fits = high >= low * (1.0 - 1e-12)
    parts["high"] = np.maximum(high, low)
    parts = {name: values[fits] for name, values in parts.items()}
    return _with_absence(problem, parts)


def _with_absence(problem: PlanningProblem, parts: dict[str, NDArray]) -> Choices:
    out = np.flatnonzero(np.isfinite(problem.absent_costs))
    extra: dict[str, object] = {
        "owner": out,
        "loss": problem.weight[out] * problem.absent_costs[out],
        "silent": True,
        "absent": True,
    }
    joined = {
        name: np.concatenate(
            [values, np.broadcast_to(np.asarray(extra.get(name, 0), dtype=values.dtype), len(out))]
        )
        for name, values in parts.items()
    }
    order = np.argsort(joined["owner"], kind="stable")
    joined = {name: values[order] for name, values in joined.items()}
    who = joined["owner"]
    cap = problem.efficiency[who] * LN2
    with np.errstate(over="ignore"):
        log_cap_snr = np.where(cap < 30, np.log(np.expm1(np.minimum(cap, 30))), cap)
    listen = problem.listen_s
    return Choices(
        snr_hz=np.maximum(problem.snr_hz[who], 1e-300),
        cap=cap,
        log_cap_snr=log_cap_snr,
        capped=bool(np.isfinite(cap).any()),
        listen_s=np.zeros(len(who))
        if listen is None
        else np.where(joined["absent"], 0.0, listen[who]),
        **joined,
    )


def _affordable(
    bounded: NDArray[np.bool_],
    energy: Array,
    fixed: Array,
    compute: Array,
    full: Array,
    rate: Array,
    high: Array,
) -> Array:
    """Return the largest ξ that the energy budget allows with the whole band."""
    with np.errstate(divide="ignore", invalid="ignore"):
        most = (energy - np.where(fixed > 0, fixed / rate, 0.0)) / (
            compute + np.where(full > 0, full / rate, 0.0)
        )
    free = ~bounded | (compute + full <= 0)
    # What fits by the check of the modes must not be lost by rounding.
    return np.where(free, high, np.where(most > -1e-12, np.maximum(most * (1 + 1e-15), 0.0), -1.0))


def _pieces(
    problem: PlanningProblem, rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], Array, Array, Array]:
    """Return mode, ends and slope of every linear piece within a mode's range of pruning."""
    table, pieces = problem.table, problem.pieces
    counts = np.bincount(pieces.client, minlength=problem.clients)[table.owner[rows]]
    row = np.repeat(rows, counts)
    start = np.repeat(np.cumsum(counts) - counts, counts)
    piece = pieces.first[table.owner[row]] + np.arange(len(row)) - start
    low, high = table.min_pruning[row], table.max_pruning[row]
    left, right = np.maximum(pieces.left[piece], low), np.minimum(pieces.right[piece], high)
    slope = pieces.slope[piece]
    point = low == high
    # A mode with a single rate lies on one piece, or between two: the first one that holds it.
    inside = right - left > _TINY_RANGE
    holds = point & (pieces.left[piece] <= low) & (low <= pieces.right[piece])
    first = holds & ~np.concatenate([[False], holds[:-1] & (row[1:] == row[:-1])])
    short = ~point & (high - low <= _TINY_RANGE) & (pieces.left[piece] <= low)
    short &= low <= pieces.right[piece]
    keep = inside | first | short
    return row[keep], left[keep], right[keep], slope[keep]


def _undominated(problem: PlanningProblem) -> NDArray[np.bool_]:
    table = problem.table
    values = np.stack(
        [
            table.cost,
            table.compute_fixed_s,
            table.compute_full_s,
            table.payload_fixed_bits,
            table.payload_full_bits,
            table.min_pruning,
            -table.max_pruning,
            table.compute_power_w,
            table.transmit_power_w,
        ]
    )
    keep = np.ones(len(table.owner), dtype=bool)
    counts = np.bincount(table.owner, minlength=problem.clients)
    for count in np.unique(counts):
        if count < 2:
            continue
        clients = np.flatnonzero(counts == count)
        # Some clients at a time: clients × modes × modes truths are held.
        step = max(1, 4_000_000 // (count * count))
        for begin in range(0, len(clients), step):
            part = clients[begin : begin + step]
            index = table.first[part][:, None] + np.arange(count)
            keep[index] = _best_of(values[:, index])
    return keep


def _best_of(values: Array) -> NDArray[np.bool_]:
    """Return (K, M) which modes no other one dominates; of equal ones the first stays."""
    clients, count = values.shape[1:]
    below = np.ones((clients, count, count), dtype=bool)
    for column in values:
        below &= column[:, :, None] <= column[:, None, :]
    earlier = np.arange(count)[:, None] < np.arange(count)
    beats = below & (~below.transpose(0, 2, 1) | earlier)
    return np.asarray(~beats.any(axis=1))
