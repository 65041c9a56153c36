"""What the plan knew of a channel, and what the channel is while an update goes up.

During the upload the uplink differs from what the plan knew by a log-normal factor: in dB by
σ·z, z standard normal, independent between clients and rounds (σ = `cell.csi_error_db`). The plan
may count with a channel that is weaker than what it knows by a margin m (`cell.csi_margin_db`).
Without a cap on the spectral efficiency an upload at the planned rate is then lost where σ·z < −m,
with probability Φ(−m/σ), whatever its band. Ignored: an error of the downlink, whose broadcast
arrives, and errors that are correlated in time.
"""

from __future__ import annotations

import math

import numpy as np

from airtune.channel.rate import rate_of_band
from airtune.channel.state import ChannelState
from airtune.scenario import CellSection
from airtune.units import FloatArray, db_to_linear, linear_to_db

_ROUNDING = 1e-9
"""Relative difference between two rates that is not an outage."""


def backed_off(cell: CellSection, known: ChannelState) -> ChannelState:
    """Return the channel that the plan counts with: what it knows, less the margin."""
    if cell.csi_margin_db == 0:
        return known
    return scaled(known, np.full(len(known.snr_hz), -cell.csi_margin_db))


def scaled(air: ChannelState, by_db: FloatArray) -> ChannelState:
    """Return the channel with each client's uplink changed by so many dB, (K,).

    Where a rate was recorded and no power, the rate itself is changed.
    """
    assert air.has_snr is not None
    factor = db_to_linear(by_db)
    return ChannelState(
        np.where(air.has_snr, air.snr_hz * factor, air.snr_hz),
        np.where(air.has_snr, air.max_spectral_efficiency, air.max_spectral_efficiency * factor),
        air.downlink_rate_bps.copy(),
        air.has_snr.copy(),
    )


def rate_of_client_bps(air: ChannelState, client: int, bandwidth_hz: float) -> float:
    """Return what one client's band carries, bit/s."""
    return float(
        rate_of_band(bandwidth_hz, air.snr_hz[client], air.max_spectral_efficiency[client])
    )


def falls_short(rate_bps: float, needed_bps: float) -> bool:
    """Return whether a rate is below what is needed, by more than rounding."""
    return rate_bps < needed_bps * (1.0 - _ROUNDING)


def success_probability(
    cell: CellSection, known: ChannelState, client: int, bandwidth_hz: float, needed_bps: float
) -> float:
    """Return the probability that a client's band carries a rate during the upload.

    Φ((s − s₀)/σ): s is the known SNR in dB and s₀ the one at which the band carries just that
    rate, b·(2^(r/b) − 1) over the noise. Where a rate was recorded, both are rates.

    Args:
        cell: σ, `csi_error_db`.
        known: what the plan knew, without its margin.
        client: its place in `known`.
        bandwidth_hz: its band, above 0.
        needed_bps: the rate.
    """
    assert known.has_snr is not None
    cap_bps = bandwidth_hz * float(known.max_spectral_efficiency[client])
    if known.has_snr[client]:
        if falls_short(cap_bps, needed_bps):
            return 0.0
        there = float(known.snr_hz[client])
        needed = bandwidth_hz * math.expm1(math.log(2.0) * min(needed_bps / bandwidth_hz, 1000.0))
    else:
        there, needed = cap_bps, needed_bps
    if cell.csi_error_db == 0:
        return 0.0 if falls_short(there, needed) else 1.0
    if not there / needed > 0:  # a rate that no band carries: the deadline has passed already
        return 0.0
    slack_db = float(linear_to_db(there / needed))
    return 0.5 * math.erfc(-slack_db / cell.csi_error_db / math.sqrt(2.0))
