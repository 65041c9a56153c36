"""The broadcast that opens a round: what each client needs of it, and when it has it.

It is sent once, at the rate of the slowest client that listens, so that it couples the clients'
choices. A round is planned for each way in which it can end up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airtune.assignment import Mode
from airtune.channel import ChannelState
from airtune.merging.rules import rule_of
from airtune.models.workload import HEADER_BITS, ModelShape, full_sizes, payload_bits
from airtune.planning.problem import PlanningProblem
from airtune.scenario import Scenario

FloatArray = NDArray[np.float64]

SCALE_BITS = 32
"""Of each rank's scale, where a change is sent in few bits: float32, as `adapters.few_bits`."""


@dataclass(frozen=True, eq=False)
class Link:
    """What the air offers the clients of one round, and the broadcast that opens it.

    The broadcast is sent once, at the rate of the slowest client that listens: who sits the round
    out delays no other. Where the adapter's change is sent in few bits, it comes first, and then
    the whole adapter for those who do not hold what changed.

    Attributes:
        air: the round's channel.
        needed_bits: (K,) what each client needs of the broadcast. Ranks are sent in order, the
            first ones first.
        needs_whole: (K,) whether it needs the whole adapter where others need the change alone.
        held_ranks: (K,) how many ranks of the last broadcast's adapter each client holds.
    """

    air: ChannelState
    needed_bits: FloatArray
    needs_whole: NDArray[np.bool_]
    held_ranks: NDArray[np.intp]

    def rate_bps(self, listens: NDArray[np.bool_]) -> float:
        """Return the broadcast's rate, bit/s; `listens` is (K,), at least one of them True."""
        return float(self.air.downlink_rate_bps[listens].min())

    def bits(self, listens: NDArray[np.bool_]) -> float:
        """Return what is sent once to all who listen: what the largest of their ranks needs."""
        return float(self.received_bits(listens).max())

    def received_bits(self, listens: NDArray[np.bool_]) -> FloatArray:
        """Return (K,) what is sent until each client has what it needs; 0 without listening."""
        change = float(self.needed_bits[listens & ~self.needs_whole].max(initial=0.0))
        return np.where(listens, self.needed_bits + np.where(self.needs_whole, change, 0.0), 0.0)

    def needed_s(self, listens: NDArray[np.bool_]) -> FloatArray:
        """Return (K,) when each client has what it needs, s; 0 for one that does not listen."""
        return self.received_bits(listens) / self.rate_bps(listens)

    @property
    def everyone(self) -> NDArray[np.bool_]:
        """(K,) True: all clients listen."""
        return np.ones(self.needed_bits.size, dtype=bool)


def link_of(
    scenario: Scenario,
    shape: ModelShape,
    modes: Sequence[Mode],
    air: ChannelState,
    missed_bits: Sequence[float] = (),
    held_ranks: Sequence[int] = (),
) -> Link:
    """Return what each client needs of the round's broadcast: the full model's adapter.

    Args:
        scenario: precision on the air, merging rule.
        shape: of the full model.
        modes: one a client; its rank and trained factors are what it needs.
        air: the round's channel.
        missed_bits: what each client lacks of the merged updates, where clients merge them into
            their base. The newest are sent first. One that lacks none is sent a header alone;
            (): nobody lacks any.
        held_ranks: how many ranks of the last broadcast's adapter each client holds; (): none.
    """
    missed = missed_bits or [0.0] * len(modes)
    held = np.array(held_ranks or [0] * len(modes), dtype=np.intp)
    needs = [
        needed_bits(scenario, shape, [mode], bits or float(HEADER_BITS), int(ranks))
        for mode, bits, ranks in zip(modes, missed, held, strict=True)
    ]
    bits, whole = (np.concatenate(parts) for parts in zip(*needs, strict=True))
    return Link(air, bits, whole, held)


def needed_bits(
    scenario: Scenario,
    shape: ModelShape,
    modes: Sequence[Mode],
    restart_bits: float,
    held_ranks: int,
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Return what a client in each of the modes needs of the broadcast, bit, and of which part.

    The second array says where it needs the whole adapter while the change is sent to others: in
    modes of more ranks than it holds of the adapter that changes.

    Args:
        scenario: precision on the air, merging rule.
        shape: of the full model.
        modes: their ranks and trained factors decide.
        restart_bits: what the client needs where clients restart, whatever its mode.
        held_ranks: how many ranks of the last broadcast's adapter it holds.
    """
    section, sizes = scenario.aggregation, full_sizes(shape)
    few_bits = section.downlink_change_bits
    whole = np.array([few_bits is not None and mode.rank > held_ranks for mode in modes])
    if rule_of(scenario).restarts:
        return np.full(len(modes), restart_bits), whole
    sent = [
        replace(mode, bits_per_value=section.payload_bits_per_value, bits_per_scale=0)
        if few_bits is None or needs_whole
        else replace(mode, bits_per_value=few_bits, bits_per_scale=SCALE_BITS)
        for mode, needs_whole in zip(modes, whole, strict=True)
    ]
    return np.array([payload_bits(shape, sizes, mode) for mode in sent]), whole


@dataclass(frozen=True, eq=False)
class Offer:
    """What a client may be told, one entry a mode: the mode, and what it needs of the broadcast."""

    modes: tuple[Mode, ...]
    needed_bits: FloatArray
    needs_whole: NDArray[np.bool_]


@dataclass(frozen=True)
class Broadcast:
    """One way in which the round's broadcast can end up: what is planned with."""

    rate_bps: float
    """Slower clients sit out."""
    change_rank: int
    """Ranks of the change in few bits; clients that need the change alone train no more."""
    change_bits: float
    """What the others wait for before the whole adapter comes."""


def offer_of(
    scenario: Scenario, shape: ModelShape, modes: tuple[Mode, ...], link: Link, client: int
) -> Offer:
    """Return what a client may be told, and what it then needs of the broadcast."""
    restart_bits, held_ranks = float(link.needed_bits[client]), int(link.held_ranks[client])
    return Offer(modes, *needed_bits(scenario, shape, modes, restart_bits, held_ranks))


def broadcasts(link: Link, absent_costs: FloatArray, offers: Sequence[Offer]) -> list[Broadcast]:
    """Return what the broadcast can be: a rate for each client that can be the slowest.

    Where some wait for the whole adapter behind the change for the others, also a rank of the
    change for each that can be its largest, 0 for none.
    """
    rates = link.air.downlink_rate_bps
    everyone = float(rates.min())
    needed = float(rates[~np.isfinite(absent_costs)].min(initial=np.inf))
    at_rates = sorted({float(rate) for rate in rates if rate <= needed} | {everyone})
    change = {
        mode.rank: float(bits)
        for own in offers
        for mode, bits, whole in zip(own.modes, own.needed_bits, own.needs_whole, strict=True)
        if not whole
    }
    if not any(own.needs_whole.any() for own in offers):
        change = {max(change): 0.0}
    else:
        change |= {0: 0.0}
    return [
        Broadcast(rate, rank, bits)
        for rate in at_rates
        for rank, bits in sorted(change.items(), reverse=True)
    ]


def heard_modes(
    asked: PlanningProblem, offers: Sequence[Offer], link: Link, sent: Broadcast
) -> PlanningProblem:
    """Return the problem at one broadcast: slower clients sit out, the others wait for theirs.

    What a client needs of the broadcast depends on its rank, so that the wait is part of its mode.
    """
    assert asked.modes is not None
    rates = link.air.downlink_rate_bps
    modes = tuple(
        tuple(
            replace(mode, compute_fixed_s=mode.compute_fixed_s + wait)
            if rates[k] >= sent.rate_bps and (whole or offered.rank <= sent.change_rank)
            else replace(mode, min_pruning=np.inf)
            for mode, offered, wait, whole in zip(
                costed or (), own.modes, waits_s(own, sent), own.needs_whole, strict=True
            )
        )
        for k, (costed, own) in enumerate(zip(asked.modes, offers, strict=True))
    )
    return replace(asked, modes=modes)


def waits_s(own: Offer, sent: Broadcast) -> FloatArray:
    """Return when each of a client's modes has what it needs of the broadcast, s."""
    before = np.where(own.needs_whole, sent.change_bits, 0.0)
    return (own.needed_bits + before) / sent.rate_bps
