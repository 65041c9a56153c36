"""Predicted against measured: what the plan said a client's round takes, and what it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PARTS = ("downlink_s", "compute_s", "upload_s")


def comparison(timings: Path, rounds: Path) -> dict[str, Any]:
    """Join planned and measured times.

    `realised_s` is the plan's formula at what the client really did: its realised bits and
    FLOPs in place of the planned ones. `round_s` leaves Flower's own time out on both sides;
    `engine_s` is that time, by the client that had the most of it.
    """
    lines = [json.loads(line) for line in timings.read_text().splitlines()]
    recorded = {r["round"]: r for r in map(json.loads, rounds.read_text().splitlines())}
    found = []
    for number, record in sorted(recorded.items()):
        clients = []
        for line in (line for line in lines if line["round"] == number):
            own = next(c for c in record["clients"] if c["name"] == line["client"])
            planned, measured = line["planned"], line["measured"]
            clients.append({
                "client": line["client"],
                "rate_bps": planned["rate_bps"],
                "planned": {part: planned[part] for part in PARTS},
                "measured": {part: measured[part] for part in (*PARTS, "engine_s")},
                "payload_bytes": own["uplink_bits"] / 8,
                "wire_bytes": line["uplink_bytes"],
            })  # fmt: skip
        predicted_s = record["predicted_latency_s"]
        measured_s = max((_sum(c["measured"]) for c in clients), default=0.0)
        found.append({
            "round": number,
            "predicted_s": predicted_s,
            "measured_s": measured_s,
            "error": measured_s / predicted_s - 1,
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
            lines.append(f"{name:26}{shown}{error:>+8.1%}{measured['engine_s']:>8.2f}")
        both = f"{round['predicted_s']:.2f} / {round['measured_s']:.2f}"
        name = f"{round['round']:>5} round"
        lines.append(f"{name:26}{both:>64}{round['error']:>+8.1%}{round['engine_s']:>8.2f}")
    return "\n".join(lines)


def _sum(times: dict[str, float]) -> float:
    return sum(times[part] for part in PARTS)
