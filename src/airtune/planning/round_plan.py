"""One round planned as the scenario asks: its method, or every knob that it turns.

A knob is one thing that the plan decides for each client by itself: its band, how much of the
model it leaves out, its local steps, LoRA rank and uplink bits, and whether it takes part. The
values of steps, rank and bits multiply to the client's modes; `exact` is then the optimum over
all knobs that are turned, so that every rival is at the best of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.models.devices import DeviceProfile
from airtune.models.workload import ModelShape, full_sizes, training_flops
from airtune.planning.broadcast import (
    Broadcast,
    Link,
    Offer,
    broadcasts,
    heard_modes,
    offer_of,
    waits_s,
)
from airtune.planning.common_rate import Solved, better_at_common_rate
from airtune.planning.costs import KnobCosts, absent_beside, costs_of
from airtune.planning.fairness import fair
from airtune.planning.floor import check_floor, required, weighed
from airtune.planning.gaps import relative_excess
from airtune.planning.inputs import (
    ClientLoad,
    Situation,
    cost_line,
    least_rate,
    plan_of_round,
)
from airtune.planning.knobs import modes_offered, name_of
from airtune.planning.methods import METHODS, better_than, check_chooses
from airtune.planning.modes import ClientMode
from airtune.planning.participation import PARTICIPATION
from airtune.planning.problem import Plan, PlanningProblem
from airtune.scenario import Scenario


@dataclass(frozen=True)
class RoundPlan:
    """A plan and each client's mode in it; None for one that sits out."""

    plan: Plan
    modes: tuple[Mode | None, ...]
    link: Link
    """The round's, with what each client needs of the broadcast in its mode."""
    problem: PlanningProblem
    """What was planned: where knobs are turned, the clients' modes at the broadcast's rate."""


def knobs_of_round(scenario: Scenario, round: int) -> frozenset[str] | None:
    """Return what the round's plan turns, or None where the method alone plans.

    Raises:
        InputError: a participation rule with a method that it cannot be combined with, or knobs
            with one that turns pruning and bands alone.
    """
    rule, method = scenario.participation.rule, scenario.planning.method
    in_turn = rule == "in-turn" and round % scenario.participation.every_rounds == 0
    if scenario.planning.knobs is not None:
        check_chooses(method)
        turned = scenario.planning.turned
        return turned - {"absence"} if in_turn else turned
    if rule == "all":
        return None
    if not METHODS[method].optimal:
        allowed = ", ".join(name for name, entry in METHODS.items() if entry.optimal)
        raise InputError(
            f"participation.rule = '{rule}' with planning.method = '{method}': allowed are "
            f"{allowed}"
        )
    if in_turn:
        return None
    entry = PARTICIPATION[rule]
    own = METHODS[method].knobs - ({"pruning"} if entry.for_pruning else set())
    return own | entry.knobs


def may_prune(scenario: Scenario) -> bool:
    """Return whether a plan of the run may cut a client whose memory holds the whole model.

    Raises:
        InputError: as `knobs_of_round`.
    """
    if scenario.pruning.max_pruning == 0:
        return False
    turned = (knobs_of_round(scenario, n) for n in (1, scenario.participation.every_rounds))
    alone = METHODS[scenario.planning.method].prunes
    return any(alone if knobs is None else "pruning" in knobs for knobs in turned)


@dataclass(frozen=True)
class Prices:
    """What a mode, an absence and pruning cost in learning."""

    costs: KnobCosts | None
    """None: in proportion to the work left out."""
    absent: float

    def of(self, mode: Mode, whole: Mode, work: float) -> float:
        """Return what a mode costs; `work` is its share of the whole mode's computing."""
        return 1.0 - work if self.costs is None else self.costs.of_mode(mode, whole)


def prices_of(scenario: Scenario, costs: KnobCosts | None = None) -> Prices:
    """Return the scenario's prices: a pilot's where knobs are named, else in proportion to work.

    Args:
        scenario: names the knobs and the costs file.
        costs: of that file, where it has been read.
    """
    costs = costs_of(scenario) if costs is None else costs
    if costs is None:
        return Prices(None, scenario.participation.left_out_cost)
    return Prices(costs, costs.absent.cost)


def plan_round(
    scenario: Scenario, situation: Situation, costs: KnobCosts | None = None
) -> RoundPlan:
    """Plan one round as the scenario asks: by its method alone, or over every knob it turns.

    Args:
        scenario: how to plan.
        situation: the round.
        costs: of the scenario's knobs, where they have been read (`costs_of`).

    Raises:
        InputError: a participation rule and a method that cannot be combined, or costs that cannot
            be read.
    """
    problem, link, round = situation.problem, situation.link, situation.round
    loads, modes, shape = situation.loads, situation.modes, situation.shape
    turned = knobs_of_round(scenario, round)
    if turned is None:
        plan = plan_of_round(scenario, problem, round)
        return RoundPlan(plan, tuple(modes), link, problem)
    prices = prices_of(scenario, costs)
    offers = [
        offer_of(scenario, shape, modes_offered(scenario, mode, turned), link, k)
        for k, mode in enumerate(modes)
    ]
    costed = [
        _costed(scenario, shape, profile, load, own.modes, whole, prices, turned)
        for profile, load, own, whole in zip(situation.profiles, loads, offers, modes, strict=True)
    ]
    asked = replace(
        problem,
        modes=tuple(costed),
        absent_cost=np.full(len(modes), prices.absent) if "absence" in turned else None,
        equal_bands="bandwidth" not in turned,
        pruning_cost=_curves(scenario, prices, problem),
        downlink_s=np.zeros(len(modes)),
    )
    if "absence" in turned and prices.costs is not None:
        asked = replace(asked, absent_cost=np.full(len(modes), absent_beside(asked, prices.absent)))
    if scenario.participation.floor > 0:
        check_floor(asked, scenario.participation.floor)
        asked = required(weighed(asked, situation.queues), situation.queues)
    if scenario.participation.fairness > 0:
        asked = fair(asked, situation.contributed, scenario.participation.fairness)
    out_cost = None if prices.costs is None else prices.absent
    solver = "exact" if scenario.planning.knobs is None else scenario.planning.method
    began = perf_counter()
    best: RoundPlan | None = None
    lower, refusal = np.inf, None
    for sent in broadcasts(link, asked.absent_costs, offers):
        try:
            heard = heard_modes(asked, offers, link, sent)
            known = None if best is None else best.plan
            made, bound = _at_broadcast(scenario, heard, round, solver, known, out_cost)
        except InputError as error:  # too few can hear this broadcast; another one may do
            refusal = error
            continue
        lower = min(lower, bound)
        if made is None:
            continue
        found = _without_wait(made.plan, made.problem, offers, sent, link)
        if best is None or found.plan.objective_s < best.plan.objective_s:
            best = found
    if best is None:
        assert refusal is not None
        raise refusal
    objective = best.plan.objective_s
    lower = min(lower, objective)
    gap = relative_excess(objective, lower)
    proved = replace(best.plan, lower_bound_s=lower, gap=gap, solve_s=perf_counter() - began)
    return replace(best, plan=proved)


def _at_broadcast(
    scenario: Scenario,
    problem: PlanningProblem,
    round: int,
    solver: str,
    known: Plan | None,
    out_cost: float | None,
) -> tuple[Solved | None, float]:
    """Return a plan at one broadcast, None if it is no better, and a lower bound.

    `exact` leaves off where it has proved that no plan at this one beats the known one. `out_cost`
    is what a pilot measured of absence, if one did.
    """
    tolerance = scenario.planning.tolerance
    in_blocks = scenario.cell.subcarrier_spacing_hz is not None
    if scenario.pruning.rates == "common":
        found, bound = better_at_common_rate(problem, known, tolerance=tolerance, out_cost=out_cost)
        if found is None or not in_blocks:
            return found, bound
        return replace(found, plan=plan_of_round(scenario, found.problem, round)), bound
    if solver == "exact" and not in_blocks:
        better, bound = better_than(problem, known, tolerance=tolerance)
        return None if better is None else Solved(better, problem), bound
    made = plan_of_round(scenario, problem, round, method=solver)
    assert made.lower_bound_s is not None
    return Solved(made, problem), made.lower_bound_s


def _costed(
    scenario: Scenario,
    shape: ModelShape,
    profile: DeviceProfile,
    load: ClientLoad,
    offered: Sequence[Mode],
    whole: Mode,
    prices: Prices,
    turned: frozenset[str],
) -> tuple[ClientMode, ...]:
    """Count what each mode takes of a client's device and link."""
    most = scenario.pruning.max_pruning
    done = _work_shares(shape, load, whole)
    costed = []
    for mode in offered:
        count = cost_line(scenario, shape, load, mode)
        least = least_rate(scenario, shape, count, profile)
        costed.append(
            ClientMode(
                name=name_of(mode),
                cost=prices.of(mode, whole, done[mode.local_steps - 1]),
                compute_fixed_s=count.flops_fixed / profile.effective_flops,
                compute_full_s=count.flops_full / profile.effective_flops,
                payload_fixed_bits=count.payload_fixed_bits,
                payload_full_bits=count.payload_full_bits,
                min_pruning=least,
                max_pruning=most if "pruning" in turned or least > most else least,
            )
        )
    return tuple(costed)


def _work_shares(shape: ModelShape, load: ClientLoad, whole: Mode) -> NDArray[np.float64]:
    """Return the share of the round's computing that the first 1, 2, … steps are."""
    flops = [training_flops(shape, full_sizes(shape), step, whole) for step in load.steps]
    return np.minimum(np.cumsum(flops) / sum(flops), 1.0)


def _curves(
    scenario: Scenario, prices: Prices, problem: PlanningProblem
) -> tuple[NDArray[np.float64] | None, ...] | None:
    """Return the clients' own curves where they measured them, else the pilot's."""
    if prices.costs is None or scenario.pruning.cost == "measured":
        return problem.pruning_cost
    curve = np.array(prices.costs.pruning_curve(scenario.pruning.max_pruning))
    return (curve,) * problem.clients


def _without_wait(
    plan: Plan, asked: PlanningProblem, offers: Sequence[Offer], sent: Broadcast, link: Link
) -> RoundPlan:
    """Take the wait for the broadcast out of the computing, where planning had put it.

    Where the client whose rate or rank was planned with sits out as well, the broadcast is faster
    still.
    """
    assert plan.modes is not None
    index = [
        None if name is None else [name_of(mode) for mode in own.modes].index(name)
        for name, own in zip(plan.modes, offers, strict=True)
    ]
    chosen = list(zip(index, offers, strict=True))
    listens = np.array([i is not None for i in index])
    heard = replace(
        link,
        needed_bits=np.array([0.0 if i is None else own.needed_bits[i] for i, own in chosen]),
        needs_whole=np.array([i is not None and own.needs_whole[i] for i, own in chosen]),
    )
    downlink_s = heard.needed_s(listens)
    waited_s = np.array([0.0 if i is None else waits_s(own, sent)[i] for i, own in chosen])
    compute_s = plan.compute_s - waited_s
    total_s = downlink_s + compute_s + plan.upload_s
    latency_s = float(total_s.max())
    bounded = asked.max_pruning_loss is not None
    changed = replace(
        plan,
        downlink_s=downlink_s,
        compute_s=compute_s,
        total_s=total_s,
        round_latency_s=latency_s,
        objective_s=latency_s if bounded else latency_s * plan.rounds_factor,
    )
    modes = [None if i is None else own.modes[i] for i, own in chosen]
    return RoundPlan(changed, tuple(modes), heard, asked)
