"""What a started server is doing: its run, and each device's last sign, speed, round and bytes."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airtune.deploy.admission import Admitted, admitted
from airtune.deploy.keys import expiry_warnings
from airtune.deploy.meter import LogPosition, end_of_log, read_wire_log
from airtune.deploy.runs import Run, listed
from airtune.deploy.server import ServerFolder, about

WIRE_BYTES = 8 * 2**20
"""How much of the wire log's end is read."""


def status(state: ServerFolder) -> dict[str, Any]:
    """Return the server, its newest run and its devices, as JSON's types.

    Speeds and rounds are the record's: a device's FLOPs over its measured seconds in the last
    round that it was in. Bytes are of HTTP bodies since the run began, as far back as the end of
    the wire log goes.

    Raises:
        InputError: no server is started.
        RunError: it does not answer.
    """
    server = about(state)
    keys = server.get("keys")
    runs = listed(state)
    run = runs[-1] if runs else None
    end = end_of_log(state.wire_log)
    near = LogPosition(end.file, max(0, end.offset - WIRE_BYTES))
    lines, _ = read_wire_log(state.wire_log, near)
    rounds = [] if run is None else _rounds(Path(str(run.about["out"])))
    since_s = 0.0 if run is None else _begun_s(run)
    return {
        "server": {
            "state": str(state.folder),
            "warnings": [] if keys is None else expiry_warnings(Path(str(keys))),
        },
        "run": None if run is None else _run(run, rounds),
        "devices": [_device(device, lines, rounds, since_s) for device in admitted(state)],
    }


def text(found: Mapping[str, Any]) -> str:
    """Return a status as lines for people."""
    lines = list(found["server"]["warnings"])
    run = found["run"]
    if run is None:
        lines.append("no run yet")
    else:
        how = run["state"] if run["error"] is None else f"{run['state']}: {run['error']}"
        lines.append(f"run {run['id']} ({run['scenario']}), round {run['round']}: {how}")
        lines.append(f"record: {run['out']}")
    lines.append(
        f"{'device':28}{'state':12}{'last seen':>12}{'round':>7}{'FLOP/s':>10}{'bytes':>22}"
    )
    for device in found["devices"]:
        seen = device["last_seen_s"]
        speed = device["effective_flops"]
        bytes_ = f"{device['up_bytes']:,} up {device['down_bytes']:,} down"
        lines.append(
            f"{device['client']:28}{device['state']:12}"
            f"{'never' if seen is None else f'{seen:.0f} s ago':>12}{device['round'] or '–':>7}"
            f"{'–' if speed is None else f'{speed:.2g}':>10}  {bytes_}"
        )
    return "\n".join(lines)


def _run(run: Run, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    ended = run.outcome(ask_now=True)
    state = "going on" if ended is None else "finished" if ended["ok"] else "failed"
    return {
        "id": run.id,
        **{key: run.about[key] for key in ("scenario", "out", "begun")},
        "state": state,
        "error": None if ended is None else ended.get("error"),
        "round": rounds[-1]["round"] if rounds else 0,
    }


def _device(
    device: Admitted,
    lines: list[dict[str, Any]],
    rounds: list[dict[str, Any]],
    since_s: float,
) -> dict[str, Any]:
    own = [line for line in lines if line.get("device") == device.key]
    moved = [line for line in own if line["begin_s"] >= since_s]
    took_part = [
        (round["round"], client)
        for round in rounds
        for client in round["clients"]
        if client["name"] == device.client and client["status"] == "ok"
    ]
    last = took_part[-1] if took_part else None
    speed = last[1]["flops"] / last[1]["compute_s"] if last and last[1]["compute_s"] > 0 else None
    return {
        "client": device.client,
        "key": device.key,
        "state": device.status,
        "last_seen_s": time.time() - own[-1]["end_s"] if own else None,
        "round": None if last is None else last[0],
        "effective_flops": speed,
        "up_bytes": sum(line["up_bytes"] for line in moved),
        "down_bytes": sum(line["down_bytes"] for line in moved),
    }


def _rounds(out: Path) -> list[dict[str, Any]]:
    try:
        content = (out / "rounds.jsonl").read_bytes()
    except OSError:
        return []
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def _begun_s(run: Run) -> float:
    return datetime.datetime.fromisoformat(str(run.about["begun"])).timestamp()
