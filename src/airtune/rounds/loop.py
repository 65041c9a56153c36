"""The round loop: begin, and step after step, on a virtual clock.

A round is synchronous. Its length on the virtual clock is counted, not timed: each client's
realised FLOPs over its device's speed, its realised bits over the rate of its band. What the
machine that simulates it needed is recorded apart, as `wall_s`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune import planning
from airtune.assignment import Assignment
from airtune.errors import RunError
from airtune.merging.server import server_step
from airtune.models.devices import DeviceProfile
from airtune.planning import PlanningProblem
from airtune.planning.fairness import Contributed
from airtune.planning.floor import first_queues, next_queues
from airtune.planning.inputs import (
    Situation,
)
from airtune.planning.plausible import doubts
from airtune.randomness import generator
from airtune.record import RoundRecord, RunDescription
from airtune.record.schema import OK, ClientRecord
from airtune.rounds.answers import contribution_of, evaluation_after, measured, status_of
from airtune.rounds.bills import (
    Outcome,
    bill,
    energy_together,
    finite,
    idle,
    kept_speed,
    over_budget,
    speeds_after,
    what_binds,
    with_energy,
)
from airtune.rounds.broadcast import Sent, broadcast_of, held_ranks_after, missed_bits_after
from airtune.rounds.cell import Cell, Decision, profiles_now
from airtune.rounds.cohort import (
    inclusion_of,
    may_be_cut,
    queues_with,
    weight_of,
)
from airtune.rounds.control import Controls, controls_after
from airtune.rounds.description import description_of
from airtune.rounds.losses import Upload, as_sent, uploads_of
from airtune.rounds.moments import moments_after
from airtune.rounds.refits import reading_of, refit_of
from airtune.rounds.situation import situation_of
from airtune.rounds.state import State, no_moments
from airtune.training.client import ClientJob, ClientUpdate, Refit
from airtune.units import FloatArray


def begin(cell: Cell) -> State:
    """Return the state before the first round: LoRA's start, measured untrained.

    Clients that read their own calibration text open the virtual clock: the slowest one's time.
    """
    return opening(cell)[0]


def opening(cell: Cell) -> tuple[State, RunDescription]:
    """Return the state before the first round, and what run.json says of it."""
    if cell.availability is not None and (absent := cell.availability.never()):
        cell.observer.noticed(f"{cell.availability.path}: {absent:,} clients are never available")
    adapter = cell.engine.initial_adapter()
    cell.observer.preparing("measuring the untrained model")
    untrained = measured(cell, adapter, (), final=False)
    description = description_of(cell, untrained, may_be_cut(cell))
    start = State(0, description.setup_s, adapter, no_moments(cell), (finite(untrained.loss),))
    floor = cell.scenario.participation.floor
    if floor > 0:
        rng = generator(cell.scenario.seed, "floor")
        start = replace(start, queues=tuple(first_queues(len(cell.profiles), floor, rng).tolist()))
    return start, description


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
    profiles = tuple(map(kept_speed, profiles_now(cell), _speeds(cell, state)))
    situation = situation_of(cell, state, profiles)
    drawn = situation.drawn
    if scenario.participation.cohort and len(situation.cohort) < scenario.cohort_size:
        asked = f"{len(situation.cohort):,} of the {scenario.cohort_size:,} clients asked for"
        cell.observer.noticed(f"round {situation.round}: {asked} are available")

    # 2. Plan: who listens, who leaves out how much of the model, who gets which band.
    decision = cell.decide(cell, situation)
    if situation.round == 1:
        for doubt in doubts(situation.problem, decision.plan):
            cell.observer.noticed(doubt)

    # 3. The clients work, from the adapter as it reaches them.
    broadcast = broadcast_of(scenario, state, decision.assignments)
    refit = refit_of(scenario, state.refit, situation.round, broadcast.adapter)
    reading = reading_of(cell, refit, situation, profiles)
    answers = _answers(cell, state, situation, decision, broadcast, refit)
    assignments = {a.assignment.client: a.assignment for a in answers}
    outcomes = {a.assignment.client: a.outcome for a in answers}
    sent = uploads_of(
        scenario,
        situation,
        decision.plan.round_latency_s,
        [(a.assignment, u) for a, u in _usable(answers)],
        profiles,
    )
    kept = [update for _, update in _usable(answers)]  # by the clients, also where it is lost
    answers = [
        replace(a, status=sent[a.assignment.client].status) if a.assignment.client in sent else a
        for a in answers
    ]

    # 4. Merge what is sound; where every upload was lost the adapter stays.
    updates = [update for _, update in _usable(answers)]
    if not updates and not sent:
        reason = answers[0].status if answers else "every client sits out"
        raise RunError(
            f"round {situation.round}: no client's update could be used; first: {reason}"
        )
    contributions = [
        contribution_of(
            cell,
            state.adapter,
            update,
            answer.assignment.mode.local_steps,
            _weight(cell, situation, update, sent),
            broadcast.adapter,
        )
        for answer, update in _usable(answers)
    ]
    adapter, moments = state.adapter, state.server_moments
    if updates:
        merged = cell.merge(cell, state.adapter, contributions)
        adapter, moments = server_step(scenario.aggregation, state.adapter, merged, moments)

    # 5. Put it on the clock.
    clients = _bills(cell, situation, decision, answers, profiles, sent)
    latency_s = max(client.total_s for client in clients)
    clients = tuple(
        with_energy(
            one,
            scenario.client_devices[k],
            profiles[k],
            latency_s + reading.time_s,
            reading.each.get(k),
        )
        for one, k in zip(clients, situation.cohort, strict=True)
    )
    over = over_budget(
        clients,
        [scenario.client_devices[k] for k in situation.cohort],
        [scenario.client_names[k] for k in situation.cohort],
    )
    if over is not None and not reading.each:  # a reading is no part of a budget
        cell.observer.noticed(f"round {situation.round}: {over}")
    after = State(
        round=situation.round,
        elapsed_s=state.elapsed_s
        + (0.0 if drawn is None else drawn.waited_s)
        + reading.time_s
        + latency_s,
        adapter=adapter,
        optimizer_states=moments_after(
            state.optimizer_states,
            situation.round,
            {u.client: u.optimizer_state for u in kept if u.optimizer_state is not None},
        ),
        losses=state.losses,
        pruning_losses=(*state.pruning_losses, decision.plan.pruning_loss),
        speeds=speeds_after(_speeds(cell, state), profiles, [a.outcome for a in answers]),
        missed_bits=missed_bits_after(scenario, state.missed_bits, updates, outcomes),
        queues=_queues_after(cell, state, situation, decision, updates),
        contributed=_contributed_after(cell, state, situation, decision, updates),
        draws=state.draws if drawn is None else drawn.memory,
        held=broadcast.adapter if scenario.aggregation.downlink_change_bits else None,
        held_ranks=held_ranks_after(scenario, assignments, outcomes),
        server_moments=moments,
        controls=_controls_after(cell, state, updates),
        refit=refit,
    )
    evaluation = evaluation_after(cell, after, situation.cohort)
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
        downlink_bits=max(client.downlink_bits for client in clients) + reading.downlink_bits,
        flops=sum(client.flops for client in clients) + reading.flops,
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
        cohort=None if drawn is None else len(situation.cohort),
        available=None if drawn is None else int(drawn.available.sum()),
        waited_s=None if drawn is None else drawn.waited_s,
        refit_s=reading.time_s if reading.each else None,
        clients=clients,
    )
    return replace(after, losses=(*state.losses, finite(loss))), record


@dataclass(frozen=True, eq=False)
class _Answer:
    """What came of one client's assignment."""

    assignment: Assignment
    outcome: Outcome
    status: str


def _usable(answers: Sequence[_Answer]) -> Iterator[tuple[_Answer, ClientUpdate]]:
    """Yield the answers whose update can be merged, with it."""
    for answer in answers:
        if answer.status == OK and isinstance(answer.outcome, ClientUpdate):
            yield answer, answer.outcome


def _weight(
    cell: Cell, situation: Situation, update: ClientUpdate, sent: Mapping[int, Upload]
) -> float:
    success = sent[update.client].success if update.client in sent else 1.0
    return weight_of(cell, situation, update, success)


def _unbudgeted(situation: Situation) -> PlanningProblem:
    """Return the round's problem without energy budgets, which equal bands need not keep."""
    problem = situation.problem
    return problem if problem.energy_budget_j is None else problem.without_choice()


def _speeds(cell: Cell, state: State) -> tuple[float | None, ...]:
    return state.speeds or (None,) * len(cell.profiles)


def _queues_after(
    cell: Cell,
    state: State,
    situation: Situation,
    decision: Decision,
    updates: Sequence[ClientUpdate],
) -> tuple[float, ...]:
    """Return what the floor still owes each client; only a merged update counts.

    It owes for the rounds in whose cohort a client is.
    """
    share, losses = cell.scenario.participation.floor, decision.plan.losses
    if share == 0 or losses is None:
        return state.queues
    owed = next_queues(situation.queues, _contributions(situation, losses, updates), share)
    return queues_with(state.queues, situation.cohort, owed)


def _contributed_after(
    cell: Cell,
    state: State,
    situation: Situation,
    decision: Decision,
    updates: Sequence[ClientUpdate],
) -> Contributed:
    """Return what the clients have contributed after the round; only a merged update counts."""
    losses = decision.plan.losses
    if cell.scenario.participation.fairness == 0 or losses is None:
        return state.contributed
    made = _contributions(situation, losses, updates)
    return state.contributed.after(len(cell.profiles), situation.cohort, made)


def _contributions(
    situation: Situation, losses: FloatArray, updates: Sequence[ClientUpdate]
) -> FloatArray:
    heard = {update.client for update in updates}
    merged = np.array([client in heard for client in situation.cohort])
    return np.where(merged, 1.0 - losses, 0.0)


def _controls_after(cell: Cell, state: State, updates: Sequence[ClientUpdate]) -> Controls:
    if not cell.scenario.training.scaffold:
        return state.controls
    examples = [client.examples for client in cell.federation.clients]
    return controls_after(state.controls, state.adapter, updates, examples, cell.federation.shape)


def _answers(
    cell: Cell,
    state: State,
    situation: Situation,
    decision: Decision,
    broadcast: Sent,
    refit: Refit | None,
) -> list[_Answer]:
    """Have every client do its part; answers in the cohort's order, whichever ends first."""
    assigned = {a.client: a for a in decision.assignments if a is not None}

    def jobs() -> Iterator[ClientJob]:
        for client, assignment in assigned.items():
            cell.observer.client_started(situation.round, cell.scenario.client_names[client])
            yield ClientJob(
                round=situation.round,
                assignment=assignment,
                adapter=broadcast.adapter,
                optimizer_state=state.optimizer_states.get(client),
                refit=refit if assignment.pruning > 0 else None,
                change=broadcast.change_for(assignment),
                correction=state.controls.correction(client, state.adapter)
                if cell.scenario.training.scaffold
                else None,
            )

    outcomes = {outcome.client: outcome for outcome in cell.engine.train(jobs())}
    return [
        _Answer(one, outcomes[k], status_of(cell, outcomes[k], one.mode.rank, broadcast.adapter))
        for k, one in assigned.items()
    ]


def _bills(
    cell: Cell,
    situation: Situation,
    decision: Decision,
    answers: Sequence[_Answer],
    profiles: Sequence[DeviceProfile],
    sent: Mapping[int, Upload],
) -> tuple[ClientRecord, ...]:
    """Bill the cohort, in its order."""
    answered = {answer.assignment.client: answer for answer in answers}
    names, air = cell.scenario.client_names, situation.air or situation.link.air
    bills = (
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
                cell.scenario.pruning.min_pruning,
            ),
            snr_hz=air.received_snr_hz(k),
        )
        for k, client in enumerate(situation.cohort)
    )
    return tuple(
        replace(as_sent(one, sent.get(client)), inclusion_probability=inclusion_of(situation, k))
        for k, (client, one) in enumerate(zip(situation.cohort, bills, strict=True))
    )
