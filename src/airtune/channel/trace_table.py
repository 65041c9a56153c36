"""Traces as tables: a column of times, one or more columns of rates, each with its unit.

    time_s,download_mbit_s,upload_mbit_s
    0.0,17.596,12.348
    1.0,18.239,0

A column's unit stands at the end of its name: `time_s`, `t (ms)`, `Mbit/s`, `throughput [kbps]`.
Without a first line of names the two columns are seconds and Mbit/s. Columns are separated by
commas, semicolons, tabs or blanks.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airtune.channel.capacity import RateTrace, Trace
from airtune.errors import InputError
from airtune.units import FloatArray

GAP_STEPS = 3
"""A row holds until the next one, but where that is more than this many usual steps away, nothing
was recorded in between: the row then holds for one usual step, and the rest is left out."""

MOST_RATE_BPS = 1e15
MOST_TIME_S = 1e12
"""More than any link has, and than any clock counts."""

_FACTORS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_WORDS = {
    f"{prefix}{word}{per}": factor * bits
    for prefix, factor in _FACTORS.items()
    for word, bits in (("bit", 1.0), ("bits", 1.0), ("byte", 8.0), ("bytes", 8.0))
    for per in ("/s", "_s", "ps", "/sec", "_per_s", " per s")
}
"""bit/s of one unit, whatever its capitals."""
_LETTERS = {
    f"{prefix}{letter}{per}": _FACTORS[prefix.lower()] * bits
    for prefix in ("", "k", "K", "M", "G")
    for letter, bits in (("b", 1.0), ("B", 8.0))
    for per in ("/s", "_s", "ps")
} | {"mbps": 1e6, "gbps": 1e9}
"""Likewise, where a capital tells bytes from bits."""
_TIME_UNITS = {
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3,
    "millisecond": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "min": 60.0, "minutes": 60.0,
    "h": 3600.0, "hours": 3600.0,
}  # fmt: skip
_TIME = re.compile(
    r"^(?:(?:time|timestamp|elapsed|t|relative time)(?:\s*[(\[]|[\s_]+))?"
    rf"(?P<unit>{'|'.join(sorted(_TIME_UNITS, key=len, reverse=True))})[)\]]?$",
    re.IGNORECASE,
)
_TIME_WORDS = ("time", "timestamp", "elapsed", "t", "date", "datetime")
_RATE_WORDS = ("rate", "throughput", "bandwidth", "capacity", "speed", "bitrate", "upload",
               "download", "uplink", "downlink", "tput", "goodput")  # fmt: skip
_DIRECTIONS = {
    "uplink": re.compile(r"(?:^|[^a-z])(?:up|uplink|upload|ul|tx)(?:[^a-z]|$)"),
    "downlink": re.compile(r"(?:^|[^a-z])(?:down|downlink|download|dl|rx)(?:[^a-z]|$)"),
}
_MISSING = ("", "nan", "na", "n/a", "null", "none", "-")
_ALLOWED = (
    "allowed: a time in s, ms, us, min or h (time_s), rates in bit/s, kbit/s, Mbit/s, Gbit/s, "
    "bps, kbps, Mbps, Gbps, B/s, kB/s, MB/s, GB/s or bytes/s (rate_mbit_s)"
)


@dataclass(frozen=True)
class _Columns:
    """Which column is the time, which are rates, and what one of each unit is."""

    time: int
    time_s: float
    rates: tuple[tuple[int, str, float], ...]
    """Place, name and bit/s of one unit."""
    names: tuple[str, ...]
    named: bool


def looks_like_table(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether the first line that is not empty has several columns, or names one of rates."""
    first = next(line for _, line in lines if line.strip())
    return len(_fields(first)) > 1 or _rate_bps(first.strip()) is not None


def read_table(path: str | Path, lines: Sequence[tuple[int, str]]) -> dict[str, RateTrace]:
    """Return each column of rates as a trace, by its name.

    A row holds until the next row's time, the last one for a usual step (the median); rows of the
    same time are averaged. Where rows are missing or empty, that time is left out: `GAP_STEPS`.

    Args:
        path: for messages.
        lines: the file's, numbered, comments left out.

    Raises:
        InputError: with the file and the line's number.
    """
    rows = [(number, _fields(line)) for number, line in lines if line.strip()]
    columns = _columns_of(path, *rows[0])
    rows = rows[1:] if columns.named else rows
    times, values = _numbers(path, columns, rows)
    return {
        name: _trace(path, columns, name, times, values[:, k])
        for k, (_, name, _) in enumerate(columns.rates)
    }


def table_of_direction(
    path: str | Path, traces: Mapping[str, Trace], direction: str | None
) -> Trace:
    """Return the only trace, or the one whose name says the direction.

    Raises:
        InputError: several could be meant.
    """
    fitting = list(traces)
    if len(fitting) > 1 and direction is not None:
        fitting = [name for name in fitting if _DIRECTIONS[direction].search(name.lower())]
    if len(fitting) != 1:
        several = ", ".join(f"'{name}'" for name in traces)
        raise InputError(
            f"{path}: the columns {several} are rates; name the one that is meant after the "
            f"file's name, e.g. {path}#{next(iter(traces))}"
        )
    return traces[fitting[0]]


def _fields(line: str) -> list[str]:
    for separator in (",", ";", "\t"):
        if separator in line:
            return [field.strip().strip('"') for field in line.split(separator)]
    # Units such as "t (ms)" hold a blank: blanks separate numbers only.
    words = line.split()
    return words if all(_is_number(word) for word in words) else [line.strip()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in _MISSING
    return True


def _columns_of(path: str | Path, number: int, first: Sequence[str]) -> _Columns:
    """Read the first line: names with units, or numbers in seconds and Mbit/s."""
    place = f"{path}, line {number}"
    if all(_is_number(field) for field in first):
        if len(first) != 2:
            raise InputError(
                f"{place}: {len(first)} columns without names; allowed without a line of names: "
                "two, time in s and rate in Mbit/s"
            )
        only = ((1, "Mbit/s", 1e6),)
        return _Columns(0, 1.0, only, ("time in s", "rate in Mbit/s"), named=False)
    rates = tuple(
        (k, name, factor) for k, name in enumerate(first) if (factor := _rate_bps(name)) is not None
    )
    found = [(k, _TIME_UNITS[match["unit"].lower()]) for k, name in enumerate(first)
             if _rate_bps(name) is None and (match := _TIME.match(name))]  # fmt: skip
    for name in first:
        known = _rate_bps(name) is not None or _TIME.match(name)
        words = re.split(r"[^a-z]+", name.lower())
        wanted = ([*_TIME_WORDS] if not found else []) + ([*_RATE_WORDS] if not rates else [])
        if not known and any(word in wanted for word in words):
            raise InputError(f"{place}: column '{name}' says no known unit; {_ALLOWED}")
    if len(found) != 1 or not rates:
        raise InputError(
            f"{place}: the columns {','.join(first)!r}, of which {len(found)} are times and "
            f"{len(rates)} are rates; needed: one time and a rate; {_ALLOWED}"
        )
    if len({name for _, name, _ in rates}) < len(rates):
        raise InputError(f"{place}: two columns of rates have the same name")
    return _Columns(*found[0], rates, tuple(first), named=True)


def _rate_bps(name: str) -> float | None:
    """Return the bit/s of one unit of a column of rates; None for another column."""
    text = name.strip().rstrip(")]")
    for units, whole in ((_LETTERS, text), (_WORDS, text.lower())):
        for unit in sorted(units, key=len, reverse=True):
            before = whole.removesuffix(unit)
            if before != whole and not before[-1:].isalpha():
                return units[unit]
    return None


def _numbers(
    path: str | Path, columns: _Columns, rows: Sequence[tuple[int, Sequence[str]]]
) -> tuple[FloatArray, FloatArray]:
    """Return the rows' times in s and their rates in bit/s, not a number where there is none."""
    times, values = np.empty(len(rows)), np.empty((len(rows), len(columns.rates)))
    previous = -math.inf
    for i, (number, fields) in enumerate(rows):
        place = f"{path}, line {number}"
        if len(fields) != len(columns.names):
            raise InputError(
                f"{place}: {len(fields)} columns, the first line has {len(columns.names)}"
            )
        time = _number(place, "time", fields[columns.time]) * columns.time_s
        if abs(time) > MOST_TIME_S:
            raise InputError(f"{place}: time {fields[columns.time]!r} is too large")
        if time < previous:
            raise InputError(
                f"{place}: time {time:.12g} s comes after {previous:.12g} s; times must not go back"
            )
        times[i] = previous = time
        for k, (column, name, factor) in enumerate(columns.rates):
            text = fields[column]
            rate = math.nan
            if text.lower() not in _MISSING:
                rate = _number(place, name, text) * factor
                if not 0 <= rate <= MOST_RATE_BPS:
                    raise InputError(
                        f"{place}: {name} = {text!r}; allowed: from 0 to {MOST_RATE_BPS:g} bit/s"
                    )
            values[i, k] = rate
    return times, values


def _number(place: str, name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {name} = {text[:40]!r} is not a finite number")
    return value


def _trace(
    path: str | Path, columns: _Columns, name: str, times: FloatArray, rates: FloatArray
) -> RateTrace:
    """Return one column's trace: each rate and how long it holds."""
    moments, first = np.unique(times, return_index=True)
    if len(moments) < 2:
        raise InputError(f"{path}: a trace needs rows of two different times at least")
    rate = np.array([_mean(rates[a:b]) for a, b in itertools.pairwise([*first, len(times)])])
    apart = np.diff(moments)
    usual = float(np.median(apart))
    holds = np.append(apart, usual)
    gaps = holds - usual
    long = holds > GAP_STEPS * usual
    holds = np.where(long, usual, holds)
    recorded = np.isfinite(rate)
    missing = [*gaps[long].tolist(), *holds[~recorded].tolist()]
    rate, holds = rate[recorded], holds[recorded]
    if not (rate > 0).any():
        where = f"column '{name}': " if columns.named else ""
        raise InputError(f"{path}: {where}no rate is above 0; a trace needs one")
    edges_ms = np.concatenate([[0.0], np.cumsum(holds * 1000.0)])
    edges_ms.flags.writeable = rate.flags.writeable = False
    words = f"{columns.names[columns.time]}, {name}" if columns.named else ", ".join(columns.names)
    return RateTrace(str(path), edges_ms, rate, columns=words, gaps_s=tuple(missing))


def _mean(rates: FloatArray) -> float:
    known = rates[np.isfinite(rates)]
    return float(known.mean()) if known.size else math.nan
