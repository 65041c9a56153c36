"""The virtual clock of rounds that are not synchronous: turns of clients, and the next event.

A turn is one client's work from the adapter that it began with to its answer at the server: it
receives, computes, and sends. Receiving and computing take as long as they take; what is sent takes
as long as its share of the band lets it. The shares change when an upload begins or ends, and only
then: rates are constant in between, and an upload of u bits ends when the sum of rate x time is u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.channel.rate import rate_of_band
from airtune.units import FloatArray

ROUNDING = 1e-9
"""Share of an upload that counts as nothing left: what sums of rate x time lose."""

Bands = Callable[[Sequence["Turn"]], FloatArray]
"""The bands of those who send, Hz."""


@dataclass(frozen=True)
class Turn:
    """One client's work, from the adapter that it began with to its answer."""

    client: int
    """Its place in the scenario's order of clients."""
    number: int
    """Its n-th turn, counted from 1: names its draws of channel and batches."""
    start_round: int
    """Merges that had been made when it began."""
    started_s: float
    downlink_s: float
    compute_s: float
    uplink_bits: float
    """0 where its work failed: it then sends nothing."""
    snr_hz: float
    efficiency: float | None
    """bit/s/Hz at most on its uplink; None where there is no cap."""
    sent_bits: float = 0.0
    band_hz_s: float = 0.0
    """The sum of its bands, each times how long it had it, Hz s."""
    ended_s: float | None = None
    """When its answer was at the server; None: not yet."""
    can_be_merged: bool = True
    """Whether its answer fills a place in a merge; False also where its work failed."""

    @property
    def ready_s(self) -> float:
        """When it begins to send."""
        return self.started_s + self.downlink_s + self.compute_s

    @property
    def left_bits(self) -> float:
        """What it has still to send."""
        return self.uplink_bits - self.sent_bits


def arrays_of(sending: Sequence[Turn]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (K,) SNR in Hz, largest efficiency, and bits still to send."""
    return (
        np.array([turn.snr_hz for turn in sending]),
        np.array([np.inf if turn.efficiency is None else turn.efficiency for turn in sending]),
        np.array([turn.left_bits for turn in sending]),
    )


def advance(turns: Sequence[Turn], now_s: float, bands: Bands) -> tuple[float, tuple[Turn, ...]]:
    """Return the time of the next event and the turns at that time.

    An event is the moment at which an upload begins or ends; uploads that end together are one.

    Args:
        turns: at least one of them has not ended.
        now_s: the time of the last event.
        bands: shares the uplink among those who send from now to the next event.
    """
    at_work = [turn for turn in turns if turn.ended_s is None]
    sending = [turn for turn in at_work if turn.ready_s <= now_s]
    silent = {id(turn) for turn in sending if turn.left_bits <= 0}
    if silent:  # nothing to send: its end is now
        return now_s, tuple(replace(t, ended_s=now_s) if id(t) in silent else t for t in turns)
    begins_s = min((turn.ready_s for turn in at_work if turn.ready_s > now_s), default=np.inf)
    if not sending:
        return float(begins_s), tuple(turns)
    band = bands(sending)
    snr_hz, efficiency, left = arrays_of(sending)
    rate = rate_of_band(band, snr_hz, efficiency)
    ends_s = float((left / rate).min())
    length_s = min(ends_s, float(begins_s) - now_s)
    next_s = float(begins_s) if length_s < ends_s else now_s + ends_s
    moved = {}
    for turn, hz, bps in zip(sending, band.tolist(), rate.tolist(), strict=True):
        sent = turn.sent_bits + bps * length_s
        over = turn.uplink_bits - sent <= ROUNDING * turn.uplink_bits
        moved[id(turn)] = replace(
            turn,
            sent_bits=turn.uplink_bits if over else sent,
            band_hz_s=turn.band_hz_s + hz * length_s,
            ended_s=next_s if over else None,
        )
    return next_s, tuple(moved.get(id(turn), turn) for turn in turns)
