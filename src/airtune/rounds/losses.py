"""Uploads that do not arrive: which are lost in a round, what they cost, and how probable that was.

Three models, alone or together:

- `cell.csi_error_db`: the channel during the upload is not the one that the plan knew
  (`airtune.channel.outage`). An update is sent at the planned rate, and is lost where the channel
  carries less than that.
- `participation.deadline_slack`: an update is sent at the rate that the channel carries, and is
  lost where it ends after slack × the planned length of the round.
- `cell.outage_probability`: an upload is lost with this probability, whatever the channel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from airtune.assignment import Assignment
from airtune.channel import ChannelState
from airtune.channel.outage import (
    falls_short,
    rate_of_client_bps,
    scaled,
    success_probability,
)
from airtune.models.devices import DeviceProfile, compute_s
from airtune.planning.inputs import Situation
from airtune.randomness import generator
from airtune.record import ClientRecord
from airtune.record.schema import OK
from airtune.scenario import Scenario
from airtune.training.client import ClientUpdate
from airtune.units import FloatArray

LOST = "lost: "
"""How the status of a client begins whose upload did not arrive."""


@dataclass(frozen=True)
class Upload:
    """How one client's upload went."""

    status: str
    """"ok", or "lost: " and why."""
    success: float
    """Probability that it arrives, given what the plan knew."""
    rate_bps: float
    compute_s: float
    """Of computing, until the deadline at most."""
    upload_s: float
    """Of sending, likewise."""
    sent: float
    """Share of its bits that were sent."""


@dataclass(frozen=True, eq=False)
class Air:
    """What the round's uploads meet, a client of the cohort each.

    Attributes:
        known: what the plan knew of the channel, without its margin.
        real: what it is during the upload.
        outage: (K,) whether the upload is lost whatever the channel.
    """

    known: ChannelState
    real: ChannelState
    outage: np.ndarray


def may_lose(scenario: Scenario) -> bool:
    """Return whether an upload of this scenario may be lost."""
    cell = scenario.cell
    return (
        cell.csi_error_db > 0
        or cell.outage_probability > 0
        or scenario.participation.deadline_slack is not None
    )


def air_of_uploads(scenario: Scenario, situation: Situation) -> Air:
    """Draw what the round's uploads meet; a client's draw does not depend on its cohort."""
    known = situation.link.air if situation.air is None else situation.air
    everyone, cohort = len(scenario.client_devices), list(situation.cohort)

    def stream(purpose: str) -> np.random.Generator:
        return generator(scenario.seed, purpose, round=situation.round)

    error_db: FloatArray = stream("csi-error").standard_normal(everyone)[cohort]
    chance = stream("outage").random(everyone)[cohort]
    real = scaled(known, scenario.cell.csi_error_db * error_db)
    return Air(known, real, chance < scenario.cell.outage_probability)


def uploads_of(
    scenario: Scenario,
    situation: Situation,
    planned_s: float,
    updates: Iterable[tuple[Assignment, ClientUpdate]],
    profiles: tuple[DeviceProfile, ...],
) -> dict[int, Upload]:
    """Return how each client's upload went; empty where none can be lost.

    Args:
        scenario: its models of loss.
        situation: the round's.
        planned_s: the planned length of the round.
        updates: those that would be merged, with their clients' assignments.
        profiles: of all clients.
    """
    if not may_lose(scenario):
        return {}
    air = air_of_uploads(scenario, situation)
    slack = scenario.participation.deadline_slack
    deadline_s = None if slack is None else slack * planned_s
    found = {}
    for assignment, update in updates:
        place = situation.cohort.index(assignment.client)
        computing_s = compute_s(update.flops, profiles[assignment.client])
        found[assignment.client] = upload(
            scenario, air, place, assignment, update.uplink_bits, computing_s, deadline_s
        )
    return found


def upload(
    scenario: Scenario,
    air: Air,
    place: int,
    assignment: Assignment,
    bits: float,
    computing_s: float,
    deadline_s: float | None,
) -> Upload:
    """Say how one upload goes.

    Args:
        scenario: its models of loss.
        air: what the round's uploads meet.
        place: the client's in the cohort.
        assignment: the client's.
        bits: of its update.
        computing_s: what fine-tuning took.
        deadline_s: from the round's start; None: it is sent at the planned rate, however long.
    """
    cell, band_hz = scenario.cell, assignment.bandwidth_hz
    assert assignment.planned is not None
    downlink_s = assignment.planned.downlink_s
    carried_bps = rate_of_client_bps(air.real, place, band_hz)
    if deadline_s is None:
        rate_bps = needed_bps = assignment.rate_bps
        lost = falls_short(carried_bps, needed_bps)
        reason = f"the channel carried {carried_bps:.3g} bit/s, {needed_bps:.3g} were planned"
        upload_s, sent = bits / rate_bps, 1.0
    else:
        rate_bps, left_s = carried_bps, deadline_s - downlink_s - computing_s
        needed_bps = bits / left_s if left_s > 0 else np.inf
        lost = falls_short(carried_bps, needed_bps)
        late_s = downlink_s + computing_s + bits / rate_bps
        reason = f"late: {late_s:.4g} s, the deadline was {deadline_s:.4g} s"
        upload_s = bits / rate_bps
        if lost:  # cut off at the deadline
            computing_s = min(computing_s, max(deadline_s - downlink_s, 0.0))
            upload_s = max(left_s, 0.0)
        sent = upload_s * rate_bps / bits if lost else 1.0
    success = success_probability(cell, air.known, place, band_hz, needed_bps)
    success *= 1.0 - cell.outage_probability
    if not lost and air.outage[place]:
        lost, reason = True, "outage"
    return Upload(
        status=f"{LOST}{reason}" if lost else OK,
        success=success,
        rate_bps=rate_bps,
        compute_s=computing_s,
        upload_s=upload_s,
        sent=sent,
    )


def as_sent(bill: ClientRecord, sent: Upload | None) -> ClientRecord:
    """Return the bill of a client with what it really sent, and the probability that it arrived."""
    if sent is None:
        return bill
    return dataclasses.replace(
        bill,
        rate_bps=sent.rate_bps,
        compute_s=sent.compute_s,
        upload_s=sent.upload_s,
        total_s=bill.downlink_s + sent.compute_s + sent.upload_s,
        uplink_bits=bill.uplink_bits * sent.sent,
        flops=bill.flops * sent.compute_s / bill.compute_s if bill.compute_s > 0 else bill.flops,
        success_probability=sent.success,
    )
