"""The global optimum of the joint problem, with a lower bound that proves it.

    minimise J(T) = T·N(Q*(T)) over the deadline T

where Q*(T), the smallest pruning loss at a deadline, comes from deadline.py. J may have several
valleys. A first descent finds one; then the whole range of T is covered by intervals, on each of
which the interval bound of deadline.py shows that J is nowhere better by more than the tolerance.
The interval bound is off by the square of the distance only, so a few dozen intervals do, and a
better valley cannot be missed: where the bound does not hold, a new deadline is solved there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from airtune.planning.bcd import upload_time
from airtune.planning.gaps import relative_excess
from airtune.planning.optimum.deadline import Solved, bound_at, solve
from airtune.planning.optimum.reduced import Reduced, reduced
from airtune.planning.problem import Array, Plan, PlanningProblem, priced

# Numbers with a % below: benchmarks/constants.py, 36 random problems.
# Half of the descents take 15 turns or fewer, the longest 33; at 15 turns the cover then has to
# solve 16 % more deadlines.
_MAX_DESCENT = 60
# Far beyond what any tolerance allowed needs; the true gap is reported if it is met.
_MAX_INTERVALS = 100_000
# How much of the tolerance the intervals may use; the rest is for the plan itself: with 0.8 a gap
# was 1.14 tolerances.
_SHARE = 0.5
# A step of the cover is planned this much shorter than its model allows; nothing hangs on it: from
# 0.6 to 1 the deadlines solved differ by 4 %.
_CAUTION = 0.92
# Every fourth turn halves the range at least: fifty halvings, about a double's digits.
_MAX_TIGHTENING = 200
# Below the half that the intervals may use, so that a step always makes progress.
_LEAST_SHARE = 0.4
# sqrt of rest over slope beyond which J is flat, and T the better variable to search in: 1.5 or 30
# take 7 to 9 % more deadlines.
_MAX_PSI = 3.0
# First step of the cover, relative to T; a later one is planned from the bend that was met. 1e-4
# takes 6 % more deadlines, 0.1 takes 4 % fewer.
_FIRST_REACH = 3e-3
# What the descent leaves open is charged once: small beside the intervals' half. 0.005 takes 14 %
# more deadlines; 0.4 takes 12 % fewer and leaves plans up to a third of the tolerance worse.
_DESCENT_SHARE = 0.05
# In Q: at the latest deadline everyone keeps all, but for rounding.
_ALL_KEPT = 1e-9


def exact(problem: PlanningProblem, *, tolerance: float = 1e-6) -> Plan:
    """Return the optimal plan and its certificate: ``gap`` is at most ``tolerance``.

    minimise N(Q(ρ))·T(ρ, b) over ρ, b; with ``max_pruning_loss`` minimise T subject to Q <= Q_max.
    """
    began = perf_counter()
    search = _Search(problem, reduced(problem), tolerance)
    earliest, latest = _range(problem, search.reduced)
    latest = _whole(search, latest)
    if problem.max_pruning_loss is None:
        _cover(search, _descend(search, earliest, latest), earliest, latest)
        best = search.best[0]
    else:
        # The least loss that there is may lie above its own bound by rounding.
        least = problem.pruning_loss(problem.min_pruning)
        best = _tightest(search, earliest, latest, max(problem.max_pruning_loss, least))
    plan = _plan(problem, search.reduced, best)
    # Rounding must not put the bound above the plan it bounds.
    bound = min(search.lower, plan.objective_s)
    gap = relative_excess(plan.objective_s, bound)
    return replace(
        plan,
        lower_bound_s=bound,
        gap=gap,
        deadlines=search.solved,
        solve_s=perf_counter() - began,
    )


def locally_best(problem: PlanningProblem, *, tolerance: float = 1e-6) -> Plan:
    """Return the plan at the bottom of the first valley of J, without its proof.

    With ``max_pruning_loss`` it is the optimum.
    """
    search = _Search(problem, reduced(problem), tolerance)
    earliest, latest = _range(problem, search.reduced)
    latest = _whole(search, latest)
    if problem.max_pruning_loss is None:
        _descend(search, earliest, latest)
        return _plan(problem, search.reduced, search.best[0])
    least = problem.pruning_loss(problem.min_pruning)
    limit = max(problem.max_pruning_loss, least)
    return _plan(problem, search.reduced, _tightest(search, earliest, latest, limit))


@dataclass
class _Search:
    """What the search has found so far: the best solved deadline and the least interval bound."""

    problem: PlanningProblem
    reduced: Reduced
    tolerance: float
    best: list[Solved] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)
    lower: float = np.inf
    solved: int = 0

    def solve(self, offset_s: float, warm: Solved | None) -> Solved:
        made = solve(self.reduced, offset_s, warm)
        made = self.sharpened(made)
        self.bounds.append((offset_s, made.bound))
        self.solved += 1
        if not self.best or self.value(made) < self.value(self.best[0]):
            self.best = [made]
        return made

    def sharpened(self, at: Solved) -> Solved:
        """Return a solved deadline with the best bound known for it.

        Q* falls as T grows, so what bounds it at a later deadline bounds it here: where rounding
        spoils a bound (a deadline that leaves the uploads no time), a neighbour's stands in.
        """
        later = (bound for offset, bound in self.bounds if offset >= at.offset_s)
        return replace(at, bound=max(at.bound, max(later, default=-np.inf)))

    def value(self, at: Solved) -> float:
        """J at a solved deadline."""
        return at.deadline_s / (1.0 - self.problem.kappa * at.loss)

    def slope(self, at: Solved) -> float:
        """dJ/dT, from dQ*/dT."""
        kappa = self.problem.kappa
        rest = 1.0 - kappa * at.loss
        return (rest + at.deadline_s * kappa * at.slope) / (rest * rest)

    def psi(self, at: Solved) -> float:
        """(T·κ·N·|dQ*/dT|)^(−1/2), at most 3: below 1 where J falls, above 1 where it rises."""
        steep = at.deadline_s * self.problem.kappa * -at.slope
        rest = 1.0 - self.problem.kappa * at.loss
        return float(np.sqrt(rest / max(steep, rest / _MAX_PSI**2)))

    def bound(self, offset_s: float, loss: float) -> float:
        """T·N(Q) of a bound on Q at an offset."""
        return (self.reduced.base + offset_s) / (1.0 - self.problem.kappa * loss)

    @property
    def target(self) -> float:
        """What an interval's bound has to reach."""
        return self.value(self.best[0]) * (1.0 - _SHARE * self.tolerance)

    @property
    def least_step(self) -> float:
        """The relative step in T that the simplest bound always allows."""
        return _LEAST_SHARE * self.tolerance

    def prove(self, *bounds: float) -> None:
        self.lower = min(self.lower, *bounds)


def _range(problem: PlanningProblem, small: Reduced) -> tuple[float, float]:
    """Return the smallest offset that the band allows, and the one from which Q stays least."""
    least = small.most_pruned.copy()
    least[small.clients] -= np.where(small.rigid, 0.0, small.most)
    who = small.idle[small.idle_owner]
    np.minimum.at(least, who, small.most_pruned[who] - small.idle_end)
    ends = []
    for pruning in (small.most_pruned, np.maximum(least, 0.0)):
        fixed = problem.downlink_s + problem.compute_s(pruning)
        beyond, _ = upload_time(problem, fixed, problem.payload_bits(pruning))
        ends.append(float(fixed.max()) - small.base + beyond)
    return max(ends[0], 0.0), max(ends[0], ends[1], 0.0)


def _whole(search: _Search, latest: float) -> float:
    """Return the latest offset, moved by less than the tolerance if rounding makes it too soon."""
    least = search.problem.pruning_loss(search.problem.min_pruning)
    made = search.solve(latest, None)
    if max(made.loss - least, least - made.bound) > _ALL_KEPT:
        latest += _DESCENT_SHARE * search.tolerance * (search.reduced.base + latest)
    return latest


def _descend(search: _Search, earliest: float, latest: float) -> Solved:
    """Return a solved deadline at the bottom of a valley of J.

    J' = 0 where ψ = (T·κ·N·|Q'|)^(−1/2) is 1. Close to the earliest deadline Q' grows like the
    inverse square of what is left of T, so that ψ is nearly straight: false position on ψ (with the
    Illinois rule, and a bisection now and then) needs few deadlines.
    """
    right = search.solve(latest, None)
    left: Solved | None = None
    low, below, high, above = earliest, -1.0, latest, _MAX_PSI - 1.0
    if high <= low or search.problem.kappa == 0.0:
        return search.solve(earliest, right)
    base = search.reduced.base
    for turn in range(_MAX_DESCENT):
        # J(T) >= T_low·N(Q*(T_high)): closer than this, the upper end is as good as any between.
        if base + high <= (base + low) * (1.0 + _DESCENT_SHARE * search.tolerance):
            break
        if left and _bottom_is_near(search, left, right):
            break
        guess = low - below * (high - low) / (above - below)
        if turn % 4 == 3:
            step = max(low - earliest, 1e-3 * (high - earliest)) * (high - earliest)
            guess = earliest + np.sqrt(step)
        if not low < guess < high:
            guess = 0.5 * (low + high)
        near = left if left and guess - low < high - guess else right
        made = search.solve(float(guess), near)
        psi = search.psi(made) - 1.0
        if psi < 0:
            left, low, below, above = made, guess, psi, 0.5 * above
        else:
            right, high, above, below = made, guess, psi, 0.5 * below
    if left is None:
        search.solve(earliest, right)
    return search.best[0]


def _bottom_is_near(search: _Search, left: Solved, right: Solved) -> bool:
    """Whether the tangents at both sides of a bottom leave too little room to go on for."""
    value = search.value(search.best[0])
    low, high = left.offset_s, right.offset_s
    down, up = search.slope(left), search.slope(right)
    meet = (search.value(left) - search.value(right) + up * high - down * low) / (up - down)
    bottom = search.value(left) + down * (meet - low)
    # Above the better end, the tangents lie: J is not convex here.
    return bool(abs(value - bottom) <= _DESCENT_SHARE * search.tolerance * value)


def _cover(search: _Search, best: Solved, earliest: float, latest: float) -> None:
    """Show, interval after interval outwards from the best deadline, that J is nowhere better."""
    best = search.sharpened(best)
    search.prove(search.bound(best.offset_s, best.bound))
    _march(search, best, latest)
    _march(search, best, earliest)


def _march(search: _Search, centre: Solved, end: float) -> None:
    """Cover the deadlines between a solved one and an end of the range."""
    towards = 1.0 if end >= centre.offset_s else -1.0
    bend, curve, reach = None, 0.0, _FIRST_REACH * centre.deadline_s
    if _rest_is_worse(search, centre, centre.offset_s, end):
        return
    for _ in range(_MAX_INTERVALS):
        edge, loss, bend = _extent(search, centre, end, reach, bend)
        if edge == end or _rest_is_worse(search, centre, edge, end):
            return
        # At the next centre c the bound must hold back to this edge; that is so while
        # ½·(J'' + bend)·(c − edge)² stays below what J at the edge has to spare.
        away = abs(edge - centre.offset_s)
        spare = search.value(centre) + towards * search.slope(centre) * away - search.target
        spare = max(spare + 0.5 * curve * away * away, 0.25 * bend * away * away)
        step = _CAUTION * np.sqrt(2.0 * spare / (max(curve, 0.0) + bend)) if bend > 0 else away
        following, bend = _next(search, centre, (edge, loss), end, float(step))
        if search.best[0].offset_s == following.offset_s:
            # Another valley: with its bottom known the steps need not creep down its side.
            _descend(search, min(following.offset_s, end), max(following.offset_s, end))
        gone = following.offset_s - centre.offset_s
        curve = (search.slope(following) - search.slope(centre)) / gone if gone else 0.0
        reach = 3.0 * abs(gone)
        centre = following


def _extent(
    search: _Search, centre: Solved, end: float, reach: float, bend: float | None
) -> tuple[float, float, float]:
    """Return how far towards the end the bound from a solved deadline holds, Q̂ there, its bend.

    Along the way the bound is about J + J'·δ − ½·bend·δ²; bend is fitted where it was evaluated.
    """
    towards = 1.0 if end >= centre.offset_s else -1.0
    value, slope = search.value(centre), towards * search.slope(centre)
    longest = abs(end - centre.offset_s)
    spare = value - search.target
    length = min(longest, reach)
    if bend is not None and bend > 0:
        root = np.sqrt(max(slope * slope + 2.0 * bend * spare, 0.0))
        length = min(longest, _CAUTION * (slope + root) / bend)
    warm = None
    while length > search.least_step * centre.deadline_s:
        edge = end if length >= longest else centre.offset_s + towards * length
        loss, warm = bound_at(search.reduced, centre, edge, warm)
        there = search.bound(edge, loss)
        fitted = 2.0 * (value + slope * length - there) / (length * length)
        if there >= search.target:
            search.prove(there)
            return edge, loss, max(fitted, 0.0)
        root = np.sqrt(max(slope * slope + 2.0 * fitted * spare, 0.0))
        modelled = (slope + root) / fitted if fitted > 0 else np.inf
        length = min(_CAUTION * modelled, 0.7 * length)
    return centre.offset_s, centre.bound, 0.0


def _next(
    search: _Search, centre: Solved, edge: tuple[float, float], end: float, step: float
) -> tuple[Solved, float]:
    """Solve a deadline beyond the edge whose bound holds back to the edge; and its bend.

    A step of the tolerance's size always holds, because Q* falls: between T1 and T2 J is at least
    T1·N(Q*(T2)), and J(T2) is no better than the best plan known.
    """
    start, start_loss = edge
    towards = 1.0 if end >= start else -1.0
    least = search.least_step * (search.reduced.base + start)
    while True:
        step = max(step, least)
        far = abs(end - start)
        # J is steepest at the earliest deadline: from there no bound holds back to here.
        if towards < 0 and step > least:
            step = max(min(step, 0.7 * far), least)
        offset = end if step >= far else start + towards * step
        made = search.solve(offset, centre)
        search.prove(search.bound(offset, made.bound))
        if step <= least:
            low, loss = (start, made.bound) if towards > 0 else (offset, start_loss)
            search.prove(search.bound(low, loss))
            return made, 0.0
        loss, _ = bound_at(search.reduced, made, start)
        there = search.bound(start, loss)
        if there >= search.target:
            length = abs(offset - start)
            value, slope = search.value(made), towards * search.slope(made)
            search.prove(there)
            return made, max(2.0 * (value - slope * length - there) / (length * length), 0.0)
        step = 0.5 * step


def _rest_is_worse(search: _Search, centre: Solved, edge: float, end: float) -> bool:
    """Whether J beyond the edge is worse for the simplest reason: Q* falls as T grows."""
    if end > edge:
        # However long the deadline, Q is at least what it is with everything kept.
        bound = search.bound(edge, search.problem.pruning_loss(search.problem.min_pruning))
    else:
        bound = search.bound(end, centre.bound)
    if bound >= search.target:
        search.prove(bound)
        return True
    return False


def _tightest(search: _Search, earliest: float, latest: float, limit: float) -> Solved:
    """Return the smallest deadline with Q*(T) <= the limit; Q* falls, so a bracket proves it."""
    base = search.reduced.base
    left = search.solve(earliest, None)
    search.lower = base + earliest
    if left.loss <= limit:
        return left
    right = search.solve(latest, left)
    for turn in range(_MAX_TIGHTENING):
        low, high = left.offset_s, right.offset_s
        if base + high <= (base + low) * (1.0 + 0.5 * search.tolerance):
            break
        # A hair to either side of Newton's step in turn, so that both ends come in.
        hair = 0.2 * search.tolerance * (base + high) * (1.0 if turn % 2 else -1.0)
        near = left if turn % 3 else right
        guess = near.offset_s + (limit - near.loss) / near.slope + hair if near.slope else low
        if not low < guess < high or turn % 4 == 3:
            guess = 0.5 * (low + high)
        made = search.solve(float(guess), left if guess - low < high - guess else right)
        if made.loss <= limit:
            right = made
        elif made.bound > limit:
            left = made
            search.lower = base + made.offset_s
        else:
            break
    return right


def _plan(problem: PlanningProblem, small: Reduced, at: Solved) -> Plan:
    """Return the plan of a solved deadline, with what rounding left of the band shared out."""
    band: Array = np.zeros(problem.clients)
    band[small.clients] = at.band_hz
    used = float(band.sum())
    if used > 0:
        band *= problem.bandwidth_hz / used
    pruning = small.most_pruned.copy()
    pruning[small.clients] -= np.where(small.rigid, 0.0, at.kept)
    who = small.idle[small.idle_owner]
    kept = (at.offset_s + small.idle_slack)[small.idle_owner] / small.idle_compute[small.idle_owner]
    np.minimum.at(pruning, who, small.most_pruned[who] - np.minimum(kept, small.idle_end))
    pruning = np.clip(pruning, problem.min_pruning, problem.max_pruning)
    plan = priced(problem, "exact", pruning, band)
    # Near pruning 1 the digits of what is kept are lost; a rounding upwards keeps the deadline.
    late = (plan.total_s > at.deadline_s) & (pruning > problem.min_pruning)
    pruning = np.where(late, np.minimum(np.nextafter(pruning, 1.0), problem.max_pruning), pruning)
    return priced(problem, "exact", pruning, band)
