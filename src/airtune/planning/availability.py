"""When each client is there: spans on the virtual clock, read from a CSV file.

    client,from_s,to_s
    jetson-orin-nano-1,0,3600
    jetson-orin-nano-1,7200,10800

A client is there from `from_s` on and no longer at `to_s`. One without a line never is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airtune.encoding import csv_lines
from airtune.errors import InputError, first_of
from airtune.units import FloatArray

COLUMNS = "client,from_s,to_s"


@dataclass(frozen=True, eq=False)
class Availability:
    """The spans in which clients are there.

    Attributes:
        path: of the file.
        clients: how many clients there are, K.
        client: (S,) each span's client, its place in the scenario's order.
        from_s: (S,) s at which the span begins.
        to_s: (S,) s at which it has ended.
    """

    path: str
    clients: int
    client: NDArray[np.int64]
    from_s: FloatArray
    to_s: FloatArray

    def at(self, time_s: float) -> NDArray[np.bool_]:
        """Return (K,) who is there at a time on the virtual clock."""
        there = np.zeros(self.clients, dtype=bool)
        there[self.client[(self.from_s <= time_s) & (time_s < self.to_s)]] = True
        return there

    def first_with(self, count: int, time_s: float) -> float | None:
        """Return the first time from `time_s` on at which `count` are there; None: never again."""
        if np.count_nonzero(self.at(time_s)) >= count:
            return time_s
        later = np.unique(self.from_s[self.from_s > time_s])
        begun = np.searchsorted(np.sort(self.from_s), later, side="right")
        ended = np.searchsorted(np.sort(self.to_s), later, side="right")
        enough = np.flatnonzero(begun - ended >= count)
        return float(later[enough[0]]) if len(enough) else None

    def most(self) -> int:
        """Return how many are there at once at most."""
        times = np.unique(self.from_s)
        begun = np.searchsorted(np.sort(self.from_s), times, side="right")
        ended = np.searchsorted(np.sort(self.to_s), times, side="right")
        return int((begun - ended).max())

    def never(self) -> int:
        """Return how many clients have no span."""
        return self.clients - len(np.unique(self.client))


def read_availability(path: str | Path, names: Sequence[str]) -> Availability:
    """Read the spans of the clients of these names; a client may also be given as 1 to K.

    Raises:
        InputError: the file cannot be read, a line is malformed, a client is unknown, or two of
            its spans overlap; with the file and the line's number.
    """
    lines = csv_lines(path, "participation.availability")
    header = [field.strip() for field in lines[0][1]] if lines else []
    if header != COLUMNS.split(","):
        raise InputError(f"{path}, line 1: the columns {','.join(header)!r}; allowed: {COLUMNS}")
    if len(lines) == 1:
        raise InputError(f"{path}: no client is ever there: the file has no line of a span")
    clients = {name: k for k, name in enumerate(names)}
    clients |= {str(k + 1): k for k in range(len(names)) if str(k + 1) not in clients}
    spans = [_span(path, number, fields, clients, names) for number, fields in lines[1:]]
    _check_overlaps(path, spans, names)
    return Availability(
        path=str(path),
        clients=len(names),
        client=np.array([span.client for span in spans], dtype=np.int64),
        from_s=np.array([span.from_s for span in spans]),
        to_s=np.array([span.to_s for span in spans]),
    )


@dataclass(frozen=True)
class _Span:
    client: int
    from_s: float
    to_s: float
    line: int


def _span(
    path: str | Path,
    number: int,
    fields: Sequence[str],
    clients: Mapping[str, int],
    names: Sequence[str],
) -> _Span:
    place = f"{path}, line {number}"
    if len(fields) != 3:
        raise InputError(f"{place}: {len(fields)} fields; allowed: {COLUMNS}")
    name, start, end = (field.strip() for field in fields)
    if name not in clients:
        raise InputError(
            f"{place}: no client {name!r}; allowed: {first_of(names)}, or 1 to {len(names)}"
        )
    from_s, to_s = _time(place, "from_s", start), _time(place, "to_s", end)
    if to_s <= from_s:
        raise InputError(f"{place}: to_s {end!r} must be after from_s {start!r}")
    return _Span(clients[name], from_s, to_s, number)


def _time(place: str, column: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise InputError(f"{place}: {column} {text!r}; allowed: s on the virtual clock, 0 or more")
    return value


def _check_overlaps(path: str | Path, spans: Sequence[_Span], names: Sequence[str]) -> None:
    ordered = sorted(spans, key=lambda span: (span.client, span.from_s, span.line))
    for before, after in pairwise(ordered):
        if before.client == after.client and after.from_s < before.to_s:
            raise InputError(
                f"{path}, line {after.line}: the span of {names[after.client]} from "
                f"{after.from_s:g} s overlaps that of line {before.line}, which ends at "
                f"{before.to_s:g} s"
            )
