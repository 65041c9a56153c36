"""Recorded link capacity as people hold it: mahimahi's timestamps, or a table of time and rate.

Mahimahi: one whole number a line, the millisecond at which the link can deliver 1500 bytes,
counted from the beginning of the trace, in order; a number is repeated where several packets fit
into one millisecond. The last timestamp is the trace's period.

A table (`trace_table.py`): a column of times and one or more of rates, with their units. Which of
several is meant is said by the direction, or by the column's name after a '#': `drive.csv#up_mbps`.
Lines that begin with '#' are comments in both.

Where there is no such file, a name of `generated.py` stands for a trace that was generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from airtune.channel.capacity import PACKET_BITS, WINDOW_MS, PacketTrace, RateTrace, Trace
from airtune.channel.generated import NAMES, generated
from airtune.channel.trace_table import looks_like_table, read_table, table_of_direction
from airtune.encoding import read_text
from airtune.errors import InputError

__all__ = [
    "PACKET_BITS",
    "WINDOW_MS",
    "Direction",
    "PacketTrace",
    "RateTrace",
    "Trace",
    "read_trace",
    "read_traces",
]

Direction = Literal["uplink", "downlink"]

_MOST_DIGITS = 15  # thirty thousand years of milliseconds, and far inside 64 bits


def read_trace(path: str | Path, direction: Direction | None = None) -> Trace:
    """Read one direction's capacity.

    Args:
        path: of the file; a table's column may follow after '#'.
        direction: which of a table's columns of rates is meant, where there are several.

    Raises:
        InputError: the file cannot be read, a line is malformed or goes back in time, no rate is
            above 0, or several columns could be meant; with the file and the line's number.
    """
    return table_of_direction(path, read_traces(path), direction)


def read_traces(path: str | Path) -> dict[str, Trace]:
    """Read every column of rates of a trace file, by its name; mahimahi's only one is ''.

    A column after '#' is the only one that is returned.

    Raises:
        InputError: as `read_trace`.
    """
    file, column = file_and_column(path)
    traces = _read(file)
    if column is None:
        return traces
    if column not in traces:
        named = ", ".join(f"'{name}'" for name in traces if name)
        rest = f"allowed: {named}" if named else "the file has no columns with names"
        raise InputError(f"{file}: no column of rates '{column}'; {rest}")
    return {column: traces[column]}


def _read(path: str) -> dict[str, Trace]:
    if path in NAMES and not Path(path).exists():
        return {"": generated(path)}
    try:
        text = read_text(path)
    except OSError as error:
        raise InputError(
            f"cannot read trace '{path}': {error.strerror}; built in: {', '.join(NAMES)}"
        ) from None
    except InputError as error:
        raise InputError(f"cannot read trace '{path}': {error}") from None
    lines = [
        (number, line)
        for number, line in enumerate(text.rstrip().splitlines(), start=1)
        if not line.lstrip().startswith("#")
    ]
    if not any(line.strip() for _, line in lines):
        raise InputError(
            f"{path}: the trace is empty; needed: one millisecond timestamp a line, or columns of "
            "time and rate such as time_s,rate_mbit_s"
        )
    if looks_like_table(lines):
        return dict(read_table(path, lines))
    return {"": _packets(path, lines)}


def file_and_column(path: str | Path) -> tuple[str, str | None]:
    """Return the file's path and the column named after '#'."""
    file, mark, column = str(path).rpartition("#")
    if not mark or Path(path).exists():
        return str(path), None
    return file, column


def _packets(path: str | Path, lines: list[tuple[int, str]]) -> PacketTrace:
    timestamps = np.empty(len(lines), dtype=np.int64)
    previous = 0
    for k, (number, line) in enumerate(lines):
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
        timestamps[k] = previous = int(text)
    if previous == 0:
        raise InputError(f"{path}: all timestamps are 0 ms; the last one is the trace's length")
    timestamps.flags.writeable = False
    return PacketTrace(str(path), timestamps)
