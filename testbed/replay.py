"""A recorded trace as the links follow it, and what a transfer then takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from airtune.channel.trace import Trace
from airtune.errors import InputError

TICK_S = 0.1
"""Between two changes of a link's rate."""
LEAST = 0.01
"""Of the granted rate, in an outage: a filter cannot have a rate of 0."""


@dataclass(frozen=True)
class Replay:
    """A trace that runs from the first round on, around the rates that rounds are granted.

    Attributes:
        trace: recorded capacity; it starts over at its end.
        from_s: where in the trace the first round begins.
    """

    trace: Trace
    from_s: float = 0.0

    def factor(self, time_s: float) -> float:
        """Return the capacity over the next tick relative to the trace's mean.

        Args:
            time_s: since the first round began.
        """
        mean_bps = self.trace.mean_bps(0.0, self.trace.period_ms)
        now_bps = self.trace.mean_bps((self.from_s + time_s) * 1000.0, TICK_S * 1000.0)
        return max(now_bps / mean_bps, LEAST)

    def transfer_s(self, begin_s: float, nominal_s: float) -> float:
        """Return how long a transfer takes that takes `nominal_s` at the granted rate.

        Args:
            begin_s: when it begins, since the first round began.
            nominal_s: s.
        """
        if nominal_s < 0:
            raise InputError(f"a transfer of {nominal_s} s")
        carried_s, ticks = 0.0, 0
        while True:
            factor = self.factor(begin_s + ticks * TICK_S)
            if carried_s + factor * TICK_S >= nominal_s:
                return ticks * TICK_S + (nominal_s - carried_s) / factor
            carried_s += factor * TICK_S
            ticks += 1


def shown(replay: Replay, length_s: float) -> str:
    """Return a section of the trace in numbers: its mean, least and largest relative capacity."""
    factors = np.array([replay.factor(t) for t in np.arange(0.0, max(length_s, 1.0), 1.0)])
    return (
        f"{length_s:.0f} s of the trace: capacity {factors.mean():.2f} of its mean on average, "
        f"{factors.min():.2f} to {factors.max():.2f}; {(factors <= LEAST).sum()} s without any"
    )
