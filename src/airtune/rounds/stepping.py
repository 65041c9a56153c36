"""The next round of a run, by its schedule."""

from __future__ import annotations

from airtune.record import RoundRecord
from airtune.rounds import asynchronous, loop
from airtune.rounds.cell import Cell
from airtune.rounds.state import State


def step(cell: Cell, state: State) -> tuple[State, RoundRecord]:
    """Do the round after `state`: draw, plan, fine-tune, merge, measure.

    With `schedule.kind` other than `synchronous`, a round ends with the next merge. The scenario's
    last round is also evaluated by what is left to the end. Steps past it are allowed: draws are
    named by the round.

    Returns:
        The state after the round, and its record.

    Raises:
        RunError: no client's update could be used.
    """
    if cell.scenario.schedule.is_synchronous:
        return loop.step(cell, state)
    return asynchronous.step(cell, state)
