"""What a round cost each client: what it really computed and sent, on the virtual clock."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from airtune.assignment import Assignment
from airtune.models.devices import DeviceProfile, compute_s
from airtune.models.energy import energy_of
from airtune.planning.inputs import ClientLoad
from airtune.record import ClientRecord
from airtune.scenario import DeviceSection
from airtune.training.client import ClientFailure, ClientUpdate
from airtune.units import linear_to_db

SAT_OUT = "sat out"
"""The status of a client that had no assignment."""

_ROUNDING = 1.0 + 1e-6

Outcome = ClientUpdate | ClientFailure
"""What came of an assignment."""


def idle(name: str, load: ClientLoad) -> ClientRecord:
    """Return the record of a client without an assignment: it computes and sends nothing."""
    return ClientRecord.of_nothing(name, SAT_OUT, load.examples)


def bill(
    name: str,
    profile: DeviceProfile,
    load: ClientLoad,
    assigned: Assignment,
    outcome: Outcome,
    status: str,
    *,
    binds: str,
    snr_hz: float | None,
) -> ClientRecord:
    """Bill one client: what it really computed and sent.

    A client that failed is billed the computing that was planned, or how long the round really
    waited for it; it sent nothing, and no rate and no pruning of it are known.

    Args:
        name: the client's.
        profile: its device's, at the speed that the round was planned with.
        load: its steps of the round.
        assigned: what it was told.
        outcome: what came of it.
        status: as recorded.
        binds: what its plan was bounded by.
        snr_hz: its received power over noise density on the uplink; None where only a
            rate is known (a trace, a table of rates).
    """
    band_hz, planned = assigned.bandwidth_hz, assigned.planned
    assert planned is not None
    downlink_s, compute, upload_s = planned.downlink_s, planned.compute_s, 0.0
    pruning: float | None = None
    rate_bps: float | None = None
    train_loss: float | None = None
    engine_s: float | None = None
    flops = bits = 0.0
    if isinstance(outcome, ClientUpdate):
        pruning, flops, bits = outcome.pruning, outcome.flops, outcome.uplink_bits
        compute, train_loss, rate_bps = (
            compute_s(flops, profile),
            outcome.train_loss,
            assigned.rate_bps,
        )
        upload_s = bits / rate_bps if bits > 0 else 0.0
        if (real := outcome.measured) is not None:
            downlink_s, compute, upload_s = real.downlink_s, real.compute_s, real.upload_s
            engine_s = real.engine_s
            rate_bps = bits / upload_s if upload_s > 0 else None
    elif outcome.after_s is not None:
        downlink_s, compute = 0.0, outcome.after_s
    return ClientRecord(
        name=name,
        status=status,
        asked_pruning=assigned.pruning,
        pruning=pruning,
        local_steps=assigned.mode.local_steps,
        rank=assigned.mode.rank,
        bits_per_value=assigned.mode.bits_per_value,
        binds=binds,
        bandwidth_hz=band_hz,
        rate_bps=rate_bps,
        snr_db=linear_to_db(snr_hz / band_hz) if snr_hz is not None and band_hz > 0 else None,
        downlink_s=downlink_s,
        compute_s=compute,
        upload_s=upload_s,
        total_s=downlink_s + compute + upload_s,
        engine_s=engine_s,
        uplink_bits=bits,
        downlink_bits=assigned.downlink_bits,
        flops=flops,
        examples=load.examples,
        label_tokens=sum(s.label_tokens for s in load.steps[: assigned.mode.local_steps]),
        train_loss=finite(train_loss),
    )


@dataclass(frozen=True)
class ClientReading:
    """What one client receives and computes when it reads calibration text again."""

    downlink_s: float
    downlink_bits: float
    compute_s: float
    flops: float


def with_energy(
    bill: ClientRecord,
    device: DeviceSection,
    profile: DeviceProfile,
    round_s: float,
    reading: ClientReading | None = None,
) -> ClientRecord:
    """Return the bill with what the client drew until the round's end.

    Args:
        bill: without energy.
        device: the client's.
        profile: the client's.
        round_s: from the first broadcast to the last upload; a client that sits out is billed for
            its reading alone.
        reading: the client's, in a round that begins with one.

    Returns:
        A client that sat out and read nothing drew 0.
    """
    read = reading or ClientReading(0.0, 0.0, 0.0, 0.0)
    if bill.status == SAT_OUT:
        round_s = read.compute_s
        if reading is None:
            return dataclasses.replace(
                bill, energy_j=0.0, compute_j=0.0, transmit_j=0.0, receive_j=0.0, wait_j=0.0
            )
    drawn = energy_of(
        device,
        profile,
        compute_s=read.compute_s + bill.compute_s,
        upload_s=bill.upload_s,
        uplink_bits=bill.uplink_bits,
        downlink_s=read.downlink_s + bill.downlink_s,
        downlink_bits=read.downlink_bits + bill.downlink_bits,
        round_s=round_s,
    )
    if drawn is None:
        return bill
    return dataclasses.replace(bill, energy_j=drawn.energy_j, **dataclasses.asdict(drawn))


def energy_together(clients: Sequence[ClientRecord]) -> float | None:
    """Return what the clients drew together, J; None where the power of one is not known."""
    drawn = [client.energy_j for client in clients]
    return None if None in drawn else sum(each for each in drawn if each is not None)


def over_budget(
    clients: Sequence[ClientRecord], devices: Sequence[DeviceSection], names: Sequence[str]
) -> str | None:
    """Say which clients drew more for computing and sending than their budgets; None: nobody.

    A plan counts FLOPs on a line between the whole model and the most pruned one. A cut keeps
    whole units, and what it computes lies beside the line.

    Args:
        clients: their bills.
        devices: theirs, in the same order.
        names: theirs.
    """
    over = [
        (spent / device.energy_budget_j, name, spent, device.energy_budget_j)
        for one, device, name in zip(clients, devices, names, strict=True)
        if device.energy_budget_j is not None
        and one.compute_j is not None
        and (spent := one.compute_j + (one.transmit_j or 0.0)) > device.energy_budget_j * _ROUNDING
    ]
    if not over:
        return None
    _, name, spent, budget = max(over)
    return (
        f"{len(over)} of {len(clients)} clients drew more than their energy_budget_j, '{name}' "
        f"the most: {spent:.4g} J, its budget is {budget:.4g} J"
    )


def what_binds(
    assigned: Assignment, least_pruning: float, owed: float, asked_pruning: float
) -> str:
    """Say what a client's plan was bounded by.

    Args:
        assigned: what it was told.
        least_pruning: its smallest rate, by the scenario or by its memory.
        owed: what the floor owed it before the round.
        asked_pruning: the scenario's `pruning.min_pruning`.
    """
    planned = assigned.planned
    assert planned is not None
    found = ["compute" if planned.compute_s >= planned.upload_s else "air"]
    if least_pruning > 0 and assigned.pruning <= least_pruning * (1 + 1e-9):
        found.append("memory" if least_pruning > asked_pruning else "least")
    if owed > 0:
        found.append("floor")
    return ", ".join(found)


def speeds_after(
    known: Sequence[float | None], profiles: Sequence[DeviceProfile], outcomes: Sequence[Outcome]
) -> tuple[float | None, ...]:
    """Return what each client's next round is planned with, where its clock is real, FLOP/s.

    Half of the time that the last plan expected of an operation and half of what it then took:
    the machine's load drifts, and one odd round should not be believed.
    """
    speeds = list(known)
    for outcome in outcomes:
        if not isinstance(outcome, ClientUpdate):
            continue
        if (real := outcome.measured) is not None and not real.emulated:
            took = real.compute_s / outcome.flops
            speeds[outcome.client] = 2.0 / (1.0 / profiles[outcome.client].effective_flops + took)
    return tuple(speeds)


def kept_speed(profile: DeviceProfile, speed: float | None) -> DeviceProfile:
    """Return the profile at the speed that its device has kept in earlier rounds."""
    if speed is None:
        return profile
    return dataclasses.replace(profile, peak_flops=speed, utilisation=1.0)


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None
