"""SNR or rate by round and client from a CSV file: a channel without any code.

The first line names the columns, and so the unit: `round,client,snr_db` or
`round,client,rate_bps`, and `downlink_rate_bps` where the downlink is known too. Every client has
one line for each round from 1 to the last; the rounds start over when the table ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airtune.encoding import csv_lines
from airtune.errors import InputError, first_of
from airtune.units import FloatArray

COLUMNS = "round,client,snr_db or round,client,rate_bps, and downlink_rate_bps where it is known"


@dataclass(frozen=True, eq=False)
class ChannelTable:
    """What a table says, R rounds by K clients.

    Attributes:
        path: the file it was read from.
        quantity: "snr_db", the SNR over the whole uplink band, or "rate_bps", what the client
            could send over the whole uplink band.
        uplink: (R, K) of that quantity.
        downlink_rate_bps: (R, K) what each could receive over the whole downlink, or None.
    """

    path: str
    quantity: str
    uplink: FloatArray
    downlink_rate_bps: FloatArray | None

    def row(self, round: int) -> int:
        """Return the row of a round counted from 1; the table starts over when it ends."""
        return (round - 1) % len(self.uplink)


def read_table(path: str | Path, names: Sequence[str], *, max_snr_db: float) -> ChannelTable:
    """Read a table for the clients of these names; a client may also be given as 1 to K.

    Raises:
        InputError: the file cannot be read, a line is malformed, a client is unknown, or a round
            is missing; with the file and the line's number.
    """
    lines = csv_lines(path, "cell.table")
    header = [field.strip() for field in lines[0][1]] if lines else []
    quantities = [name for name in ("snr_db", "rate_bps") if name in header]
    allowed = {"round", "client", "downlink_rate_bps", *quantities}
    if (
        len(quantities) != 1
        or not {"round", "client"} <= set(header) <= allowed
        or len(set(header)) < len(header)
    ):
        raise InputError(f"{path}, line 1: the columns {','.join(header)!r}; allowed: {COLUMNS}")
    columns = [name for name in header if name not in ("round", "client")]
    clients = {name: k for k, name in enumerate(names)}
    clients |= {str(k + 1): k for k in range(len(names)) if str(k + 1) not in clients}
    found: dict[tuple[int, int], dict[str, float]] = {}
    for number, fields in lines[1:]:
        place = f"{path}, line {number}"
        if len(fields) != len(header):
            raise InputError(f"{place}: {len(fields)} fields; the first line names {len(header)}")
        row = dict(zip(header, (field.strip() for field in fields), strict=True))
        key = _round(place, row["round"]), _client(place, row["client"], clients, names)
        if key in found:
            raise InputError(f"{place}: round {key[0]} of {names[key[1]]} is there twice")
        found[key] = {name: _number(place, name, row[name], max_snr_db) for name in columns}
    return _table(path, names, quantities[0], columns, found)


def _table(
    path: str | Path,
    names: Sequence[str],
    quantity: str,
    columns: Sequence[str],
    found: Mapping[tuple[int, int], Mapping[str, float]],
) -> ChannelTable:
    if not found:
        raise InputError(f"{path}: the table has no rounds")
    rounds = max(round for round, _ in found)
    for round in range(1, rounds + 1):
        for k, name in enumerate(names):
            if (round, k) not in found:
                raise InputError(
                    f"{path}: no line for round {round} of {name}; every client needs one for "
                    f"each round from 1 to {rounds}, the last one given"
                )
    arrays = {
        column: np.array(
            [[found[r, k][column] for k in range(len(names))] for r in range(1, rounds + 1)]
        )
        for column in columns
    }
    return ChannelTable(str(path), quantity, arrays[quantity], arrays.get("downlink_rate_bps"))


def _round(place: str, text: str) -> int:
    # Nine digits: more rounds than any run has, and no list that cannot be held.
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
        raise InputError(f"{place}: round {text!r}; allowed: a whole number from 1 on")
    return int(text)


def _client(place: str, text: str, clients: Mapping[str, int], names: Sequence[str]) -> int:
    if text not in clients:
        raise InputError(
            f"{place}: no client {text!r}; allowed: {first_of(names)}, or 1 to {len(names)}"
        )
    return clients[text]


def _number(place: str, column: str, text: str, max_snr_db: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if column == "snr_db":
        if not -max_snr_db <= value <= max_snr_db:
            raise InputError(
                f"{place}: snr_db {text!r}; allowed: dB from {-max_snr_db:g} to {max_snr_db:g}"
            )
    elif not (math.isfinite(value) and value > 0):
        raise InputError(f"{place}: {column} {text!r}; allowed: a finite number of bit/s above 0")
    return value
