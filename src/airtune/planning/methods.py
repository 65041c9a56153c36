"""The table of planning methods, and the one function that runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Literal

import numpy as np

from airtune.errors import InputError
from airtune.planning import baselines
from airtune.planning.answers import checked
from airtune.planning.bcd import bcd
from airtune.planning.bcd_knobs import bcd_knobs
from airtune.planning.gaps import relative_excess
from airtune.planning.mode_plans import keeps_budgets
from airtune.planning.optimum.blocks import check_blocks, exact_in_blocks, in_blocks
from airtune.planning.optimum.fixed_bands import exact_at_equal_bands
from airtune.planning.optimum.mode_blocks import modes_in_blocks
from airtune.planning.optimum.modes_search import better_over_modes, exact_over_modes
from airtune.planning.optimum.search import exact
from airtune.planning.problem import Plan, PlanningProblem, priced
from airtune.plugins import Registry, called, is_built_in
from airtune.randomness import generator
from airtune.units import LEAST_TOLERANCE

Solve = Callable[[PlanningProblem, float, np.random.Generator], Any]
"""(problem, tolerance, rng) → (pruning, bandwidth_hz), (K,) each, or a `Plan`."""


@dataclass(frozen=True)
class Method:
    """A planning method: what it does in one line, where it comes from, and its function.

    Attributes:
        description: in one line.
        source: where it was published.
        solve: (problem, tolerance, rng) → (pruning, bandwidth_hz) or a Plan.
        prunes: also clients whose memory holds the whole model.
        bands: how it shares the band among clients of given pruning rates. "equal": alike. "best":
            by the optimum. "own": in a way of its own, which is then asked for.
    """

    description: str
    source: str
    solve: Solve
    prunes: bool = True
    bands: Literal["equal", "best", "own"] = "own"

    chooses: bool = False
    """Modes and absence too, and keeps energy budgets."""
    optimal: bool = False
    """Its plan is the optimum over what it turns, so that a participation rule can add to that."""

    @property
    def knobs(self) -> frozenset[str]:
        """What it turns: bandwidth, pruning, both or neither."""
        return frozenset(["bandwidth"] * (self.bands != "equal") + ["pruning"] * self.prunes)


_BUILT_IN: dict[str, Method] = {
    "exact": Method(
        "the global optimum with a certificate",
        "price on bandwidth inside, interval bounds over the deadline outside",
        lambda problem, tolerance, rng: _exact(problem, tolerance),
        bands="best",
        chooses=True,
        optimal=True,
    ),
    "bcd": Method(
        "block coordinate descent: pruning block, bandwidth block, repeat",
        "our reading of the JCPBA abstract",
        lambda problem, tolerance, rng: bcd(problem, tolerance=tolerance),
        bands="best",
    ),
    "bcd-bandwidth-first": Method(
        "block coordinate descent in the other block order, for study",
        "our reading of the JCPBA abstract",
        lambda problem, tolerance, rng: bcd(problem, tolerance=tolerance, bandwidth_first=True),
        bands="best",
    ),
    "bcd-knobs": Method(
        "block coordinate descent over modes, absence and pruning, then bands",
        "the natural descent over every knob",
        lambda problem, tolerance, rng: bcd_knobs(problem, tolerance=tolerance),
        bands="best",
        chooses=True,
    ),
    "none": Method(
        "no pruning, equal bandwidth",
        "baseline",
        lambda problem, tolerance, rng: baselines.none(problem),
        prunes=False,
        bands="equal",
        optimal=True,
    ),
    "bandwidth-only": Method(
        "no pruning, bandwidth planned",
        "baseline",
        lambda problem, tolerance, rng: baselines.bandwidth_only(problem),
        prunes=False,
        bands="best",
        optimal=True,
    ),
    "pruning-only": Method(
        "equal bandwidth, pruning planned",
        "baseline",
        lambda problem, tolerance, rng: baselines.pruning_only(problem),
        bands="equal",
        optimal=True,
    ),
    "uniform": Method(
        "one pruning rate for all, it and the bandwidth planned",
        "baseline",
        lambda problem, tolerance, rng: baselines.uniform(problem),
        bands="best",
    ),
    "random": Method(
        "random pruning within the bounds, random bandwidth shares",
        "baseline",
        lambda problem, tolerance, rng: baselines.random(problem, rng),
        bands="own",
    ),
}

METHODS: Registry[Method] = Registry("planning method", "planning.method", _BUILT_IN)
"""Planning methods by name, in the order in which they are listed."""


def planning_method(
    name: str,
    *,
    description: str,
    source: str = "a plugin",
    prunes: bool = True,
    bands: Literal["equal", "best", "own"] = "own",
) -> Callable[[Solve], Solve]:
    """Register a function as a planning method.

    The function takes the planning problem, the scenario's tolerance and a generator, and returns
    (pruning, bandwidth_hz), (K,) each, or a `Plan`, of which these two are taken. What it returns
    is checked against the problem, priced as every plan is, and compared with the proven optimum.

    Args:
        name: as planning.method names it.
        description: one line for `airtune methods`.
        source: where it was published.
        prunes: whether it may prune clients whose memory holds the whole model.
        bands: "own", or "equal" or "best" where its bands for given pruning rates are equal or the
            optimum's, which is then computed faster.

    Raises:
        InputError: the name exists already, or `bands` is none of these.
    """
    if bands not in ("equal", "best", "own"):
        raise InputError(f"planning method '{name}': bands = {bands!r}; allowed: equal, best, own")

    def register(function: Solve) -> Solve:
        METHODS.add(name, Method(description, source, function, prunes=prunes, bands=bands))
        return function

    return register


def method_of(method: str | Method | Solve) -> tuple[str, Method]:
    """Return a method and its name: by name, as it is, or a function that plans.

    Raises:
        InputError: an unknown name, or what is no method.
    """
    if isinstance(method, str):
        if not METHODS.has(method):
            raise InputError(f"method {method!r} is unknown; allowed: {', '.join(METHODS)}")
        return method, METHODS[method]
    if isinstance(method, Method):
        return _own_name(method.solve), method
    if callable(method):
        return _own_name(method), Method("a function", "the caller", method)
    raise InputError(
        f"method {method!r} is not allowed; allowed: {', '.join(METHODS)}, a Method, or a function "
        "of (problem, tolerance, rng)"
    )


def _own_name(solve: Solve) -> str:
    for name, entry in METHODS.items():
        if entry.solve is solve:
            return name
    return str(getattr(solve, "__name__", type(solve).__name__))


def plan(
    problem: PlanningProblem,
    method: str | Method | Solve = "exact",
    *,
    tolerance: float = 1e-6,
    rng: np.random.Generator | None = None,
    bound: bool = True,
    block_hz: float | None = None,
    blocks: int | None = None,
) -> Plan:
    """Plan one round: each client's pruning rate and uplink band.

    minimise N(Q(ρ))·T(ρ, b) over ρ and b, subject to Σ b <= B and the bounds on ρ (with
    ``max_pruning_loss``: minimise T subject to Q <= Q_max). With ``block_hz`` every b is a whole
    number of blocks.

    Args:
        problem: the round's planning problem.
        method: a key of ``METHODS``, a ``Method``, or a function (problem, tolerance, rng) →
            (pruning, bandwidth_hz) or a Plan. What a function answers is checked, as a plugin's.
        tolerance: the relative gap at which ``exact`` stops, and the relative improvement at which
            ``bcd`` stops.
        rng: for a method that draws; left out, the stream of seed 0.
        bound: False skips the optimum's lower bound for the other methods.
        block_hz: width of a resource block, Hz. ``exact`` finds the optimum over whole blocks; the
            other methods keep their pruning rates and round their bands.
        blocks: how many blocks there are; left out, as many as fit the band.

    Raises:
        InputError: an unknown method, one whose answer cannot be a plan, a tolerance not between 0
            and 1, or blocks that do not fit.
    """
    name, chosen = method_of(method)
    if not LEAST_TOLERANCE <= tolerance < 1:
        raise InputError(
            f"tolerance {tolerance!r} is not allowed; allowed: from {LEAST_TOLERANCE:g} to below 1 "
            "(64-bit sums do not tell smaller gaps apart)"
        )
    if rng is None:
        rng = generator(0, "random plan")
    start = perf_counter()
    if block_hz is None:
        if blocks is not None:
            raise InputError(f"blocks: {blocks!r} needs block_hz, the width of one block")
        made = _made(chosen, problem, name, tolerance, rng)
        made = replace(made, solve_s=perf_counter() - start)
        if bound and made.lower_bound_s is None:
            made = _bounded(made, _exact(problem, tolerance))
        return made
    count = check_blocks(problem, block_hz, blocks)
    if name == "exact" and not problem.equal_bands:
        made = _exact_in_blocks(problem, block_hz, count, tolerance)
        return replace(made, solve_s=perf_counter() - start)
    band = replace(problem, bandwidth_hz=count * block_hz)
    made = _made(chosen, band, name, tolerance, rng)
    made = in_blocks(problem, made, block_hz, count, keeps_shares=chosen.bands != "best")
    made = replace(made, solve_s=perf_counter() - start)
    if bound:
        best = replace(problem, equal_bands=False)
        made = _bounded(made, _exact_in_blocks(best, block_hz, count, tolerance))
    return made


def _made(
    chosen: Method,
    problem: PlanningProblem,
    name: str,
    tolerance: float,
    rng: np.random.Generator,
) -> Plan:
    """Ask a method; what a plugin answers is checked and priced here.

    A built-in method that chooses no modes takes the ones of least cost for all.
    """
    built_in = is_built_in(chosen.solve)
    if built_in and problem.chooses and not chosen.chooses:
        return _without_choice(chosen, problem, name, tolerance, rng)
    answer = called(f"planning method '{name}'", chosen.solve, problem, tolerance, rng)
    return replace(answer, method=name) if built_in else checked(problem, name, answer)


def _without_choice(
    chosen: Method,
    problem: PlanningProblem,
    method: str,
    tolerance: float,
    rng: np.random.Generator,
) -> Plan:
    if not problem.has_mode.all():
        name = problem.names[int(np.argmin(problem.has_mode))]
        raise InputError(
            f"client {name!r}: modes: none fits, and method {method!r} leaves no "
            "client out; allowed: " + _choosing()
        )
    made = chosen.solve(problem.without_choice(), tolerance, rng)
    made = priced(problem, method, made.pruning, made.bandwidth_hz)
    if not keeps_budgets(problem, made):
        assert made.energy_j is not None
        over = int(np.argmax(made.energy_j > problem.energy_budgets))
        raise InputError(
            f"client {problem.names[over]!r}: energy_budget_j "
            f"{float(problem.energy_budgets[over])!r} is not kept by method {method!r}, which does "
            f"not plan energy; allowed: {_choosing()}"
        )
    return made


def check_chooses(name: str) -> None:
    """Refuse a built-in method that plans pruning and bands alone; raises `InputError`."""
    method = METHODS.find(name)
    if is_built_in(method.solve) and not method.chooses:
        raise InputError(
            f"planning.knobs with planning.method = '{name}', which plans no steps, ranks, bits or "
            f"absence: leave planning.knobs out; allowed with it: {_choosing()}"
        )


def _choosing() -> str:
    return ", ".join(name for name, entry in METHODS.items() if entry.chooses)


def _exact_in_blocks(
    problem: PlanningProblem, block_hz: float, blocks: int, tolerance: float
) -> Plan:
    if not problem.chooses and not problem.can_stand_still:
        return exact_in_blocks(problem, block_hz, blocks, tolerance=tolerance)
    free = _exact(replace(problem, bandwidth_hz=blocks * block_hz), tolerance)
    return modes_in_blocks(problem, block_hz, blocks, free, tolerance=tolerance)


def _exact(problem: PlanningProblem, tolerance: float) -> Plan:
    """Plan a problem with a choice of modes by the search over modes, any other one as ever."""
    if problem.equal_bands:
        return exact_at_equal_bands(problem, tolerance=tolerance)
    if problem.chooses or problem.can_stand_still:
        return exact_over_modes(problem, tolerance=tolerance)
    return exact(problem, tolerance=tolerance)


def better_than(
    problem: PlanningProblem, known: Plan | None, *, tolerance: float = 1e-6
) -> tuple[Plan | None, float]:
    """Return the optimum where it is below a known plan's objective, else None; and a lower bound.

    The bound is on the smaller one of the two objectives. ``known`` may be of another problem:
    it says what is not worth solving.
    """
    if problem.chooses and not problem.equal_bands:
        return better_over_modes(problem, known, tolerance=tolerance)
    made = _exact(problem, tolerance)
    assert made.lower_bound_s is not None
    worse = known is not None and known.objective_s <= made.objective_s
    return (None if worse else made), made.lower_bound_s


def _bounded(made: Plan, best: Plan) -> Plan:
    """Return the plan with the optimum's lower bound."""
    lower = best.lower_bound_s
    assert lower is not None
    gap = relative_excess(made.objective_s, lower)
    return replace(made, lower_bound_s=lower, gap=gap, deadlines=best.deadlines)
