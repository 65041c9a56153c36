"""Rounds that do not wait for everyone: events in time order on the virtual clock.

One round of the record is one merge. Until it, clients begin turns where there is room, from the
adapter of that moment, and events follow each other: an upload begins, an upload ends. At a moment
at which answers arrive, they are all taken first, in client order; then it is asked whether to
merge; then clients begin. The model, its equations and what is not modelled: docs/asynchronous.md.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from airtune.adapters.names import Adapter
from airtune.channel.rate import rate_of_band
from airtune.errors import RunError
from airtune.merging.functions import Contribution
from airtune.merging.server import server_step
from airtune.models.devices import compute_s
from airtune.planning import METHODS
from airtune.planning.inputs import ClientLoad
from airtune.planning.sharing import shared_bands
from airtune.record import ClientRecord, RoundRecord, TurnRecord
from airtune.record.schema import OK
from airtune.rounds.answers import contribution_of, evaluation_after, status_of
from airtune.rounds.bills import Outcome, energy_together, finite, idle, with_energy
from airtune.rounds.cell import Cell
from airtune.rounds.clock import Turn, advance, arrays_of
from airtune.rounds.flight import Flight, key_of
from airtune.rounds.schedules import answers_to_merge, brought_up, next_clients, share_of
from airtune.rounds.state import State
from airtune.rounds.turns import (
    Task,
    begin_turns,
    outcomes_of,
    planned_flops,
    task_of,
    together,
    turn_bill,
    turn_record,
)
from airtune.training.client import ClientUpdate
from airtune.units import FloatArray


@dataclass(frozen=True, eq=False)
class Answer:
    """A turn whose answer is merged, or left out for what its status says."""

    turn: Turn
    task: Task
    outcome: Outcome
    status: str


def step(cell: Cell, state: State) -> tuple[State, RoundRecord]:
    """Go on to the next merge: begin turns, follow the events, merge, measure.

    Returns:
        The state after the merge, and its record.

    Raises:
        RunError: no client's answer could be used.
    """
    start = time.perf_counter()
    now_s, flight, merged = _until_merge(cell, state)
    answers = _answers(cell, flight, merged)
    adapter, moments = _merged_adapter(cell, state, flight, answers)

    left = tuple(turn for turn in flight.turns if turn not in merged)
    began = {turn.start_round for turn in left}
    keys = {key_of(turn) for turn in left}
    after = replace(
        state,
        round=state.round + 1,
        elapsed_s=now_s,
        adapter=adapter,
        pruning_losses=(*state.pruning_losses, _pruning_loss(answers)),
        server_moments=moments,
        flight=replace(
            flight,
            turns=left,
            adapters={m: a for m, a in flight.adapters.items() if m in began},
            outcomes={key: outcome for key, outcome in flight.outcomes.items() if key in keys},
        ),
    )
    return _measured(cell, state, after, answers, start)


def _until_merge(cell: Cell, state: State) -> tuple[float, Flight, tuple[Turn, ...]]:
    """Follow the events to the next merge: its time, what is under way, and what is merged."""
    scenario, now_s, merges = cell.scenario, state.elapsed_s, state.round
    flight = replace(
        state.flight,
        adapters=state.flight.adapters | {merges: state.adapter},
        periods=state.flight.periods or _periods(cell),
    )
    bands = partial(_bands, cell)
    while True:
        ready = answers_to_merge(scenario, flight.turns, merges, flight.periods)
        if ready:
            return now_s, flight, ready
        _check_some_answer(cell, flight)
        clients = next_clients(scenario, flight.turns, flight.begun)
        flight = begin_turns(cell, flight, clients, merges, now_s)
        now_s, turns = advance(flight.turns, now_s, bands)
        flight = replace(flight, turns=turns)


def _bands(cell: Cell, sending: Sequence[Turn]) -> FloatArray:
    scenario = cell.scenario
    snr_hz, efficiency, left_bits = arrays_of(sending)
    equal = METHODS[scenario.planning.method].bands == "equal"
    band_hz = scenario.cell.uplink_bandwidth_hz
    return shared_bands(band_hz, snr_hz, efficiency, left_bits, equal=equal)


def _check_some_answer(cell: Cell, flight: Flight) -> None:
    """End a run in which nobody's answer can be merged: it would wait without an end."""
    ended = [turn for turn in flight.turns if turn.ended_s is not None]
    failed = [turn for turn in ended if not turn.can_be_merged]
    everyone = set(range(len(cell.scenario.client_devices)))
    if everyone <= {turn.client for turn in failed}:
        first = _answers(cell, flight, failed[:1])[0]
        raise RunError(f"no client's update could be used; first: {first.status}")


def _periods(cell: Cell) -> dict[int, int]:
    """Return every how many rounds each client answers, with tiers; empty without.

    Clients are ordered by what their first turn would take at equal bands for all.
    """
    scenario = cell.scenario
    if scenario.schedule.kind != "tiers":
        return {}
    clients = len(cell.profiles)
    air, alike = cell.draw(cell, 1), scenario.cell.uplink_bandwidth_hz / clients
    times = []
    for k, profile in enumerate(cell.profiles):
        task = task_of(cell, k, 1, air)
        turn = Turn(k, 1, 0, 0.0, 0.0, 0.0, 1.0, task.snr_hz, task.efficiency)
        snr_hz, efficiency, _ = arrays_of([turn])
        rate = float(rate_of_band(alike, snr_hz, efficiency)[0])
        bits = task.costs.payload_bits(task.pruning)
        times.append(task.downlink_s + compute_s(planned_flops(task), profile) + bits / rate)
    order = np.argsort(times, kind="stable")
    steps = scenario.schedule.tier_rounds
    groups = np.array_split(order, len(steps))
    return {int(k): step for step, group in zip(steps, groups, strict=True) for k in group}


def _answers(cell: Cell, flight: Flight, merged: Sequence[Turn]) -> list[Answer]:
    """Look at what came of the turns; what a resumed run does not hold is computed again."""
    tasks = {key_of(turn): task_of(cell, turn.client, turn.number) for turn in merged}
    outcomes = dict(flight.outcomes)
    for turn in merged:  # one by one: a client may have two turns in a merge
        if key_of(turn) not in outcomes:
            outcomes |= outcomes_of(cell, flight, [(tasks[key_of(turn)], turn.start_round)])
    found = []
    for turn in merged:
        task, outcome = tasks[key_of(turn)], outcomes[key_of(turn)]
        began = flight.adapters[turn.start_round]
        status = status_of(cell, outcome, task.mode.rank, began)
        found.append(Answer(turn, task, outcome, status))
    return found


def _merged_adapter(
    cell: Cell, state: State, flight: Flight, answers: Sequence[Answer]
) -> tuple[Adapter, dict[str, Adapter]]:
    contributions: list[Contribution] = []
    # In client order, as in a synchronous round: sums then have the same rounding.
    for one in sorted(answers, key=lambda answer: key_of(answer.turn)):
        if one.status != OK or not isinstance(one.outcome, ClientUpdate):
            continue
        steps = one.task.mode.local_steps
        weight = float(one.outcome.examples)
        contribution = contribution_of(cell, state.adapter, one.outcome, steps, weight)
        contributions.append(
            brought_up(
                cell.scenario.schedule,
                contribution,
                flight.adapters[one.turn.start_round],
                state.adapter,
                state.round - one.turn.start_round,
            )
        )
    if not contributions:
        raise RunError(
            f"round {state.round + 1}: no client's update could be used; first: {answers[0].status}"
        )
    merged = cell.merge(cell, state.adapter, contributions)
    return server_step(cell.scenario.aggregation, state.adapter, merged, state.server_moments)


def _pruning_loss(answers: Sequence[Answer]) -> float:
    """Return Q of the merge: what memory made its clients leave out, by their weights."""
    costs = []
    for one in answers:
        curve = one.task.load.pruning_cost
        at = one.task.pruning
        cost = at if curve is None else float(np.interp(at, *np.array(curve).T))
        costs.append((one.task.load.examples, cost))
    return sum(n * cost for n, cost in costs) / sum(n for n, _ in costs)


def _measured(
    cell: Cell, before: State, after: State, answers: Sequence[Answer], start: float
) -> tuple[State, RoundRecord]:
    """Bill, evaluate and record the merge."""
    scenario = cell.scenario
    rows, turns = _rows(cell, before, after, answers)
    evaluation = evaluation_after(cell, after, ())
    loss = None if evaluation is None else evaluation.loss
    if evaluation is not None and evaluation.client_losses:
        pairs = zip(rows, evaluation.client_losses, strict=True)
        rows = tuple(replace(row, eval_loss=finite(own)) for row, own in pairs)
    updates = [a.outcome for a in answers if a.status == OK and isinstance(a.outcome, ClientUpdate)]
    losses = [update.train_loss for update in updates if update.train_loss is not None]
    record = RoundRecord(
        round=after.round,
        method=scenario.planning.method,
        round_latency_s=after.elapsed_s - before.elapsed_s,
        elapsed_s=after.elapsed_s,
        eval_loss=loss,
        train_loss=float(np.mean(losses)) if losses else None,
        uplink_bits=sum(row.uplink_bits for row in rows),
        downlink_bits=sum(row.downlink_bits for row in rows),
        flops=sum(row.flops for row in rows),
        energy_j=energy_together(rows),
        pruning_loss=after.pruning_losses[-1],
        kappa=scenario.planning.kappa,
        metrics={} if evaluation is None else evaluation.metrics,
        wall_s=time.perf_counter() - start,
        clients=rows,
        turns=turns,
    )
    return replace(after, losses=(*before.losses, finite(loss))), record


def _rows(
    cell: Cell, before: State, after: State, answers: Sequence[Answer]
) -> tuple[tuple[ClientRecord, ...], tuple[TurnRecord, ...]]:
    """Return a row a client, in the run's order, and a row a merged turn, in order of arrival."""
    scenario = cell.scenario
    names, schedule = scenario.client_names, scenario.schedule
    own: dict[int, list[ClientRecord]] = {}
    turns = []
    for one in answers:
        # With tiers a client waits for the merge; otherwise it is free at its end.
        ended_s = one.turn.ended_s
        assert ended_s is not None
        over_s = after.elapsed_s if schedule.kind == "tiers" else ended_s
        row = turn_bill(cell, one.task, one.turn, one.outcome, one.status, over_s)
        own.setdefault(one.turn.client, []).append(row)
        share = share_of(schedule, before.round - one.turn.start_round)
        turns.append(turn_record(cell, one.turn, one.status, row.uplink_bits, before.round, share))
    examples = [client.examples for client in cell.federation.clients]
    devices = scenario.client_devices
    rows = tuple(
        together(own[k])
        if k in own
        else with_energy(
            idle(name, ClientLoad((), examples[k])), devices[k], cell.profiles[k], round_s=0.0
        )
        for k, name in enumerate(names)
    )
    return rows, tuple(turns)
