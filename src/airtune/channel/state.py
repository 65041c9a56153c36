"""One round's channel: what the planner is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from airtune.channel.fading import fading_gain
from airtune.channel.link import rate_bps
from airtune.channel.placement import (
    MAX_TRACE_EFFICIENCY,
    Placement,
    downlink_snr_hz_db,
    uplink_snr_hz_db,
)
from airtune.channel.trace import Trace
from airtune.units import FloatArray, db_to_linear, linear_to_db

if TYPE_CHECKING:
    from airtune.scenario import CellSection, DeviceSection


@dataclass(frozen=True, eq=False)
class ChannelState:
    """The channel of one round, constant until the next.

    The uplink rate of client k in a band b is `rate_bps(b, snr_hz[k],
    max_spectral_efficiency[k])`.

    Attributes:
        round: the round it belongs to.
        snr_hz: (K,) received power over noise density on the uplink, p g/(N0 F gap), Hz.
        max_spectral_efficiency: (K,) bit/s/Hz, infinite where there is no cap. For a client
            with an uplink trace: the round's capacity over the uplink band, with `snr_hz` so
            large that this cap alone sets the rate.
        downlink_rate_bps: (K,) what each client could receive over the whole downlink, bit/s.
        fading_db: (K,) block-fading power gain, 0 dB on average in linear terms; of no effect
            in a direction that has a trace.
    """

    round: int
    snr_hz: FloatArray
    max_spectral_efficiency: FloatArray
    downlink_rate_bps: FloatArray
    fading_db: FloatArray


def draw(
    cell: CellSection,
    devices: Sequence[DeviceSection],
    placement: Placement,
    rng: np.random.Generator,
    *,
    round: int,
) -> ChannelState:
    """Draw the channel of one round.

    One fading gain a client serves both directions (channel reciprocity, as in time-division
    duplex). The base station sends one broadcast with its whole power over the whole downlink:
    client k could receive B min(log2(1 + s_k/B), eta) bit/s of it.

    Args:
        cell: the radio cell.
        devices: one entry a client.
        placement: what `place` drew for them.
        rng: the generator of this purpose and round.
        round: selects the window of a trace.
    """
    fading_db = linear_to_db(fading_gain(cell, len(devices), rng))
    loss_db = placement.loss_db - fading_db
    cap = np.inf if cell.max_spectral_efficiency is None else cell.max_spectral_efficiency
    snr_hz = db_to_linear(uplink_snr_hz_db(cell, devices, loss_db))
    efficiency = np.full(len(devices), cap)
    downlink_bps = rate_bps(
        cell.downlink_bandwidth_hz, db_to_linear(downlink_snr_hz_db(cell, loss_db)), cap
    )
    for k, start in enumerate(placement.trace_start):
        uplink, downlink = placement.uplink_traces[k], placement.downlink_traces[k]
        if uplink is not None:
            # A recorded link is shared like spectrum: a share of the band gets that share of
            # the capacity. The SNR is large enough for any capacity that `place` admits.
            efficiency[k] = _trace_rate_bps(uplink, start, round) / cell.uplink_bandwidth_hz
            snr_hz[k] = cell.uplink_bandwidth_hz * 2.0**MAX_TRACE_EFFICIENCY
        if downlink is not None:
            downlink_bps[k] = _trace_rate_bps(downlink, start, round)
    for array in (snr_hz, efficiency, downlink_bps, fading_db):
        array.flags.writeable = False
    return ChannelState(round, snr_hz, efficiency, downlink_bps, fading_db)


def broadcast_rate_bps(state: ChannelState) -> float:
    """Return the rate of the downlink broadcast, bit/s: the slowest client's, so all can follow."""
    return float(state.downlink_rate_bps.min())


def _trace_rate_bps(trace: Trace, start: float, round: int) -> float:
    return trace.round_rate_bps(round, start_ms=int(start * trace.period_ms))
