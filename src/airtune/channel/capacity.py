"""Recorded capacity of one link direction over time, and what a round sees of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from airtune.units import BITS_PER_BYTE, FloatArray

PACKET_BITS = 1500 * BITS_PER_BYTE

WINDOW_MS = 10_000
"""How much of the trace stands for one round: about as long as an upload takes."""

OUTAGE_MS = 1000
"""In a trace of packets: no delivery for this long is an outage."""


@dataclass(frozen=True, eq=False)
class Trace(ABC):
    """Capacity of one link direction; the trace starts over when it ends.

    Attributes:
        path: the file it was read from.
    """

    path: str

    @property
    @abstractmethod
    def period_ms(self) -> float:
        """The time after which the trace starts over."""

    @property
    @abstractmethod
    def read_as(self) -> str:
        """What the file's lines were taken for, in words."""

    @abstractmethod
    def delivered_bits(self, time_ms: float | FloatArray) -> FloatArray:
        """Return what could be delivered up to and including a time, bit, over all repetitions."""

    @abstractmethod
    def outages_s(self) -> FloatArray:
        """Return the length of each time without capacity in one period, s."""

    @abstractmethod
    def _starts_ms(self) -> FloatArray:
        """Return the windows' beginnings of which one delivers the most, ms."""

    @abstractmethod
    def _packet_after(self, time_ms: float) -> float:
        """Return when the first whole packet after a time is delivered, ms."""

    def mean_bps(self, begin_ms: float, length_ms: float) -> float:
        """Return the mean capacity over an interval, bit/s."""
        bits = self.delivered_bits(begin_ms + length_ms) - self.delivered_bits(begin_ms)
        return float(bits) * 1000.0 / length_ms

    def round_rate_bps(self, round: int, *, start_ms: int = 0) -> float:
        """Return the capacity of one round, bit/s: the mean over that round's window.

        Round r sees the window from start_ms + r WINDOW_MS, around the end of the trace where
        need be. Where the window does not deliver one packet, the link is out of reach and the
        sender waits: the window then reaches to the packet's delivery, so that an outage is a
        low rate and never a rate of 0.
        """
        begin = start_ms + round * WINDOW_MS
        bits = float(self.delivered_bits(begin + WINDOW_MS) - self.delivered_bits(begin))
        if bits >= PACKET_BITS:
            return bits * 1000.0 / WINDOW_MS
        return PACKET_BITS * 1000.0 / max(self._packet_after(begin) - begin, WINDOW_MS)

    def busiest_rate_bps(self) -> float:
        """Return an upper bound on every round's capacity, bit/s.

        Some window attains it, or no window delivers more than one packet.
        """
        begin = self._starts_ms()
        bits = self.delivered_bits(begin + WINDOW_MS) - self.delivered_bits(begin)
        return max(float(bits.max()), PACKET_BITS) * 1000.0 / WINDOW_MS


@dataclass(frozen=True, eq=False)
class PacketTrace(Trace):
    """Delivery opportunities of 1500 bytes each.

    Attributes:
        timestamps_ms: (N,) non-decreasing integers, read-only, the last one positive.
    """

    timestamps_ms: NDArray[np.int64] = field(repr=False)

    @property
    def period_ms(self) -> int:
        """The last timestamp."""
        return int(self.timestamps_ms[-1])

    @property
    def read_as(self) -> str:
        """Mahimahi's format."""
        return "mahimahi: each line the millisecond at which 1500 bytes can be delivered"

    def delivered_bits(self, time_ms: float | FloatArray) -> FloatArray:
        """Return the packets up to and including a time, in bit, over all repetitions."""
        loops, rest = np.divmod(time_ms, self.period_ms)
        packets = loops * self.timestamps_ms.size + np.searchsorted(
            self.timestamps_ms, rest, "right"
        )
        return np.asarray(packets * float(PACKET_BITS))

    def outages_s(self) -> FloatArray:
        """Return each time of OUTAGE_MS or longer between deliveries, s, also around the end."""
        first = self.timestamps_ms[:1] + self.period_ms
        silent = np.diff(self.timestamps_ms, append=first)
        return silent[silent >= OUTAGE_MS] / 1000.0

    def _starts_ms(self) -> FloatArray:
        return (self.timestamps_ms - 1).astype(np.float64)

    def _packet_after(self, time_ms: float) -> float:
        loops, rest = divmod(time_ms, self.period_ms)
        # `rest` is below the period, which is the last timestamp: there is always one more.
        position = np.searchsorted(self.timestamps_ms, rest, "right")
        return loops * self.period_ms + int(self.timestamps_ms[position])


@dataclass(frozen=True, eq=False)
class RateTrace(Trace):
    """A rate that changes at known times.

    Attributes:
        edges_ms: (N + 1,) increasing, from 0, read-only.
        rates_bps: (N,) the rate between two edges, bit/s, read-only; one is above 0.
        columns: the file's columns of time and of rate, with their units, in words.
        gaps_s: the length of each time in which nothing was recorded; it was left out.
    """

    edges_ms: FloatArray = field(repr=False)
    rates_bps: FloatArray = field(repr=False)
    columns: str = ""
    gaps_s: tuple[float, ...] = ()

    @property
    def period_ms(self) -> float:
        """The last edge."""
        return float(self.edges_ms[-1])

    @property
    def read_as(self) -> str:
        """The columns' names and units."""
        return f"table: {self.columns}"

    @property
    def _delivered(self) -> FloatArray:
        """(N + 1,) what is delivered from the beginning to each edge, bit."""
        bits = self.rates_bps * np.diff(self.edges_ms) / 1000.0
        return np.concatenate([[0.0], np.cumsum(bits)])

    def delivered_bits(self, time_ms: float | FloatArray) -> FloatArray:
        """Return the integral of the rate up to a time, bit, over all repetitions."""
        bits = self._delivered
        loops, rest = np.divmod(time_ms, self.period_ms)
        return np.asarray(loops * bits[-1] + np.interp(rest, self.edges_ms, bits))

    def outages_s(self) -> FloatArray:
        """Return how long the rate is 0 each time that it is, s; one at the end stands alone."""
        silent = np.concatenate([[False], self.rates_bps == 0, [False]])
        begin, end = (
            np.flatnonzero(~silent[:-1] & silent[1:]),
            np.flatnonzero(silent[:-1] & ~silent[1:]),
        )
        return np.asarray((self.edges_ms[end] - self.edges_ms[begin]) / 1000.0)

    def _starts_ms(self) -> FloatArray:
        # A window's bits are piecewise linear in its beginning: the most is where one end of it
        # is at an edge.
        return np.concatenate([self.edges_ms, self.edges_ms - WINDOW_MS])

    def _packet_after(self, time_ms: float) -> float:
        bits = self._delivered
        wanted = float(self.delivered_bits(time_ms)) + PACKET_BITS
        loops, rest = divmod(wanted, float(bits[-1]))
        if rest == 0:
            loops, rest = loops - 1, float(bits[-1])
        edge = int(np.searchsorted(bits, rest, "left"))
        missing_ms = (bits[edge] - rest) * 1000.0 / self.rates_bps[edge - 1]
        return float(loops * self.period_ms + self.edges_ms[edge] - missing_ms)
