"""Who takes part in a round and with how much of its work: what joint pruning competes with.

A slow client can be helped without pruning its model: it does fewer local steps on the whole
of it, or it sits the round out. Both are planned with the planner's own objective, where work
that is not done costs like weights that are not trained: e = 1 − (steps done)/(steps), and
e = `left_out_cost` for a client that sits out. So each rival has its own best deadline, and with
a planning method that prunes, leaving out is one more thing that the joint plan may choose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.models.workload import ModelShape, full_sizes, training_flops
from airtune.planning import Plan, PlanningProblem
from airtune.planning.inputs import ClientLoad, Link, plan_of_round
from airtune.planning.problem import Array, priced
from airtune.scenario import Scenario

EQUAL_BAND = ("none", "pruning-only")
"""Planning methods that do not plan the bandwidth."""

_RELAXED = {"none": "pruning-only", "bandwidth-only": "exact"}
"""What plans the steps where the scenario's method leaves pruning alone."""

Planner = Callable[[PlanningProblem, str | None], Plan]
"""Plans a problem by the scenario's method, or by another one."""


@dataclass(frozen=True)
class Participation:
    """A round's plan for all clients, and each one's local steps; None for one that sits out."""

    plan: Plan
    steps: tuple[int | None, ...]


@dataclass(frozen=True)
class ParticipationRule:
    """What a rule does, in one line, and its source."""

    description: str
    source: str


PARTICIPATION: dict[str, ParticipationRule] = {
    "all": ParticipationRule("every client does all of its local steps", "FedAvg"),
    "partial": ParticipationRule(
        "slow clients do fewer local steps on the whole model, by the best deadline",
        "FedProx: Li et al., MLSys 2020 (without its proximal term)",
    ),
    "partial-fednova": ParticipationRule(
        "the same, updates normalised by their steps",
        "FedNova: Wang et al., NeurIPS 2020",
    ),
    "deadline": ParticipationRule(
        "the slowest sit the round out, by the best deadline",
        "FedCS: Nishio and Yonetani, ICC 2019",
    ),
    "in-turn": ParticipationRule(
        "those whom the deadline leaves out take part in every n-th round",
        "baseline: everyone's data is heard",
    ),
}
"""Participation rules by name, in the order in which they are listed."""


def decide(
    problem: PlanningProblem,
    planner: Planner,
    *,
    rule: str,
    method: str,
    step_shares: Sequence[Array],
    round: int,
    every_rounds: int,
    left_out_cost: float = 1.0,
    link: Link | None = None,
) -> Participation:
    """Plan a round under a participation rule.

    Args:
        problem: of all clients with all of their steps.
        planner: as the scenario plans.
        rule: a key of `PARTICIPATION`.
        method: the scenario's planning method.
        step_shares: per client, each local step's share of its computing; they sum to 1.
        round: counted from 1.
        every_rounds: of `in-turn`.
        left_out_cost: e of a client that sits out.
        link: the round's broadcast, whose rate is that of the slowest who listens; without it
            `problem.downlink_s` holds whoever listens.
    """
    every = tuple(len(shares) for shares in step_shares)
    if rule == "all":
        return Participation(planner(problem, None), every)
    if rule.startswith("partial"):
        return _partial(problem, planner, method, step_shares)
    if rule == "in-turn" and round % every_rounds == 0:
        return Participation(planner(problem, None), every)
    plan, active = _without_the_slowest(problem, planner, left_out_cost, link)
    return Participation(plan, tuple(n if k in active else None for k, n in enumerate(every)))


def participation_of_round(
    scenario: Scenario,
    problem: PlanningProblem,
    loads: Sequence[ClientLoad],
    modes: Sequence[Mode],
    link: Link,
    shape: ModelShape,
    round: int,
) -> Participation:
    """Plan one round as the scenario asks, its participation rule included."""
    section = scenario.participation

    def planner(asked: PlanningProblem, method: str | None) -> Plan:
        bound = section.rule == "all"
        return plan_of_round(scenario, asked, round, method=method, bound=bound)

    sizes = full_sizes(shape)
    flops = [
        np.array([training_flops(shape, sizes, step, mode) for step in load.steps])
        for load, mode in zip(loads, modes, strict=True)
    ]
    return decide(
        problem,
        planner,
        rule=section.rule,
        method=scenario.planning.method,
        step_shares=[counts / counts.sum() for counts in flops],
        round=round,
        every_rounds=section.every_rounds,
        left_out_cost=section.left_out_cost,
        link=link,
    )


def _partial(
    problem: PlanningProblem, planner: Planner, method: str, step_shares: Sequence[Array]
) -> Participation:
    """Plan steps where the method would plan pruning; then whole steps, and bands for them.

    The share of steps left out takes the place of the pruning rate: all of the computing
    scales with it and nothing of the payload. From its optimum, rounded down to whole steps,
    single steps are added or dropped as long as that lowers the objective.
    """
    least = problem.min_pruning  # what memory demands is pruned all the same
    whole_s, bits = problem.compute_s(least), problem.payload_bits(least)
    counts = np.array([len(shares) for shares in step_shares])
    nothing = np.zeros(problem.clients)

    def with_work(compute_s: Array, most: Array) -> PlanningProblem:
        return replace(
            problem,
            compute_fixed_s=compute_s if not most.any() else nothing,
            compute_full_s=nothing if not most.any() else compute_s,
            payload_fixed_bits=bits,
            payload_full_bits=nothing,
            min_pruning=nothing,
            max_pruning=most,
            pruning_cost=None,
        )

    def made(steps: Array) -> Plan:
        done = [float(s[:n].sum()) for s, n in zip(step_shares, steps.astype(int), strict=True)]
        bands = planner(
            with_work(whole_s * done, nothing), "none" if method in EQUAL_BAND else "bandwidth-only"
        )
        loss = problem.pruning_loss(least) + float(problem.weight @ (1.0 - steps / counts))
        return repriced(bands, problem, least, min(loss, 1.0), method)

    relaxed = planner(with_work(whole_s, 1.0 - 1.0 / counts), _RELAXED.get(method))
    steps = np.clip(np.floor((1.0 - relaxed.pruning) * counts + 1e-9), 1, counts)
    best = made(steps)
    while True:
        moves = np.concatenate([np.eye(problem.clients), -np.eye(problem.clients)])
        candidates = [c for c in steps + moves if (c >= 1).all() and (c <= counts).all()]
        plans = [made(candidate) for candidate in candidates]
        if not plans:
            break
        index = int(np.argmin([_objective(plan, problem) for plan in plans]))
        if _objective(plans[index], problem) >= _objective(best, problem):
            break
        steps, best = candidates[index], plans[index]
    return Participation(best, tuple(int(count) for count in steps))


def _without_the_slowest(
    problem: PlanningProblem, planner: Planner, left_out_cost: float, link: Link | None
) -> tuple[Plan, set[int]]:
    """Leave out the slowest 0, 1, …, K − 1 clients, whichever count has the best objective.

    Slowest by computing and sending at equal shares of the band: a deadline on that time, and
    every deadline that makes a difference is tried.
    """
    least = problem.min_pruning
    equal = np.full(problem.clients, problem.bandwidth_hz / problem.clients)
    order = np.argsort(priced(problem, "none", least, equal).total_s, kind="stable")
    best, best_active = None, set(range(problem.clients))
    for left in range(problem.clients, 0, -1):
        active = np.sort(order[:left])
        plan = _among(_heard_by(problem, active, link), active, planner, left_out_cost)
        if plan is not None and (
            best is None or _objective(plan, problem) < _objective(best, problem)
        ):
            best, best_active = plan, {int(k) for k in active}
    assert best is not None
    return best, best_active


def _heard_by(
    problem: PlanningProblem, active: NDArray[np.intp], link: Link | None
) -> PlanningProblem:
    """Return the problem with the broadcast as long as it is where only some clients listen."""
    if link is None or len(active) == problem.clients:
        return problem
    listens = np.zeros(problem.clients, dtype=bool)
    listens[active] = True
    return replace(problem, downlink_s=link.needed_s(listens))


def _among(
    problem: PlanningProblem, active: NDArray[np.intp], planner: Planner, left_out_cost: float
) -> Plan | None:
    """Plan for some of the clients; None where leaving out the others costs too much.

    J = T/(1 − κ(e w_out + w_in Q')), with e what leaving out costs and Q' the loss among those
    who stay: their own κ is κ w_in/(1 − κ e w_out), which leaves a constant factor.
    """
    if len(active) == problem.clients:
        return planner(problem, None)
    inside = float(problem.weight[active].sum())
    outside = left_out_cost * (1.0 - inside)
    limit = problem.max_pruning_loss
    if inside <= 0 or problem.kappa * outside >= 1 or (limit is not None and outside > limit):
        return None
    try:
        smaller = problem.of_clients(
            active,
            kappa=problem.kappa * inside / (1.0 - problem.kappa * outside),
            max_pruning_loss=None if limit is None else (limit - outside) / inside,
        )
    except InputError:  # κQ of those who stay can reach 1, or their least loss is too much
        return None
    plan = planner(smaller, None)
    loss = outside + inside * plan.pruning_loss

    def spread(values: Array) -> Array:
        whole = np.zeros(problem.clients)
        whole[active] = values
        return whole

    wide = replace(
        plan,
        names=problem.names,
        pruning=spread(plan.pruning),
        bandwidth_hz=spread(plan.bandwidth_hz),
        rate_bps=spread(plan.rate_bps),
        downlink_s=spread(plan.downlink_s),
        compute_s=spread(plan.compute_s),
        upload_s=spread(plan.upload_s),
        total_s=spread(plan.total_s),
        blocks=None,
    )
    return repriced(wide, problem, wide.pruning, loss, plan.method)


def repriced(
    plan: Plan, problem: PlanningProblem, pruning: Array, loss: float, method: str
) -> Plan:
    """Return a plan with another learning loss; no bound is known for it."""
    factor = 1.0 / (1.0 - problem.kappa * loss) if problem.kappa * loss < 1 else np.inf
    bounded = problem.max_pruning_loss
    objective = plan.round_latency_s * factor if bounded is None else plan.round_latency_s
    return replace(
        plan,
        method=method,
        pruning=pruning,
        pruning_loss=loss,
        rounds_factor=factor,
        objective_s=objective,
        lower_bound_s=None,
        gap=None,
    )


def _objective(plan: Plan, problem: PlanningProblem) -> float:
    """Return J, or infinity where Q is bounded and the plan passes the bound."""
    limit = problem.max_pruning_loss
    if limit is not None and plan.pruning_loss > limit * (1 + 1e-9):
        return np.inf
    return plan.objective_s
