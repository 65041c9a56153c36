"""Conversions between decibels and ratios, bytes and bits: here, nowhere else.

Everything inside the package is in SI units: Hz, W, s, m, bit, FLOP. Decibels appear only in
what users write, in link budgets (which add up in dBm, so that watts are never needed) and in
reports, and the name then says so (`_db`, `_dbm`).
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

BITS_PER_BYTE = 8
SPEED_OF_LIGHT_M_S = 299_792_458.0
LEAST_BANDWIDTH_HZ = 1_000.0
"""A smaller band was written in kHz or MHz: the narrowest uplink of a mobile network is NB-IoT's
single tone of 3.75 kHz (3GPP TS 36.211, clause 10.1)."""
LEAST_SNR_HZ = 100.0
"""A smaller received power over noise density was written in dB: at most 144 bit/s cross such a
link (s/ln 2), whatever the band."""
LEAST_TOLERANCE = 1e-12
"""Of a relative gap: sums of 64-bit numbers over some thousand clients are no more exact."""


@overload
def db_to_linear(value_db: float) -> float: ...
@overload
def db_to_linear(value_db: FloatArray) -> FloatArray: ...
def db_to_linear(value_db: float | FloatArray) -> float | FloatArray:
    """Return the power ratio 10^(x/10) of x dB; a number gives a number, an array an array."""
    return _like(value_db, np.power(10.0, np.asarray(value_db, dtype=np.float64) / 10.0))


@overload
def linear_to_db(ratio: float) -> float: ...
@overload
def linear_to_db(ratio: FloatArray) -> FloatArray: ...
def linear_to_db(ratio: float | FloatArray) -> float | FloatArray:
    """Return 10 log10(x) dB of a power ratio.

    Raises:
        ValueError: a ratio is zero, negative or not a number: it has no decibels.
    """
    values = np.asarray(ratio, dtype=np.float64)
    if not np.all(values > 0):
        raise ValueError(f"a power ratio must be positive to have decibels, got {ratio!r}")
    return _like(ratio, 10.0 * np.log10(values))


def _like(given: ArrayLike, result: FloatArray) -> float | FloatArray:
    return result if isinstance(given, np.ndarray) else float(result)
