"""When the calibration text is read again, in which model, and how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.adapters.names import Adapter, rank_of
from airtune.models.devices import DeviceProfile, compute_s
from airtune.planning.broadcast import needed_bits
from airtune.rounds.bills import ClientReading
from airtune.rounds.cell import Cell, Situation
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
    """What reading the text again takes of a round, before its clients train.

    Every client that may be cut receives the adapter, all of its ranks, and reads, also one that
    then sits the round out: it may be asked before the next reading.
    """

    each: tuple[ClientReading | None, ...]
    """Of every client; None for one that reads nothing."""
    downlink_bits: float
    """Of the broadcast that they read in, sent once."""

    @property
    def time_s(self) -> float:
        """On the virtual clock: until the slowest one has read."""
        return max(one.downlink_s + one.compute_s for one in self.each if one is not None)

    @property
    def flops(self) -> float:
        """Of all clients."""
        return sum(one.flops for one in self.each if one is not None)


def reading_of(
    cell: Cell,
    refit: Refit | None,
    situation: Situation,
    profiles: Sequence[DeviceProfile],
) -> Reading | None:
    """Count the reading of a round.

    Args:
        cell: the run's.
        refit: the round's.
        situation: the round's, of all clients.
        profiles: of all clients.

    Returns:
        None in a round without one, and where no client may be cut.
    """
    if refit is None or refit.round != situation.round:
        return None
    reads = np.array(may_be_cut(cell, refit.adapter))
    if not reads.any():
        return None
    whole = replace(situation.modes[0], rank=rank_of(refit.adapter))
    bits = float(needed_bits(cell.scenario, situation.shape, [whole], 0.0, 0)[0][0])
    air = situation.air or situation.link.air
    downlink_s = bits / float(air.downlink_rate_bps[reads].min())
    each = tuple(
        ClientReading(
            downlink_s, bits, compute_s(client.rereading_flops, profile), client.rereading_flops
        )
        if reads_it
        else None
        for client, profile, reads_it in zip(cell.federation.clients, profiles, reads, strict=True)
    )
    return Reading(each, bits)
