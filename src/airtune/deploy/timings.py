"""Planned and measured times of a deployment, one JSON object a client and round."""

from __future__ import annotations

import json
from pathlib import Path

from airtune.assignment import PlannedTimes
from airtune.deploy.emulation import overran
from airtune.deploy.meter import WireTimes
from airtune.deploy.protocol import Update
from airtune.errors import RunError
from airtune.training.client import ClientJob, Measured


def append_timings(
    file: Path,
    job: ClientJob,
    planned: PlannedTimes,
    fields: Update,
    wire: WireTimes | None,
    measured: Measured,
    total_s: float,
    sent_s: float,
) -> None:
    """Add a client's line.

    `counts` is false where the device emulates another and its work took longer than that
    device's time; `emulated_s` is that time. `sent_s` is the server's clock when it began to send.
    Transfers that were not seen are null.
    """
    assigned = job.assignment
    line = {
        "round": job.round,
        "client": fields.client,
        "sent_s": sent_s,
        "planned": {
            "rate_bps": assigned.rate_bps,
            "downlink_rate_bps": assigned.downlink_rate_bps,
            "downlink_s": planned.downlink_s,
            "compute_s": planned.compute_s,
            "upload_s": planned.upload_s,
            "round_s": planned.round_s,
        },
        "measured": {
            "downlink_s": None if wire is None else measured.downlink_s,
            "compute_s": measured.compute_s,
            "upload_s": None if wire is None else measured.upload_s,
            "engine_s": measured.engine_s,
            "total_s": total_s,
        },
        "uplink_bytes": None if wire is None else wire.uplink_bytes,
        "downlink_bytes": None if wire is None else wire.downlink_bytes,
        "epsilon": fields.epsilon,
        "emulated_s": fields.emulated_s,
        "counts": not overran(fields.compute_s, fields.emulated_s),
    }
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(line) + "\n")


def planned_of(job: ClientJob) -> PlannedTimes:
    """Return the times that a job was planned with."""
    if job.assignment.planned is None:
        raise RunError("a job for a device needs its plan")
    return job.assignment.planned


def measured_of(job: ClientJob, fields: Update, wire: WireTimes | None, after_s: float) -> Measured:
    """Return what a client's part took, its answer having come `after_s` after its job.

    Where nothing is known of its transfers, they count as planned: at 0 s the clock and the
    energy of the radio would be too small.
    """
    planned = planned_of(job)
    downlink_s = planned.downlink_s if wire is None else wire.downlink_s
    upload_s = planned.upload_s if wire is None else wire.upload_s
    known_s = downlink_s + fields.compute_s + upload_s
    return Measured(
        downlink_s=downlink_s,
        compute_s=fields.compute_s,
        upload_s=upload_s,
        engine_s=max(0.0, after_s - known_s),
        emulated=fields.emulated_s is not None,
    )
