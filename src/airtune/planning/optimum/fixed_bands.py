"""The best modes and pruning where the bands are given, or equal, or whole blocks.

At a given band each choice's loss is affine in T between the deadline from which it can be met and
the one from which nothing more is kept, so for any assignment of choices Q is piecewise affine in T
with its corners at such deadlines, and T·N of an affine loss is monotone. The best deadline is
therefore one of these corners. An interval of corners is dropped where T1·N(Q*(T2)) is no better
than the best one known, because Q* falls as T grows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.gaps import relative_excess
from airtune.planning.optimum.choices import Choices, choices_of
from airtune.planning.optimum.polish import modes_of, pruning_for
from airtune.planning.problem import MIN_PROGRESS, Array, Plan, PlanningProblem, priced

# 53 halvings part doubles of one size; the rest allow for ends that are 2^147 apart.
_BISECTIONS = 200
# Deadlines are sums of a few doubles: a choice whose own start is the deadline has to count.
_MET = 1e-13
# Relative: a bound equal to a plan's own loss must not be missed by rounding.
_NO_LOSS = 1e-9


@dataclass(frozen=True, eq=False)
class Timed:
    """Every choice at its client's band; all (I,), or (I, N + 1) over numbers of blocks.

    Attributes:
        start_s: from when on it can be met, infinity where it cannot be at all.
        end_s: from when on ξ is at its largest. ``loss``: at the start. ``saved``: by the end.
    """

    start_s: Array
    end_s: Array
    loss: Array
    saved: Array

    def losses(self, deadline_s: float) -> Array:
        """Return the loss at a deadline, infinity where it is too soon."""
        span = self.end_s - self.start_s
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(span > 0, (deadline_s - self.start_s) / span, 1.0)
        share = np.clip(np.nan_to_num(share), 0.0, 1.0)
        met = self.start_s <= deadline_s * (1.0 + _MET)
        return np.where(met, self.loss - self.saved * share, np.inf)


def timed(choices: Choices, rate_bps: Array, broadcast_s: float) -> Timed:
    """Return the choices at rates (I,) or (I, N + 1)."""

    def column(values: NDArray) -> NDArray:
        return values if rate_bps.ndim == 1 else values[:, None]

    low, high = column(choices.low), column(choices.high)
    fixed, full = column(choices.fixed), column(choices.full)
    with np.errstate(divide="ignore", invalid="ignore"):
        most = (column(choices.energy) * rate_bps - column(choices.energy_fixed)) / (
            column(choices.energy_compute) * rate_bps + column(choices.energy_full)
        )
        most = np.where(column(choices.budgeted), np.nan_to_num(most, nan=-1.0), high)
        allowed = most >= low * (1.0 - 1e-12)
        high = np.maximum(np.minimum(high, most), low)

        def at(kept: Array) -> Array:
            need = fixed + full * kept
            upload = np.where(need > 0, need / rate_bps, 0.0)
            return broadcast_s + column(choices.ready) + column(choices.compute) * kept + upload

        start, end = at(low), at(high)
    start = np.where(column(choices.absent), 0.0, np.where(allowed, start, np.inf))
    end = np.where(column(choices.absent), 0.0, end)
    late = column(choices.listen_s > broadcast_s)
    start = np.where(late, np.inf, start)
    loss = np.broadcast_to(column(choices.loss), start.shape)
    return Timed(start, end, loss, column(choices.gain) * (high - low))


@dataclass(frozen=True, eq=False)
class Found:
    """The best corner: its deadline, and a lower bound on the objective over all corners."""

    deadline_s: float
    value: float
    lower: float


def best_corner(
    problem: PlanningProblem,
    corners: Array,
    loss_at: Callable[[float], float],
    tolerance: float,
    known: float = np.inf,
) -> Found:
    """Return the corner of least T·N(Q*(T)); with a bound on Q, the smallest T that keeps it."""
    corners = np.unique(corners[np.isfinite(corners)])
    losses: dict[int, float] = {}

    def loss_of(index: int) -> float:
        if index not in losses:
            losses[index] = loss_at(float(corners[index]))
        return losses[index]

    if not len(corners):
        return Found(np.inf, np.inf, np.inf)
    limit = problem.max_pruning_loss
    if limit is not None:
        return _first_within(corners, loss_at, limit * (1.0 + _NO_LOSS))

    def value(index: int, at: int) -> float:
        rest = 1.0 - problem.kappa * loss_of(at)
        return float(corners[index]) / rest if rest >= MIN_PROGRESS else np.inf

    last = len(corners) - 1
    best, lower = last, np.inf
    for index in np.unique(np.linspace(0, last, min(last + 1, 33)).astype(int)):
        best = min(best, int(index), key=lambda i: value(i, i))
    stack = [(0, last)]
    while stack:
        low, high = stack.pop()
        bound = value(low, high)
        if bound >= min(value(best, best), known) * (1.0 - 0.5 * tolerance):
            lower = min(lower, bound)
            continue
        if high - low <= 1:
            best = min((best, low, high), key=lambda i: value(i, i))
            lower = min(lower, value(low, low), value(high, high))
            continue
        middle = int(np.searchsorted(corners, np.sqrt(corners[low] * corners[high])))
        middle = min(max(middle, low + 1), high - 1)
        best = min(best, middle, key=lambda i: value(i, i))
        stack += [(low, middle), (middle, high)]
    return Found(float(corners[best]), value(best, best), min(lower, value(best, best)))


def _first_within(corners: Array, loss_at: Callable[[float], float], limit: float) -> Found:
    low, high = float(corners[0]), float(corners[-1])
    if loss_at(high) > limit:
        return Found(np.inf, np.inf, np.inf)
    if loss_at(low) <= limit:
        return Found(low, low, low)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        low, high = (low, middle) if loss_at(middle) <= limit else (middle, high)
    return Found(high, high, low)


def levels_of(choices: Choices) -> Array:
    """Return the possible ends of the broadcast, s."""
    return np.unique(choices.listen_s[~choices.absent])


def picked(
    choices: Choices, losses: Array, count: int | None
) -> tuple[float, NDArray[np.intp] | None]:
    """Return Q and the choices (K,) of least loss: with someone, or exactly ``count``, present."""
    heads = np.flatnonzero(np.diff(choices.owner, prepend=-1))
    present = np.where(choices.absent, np.inf, losses)
    here = np.minimum.reduceat(present, heads)
    out = np.minimum.reduceat(np.where(choices.absent, losses, np.inf), heads)
    with np.errstate(invalid="ignore"):
        regret = np.where(np.isfinite(here), here - out, np.inf)
    # A client that may not sit out has −infinity here, unless it is too late for it altogether.
    regret = np.where(np.isfinite(out), regret, np.where(np.isfinite(here), -np.inf, np.inf))
    if ((~np.isfinite(out)) & (~np.isfinite(here))).any():
        return np.inf, None
    order = np.argsort(regret, kind="stable")
    if count is None:
        count = max(int((regret < 0).sum()), 1)
    must = int((regret == -np.inf).sum())
    if count < must or not np.isfinite(here[order[:count]]).all():
        return np.inf, None
    takes = np.zeros(len(heads), dtype=bool)
    takes[order[:count]] = True
    segment = np.cumsum(np.diff(choices.owner, prepend=-1) > 0) - 1
    wanted = np.where(takes, here, out)
    mine = (losses <= wanted[segment]) & (choices.absent == ~takes[segment])
    rows = np.where(mine, np.arange(len(losses)), -1)
    return float(wanted.sum()), np.maximum.reduceat(rows, heads)


# Choices that cannot be met have infinite times.
@np.errstate(all="ignore")
def at_bands(
    problem: PlanningProblem,
    bandwidth_hz: Array,
    *,
    count: int | None = None,
    tolerance: float = 1e-9,
    known: float = np.inf,
    choices: Choices | None = None,
) -> tuple[Plan | None, float]:
    """Return the best plan at given bands (K,), and a lower bound on it.

    Args:
        problem: the problem.
        bandwidth_hz: each client's band if it takes part.
        count: how many take part; None: whatever is best.
        tolerance: relative.
        known: an objective that is known already; what is no better need not be proved.
        choices: of the problem, where known.
    """
    choices = choices_of(problem) if choices is None else choices
    rate = problem.rate_bps(bandwidth_hz)[choices.owner]
    best: Plan | None = None
    lower = np.inf
    for level in levels_of(choices):
        table = timed(choices, rate, float(level))
        present = ~choices.absent
        corners = np.concatenate([table.start_s[present], table.end_s[present]])

        def loss_at(deadline: float, table: Timed = table) -> float:
            return picked(choices, table.losses(deadline), count)[0]

        found = best_corner(problem, corners, loss_at, tolerance, known)
        lower = min(lower, found.lower)
        if not np.isfinite(found.value) or found.value >= known:
            continue
        rows = picked(choices, table.losses(found.deadline_s), count)[1]
        assert rows is not None
        modes = modes_of(choices, rows)
        left = (found.deadline_s - float(level)) * (1.0 + 1e-15)
        pruning = pruning_for(problem, modes, bandwidth_hz, left)
        made = priced(problem, "exact", pruning, bandwidth_hz, chosen=modes)
        known = min(known, made.objective_s)
        if best is None or made.objective_s < best.objective_s:
            best = made
    return best, lower


def exact_at_equal_bands(problem: PlanningProblem, *, tolerance: float = 1e-6) -> Plan:
    """Return the best plan at equal bands, for every number of those who take part.

    Raises:
        InputError: no plan keeps every energy budget.
    """
    choices = choices_of(problem)
    counts = [problem.clients]
    if choices.absent.any():
        counts = list(range(1, problem.clients + 1))
    best: Plan | None = None
    lower = np.inf
    for count in counts:
        band = np.full(problem.clients, problem.bandwidth_hz / count)
        known = np.inf if best is None else best.objective_s
        made, bound = at_bands(
            problem, band, count=count, tolerance=tolerance, known=known, choices=choices
        )
        lower = min(lower, bound)
        if made is not None and made.objective_s < known:
            best = made
    if best is None:
        raise InputError(
            "clients: no plan keeps every energy budget at equal bands; allowed: larger budgets, "
            "more bandwidth_hz, or an absent_cost for more clients"
        )
    lower = min(lower, best.objective_s)
    gap = relative_excess(best.objective_s, lower)
    return replace(best, lower_bound_s=lower, gap=gap)
