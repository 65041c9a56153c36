"""When the calibration text is read again, in which model, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airtune.adapters.names import Adapter
from airtune.models.devices import DeviceProfile, compute_s
from airtune.rounds.cell import Cell
from airtune.rounds.situation import may_be_cut
from airtune.scenario import Scenario
from airtune.training.client import Refit


def refit_of(scenario: Scenario, last: Refit | None, round: int, adapter: Adapter) -> Refit | None:
    """Return what the clients of a round are refitted by; None: as before training.

    Args:
        scenario: the run's.
        last: of the round before.
        round: counted from 1.
        adapter: as the round's broadcast leaves it at its listeners.
    """
    every = scenario.pruning.refit_every_rounds
    if every is None or round == 1 or (round - 1) % every:
        return last
    return Refit(round, adapter)


@dataclass(frozen=True)
class Reading:
    """What reading the text again takes of a round."""

    each_s: tuple[float, ...]
    """Of every client, 0 for one that reads nothing."""
    flops: float
    """Of all clients."""

    @property
    def time_s(self) -> float:
        """On the virtual clock, before the clients train: the slowest one's."""
        return max(self.each_s)


def reading_of(
    cell: Cell,
    refit: Refit | None,
    round: int,
    profiles: Sequence[DeviceProfile],
    adapter: Adapter,
) -> Reading | None:
    """Count the reading of a round: every client that may be cut reads, at the same time.

    Args:
        cell: the run's.
        refit: the round's.
        round: counted from 1.
        profiles: of all clients.
        adapter: the server's.

    Returns:
        None in a round without one.
    """
    if refit is None or refit.round != round:
        return None
    each = [
        client.rereading_flops if may else 0.0
        for client, may in zip(cell.federation.clients, may_be_cut(cell, adapter), strict=True)
    ]
    each_s = tuple(compute_s(f, profile) for f, profile in zip(each, profiles, strict=True))
    return Reading(each_s, sum(each))
