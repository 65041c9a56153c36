"""The schedules by name: who begins, when the server merges, and what a late answer counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from airtune.adapters.names import Adapter
from airtune.merging.functions import Contribution
from airtune.randomness import generator
from airtune.rounds.clock import Turn
from airtune.scenario import Scenario, ScheduleSection


def concurrency_of(scenario: Scenario) -> int:
    """Return how many clients are at work at a time."""
    return scenario.schedule.concurrency or len(scenario.client_devices)


def buffer_of(scenario: Scenario) -> int:
    """Return how many answers a merge has, where it is not the tiers that decide."""
    if scenario.schedule.kind == "fedasync":
        return 1
    return scenario.schedule.buffer_size or max(1, concurrency_of(scenario) // 2)


def next_clients(scenario: Scenario, turns: Sequence[Turn], begun: int) -> list[int]:
    """Return who begins a turn now, in client order.

    With tiers: everyone whose last answer has been merged. Otherwise as many as there is room for,
    drawn evenly from those who are not at work.

    Args:
        scenario: of the run.
        turns: those not merged yet.
        begun: turns begun so far: names the draw.
    """
    everyone = range(len(scenario.client_devices))
    if scenario.schedule.kind == "tiers":
        busy = {turn.client for turn in turns}
        return [client for client in everyone if client not in busy]
    busy = {turn.client for turn in turns if turn.ended_s is None}
    free = [client for client in everyone if client not in busy]
    room = concurrency_of(scenario) - len(busy)
    if room >= len(free):
        return free
    rng = generator(scenario.seed, "next-clients", round=begun)
    return sorted(int(k) for k in rng.choice(free, size=max(room, 0), replace=False))


def answers_to_merge(
    scenario: Scenario, turns: Sequence[Turn], merges: int, periods: Mapping[int, int]
) -> tuple[Turn, ...]:
    """Return the turns of the next merge in the order of their answers; empty: it is not time yet.

    Answers at the same moment are in client order. A turn whose answer cannot be merged is in the
    merge that comes after it, and fills no place of the buffer.

    Args:
        scenario: of the run.
        turns: those not merged yet.
        merges: made so far.
        periods: with tiers, every how many rounds each client answers.
    """
    ended = sorted(
        (turn for turn in turns if turn.ended_s is not None),
        key=lambda turn: (turn.ended_s, turn.client, turn.number),
    )
    if scenario.schedule.kind == "tiers":
        due = [t for t in turns if t.start_round + periods[t.client] <= merges + 1]
        over = [turn for turn in ended if turn in due]
        # Those merged last have to begin first: they are due as well.
        all_began = len({turn.client for turn in turns}) == len(periods)
        return tuple(over) if all_began and len(over) == len(due) else ()
    wanted, taken = buffer_of(scenario), []
    for turn in ended:
        taken.append(turn)
        wanted -= turn.can_be_merged
        if not wanted:
            return tuple(taken)
    return ()


def discount(schedule: ScheduleSection, staleness: int) -> float:
    """Return (1 + tau)^-a: what an answer to an adapter that is tau merges old counts."""
    return float((1.0 + staleness) ** -schedule.staleness_exponent)


def share_of(schedule: ScheduleSection, staleness: int) -> float:
    """Return the factor of an answer in its merge: s(tau), or with fedasync alpha s(tau)."""
    mixed = schedule.mixing if schedule.kind == "fedasync" else 1.0
    return mixed * discount(schedule, staleness)


def brought_up(
    schedule: ScheduleSection,
    contribution: Contribution,
    start: Adapter,
    server: Adapter,
    staleness: int,
) -> Contribution:
    """Return an answer as a contribution to the merge with today's adapter w.

    fedbuff, tiers: w + s(tau) (w_k - w_start), so that an average of contributions is w plus the
    weighted mean of the discounted differences. fedasync: w + alpha s(tau) (w_k - w).

    Args:
        schedule: its constants.
        contribution: what the client answered.
        start: the adapter that it began with.
        server: today's.
        staleness: tau, merges since it began.
    """
    factor = share_of(schedule, staleness)
    mixes = schedule.kind == "fedasync"
    if factor == 1.0 and (mixes or staleness == 0):
        return contribution
    base = server if mixes else start
    values = {}
    for name, value in contribution.values.items():
        now = server[name].double()
        moved = now + factor * (value.double() - base[name].double())
        values[name] = torch.where(contribution.held[name], moved.to(value.dtype), value)
    return replace(contribution, values=values)
