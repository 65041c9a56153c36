"""From the gateway's wire log to what a device's transfers took.

A device's round is visible in its requests: it pulls the message's objects, confirms that it
has them, works in silence, announces its reply and pushes it. All times are the gateway's.

Flower adds waits of its own inside these: it looks again after a second for an object that the
server has not finished storing, and after some tenths for one that its app process has not
finished handing over. Nothing moves meanwhile, so pauses above `PAUSE_S` are not transfer.
"""

from __future__ import annotations

import json
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


def read_wire_log(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Return the log's complete lines after an offset, and the offset after them."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], offset
    complete = content[: content.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()], offset + len(complete)


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
    # What the gateway has written may still stand in a buffer: the last object is there when
    # the device says so.
    down = [(call["begin_s"], call["end_s"]) for call in pulls]
    down[-1] = (down[-1][0], received["begin_s"])
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
