"""The round loop: begin, and step after step, on a virtual clock.

A round is synchronous. Its length on the virtual clock is counted, not timed: each client's
realised FLOPs over its device's speed, its realised bits over the rate of its band. What the
machine that simulates it needed is recorded apart, as `wall_s`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune import planning
from airtune.adapters.names import Adapter
from airtune.assignment import Assignment
from airtune.errors import RunError
from airtune.merging.rules import rule_of
from airtune.merging.server import server_step
from airtune.models.devices import DeviceProfile
from airtune.planning import METHODS, PlanningProblem, fitted_kappa
from airtune.planning.floor import first_queues, next_queues
from airtune.planning.inputs import (
    ClientLoad,
    Situation,
    link_of,
    modes_of,
    problem_of_round,
)
from airtune.planning.plausible import doubts
from airtune.randomness import generator
from airtune.record import RoundRecord, RunDescription
from airtune.record.schema import OK, ClientRecord
from airtune.rounds.answers import contribution_of, evaluation_after, status_of
from airtune.rounds.bills import (
    Outcome,
    bill,
    energy_together,
    finite,
    idle,
    kept_speed,
    speeds_after,
    what_binds,
    with_energy,
)
from airtune.rounds.cell import Cell, Decision
from airtune.rounds.control import Controls, controls_after
from airtune.rounds.description import description_of
from airtune.rounds.state import State
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, ClientUpdate


def begin(cell: Cell) -> State:
    """Return the state before the first round: LoRA's start, measured untrained.

    Clients that read their own calibration text open the virtual clock: the slowest one's time.
    """
    return opening(cell)[0]


def opening(cell: Cell) -> tuple[State, RunDescription]:
    """Return the state before the first round, and what run.json says of it."""
    adapter = cell.engine.initial_adapter()
    cell.observer.preparing("measuring the untrained model")
    untrained = cell.engine.evaluate(adapter, final=False)
    told = description_of(cell, untrained, _may_be_cut(cell, adapter))
    start = State(0, told.setup_s, adapter, {}, (finite(untrained.loss),))
    floor = cell.scenario.participation.floor
    if floor > 0:
        rng = generator(cell.scenario.seed, "floor")
        start = replace(start, queues=tuple(first_queues(len(cell.profiles), floor, rng).tolist()))
    return start, told


def step(cell: Cell, state: State) -> tuple[State, RoundRecord]:
    """Do the round after `state`: draw, plan, fine-tune, merge, measure.

    The scenario's last round is also evaluated by what is left to the end. Steps past it are
    allowed: draws are named by the round.

    Returns:
        The state after the round, and its record.

    Raises:
        RunError: no client's update could be used.
    """
    start = time.perf_counter()
    scenario = cell.scenario

    # 1. The air and the batches of this round: the same for every method.
    profiles = tuple(map(kept_speed, cell.profiles, _speeds(cell, state)))
    situation = _situation(cell, state, profiles)

    # 2. Plan: who listens, who leaves out how much of the model, who gets which band.
    decision = cell.decide(cell, situation)
    if situation.round == 1:
        for doubt in doubts(situation.problem, decision.plan):
            cell.observer.noticed(doubt)

    # 3. The clients work.
    answers = _answers(cell, state, situation, decision)

    # 4. Merge what is sound.
    updates = [a.outcome for a in answers if a.status == OK and isinstance(a.outcome, ClientUpdate)]
    if not updates:
        reason = answers[0].status if answers else "every client sits out"
        raise RunError(
            f"round {situation.round}: no client's update could be used; first: {reason}"
        )
    contributions = [
        contribution_of(cell, state.adapter, a.outcome, a.assignment.mode.local_steps)
        for a in answers
        if a.status == OK and isinstance(a.outcome, ClientUpdate)
    ]
    merged = cell.merge(cell, state.adapter, contributions)
    adapter, moments = server_step(
        scenario.aggregation, state.adapter, merged, state.server_moments
    )

    # 5. Put it on the clock.
    clients = _bills(cell, situation, decision, answers, profiles)
    latency_s = max(client.total_s for client in clients)
    clients = tuple(
        with_energy(one, scenario.client_devices[k], profiles[k], latency_s)
        for one, k in zip(clients, situation.cohort, strict=True)
    )
    after = State(
        round=situation.round,
        elapsed_s=state.elapsed_s + latency_s,
        adapter=adapter,
        optimizer_states=state.optimizer_states
        | {u.client: u.optimizer_state for u in updates if u.optimizer_state is not None},
        losses=state.losses,
        pruning_losses=(*state.pruning_losses, decision.plan.pruning_loss),
        speeds=speeds_after(_speeds(cell, state), profiles, [a.outcome for a in answers]),
        stacked_bits=sum(u.uplink_bits for u in updates) if rule_of(scenario).restarts else None,
        queues=_queues_after(cell, situation, decision, updates),
        server_moments=moments,
        controls=_controls_after(cell, state, updates),
    )
    evaluation = evaluation_after(cell, after)
    loss = None if evaluation is None else evaluation.loss
    if evaluation is not None and evaluation.client_losses:
        pairs = zip(clients, evaluation.client_losses, strict=True)
        clients = tuple(replace(client, eval_loss=finite(own)) for client, own in pairs)
    losses = [update.train_loss for update in updates if update.train_loss is not None]
    plan = decision.plan
    record = RoundRecord(
        round=after.round,
        method=plan.method,
        round_latency_s=latency_s,
        elapsed_s=after.elapsed_s,
        eval_loss=loss,
        train_loss=float(np.mean(losses)) if losses else None,
        uplink_bits=sum(client.uplink_bits for client in clients),
        downlink_bits=max(client.downlink_bits for client in clients),
        flops=sum(client.flops for client in clients),
        energy_j=energy_together(clients),
        pruning_loss=plan.pruning_loss,
        objective_s=plan.objective_s,
        lower_bound_s=plan.lower_bound_s,
        gap=plan.gap,
        kappa=situation.problem.kappa,
        predicted_latency_s=plan.round_latency_s,
        none_latency_s=planning.plan(_unbudgeted(situation), "none", bound=False).round_latency_s,
        metrics={} if evaluation is None else evaluation.metrics,
        wall_s=time.perf_counter() - start,
        clients=clients,
    )
    return replace(after, losses=(*state.losses, finite(loss))), record


@dataclass(frozen=True, eq=False)
class _Answer:
    """What came of one client's assignment."""

    assignment: Assignment
    outcome: Outcome
    status: str


def _unbudgeted(situation: Situation) -> PlanningProblem:
    """Return the round's problem without energy budgets, which equal bands need not keep."""
    problem = situation.problem
    return problem if problem.energy_budget_j is None else problem.without_choice()


def _speeds(cell: Cell, state: State) -> tuple[float | None, ...]:
    return state.speeds or (None,) * len(cell.profiles)


def _situation(cell: Cell, state: State, profiles: Sequence[DeviceProfile]) -> Situation:
    scenario, round = cell.scenario, state.round + 1
    loads = tuple(
        ClientLoad(
            cell.engine.step_tokens(round, k),
            client.examples,
            client.pruning_cost,
            client.most_pruned,
        )
        for k, client in enumerate(cell.federation.clients)
    )
    modes, shape = modes_of(scenario), cell.federation.shape
    link = link_of(scenario, shape, modes, cell.draw(cell, round), state.stacked_bits)
    problem = problem_of_round(scenario, shape, profiles, loads, modes, link)
    if scenario.planning.fit_kappa:
        problem = _with_fitted_kappa(problem, state, scenario)
    cohort = tuple(range(len(loads)))
    owed = np.array(state.queues) if state.queues else np.zeros(len(loads))
    return Situation(round, shape, cohort, tuple(profiles), loads, modes, link, problem, owed)


def _may_be_cut(cell: Cell, adapter: Adapter) -> list[bool]:
    """Whether the method may prune a client, or its memory forces a cut in the first round."""
    scenario = cell.scenario
    prunes = METHODS[scenario.planning.method].prunes and scenario.pruning.max_pruning > 0
    first = _situation(cell, State(0, 0.0, adapter, {}), cell.profiles)
    return [prunes or bool(least > 0) for least in first.problem.min_pruning]


def _with_fitted_kappa(
    problem: PlanningProblem, state: State, scenario: Scenario
) -> PlanningProblem:
    """Put the run's own κ into the problem; the first round leaves models as whole as they fit."""
    if not state.pruning_losses:
        return replace(problem, max_pruning=problem.min_pruning)
    rates = [
        scenario.training.in_round(number, scenario.rounds).learning_rate
        for number in range(1, len(state.pruning_losses) + 1)
    ]
    kappa = fitted_kappa(
        state.losses,
        state.pruning_losses,
        prior=problem.kappa,
        largest_pruning_loss=problem.pruning_loss(problem.max_pruning),
        paces=[rate / rates[0] for rate in rates],
    )
    return replace(problem, kappa=kappa)


def _queues_after(
    cell: Cell, situation: Situation, decision: Decision, updates: Sequence[ClientUpdate]
) -> tuple[float, ...]:
    """Return what the floor still owes each client; only a merged update counts."""
    share, losses = cell.scenario.participation.floor, decision.plan.losses
    if share == 0 or losses is None:
        return ()
    heard = {update.client for update in updates}
    merged = np.array([client in heard for client in situation.cohort])
    contributed = np.where(merged, 1.0 - losses, 0.0)
    return tuple(next_queues(situation.queues, contributed, share).tolist())


def _controls_after(cell: Cell, state: State, updates: Sequence[ClientUpdate]) -> Controls:
    if not cell.scenario.training.scaffold:
        return state.controls
    examples = [client.examples for client in cell.federation.clients]
    return controls_after(state.controls, state.adapter, updates, examples, cell.federation.shape)


def _answers(cell: Cell, state: State, situation: Situation, decision: Decision) -> list[_Answer]:
    """Have every client do its part; answers in the cohort's order, whichever ends first."""
    assigned = {a.client: a for a in decision.assignments if a is not None}

    def jobs() -> Iterator[ClientJob]:
        for client, assignment in assigned.items():
            cell.observer.client_started(situation.round, cell.scenario.client_names[client])
            yield ClientJob(
                round=situation.round,
                assignment=assignment,
                adapter=state.adapter,
                optimizer_state=state.optimizer_states.get(client),
                correction=state.controls.correction(client, state.adapter)
                if cell.scenario.training.scaffold
                else None,
            )

    outcomes = {outcome.client: outcome for outcome in cell.engine.train(jobs())}
    return [
        _Answer(one, outcomes[k], status_of(cell, outcomes[k], one.mode.rank, state.adapter))
        for k, one in assigned.items()
    ]


def _bills(
    cell: Cell,
    situation: Situation,
    decision: Decision,
    answers: Sequence[_Answer],
    profiles: Sequence[DeviceProfile],
) -> tuple[ClientRecord, ...]:
    """Bill the cohort, in its order."""
    answered = {answer.assignment.client: answer for answer in answers}
    names, link = cell.scenario.client_names, situation.link
    return tuple(
        idle(names[client], situation.loads[k])
        if client not in answered
        else bill(
            names[client],
            profiles[client],
            situation.loads[k],
            answered[client].assignment,
            answered[client].outcome,
            answered[client].status,
            binds=what_binds(
                answered[client].assignment,
                float(situation.problem.min_pruning[k]),
                float(situation.queues[k]),
            ),
            snr_hz=link.air.received_snr_hz(k),
        )
        for k, client in enumerate(situation.cohort)
    )
