"""Values in an impossible unit are refused; for improbable ones the likely unit is named.

For what people write: problems that programs make, scaled as they like, are not checked here.
"""

from __future__ import annotations

import numpy as np

from airtune.errors import InputError
from airtune.planning.problem import Plan, PlanningProblem
from airtune.units import LEAST_BANDWIDTH_HZ, LEAST_SNR_HZ

# A client's part, or a round, of more than a day is more often a wrong unit than meant.
_DAY_S = 86_400.0
# Below one resource block or so: more likely MHz written as Hz.
_NARROW_HZ = 100e3
# Not even a message's header (models/workload.py): more likely Mbit written as bits.
_FEW_BITS = 1000.0
# Over the whole band; below it even the lowest modulation needs a hundredth of the band.
_WEAK_DB = -40.0
# With a wrong unit every client has the same doubt; a few lines say it.
_MOST_DOUBTS = 5


def check_units(problem: PlanningProblem) -> None:
    """Refuse a band and received powers below the floors that scenarios have too.

    Raises:
        InputError: names the client and guesses the unit that was meant.
    """
    band = problem.bandwidth_hz
    if band < LEAST_BANDWIDTH_HZ:
        raise InputError(
            f"bandwidth_hz: {band!r} is not allowed; allowed: {LEAST_BANDWIDTH_HZ:g} Hz or more "
            f"({band:g} MHz? Then write {1e6 * band:g})"
        )
    weak = problem.snr_hz < LEAST_SNR_HZ
    if weak.any():
        first = int(np.argmax(weak))
        snr = float(problem.snr_hz[first])
        meant = band * 10.0 ** (snr / 10.0)
        guess = f"; {snr:g} dB? Over the whole band that is {meant:.3g}" if snr > 0 else ""
        raise InputError(
            f"client {problem.names[first]!r}: snr_hz {snr!r} is not allowed; allowed: "
            f"{LEAST_SNR_HZ:g} Hz or more (received power over noise density, in Hz{guess})"
        )


def doubts(problem: PlanningProblem, made: Plan | None = None) -> list[str]:
    """Return what is possible but hardly meant, a line each with a guess; at most a few.

    Args:
        problem: as it was written.
        made: its plan, where there is one.
    """
    found = []
    band = problem.bandwidth_hz
    if band < _NARROW_HZ:
        found.append(f"bandwidth_hz: {band:g} Hz is a narrow band: {band / 1e3:g} MHz?")
    over_band_db = 10.0 * np.log10(np.maximum(problem.snr_hz, 1e-300) / band)
    for k, name in enumerate(problem.names):
        if over_band_db[k] < _WEAK_DB:
            found.append(
                f"client {name!r}: snr_hz {problem.snr_hz[k]:g} is {over_band_db[k]:.0f} dB over "
                f"the whole band: was it written in another unit?"
            )
        for field in ("downlink_s", "compute_fixed_s", "compute_full_s"):
            seconds = float(getattr(problem, field)[k])
            if seconds > _DAY_S:
                found.append(
                    f"client {name!r}: {field} {seconds:g} s is {seconds / 3600:.3g} h: "
                    f"{seconds:g} ms?"
                )
        bits = float(problem.payload_fixed_bits[k] + problem.payload_full_bits[k])
        if 0 < bits < _FEW_BITS:
            found.append(f"client {name!r}: a payload of {bits:g} bits: {bits:g} Mbit?")
    if made is not None and made.round_latency_s > _DAY_S:
        found.append(
            f"one round takes {made.round_latency_s / 3600:.3g} h: are bandwidth_hz, snr_hz and "
            "the payloads in Hz and bits?"
        )
    if len(found) > _MOST_DOUBTS:
        found = [*found[:_MOST_DOUBTS], f"… and {len(found) - _MOST_DOUBTS} more of this kind"]
    return found
