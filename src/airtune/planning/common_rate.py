"""One pruning rate for all clients of a round: the optimum over the rate as well, with a bound.

Where clients leave out different units, those that only some have are learnt from these clients'
data alone, or not at all (docs/pruning.md). With one rate r and one order of units all train the
same submodel. Each client then loses ℓ = 1 − (1 − cost)·(1 − e(r)) in learning.

**Bound.** For all r in [a, b], the problem in which everybody is pruned by b and charged e(a) has
an optimum that is no larger: more pruning takes no longer, needs no more memory and draws no more,
and e does not fall. Intervals whose bound is no better than the best plan so far are refuted, the
others divided.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise

import numpy as np

from airtune.errors import InputError
from airtune.planning.costs import absent_beside
from airtune.planning.methods import better_than
from airtune.planning.mode_plans import chosen_of
from airtune.planning.problem import Plan, PlanningProblem, priced

# About 4.7/√(5·tolerance) intervals are solved where the objective is flat around its optimum: 70
# at this one, 2,000 at 1e-6.
LEAST_TOLERANCE = 1e-3
_FIRST_INTERVALS = 8
_MOST_SOLVED = 400
_MOST_PARTS = 16
# Of the tolerance, for the plan at each rate.
_SHARE = 0.1
_FREE = np.array([[0.0, 0.0], [1.0, 0.0]])


@dataclass(frozen=True)
class Solved:
    """A plan, and the problem that it was made for: of one rate, say."""

    plan: Plan
    problem: PlanningProblem


def at_common_rate(
    problem: PlanningProblem,
    rate: float,
    *,
    charged: float | None = None,
    out_cost: float | None = None,
) -> PlanningProblem:
    """Return the problem in which everyone who takes part is pruned by one rate.

    Modes that memory does not hold at this rate cannot be used.

    Args:
        problem: with every client's modes.
        rate: in [0, 1].
        charged: the rate whose cost in learning counts; default: the same one.
        out_cost: what a pilot measured of absence, which is then priced beside this rate; default:
            absence costs what the problem says.

    Raises:
        InputError: a client that must take part has no mode left.
    """
    assert problem.modes is not None
    counted = rate if charged is None else charged
    costs = problem.cost(np.full(problem.clients, counted))
    modes = tuple(
        tuple(
            replace(
                mode,
                cost=1.0 - (1.0 - mode.cost) * (1.0 - float(cost)),
                # A rate that pruning cannot reach stays so.
                min_pruning=rate if _least(mode.min_pruning) <= rate else mode.min_pruning,
                max_pruning=rate,
            )
            for mode in own or ()
        )
        for own, cost in zip(problem.modes, costs, strict=True)
    )
    absent = problem.absent_cost
    if absent is not None and out_cost is not None:
        beside = absent_beside(problem, out_cost, rate=counted)
        absent = np.where(np.isfinite(absent), beside, np.inf)
    free = (_FREE,) * problem.clients
    return replace(problem, modes=modes, pruning_cost=free, absent_cost=absent)


def _least(rate: float | None) -> float:
    return 0.0 if rate is None else rate


def better_at_common_rate(
    problem: PlanningProblem,
    known: Plan | None,
    *,
    tolerance: float = LEAST_TOLERANCE,
    out_cost: float | None = None,
) -> tuple[Solved | None, float]:
    """Return the best plan with one rate where it is below a known plan's objective; and a bound.

    The bound is on the smaller one of ``known.objective_s`` and this problem's optimum.

    Args:
        problem: with every client's modes.
        known: a plan that is to be improved on, of this problem or of another one.
        tolerance: of the objective, relative; at least ``LEAST_TOLERANCE``.
        out_cost: as for `at_common_rate`.

    Raises:
        InputError: at no rate can all who must take part do so.
    """
    tolerance = max(tolerance, LEAST_TOLERANCE)
    search = _Search(problem, known, tolerance, out_cost)
    most = problem.table.max_pruning
    assert np.ptp(most) == 0, "the scenario's max_pruning is that of all modes"
    edges = np.linspace(0.0, float(most[0]), _FIRST_INTERVALS + 1)
    for rate in edges[::-1]:
        search.solve(float(rate))
    if search.incumbent is None:
        assert search.refusal is not None
        raise search.refusal
    for low, high in pairwise(edges.tolist()):
        search.put(low, high, 0.0)
    search.close()
    return search.best, search.lower()


class _Search:
    """What has been found so far, and the intervals of rates that are not refuted."""

    def __init__(
        self,
        problem: PlanningProblem,
        known: Plan | None,
        tolerance: float,
        out_cost: float | None,
    ) -> None:
        self.problem, self.known, self.tolerance = problem, known, tolerance
        self.at = partial(at_common_rate, problem, out_cost=out_cost)
        self.best: Solved | None = None
        self.refusal: InputError | None = None
        self.refuted_s = np.inf
        self.heap: list[tuple[float, int, float, float]] = []
        self.order = count()
        self.solved = 0

    @property
    def incumbent(self) -> Plan | None:
        return self.known if self.best is None else self.best.plan

    @property
    def target_s(self) -> float:
        """What no interval is to beat."""
        incumbent = self.incumbent
        assert incumbent is not None
        return incumbent.objective_s * (1.0 - (1.0 - _SHARE) * self.tolerance)

    def lower(self) -> float:
        return min(self.refuted_s, min((entry[0] for entry in self.heap), default=np.inf))

    def put(self, low: float, high: float, bound_s: float) -> None:
        heapq.heappush(self.heap, (bound_s, next(self.order), low, high))

    def solve(self, rate: float) -> None:
        """Take over the best plan at a rate, if it is better."""
        try:
            problem = self.at(rate)
            made, _ = better_than(problem, self.incumbent, tolerance=_SHARE * self.tolerance)
        except InputError as error:  # memory, a budget or Q_max; another rate may do
            self.refusal = self.refusal or error
            return
        if made is not None:
            self.best = Solved(made, problem)

    def relaxed(self, low: float, high: float) -> tuple[float, Solved | None]:
        """Return what no plan with a rate in [low, high] is below, as far as it matters.

        Where this is below the target, also the plan that is the reason, charged for `high`.
        """
        try:
            problem = self.at(high, charged=low)
            made, bound_s = better_than(problem, self._aim(), tolerance=_SHARE * self.tolerance)
        except InputError:  # pruned most and charged least, still not possible
            return np.inf, None
        if made is None:
            return bound_s, None
        try:
            charged = self.at(high)
        except InputError:  # Q_max does not allow it, or no progress is left
            return bound_s, None
        chosen = chosen_of(charged, made)
        priced_at = priced(charged, "exact", made.pruning, made.bandwidth_hz, chosen=chosen)
        return bound_s, Solved(priced_at, charged)

    def _aim(self) -> Plan:
        incumbent = self.incumbent
        assert incumbent is not None
        return replace(incumbent, objective_s=self.target_s)

    def _take(self, found: Solved) -> None:
        incumbent, limit = self.incumbent, self.problem.max_pruning_loss
        assert incumbent is not None
        keeps = limit is None or found.plan.pruning_loss <= limit
        if keeps and found.plan.objective_s < incumbent.objective_s:
            self.best = found

    def close(self) -> None:
        """Refute or divide intervals, the least bound first."""
        while self.heap and self.solved < _MOST_SOLVED:
            before_s, _, low, high = heapq.heappop(self.heap)
            if before_s >= self.target_s:
                self.refuted_s = min(self.refuted_s, before_s)
                continue
            self.solved += 1
            bound_s, found = self.relaxed(low, high)
            bound_s = max(before_s, bound_s)
            if found is not None:
                self._take(found)
            if bound_s >= self.target_s * (1.0 - _SHARE * self.tolerance):
                self.refuted_s = min(self.refuted_s, bound_s)
                continue
            edges = np.linspace(low, high, self._parts(bound_s, found) + 1)
            for left, right in pairwise(edges.tolist()):
                self.put(left, right, bound_s)

    def _parts(self, bound_s: float, found: Solved | None) -> int:
        """Return into how many parts to divide an interval, so that most of them are refuted.

        The bound is below the objective by a factor that shrinks with the interval's width; in a
        part it may be no more than the objective is above the target.
        """
        if found is None or not np.isfinite(found.plan.objective_s):
            return 2
        spare = np.log(found.plan.objective_s / self.target_s)
        wanted = np.log(found.plan.objective_s / bound_s) / max(float(spare), 1e-12)
        return int(np.clip(np.ceil(wanted), 2, _MOST_PARTS))
