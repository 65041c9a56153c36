"""One pruning rate for all clients of a round: the optimum over the rate as well, with a bound.

Where clients leave out different units, those that only some have are learnt from these clients'
data alone, or not at all (docs/pruning.md). With one rate r and one order of units all train the
same submodel. Each client then loses ℓ = 1 − (1 − cost)·(1 − e(r)) in learning.

**Bound.** Take the optimum J(a) at a rate a, with the modes that memory allows up to b, and budgets
wide enough for what is drawn at a. For each rate r in [a, b]

    J(r) ≥ J(a)·φ(r)·μ(r).

φ ≤ 1 is the least ratio, over all modes, of their times and bits at r to those at a: with the same
decisions no client is faster by more. μ ≥ 1 is the least ratio, over all modes and absence, of what
is left of a round at a, 1 − κℓ, to what is left at r, if anything is; a weighted sum of what is
left keeps the least ratio. Where the round's time alone is planned (Q_max), and where more than
everything is lost at a, μ is 1. Intervals that this refutes are no better than the best plan so
far; of the others, what is refuted is cut off, and the rest looked at again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.costs import absent_beside
from airtune.planning.methods import better_than
from airtune.planning.mode_plans import chosen_of, keeps_budgets
from airtune.planning.problem import Plan, PlanningProblem, priced

# Mostly some ten rates are solved at this gap; where absence, memory or budgets make the bound
# loose, hundreds. After `_MOST_SOLVED` the gap that was reached is reported.
LEAST_TOLERANCE = 1e-4
_FIRST_RATES = 4
_MOST_FIRST_KINKS = 6
_MOST_SOLVED = 400
# As long as no rate is known at which all who must take part can.
_MOST_WITHOUT_PLAN = 60
# Of the tolerance, for the plan at each rate.
_SHARE = 0.1
# An interval of which less than this share is cut off is halved as well.
_LEAST_CUT = 0.25
_HALVINGS = 30
_FREE = np.array([[0.0, 0.0], [1.0, 0.0]])

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Solved:
    """A plan, and the problem that it was made for: of one rate, say."""

    plan: Plan
    problem: PlanningProblem


def at_common_rate(
    problem: PlanningProblem,
    rate: float,
    *,
    held: float | None = None,
    energy_budget_j: Array | None = None,
    out_cost: float | None = None,
) -> PlanningProblem:
    """Return the problem in which everyone who takes part is pruned by one rate.

    Modes that memory does not hold at this rate cannot be used.

    Args:
        problem: with every client's modes.
        rate: in [0, 1].
        held: the rate that decides which modes memory holds; default: the same one.
        energy_budget_j: (K,) other budgets than the problem's, if it has any.
        out_cost: what a pilot measured of absence, which is then priced beside this rate; default:
            absence costs what the problem says.

    Raises:
        InputError: a client that must take part has no mode left.
    """
    assert problem.modes is not None
    reach = rate if held is None else held
    costs = problem.cost(np.full(problem.clients, rate))
    modes = tuple(
        tuple(
            replace(
                mode,
                # A pilot's last slope may pass 1, and a sum of slopes by rounding.
                cost=min(1.0, 1.0 - (1.0 - mode.cost) * (1.0 - float(cost))),
                # A mode that memory does not hold even at `reach` stays out.
                min_pruning=rate if _least(mode.min_pruning) <= reach else mode.min_pruning,
                max_pruning=rate,
            )
            for mode in own or ()
        )
        for own, cost in zip(problem.modes, costs, strict=True)
    )
    absent = problem.absent_cost
    if absent is not None and out_cost is not None:
        beside = absent_beside(problem, out_cost, rate=rate)
        absent = np.where(np.isfinite(absent), beside, np.inf)
    budget = problem.energy_budget_j if energy_budget_j is None else energy_budget_j
    free = (_FREE,) * problem.clients
    return replace(
        problem, modes=modes, pruning_cost=free, absent_cost=absent, energy_budget_j=budget
    )


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
    assert problem.modes is not None
    tops = {mode.max_pruning for own in problem.modes for mode in own or ()}
    assert len(tops) == 1, "all modes must have one max_pruning"
    if not len(problem.table.owner):
        raise InputError("clients: no mode of anyone fits its memory, energy budget and channel")
    rates = _first_rates(problem, float(problem.table.max_pruning[0]))
    for rate in rates[::-1]:
        search.solve(rate)
    for low, high in list(pairwise(rates)) or [(rates[0], rates[0])]:
        search.put(low, high, 0.0)
    search.close()
    if search.incumbent is None:
        raise search.refusal or InputError("clients: no common pruning rate is possible")
    return search.best, min(search.lower(), search.incumbent.objective_s)


def _first_rates(problem: PlanningProblem, most: float) -> list[float]:
    """Return rates from 0 to `most`, evenly spread; and the kinks of curves that have few."""
    rates = np.linspace(0.0, most, _FIRST_RATES)
    kinks = _kinks(problem)
    if len(kinks) <= _MOST_FIRST_KINKS:  # where slopes change the optimum often is
        rates = np.union1d(rates, kinks[kinks < most])
    return [float(rate) for rate in rates]


def _kinks(problem: PlanningProblem) -> Array:
    """Return the rates at which a client's curve changes its slope."""
    curves = [curve for curve in problem.pruning_cost or () if curve is not None]
    return np.unique(np.concatenate([np.empty(0), *(curve[:, 0] for curve in curves)]))


class Ratios:
    """φ(r)·μ(r) of a problem: what no objective at a rate r is below, relative to that at `low`."""

    def __init__(self, problem: PlanningProblem, low: float, out_cost: float | None) -> None:
        self.problem, self.low, self.out_cost = problem, low, out_cost
        table = problem.table
        self.least = int(np.argmin((1.0 - table.cost) * self._kept(low)))
        self.before = self._left(low)
        self.kinks = _kinks(problem)

    def times(self, rate: float) -> float:
        """Return φ(rate): the least ratio of a mode's times and bits, at most 1."""
        table = self.problem.table
        least = 1.0
        for fixed, full in (
            (table.compute_fixed_s, table.compute_full_s),
            (table.payload_fixed_bits, table.payload_full_bits),
        ):
            before, now = fixed + full * (1.0 - self.low), fixed + full * (1.0 - rate)
            has = before > 0
            least = min(least, float((now[has] / before[has]).min(initial=1.0)))
        return least

    def of(self, rate: float) -> float:
        """Return φ(rate)·μ(rate)."""
        return self.times(rate) * self._lost(rate)

    def _lost(self, rate: float) -> float:
        """Return μ(rate), at least 1; 1 where nothing is known of it."""
        before, now = self.before, self._left(rate)
        if self.problem.max_pruning_loss is not None or (before < 0).any():
            return 1.0
        moves = now > 0
        return max(1.0, float((before[moves] / now[moves]).min(initial=np.inf)))

    def _left(self, rate: float) -> Array:
        """Return 1 − κℓ of each mode, and of absence where someone may sit out."""
        table, kappa = self.problem.table, self.problem.kappa
        progress = (1.0 - table.cost) * np.maximum(0.0, self._kept(rate))
        absent = self.problem.absent_costs
        absent = absent[np.isfinite(absent)]
        if self.out_cost is not None and absent.size:
            absent = np.array([1.0 - (1.0 - self.out_cost) * progress[self.least]])
        return np.concatenate([1.0 - kappa * (1.0 - progress), 1.0 - kappa * absent])

    def _kept(self, rate: float) -> Array:
        owner = self.problem.table.owner
        return 1.0 - self.problem.costs_of(owner, np.full(len(owner), rate))

    def refuted_to(self, high: float, least: float) -> float:
        """Return up to which rate φ·μ is known to be at least `least` throughout; at most `high`.

        φ·μ is the least of many quotients of two functions of the rate that are affine between two
        kinks of the curves. Each is monotone there, so the least one is at one of the ends.
        """
        if least > 1.0:
            return self.low
        sure = self.low
        for end in self._ends(high):
            if self.of(end) >= least:
                sure = end
                continue
            for _ in range(_HALVINGS):
                middle = 0.5 * (sure + end)
                if self.of(middle) >= least:
                    sure = middle
                else:
                    end = middle
            break
        return sure

    def _ends(self, high: float) -> list[float]:
        """Return the kinks between `low` and `high`, and `high`."""
        inside = self.kinks[(self.kinks > self.low) & (self.kinks < high)]
        return [*inside.tolist(), high]

    def lowest(self, high: float) -> float:
        """Return the least φ·μ of the rates from `low` to `high`."""
        return min(1.0, *(self.of(end) for end in self._ends(high)))


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
        self.out_cost = out_cost
        self.at = partial(at_common_rate, out_cost=out_cost)
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
        if incumbent is None:
            return np.inf
        return incumbent.objective_s * (1.0 - (1.0 - _SHARE) * self.tolerance)

    @property
    def most_solved(self) -> int:
        return _MOST_WITHOUT_PLAN if self.incumbent is None else _MOST_SOLVED

    def lower(self) -> float:
        return min(self.refuted_s, min((entry[0] for entry in self.heap), default=np.inf))

    def put(self, low: float, high: float, bound_s: float) -> None:
        heapq.heappush(self.heap, (bound_s, next(self.order), low, high))

    def solve(self, rate: float) -> None:
        """Take over the best plan at a rate, if it is better."""
        try:
            problem = self.at(self.problem, rate)
            made, _ = better_than(problem, self.incumbent, tolerance=_SHARE * self.tolerance)
        except InputError as error:  # memory, a budget or Q_max; another rate may do
            self.refusal = self.refusal or error
            return
        if made is not None:
            self.best = Solved(made, problem)

    def relaxed(self, high: float, ratios: Ratios, least: float) -> tuple[float, Plan | None]:
        """Return what no plan at `ratios.low` is below, with all that is allowed up to `high`.

        And the plan, or None where the interval, whose ratios are at least `least`, is refuted.
        """
        budgets = self.problem.energy_budget_j
        if budgets is not None:  # at the low rate devices draw more than at the rates above it
            share = ratios.times(high)
            budgets = budgets / share if share > 1e-9 else np.full_like(budgets, np.inf)
        needed = self.target_s / least if least > 0 else np.inf
        known = self.incumbent
        if known is not None:
            known = replace(known, objective_s=needed)
        try:
            problem = self.at(self.problem, ratios.low, held=high, energy_budget_j=budgets)
            made, bound_s = better_than(problem, known, tolerance=_SHARE * self.tolerance)
        except InputError:  # with all that is allowed up to `high` not possible
            return np.inf, None
        return bound_s, made

    def take(self, made: Plan, rate: float) -> None:
        """Take over a plan's modes and bands at a rate, if they are allowed there and better."""
        try:
            problem = self.at(self.problem, rate)
        except InputError:
            return
        allowed = set(zip(problem.table.owner.tolist(), problem.table.names, strict=True))
        chosen = made.modes or ()
        if any(name is not None and (k, name) not in allowed for k, name in enumerate(chosen)):
            return
        pruning = np.full(problem.clients, rate)
        plan = priced(problem, "exact", pruning, made.bandwidth_hz, chosen=chosen_of(problem, made))
        incumbent, limit = self.incumbent, problem.max_pruning_loss
        keeps = limit is None or plan.pruning_loss <= limit
        better = incumbent is None or plan.objective_s < incumbent.objective_s
        if keeps and better and keeps_budgets(problem, plan):
            self.best = Solved(plan, problem)

    def close(self) -> None:
        """Refute, shorten or halve intervals, the least bound first."""
        while self.heap and self.solved < self.most_solved:
            before_s, _, low, high = heapq.heappop(self.heap)
            if before_s >= self.target_s:
                self.refuted_s = min(self.refuted_s, before_s)
                continue
            self.solved += 1
            ratios = Ratios(self.problem, low, self.out_cost)
            least = ratios.lowest(high)
            bound_s, made = self.relaxed(high, ratios, least)
            if made is None:
                self.refuted_s = min(self.refuted_s, bound_s * least)
                continue
            for rate in (low, high):
                self.take(made, rate)
            sure = ratios.refuted_to(high, self.target_s / bound_s) if bound_s > 0 else low
            if sure > low:
                self.refuted_s = min(self.refuted_s, bound_s * ratios.lowest(sure))
            if sure >= high:  # the plan itself made the target lower
                continue
            rest_s = max(before_s, bound_s * least)
            middle = 0.5 * (sure + high)
            if self.problem.energy_budget_j is not None or self.incumbent is None:
                self.solve(middle)  # the bound's plan may not be allowed at any rate
            if sure - low < _LEAST_CUT * (high - low):
                self.put(sure, middle, rest_s)
                self.put(middle, high, rest_s)
            else:
                self.put(sure, high, rest_s)
