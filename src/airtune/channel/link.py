"""The link budget and Shannon's rate."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from airtune.units import FloatArray


def snr_hz_db(
    *,
    power_dbm: ArrayLike,
    loss_db: ArrayLike,
    noise_density_dbm_hz: float,
    noise_figure_db: float,
    gap_db: float,
) -> FloatArray:
    """Return received power over noise density, p g / (N0 F gap), in dB relative to 1 Hz.

    In decibels: power - loss - (N0 + F) - gap. Less 10 log10(band) it is the SNR in that band.
    The gap to capacity divides the SNR, as for uncoded or imperfectly coded modulation.
    Antenna gains are 0 dBi and interference from other cells is ignored.
    """
    received_dbm = np.asarray(power_dbm, dtype=np.float64) - np.asarray(loss_db, dtype=np.float64)
    return received_dbm - (noise_density_dbm_hz + noise_figure_db + gap_db)


def rate_bps(
    bandwidth_hz: ArrayLike, snr_hz: ArrayLike, max_spectral_efficiency: ArrayLike = np.inf
) -> FloatArray:
    """Return b min(log2(1 + s/b), eta), bit/s: Shannon's rate with a spectral-efficiency cap.

    Increasing and concave in b, bounded by s/ln 2, and 0 where b is 0. Arguments broadcast.

    Args:
        bandwidth_hz: b, Hz, not negative.
        snr_hz: s, received power over noise density, Hz.
        max_spectral_efficiency: eta, bit/s/Hz; infinite where there is no cap.
    """
    band, snr, cap = np.broadcast_arrays(
        np.asarray(bandwidth_hz, dtype=np.float64),
        np.asarray(snr_hz, dtype=np.float64),
        np.asarray(max_spectral_efficiency, dtype=np.float64),
    )
    used = band > 0
    ratio = np.divide(snr, band, out=np.zeros(band.shape), where=used)
    # log1p keeps its digits where the SNR in the band is far below 1.
    return np.where(used, band * np.minimum(np.log1p(ratio) / np.log(2.0), cap), 0.0)
