"""The link budget."""

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
