"""Predicted against measured: what the plan said a client's round takes, and what it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replay import Replay

PARTS = ("downlink_s", "compute_s", "upload_s")
MESSAGE_BYTES = {"downlink_s": 840, "upload_s": 1770}
"""What a message takes besides its payload: fields, the header of the arrays, Flower's envelope.
Counted at the gateway, the same in every round of `tiny` to 17 bytes."""

LEAD_S = 1.4
"""What the framework takes until an upload begins, beside download and work: it decides which part
of a trace the upload sees. The median of 40 rows without a trace, 0.8 to 2.1 s."""


def comparison(
    timings: Path, rounds: Path, replay: Replay | None = None, begins_s: Sequence[float] = ()
) -> dict[str, Any]:
    """Join planned and measured times.

    The prediction is the plan's, and what is known of the framework's bytes at the planned rates.
    Under a replayed trace an upload takes as long as the trace needs from when it is predicted to
    begin, `begins_s` of its round and the times before it.
    A row counts unless the device says that its work took longer than the time it emulates, or
    its transfers were not seen, which are then shown as planned; a round counts if all its rows do.

    `realised_s` is the plan's formula at what the client really did: its realised bits and
    FLOPs in place of the planned ones. `round_s` leaves Flower's own time out on both sides;
    `engine_s` is that time, by the client that had the most of it.
    """
    lines = [json.loads(line) for line in timings.read_text().splitlines()]
    recorded = {r["round"]: r for r in map(json.loads, rounds.read_text().splitlines())}
    found = []
    for at, (number, record) in enumerate(sorted(recorded.items())):
        clients = []
        for line in (line for line in lines if line["round"] == number):
            own = next(c for c in record["clients"] if c["name"] == line["client"])
            planned, measured = _predicted(line["planned"]), line["measured"]
            if replay is not None:
                before_s = begins_s[at] + planned["downlink_s"] + planned["compute_s"] + LEAD_S
                planned["upload_s"] = replay.transfer_s(before_s, planned["upload_s"])
            seen = all(measured[part] is not None for part in PARTS)
            if not seen:
                measured = measured | {part: planned[part] for part in ("downlink_s", "upload_s")}
            clients.append({
                "counts": seen and line.get("counts", True),
                "client": line["client"],
                "rate_bps": planned["rate_bps"],
                "planned": {part: planned[part] for part in PARTS},
                "measured": {part: measured[part] for part in (*PARTS, "engine_s")},
                "payload_bytes": own["uplink_bits"] / 8,
                "wire_bytes": line["uplink_bytes"],
            })  # fmt: skip
        predicted_s = max((_sum(c["planned"]) for c in clients), default=0.0)
        measured_s = max((_sum(c["measured"]) for c in clients), default=0.0)
        found.append({
            "round": number,
            "predicted_s": predicted_s,
            "measured_s": measured_s,
            "counts": bool(clients) and all(client["counts"] for client in clients),
            "error": measured_s / predicted_s - 1 if predicted_s else 0.0,
            "engine_s": max((c["measured"]["engine_s"] for c in clients), default=0.0),
            "wall_s": record["wall_s"],
            "clients": clients,
        })  # fmt: skip
    return {"rounds": found}


def table(found: dict[str, Any]) -> str:
    """Return the comparison as text: predicted / measured seconds a client and round."""
    lines = [
        f"{'round client':26}{'download':>16}{'compute':>16}{'upload':>16}{'all':>16}"
        f"{'error':>8}{'engine':>8}"
    ]
    for round in found["rounds"]:
        for client in round["clients"]:
            planned, measured = client["planned"], client["measured"]
            cells = [(planned[part], measured[part]) for part in PARTS]
            cells.append((_sum(planned), _sum(measured)))
            error = cells[-1][1] / cells[-1][0] - 1
            shown = "".join(f"{f'{p:.2f} / {m:.2f}':>16}" for p, m in cells)
            name = f"{round['round']:>5} {client['client']}"
            note = "" if client["counts"] else "  overrun"
            lines.append(f"{name:26}{shown}{error:>+8.1%}{measured['engine_s']:>8.2f}{note}")
        both = f"{round['predicted_s']:.2f} / {round['measured_s']:.2f}"
        name = f"{round['round']:>5} round"
        note = "" if round["counts"] else "  does not count: an overrun"
        lines.append(f"{name:26}{both:>64}{round['error']:>+8.1%}{round['engine_s']:>8.2f}{note}")
    return "\n".join(lines)


def _predicted(planned: dict[str, float]) -> dict[str, float]:
    rates_bps = {"downlink_s": planned.get("downlink_rate_bps"), "upload_s": planned["rate_bps"]}
    found = dict(planned)
    for part, rate_bps in rates_bps.items():
        if rate_bps:
            found[part] += 8 * MESSAGE_BYTES[part] / rate_bps
    return found


def _sum(times: dict[str, float]) -> float:
    return sum(times[part] for part in PARTS)
