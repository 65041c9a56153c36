"""The uplink rate r(b) = b·min(η, log2(1 + s/b)) and its inverse, vectorised and without overflow.

s is ``snr_hz`` (received power over noise density), so the SNR in a band b is z = s/b. r is
increasing and concave in b, and never exceeds s/ln 2. η (``max_spectral_efficiency``, bit/s/Hz) is
the efficiency of the best modulation and coding scheme; infinity where there is none.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

LN2 = float(np.log(2.0))

# Below this SNR, ln(1+z) − z/(1+z) would cancel; its series does not.
_SERIES_SNR = 0.02

Array = NDArray[np.float64]


def rate_of_band(
    bandwidth_hz: ArrayLike, snr_hz: ArrayLike, efficiency: ArrayLike = np.inf
) -> Array:
    """Return r(b) = b·min(η, log2(1 + s/b)), bit/s: Shannon's rate with a cap on its efficiency.

    Increasing and concave in b, bounded by s/ln 2; 0 where the band or the received power is 0.
    Arguments broadcast.

    Args:
        bandwidth_hz: b, Hz, not negative.
        snr_hz: s, received power over noise density, Hz.
        efficiency: η, bit/s/Hz; infinite where there is no cap.
    """
    band = np.asarray(bandwidth_hz, dtype=np.float64)
    snr_hz = np.asarray(snr_hz, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        snr = np.where(band > 0, snr_hz / band, np.inf)
        # snr can overflow to infinity for a vanishing band; there log2(s) - log2(b) is exact.
        spectral = np.where(np.isfinite(snr), np.log1p(snr) / LN2, np.log2(snr_hz) - np.log2(band))
        return np.where(band > 0, band * np.minimum(spectral, efficiency), 0.0)


def snr_of_share(share: Array) -> Array:
    """Return the z > 0 with ln(1 + z)/z = Γ, for Γ in (0, 1); infinity at Γ = 0, 0 at Γ >= 1.

    In closed form z = −W₋₁(−Γ·e^(−Γ))/Γ − 1 (lower branch of Lambert's W). The start is the upper
    bound −W₋₁(−e^(−u−1)) <= 1 + √(2u) + u (Chatzigeorgiou, IEEE Comm. Letters 17(8), 2013), from
    which Halley's steps converge without overshooting; three reach rounding error.

    Args:
        share: Γ = r·ln 2/s, the rate as a share of the largest one that any band gives.
    """
    # A share of 1e-100 takes no band worth the name, and its square is still a double.
    gamma = np.where(share > 0, np.maximum(share, 1e-100), 0.0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        lack = gamma - 1.0
        # u = Γ − 1 − ln Γ: near 1 the logarithm of 1 + (Γ − 1) keeps the digits, near 0 that of Γ.
        u = np.maximum(lack - np.where(gamma < 0.5, np.log(gamma), np.log1p(lack)), 0.0)
        z = np.maximum((1.0 + np.sqrt(2.0 * u) + u) / gamma - 1.0, -2.0 * lack)
        for _ in range(3):
            inverse = 1.0 / (1.0 + z)
            value = np.log1p(z) - gamma * z
            slope = inverse - gamma
            z = z - 2.0 * value * slope / (2.0 * slope * slope + value * inverse * inverse)
    z = np.where(gamma > 0, z, np.inf)
    return np.where(gamma < 1.0, z, 0.0)


def band_of_rate(rate_bps: Array, snr_hz: Array, efficiency: Array) -> Array:
    """Return the smallest band b (Hz) with r(b) = rate; 0 for rate 0, infinity for rate >= s/ln 2.

    b = max(s/z, rate/η) with z from :func:`snr_of_share`.
    """
    rate = np.asarray(rate_bps, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        share = np.where(rate > 0, rate * LN2 / snr_hz, 0.0)
        snr = snr_of_share(share)
        band = np.where(snr > 0, snr_hz / snr, np.inf)
        return np.where(rate > 0, np.maximum(band, rate / efficiency), 0.0)


def slope_of_snr(snr: Array, log1p: Array | None = None) -> Array:
    """Return h(z) = ln(1 + z) − z/(1 + z) = ln 2·r'(b) at z = s/b, without cancellation.

    Args:
        snr: z.
        log1p: ln(1 + z), where it is known already.
    """
    if log1p is None:
        log1p = np.log1p(snr)
    slope = log1p - snr / (1.0 + snr)
    if snr.size and snr.min() < _SERIES_SNR:
        # With v = z/(2 + z): ln(1 + z) = 2·(v + v³/3 + v⁵/5 + …) and z/(1 + z) = 2v/(1 + v).
        small = np.flatnonzero(snr < _SERIES_SNR)
        v = snr[small] / (2.0 + snr[small])
        square = v * v
        series = 2.0 * v * (v / (1.0 + v) + square * (1 / 3 + square * (1 / 5 + square / 7)))
        slope[small] = series
    return slope
