"""From the gateway's wire log to what a device's transfers took.

A device's round is visible in its requests: it pulls the message's objects, confirms that it
has them, works in silence, announces its reply and pushes it. All times are the gateway's.

A download is counted while its answers are written, from their first byte to their last: what
Flower's server needs before it answers is Flower's own time. Flower adds waits inside these: it
looks again after a second for an object that the server has not finished storing, and after some
tenths for one that its app process has not finished handing over. Nothing is sent meanwhile, so
pauses above `PAUSE_S` are not transfer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAUSE_S = 0.05
"""Between two requests of one transfer there is a round trip, not more."""
_EMPTY_BYTES = 8
"""An answer that says `not there yet`."""


@dataclass(frozen=True)
class WireTimes:
    """One device's transfers of one round."""

    downlink_s: float
    """How long the message took to reach the device."""
    upload_s: float
    """How long the reply took to reach the server."""
    downlink_bytes: int
    """Of HTTP bodies that carried the message."""
    uplink_bytes: int
    """Of HTTP bodies that carried the reply."""


def wire_times(lines: Iterable[Mapping[str, Any]], since_s: float) -> dict[str, WireTimes]:
    """Return each device's transfers since a time, by key fingerprint.

    Devices whose reply has not fully arrived are left out. Where a device moved several
    messages, the last counts.
    """
    calls: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["device"] is not None and line["begin_s"] >= since_s and line["status"] == 200:
            calls.setdefault(line["device"], []).append(line)
    found = {}
    for device, own in calls.items():
        times = _of_device(sorted(own, key=lambda line: line["begin_s"]))
        if times is not None:
            found[device] = times
    return found


@dataclass(frozen=True)
class LogPosition:
    """A place in the wire log, which is one file after another.

    Attributes:
        file: the inode number of the file; 0 for the log's beginning.
        offset: bytes from its start.
    """

    file: int = 0
    offset: int = 0


def end_of_log(path: Path) -> LogPosition:
    """Return where the next line will be: what a run reads from when it begins."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return LogPosition()
    return LogPosition(found.st_ino, found.st_size)


def earlier_log(path: Path) -> Path:
    """Return the name under which the full log is kept when the gateway begins a new one."""
    return path.with_name(path.name + ".1")


def recent_devices(path: Path, most_bytes: int = 2**20) -> set[str]:
    """Return the fingerprints of the keys whose requests were served near the end of the log.

    Keys that a request only named, to a server without keys, are left out: none has signed.
    """
    end = end_of_log(path)
    lines, _ = read_wire_log(path, LogPosition(end.file, max(0, end.offset - most_bytes)))
    return {
        line["device"]
        for line in lines
        if line.get("status") == 200 and line.get("device") and line.get("signed", True)
    }


def read_wire_log(
    path: Path, position: LogPosition = LogPosition()
) -> tuple[list[dict[str, Any]], LogPosition]:
    """Return the log's complete lines from a position on, and the position after them.

    Lines that were written before the gateway began a new file are read from the earlier one.
    """
    lines: list[dict[str, Any]] = []
    for file in (earlier_log(path), path):
        try:
            with file.open("rb") as opened:
                inode = os.fstat(opened.fileno()).st_ino
                if file != path and inode != position.file:
                    continue
                opened.seek(position.offset if inode == position.file else 0)
                begin, content = opened.tell(), opened.read()
        except FileNotFoundError:
            continue
        complete = content[: content.rfind(b"\n") + 1]
        lines += [line for text in complete.splitlines() if (line := _line(text)) is not None]
        position = LogPosition(inode, begin + len(complete))
    return lines, position


def _line(text: bytes) -> dict[str, Any] | None:
    """Return a line's fields; None for one that a killed gateway left half written."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _of_device(calls: list[Mapping[str, Any]]) -> WireTimes | None:
    pushes = [call for call in calls if call["call"] == "push-messages"]
    if not pushes:
        return None
    pushing = pushes[-1]
    content = [
        c for c in calls if c["call"] == "push-object" and c["begin_s"] >= pushing["begin_s"]
    ]
    before = [call for call in calls if call["begin_s"] < pushing["begin_s"]]
    confirms = [call for call in before if call["call"] == "confirm-message-received"]
    if not content or not confirms:
        return None
    received = confirms[-1]
    earlier = [call["begin_s"] for call in confirms[:-1]]
    pulls = [
        call
        for call in before
        if call["call"] == "pull-object"
        and call["begin_s"] <= received["begin_s"]
        and call["down_bytes"] > _EMPTY_BYTES
        and (not earlier or call["begin_s"] > earlier[-1])
    ]
    if not pulls:
        return None
    # What Flower's server needs before it answers is not transfer.
    down = [(call["answered_s"], call["end_s"]) for call in pulls]
    return WireTimes(
        downlink_s=_busy_s(down),
        upload_s=_busy_s([(call["begin_s"], call["uploaded_s"]) for call in (pushing, *content)]),
        downlink_bytes=sum(call["down_bytes"] for call in pulls),
        uplink_bytes=sum(call["up_bytes"] for call in (pushing, *content)),
    )


def _busy_s(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the length of the union of intervals, short pauses included."""
    total, reached = 0.0, intervals[0][0]
    for begin, end in sorted(intervals):
        if begin - reached > PAUSE_S:
            reached = begin
        total += max(0.0, end - reached)
        reached = max(reached, end)
    return total
