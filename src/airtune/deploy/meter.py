"""From the gateway's wire log to what a device's transfers took.

A device's round is visible in its requests: it pulls the message's objects, confirms that it
has them, works in silence, announces its reply and pushes it. All times are the gateway's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class WireTimes:
    """One device's transfers of one round, on the gateway's clock (Unix time, s)."""

    pulled_s: float
    """The first request for the message's content arrived."""
    received_s: float
    """The device confirmed that it has all of it."""
    pushing_s: float
    """The reply was announced."""
    pushed_s: float
    """The reply's last byte arrived."""
    uplink_bytes: int
    """Of HTTP bodies that carried the reply."""
    downlink_bytes: int

    @property
    def downlink_s(self) -> float:
        """How long the message took to reach the device."""
        return self.received_s - self.pulled_s

    @property
    def upload_s(self) -> float:
        """How long the reply took to reach the server."""
        return self.pushed_s - self.pushing_s


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
        and (not earlier or call["begin_s"] > earlier[-1])
    ]
    if not pulls:
        return None
    return WireTimes(
        pulled_s=pulls[0]["begin_s"],
        received_s=received["begin_s"],
        pushing_s=pushing["begin_s"],
        pushed_s=max(call["uploaded_s"] for call in content),
        uplink_bytes=sum(call["up_bytes"] for call in (pushing, *content)),
        downlink_bytes=sum(call["down_bytes"] for call in pulls),
    )
