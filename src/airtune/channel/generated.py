"""Traces that are generated and not recorded, by name: for scenarios that come without files.

`generated-drive`: a link as a moving car may have it, 900 s in steps of 1 s. The rate is log-normal
about a median of 2 Mbit/s (standard deviation 0.6 of its natural logarithm) and correlated over
time, exp(−1/10) from one second to the next; it is 0 in outages, which begin with probability
1/60 and end with 1/5 in each second (Gilbert 1960; Elliott 1963). All four numbers are chosen,
none is measured. Read a trace of your own for results on a real link.
"""

from __future__ import annotations

import math

import numpy as np

from airtune.channel.capacity import RateTrace
from airtune.randomness import generator

NAMES = ("generated-drive",)

SECONDS = 900
MEDIAN_BPS = 2e6
SPREAD = 0.6
CORRELATION = math.exp(-1 / 10)
OUTAGE_BEGINS, OUTAGE_ENDS = 1 / 60, 1 / 5


def generated(name: str) -> RateTrace:
    """Return a generated trace; the same one every time.

    Raises:
        KeyError: there is none of this name.
    """
    if name not in NAMES:
        raise KeyError(name)
    draws = generator(0, name)
    noise = draws.standard_normal(SECONDS)
    chances = draws.random(SECONDS)
    level, out = noise[0], False
    rates_bps = np.empty(SECONDS, dtype=np.float64)
    for second in range(SECONDS):
        if second:
            level = CORRELATION * level + math.sqrt(1 - CORRELATION**2) * noise[second]
        out = chances[second] >= OUTAGE_ENDS if out else chances[second] < OUTAGE_BEGINS
        rates_bps[second] = 0.0 if out else MEDIAN_BPS * math.exp(SPREAD * level)
    edges_ms = 1000.0 * np.arange(SECONDS + 1, dtype=np.float64)
    for array in (edges_ms, rates_bps):
        array.flags.writeable = False
    return RateTrace(name, edges_ms, rates_bps, columns="generated, not recorded")
