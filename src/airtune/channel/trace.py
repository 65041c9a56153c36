"""Recorded link capacity: trace files in mahimahi's format.

One whole number a line: the millisecond at which the link can deliver 1500 bytes, counted from
the beginning of the trace, in order; a number is repeated where several packets fit into one
millisecond. The trace starts over when it ends: its last timestamp is its period.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airtune.encoding import read_text
from airtune.errors import InputError
from airtune.units import BITS_PER_BYTE

PACKET_BITS = 1500 * BITS_PER_BYTE

WINDOW_MS = 10_000
"""How much of the trace stands for one round: about as long as an upload takes."""

_MOST_DIGITS = 15  # thirty thousand years of milliseconds, and far inside 64 bits


@dataclass(frozen=True, eq=False)
class Trace:
    """Delivery opportunities of one link direction.

    Attributes:
        path: the file it was read from.
        timestamps_ms: (N,) non-decreasing integers, read-only, the last one positive.
    """

    path: str
    timestamps_ms: NDArray[np.int64] = field(repr=False)

    @property
    def period_ms(self) -> int:
        """The time after which the trace starts over."""
        return int(self.timestamps_ms[-1])

    def round_rate_bps(self, round: int, *, start_ms: int = 0) -> float:
        """Return the capacity of one round, bit/s: the mean over that round's window.

        Round r sees the window from start_ms + r WINDOW_MS, around the end of the trace where
        need be. Where the window has no opportunity at all, the link is out of reach and the
        sender waits: the window then reaches to the next opportunity, so that an outage is a
        low rate and never a rate of 0.
        """
        begin = start_ms + round * WINDOW_MS
        packets = int(self._delivered(begin + WINDOW_MS) - self._delivered(begin))
        if packets:
            return packets * PACKET_BITS * 1000.0 / WINDOW_MS
        return PACKET_BITS * 1000.0 / (self._next_after(begin + WINDOW_MS) - begin)

    def busiest_rate_bps(self) -> float:
        """Return an upper bound on every round's capacity, bit/s, attained by some window."""
        begin = self.timestamps_ms - 1
        packets = self._delivered(begin + WINDOW_MS) - self._delivered(begin)
        # An outage's last window holds a single packet in more than WINDOW_MS: never the most.
        return float(packets.max()) * PACKET_BITS * 1000.0 / WINDOW_MS

    def _delivered(self, time_ms: int | NDArray[np.int64]) -> NDArray[np.int64]:
        """Opportunities up to and including a time, over all repetitions since time 0."""
        loops, rest = np.divmod(time_ms, self.period_ms)
        return loops * self.timestamps_ms.size + np.searchsorted(self.timestamps_ms, rest, "right")

    def _next_after(self, time_ms: int) -> int:
        loops, rest = divmod(time_ms, self.period_ms)
        # `rest` is below the period, which is the last timestamp: there is always one more.
        position = np.searchsorted(self.timestamps_ms, rest, "right")
        return loops * self.period_ms + int(self.timestamps_ms[position])


def read_trace(path: str | Path) -> Trace:
    """Read a mahimahi trace; empty lines at the end are allowed.

    Raises:
        InputError: the file cannot be read, is empty, covers no time, or a line is not a whole
            number of milliseconds or goes back in time; the message gives the line's number.
    """
    try:
        lines = read_text(path).rstrip().splitlines()
    except OSError as error:
        raise InputError(f"cannot read trace '{path}': {error.strerror}") from None
    except InputError as error:
        raise InputError(f"cannot read trace '{path}': {error}") from None
    if not lines:
        raise InputError(f"{path}: the trace is empty; one millisecond timestamp a line is needed")
    timestamps = np.empty(len(lines), dtype=np.int64)
    previous = 0
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
            raise InputError(
                f"{path}, line {number}: {line[:60]!r} is not a timestamp in whole milliseconds"
            )
        if int(text) < previous:
            raise InputError(
                f"{path}, line {number}: {text} ms comes after {previous} ms; "
                f"timestamps must not decrease"
            )
        timestamps[number - 1] = previous = int(text)
    if previous == 0:
        raise InputError(f"{path}: all timestamps are 0 ms; the last one is the trace's length")
    timestamps.flags.writeable = False
    return Trace(str(path), timestamps)
