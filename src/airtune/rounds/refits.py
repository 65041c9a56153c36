"""When the calibration text is read again, in which model, and how long that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from airtune.adapters.names import Adapter, rank_of
from airtune.models.devices import DeviceProfile, compute_s
from airtune.planning.broadcast import needed_bits
from airtune.rounds.bills import ClientReading
from airtune.rounds.cell import Cell, Situation
from airtune.rounds.cohort import may_be_cut
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

    each: Mapping[int, ClientReading] = field(default_factory=dict)
    """Of the clients that read, by their places in the scenario's order."""
    downlink_bits: float = 0.0
    """Of the broadcast that they read in, sent once."""

    @property
    def time_s(self) -> float:
        """On the virtual clock: until the slowest one has read."""
        return max((one.downlink_s + one.compute_s for one in self.each.values()), default=0.0)

    @property
    def flops(self) -> float:
        """Of all clients."""
        return sum(one.flops for one in self.each.values())


def reading_of(
    cell: Cell,
    refit: Refit | None,
    situation: Situation,
    profiles: Sequence[DeviceProfile],
) -> Reading:
    """Count the reading of a round.

    Args:
        cell: the run's.
        refit: the round's.
        situation: the round's, of all clients.
        profiles: of all clients.

    Returns:
        One of nobody in a round without, and where no client may be cut.
    """
    if refit is None or refit.round != situation.round:
        return Reading()
    reads = np.array(may_be_cut(cell))
    if not reads.any():
        return Reading()
    whole = replace(situation.modes[0], rank=rank_of(refit.adapter))
    bits = float(needed_bits(cell.scenario, situation.shape, [whole], 0.0, 0)[0][0])
    air = situation.air or situation.link.air
    downlink_s = bits / float(air.downlink_rate_bps[reads].min())
    each = {}
    for k in np.flatnonzero(reads).tolist():
        flops = cell.federation.clients[k].rereading_flops
        each[k] = ClientReading(downlink_s, bits, compute_s(flops, profiles[k]), flops)
    return Reading(each, bits)
