"""A round is planned over the devices that are connected when it begins.

A client whose device is away is not told anything and holds no share of the band; the record says
that it was not connected. It takes part again in the round after its device is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from airtune.assignment import Assignment, PlannedTimes
from airtune.planning.broadcast import Link, link_of
from airtune.planning.inputs import Situation
from airtune.planning.problem import Plan
from airtune.rounds.cell import Cell, DecideHook, Decision
from airtune.rounds.cell import decide as decide_for_all
from airtune.scenario import Scenario

Value = TypeVar("Value")

_NO_TIME = PlannedTimes(downlink_s=0.0, compute_s=0.0, upload_s=0.0, round_s=0.0)
_ARRAYS = (
    "pruning", "bandwidth_hz", "rate_bps", "downlink_s", "compute_s", "upload_s", "total_s",
    "blocks", "energy_j",
)  # fmt: skip


def deciding_among(
    present: Callable[[], frozenset[int]],
    holders: Callable[[int], frozenset[int]] | None = None,
) -> DecideHook:
    """Return the hook that plans a round over the clients whose devices are connected.

    Args:
        present: returns them.
        holders: returns those whose devices hold the broadcast of the round before a round, where
            changes of it are sent; None: all who heard it.
    """

    def decide(cell: Cell, situation: Situation) -> Decision:
        connected = present()
        if holders is not None:
            situation = _held_by(holders(situation.round), cell.scenario, situation)
        at = np.array([k for k, one in enumerate(situation.cohort) if one in connected], np.intp)
        if at.size in (0, len(situation.cohort)):  # nobody: the round fails, and says why
            return decide_for_all(cell, situation)
        return _among_all(decide_for_all(cell, part_of(situation, at)), situation, at)

    return decide


def _held_by(holders: frozenset[int], scenario: Scenario, situation: Situation) -> Situation:
    """Return the situation in which clients without the last broadcast need the whole adapter.

    A run that is resumed knows of no device what it holds.
    """
    link = situation.link
    ranks = [
        int(held) if client in holders else 0
        for client, held in zip(situation.cohort, link.held_ranks, strict=True)
    ]
    if scenario.aggregation.downlink_change_bits is None or ranks == link.held_ranks.tolist():
        return situation
    known = link_of(scenario, situation.shape, situation.modes, link.air, held_ranks=ranks)
    downlink_s = known.needed_s(known.everyone)
    problem = replace(situation.problem, downlink_s=downlink_s)
    return replace(situation, link=known, problem=problem)


def is_away(assignment: Assignment) -> bool:
    """Say whether an assignment is that of a client whose device was away when it was planned."""
    return assignment.bandwidth_hz == 0.0


def part_of(situation: Situation, at: NDArray[np.intp]) -> Situation:
    """Return the situation of some clients of the cohort alone; the broadcast is for them.

    Args:
        situation: the round's.
        at: their places in the cohort, ascending.
    """
    known = situation.link
    air = known.air.of(at)
    link = Link(air, known.needed_bits[at], known.needs_whole[at], known.held_ranks[at])
    downlink_s = link.needed_s(link.everyone)
    return replace(
        situation,
        cohort=_of(situation.cohort, at),
        profiles=_of(situation.profiles, at),
        loads=_of(situation.loads, at),
        modes=_of(situation.modes, at),
        link=link,
        air=None if situation.air is None else situation.air.of(at),
        problem=replace(situation.problem.of_clients(at), downlink_s=downlink_s),
        queues=situation.queues[at],
        contributed=situation.contributed[at],
    )


def _of(values: tuple[Value, ...], at: NDArray[np.intp]) -> tuple[Value, ...]:
    return tuple(values[k] for k in at)


def _among_all(made: Decision, situation: Situation, at: NDArray[np.intp]) -> Decision:
    """Return a decision over some clients as one over the cohort; the others have no band."""
    planned: list[Assignment | None] = [
        Assignment(
            client=client,
            mode=mode,
            pruning=0.0,
            bandwidth_hz=0.0,
            rate_bps=0.0,
            downlink_rate_bps=0.0,
            downlink_bits=0.0,
            planned=_NO_TIME,
        )
        for client, mode in zip(situation.cohort, situation.modes, strict=True)
    ]
    modes: list[str | None] = [None] * len(situation.cohort)
    for k, place in enumerate(at):
        planned[place] = made.assignments[k]
        modes[place] = None if made.plan.modes is None else made.plan.modes[k]
    names = situation.problem.names
    return Decision(_spread(made.plan, names, at, modes), tuple(planned))


def _spread(
    plan: Plan, names: tuple[str, ...], at: NDArray[np.intp], modes: Sequence[str | None]
) -> Plan:
    clients = len(names)
    wide: dict[str, Any] = {}
    for field in _ARRAYS:
        if (values := getattr(plan, field)) is not None:
            wide[field] = np.zeros(clients, values.dtype)
            wide[field][at] = values
    losses = None
    if plan.losses is not None:
        losses = np.ones(clients)  # who is away contributes nothing
        losses[at] = plan.losses
    kept = None if plan.modes is None else tuple(modes)
    return replace(plan, names=names, modes=kept, losses=losses, **wide)
