"""What a run writes down: each client's bill, the cell's description, the state to resume from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from airtune.adapters.names import Adapter
from airtune.channel import Placement
from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.models.devices import DeviceProfile, compute_s
from airtune.models.workload import adapter_size, full_sizes
from airtune.planning import Plan
from airtune.planning.inputs import ClientLoad, Link
from airtune.record import Checkpoint, ClientRecord, ClientSite, RunDescription
from airtune.scenario import Scenario
from airtune.training.client import ClientFailure, ClientUpdate, OptimizerState
from airtune.training.worker import Evaluation, Setting
from airtune.units import linear_to_db


@dataclass(frozen=True)
class SatOut:
    """A client was not asked this round."""

    client: int


Outcome = ClientUpdate | ClientFailure | SatOut


@dataclass(frozen=True)
class State:
    """All that the next round depends on, and so what a checkpoint holds."""

    round: int
    elapsed_s: float
    adapter: Adapter
    optimizer_states: dict[int, OptimizerState]
    losses: tuple[float | None, ...] = ()
    """Test loss before training and after each round; None where it was not measured."""
    pruning_losses: tuple[float, ...] = ()
    """Q of each round."""
    speeds: tuple[float | None, ...] = ()
    """FLOP/s that real devices have kept in the rounds so far, a client each; None: not known."""
    stacked_bits: float | None = None
    """What the last round's updates take together, where clients merge them into their base."""


def bill(
    name: str,
    profile: DeviceProfile,
    load: ClientLoad,
    plan: Plan,
    client: int,
    outcome: Outcome,
    status: str,
    link: Link,
) -> ClientRecord:
    """Bill one client: what it really computed and sent; a failed one, what was planned."""
    band_hz, rate_bps = float(plan.bandwidth_hz[client]), float(plan.rate_bps[client])
    if isinstance(outcome, SatOut):
        return ClientRecord(
            name=name,
            pruning=1.0,
            asked_pruning=1.0,
            bandwidth_hz=0.0,
            rate_bps=0.0,
            downlink_s=0.0,
            compute_s=0.0,
            upload_s=0.0,
            total_s=0.0,
            uplink_bits=0.0,
            downlink_bits=0.0,
            flops=0.0,
            examples=load.examples,
            label_tokens=0,
            status=status,
        )
    if isinstance(outcome, ClientUpdate):
        pruning, flops, bits = outcome.pruning, outcome.flops, outcome.uplink_bits
        compute, train_loss = compute_s(flops, profile), outcome.train_loss
    else:
        pruning, flops, bits = float(plan.pruning[client]), 0.0, 0.0
        compute, train_loss = float(plan.compute_s[client]), None
    downlink_s = float(link.needed_s[client])
    upload_s = bits / rate_bps if bits > 0 else 0.0
    engine_s = None
    if isinstance(outcome, ClientUpdate) and (real := outcome.measured) is not None:
        downlink_s, compute, upload_s = real.downlink_s, real.compute_s, real.upload_s
        engine_s = real.engine_s
    elif isinstance(outcome, ClientFailure) and outcome.after_s is not None:
        downlink_s, compute, upload_s = 0.0, outcome.after_s, 0.0
    return ClientRecord(
        name=name,
        pruning=pruning,
        asked_pruning=float(plan.pruning[client]),
        bandwidth_hz=band_hz,
        rate_bps=rate_bps,
        snr_db=float(linear_to_db(link.air.snr_hz[client] / band_hz)) if band_hz > 0 else None,
        downlink_s=downlink_s,
        compute_s=compute,
        upload_s=upload_s,
        total_s=downlink_s + compute + upload_s,
        engine_s=engine_s,
        uplink_bits=bits,
        downlink_bits=float(link.needed_bits[client]),
        flops=flops,
        examples=load.examples,
        label_tokens=sum(step.label_tokens for step in load.steps),
        train_loss=finite(train_loss),
        status=status,
    )


def speeds_after(
    known: Sequence[float | None], profiles: Sequence[DeviceProfile], outcomes: Sequence[Outcome]
) -> tuple[float | None, ...]:
    """Return what each client's next round is planned with, where its clock is real, FLOP/s.

    Half of the time that the last plan expected of an operation and half of what it then took:
    the machine's load drifts, and one odd round should not be believed.
    """
    speeds = list(known)
    for client, (profile, outcome) in enumerate(zip(profiles, outcomes, strict=True)):
        if isinstance(outcome, ClientUpdate) and (real := outcome.measured) is not None:
            took = real.compute_s / outcome.flops
            speeds[client] = 2.0 / (1.0 / profile.effective_flops + took)
    return tuple(speeds)


def kept_speed(profile: DeviceProfile, speed: float | None) -> DeviceProfile:
    """Return the profile at the speed that its device has kept in earlier rounds."""
    if speed is None:
        return profile
    return dataclasses.replace(profile, peak_flops=speed, utilisation=1.0)


def finite(value: float | None) -> float | None:
    """Return the value, or None where it is not a finite number."""
    return value if value is not None and math.isfinite(value) else None


def description(
    scenario: Scenario,
    setting: Setting,
    profiles: Sequence[DeviceProfile],
    placement: Placement,
    untrained: Evaluation,
    may_be_cut: Sequence[bool],
) -> RunDescription:
    """Gather what run.json says of the cell, the clients and the start.

    Clients that may be cut are billed for their calibration.
    """
    clients = tuple(
        ClientSite(
            name=name,
            profile=profile.name,
            x_m=float(placement.positions_m[k, 0]),
            y_m=float(placement.positions_m[k, 1]),
            distance_m=float(placement.distance_m[k]),
            is_los=bool(placement.is_los[k]),
            path_loss_db=float(placement.path_loss_db[k]),
            shadowing_db=float(placement.shadowing_db[k]),
            effective_flops=profile.effective_flops,
            memory_bytes=profile.memory_bytes,
            examples=setting.clients[k].examples,
            labels={str(label): count for label, count in setting.clients[k].labels.items()},
        )
        for k, (name, profile) in enumerate(zip(scenario.client_names, profiles, strict=True))
    )
    setup_flops = [
        client.calibration_flops if may else 0.0
        for client, may in zip(setting.clients, may_be_cut, strict=True)
    ]
    return RunDescription(
        clients=clients,
        setup_s=max(compute_s(f, p) for f, p in zip(setup_flops, profiles, strict=True)),
        setup_flops=sum(setup_flops),
        initial_eval_loss=untrained.loss,
        initial_metrics=untrained.metrics,
        model_fingerprint=setting.model_fingerprint,
        model_parameters=setting.model_parameters,
        vocabulary=setting.shape.vocab,
        adapter_values=adapter_size(
            setting.shape,
            full_sizes(setting.shape),
            lora_rank=scenario.training.lora_rank,
            freezes_a=rule_of(scenario).freezes_a,
        ),
    )


def packed(state: State) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Flatten the state into arrays and JSON for a checkpoint."""
    arrays = {f"adapter/{name}": value.numpy() for name, value in state.adapter.items()}
    for client, moments in state.optimizer_states.items():
        arrays |= {f"optimizer/{client}/{key}": value.numpy() for key, value in moments.items()}
    return arrays, {
        "elapsed_s": state.elapsed_s,
        "losses": list(state.losses),
        "pruning_losses": list(state.pruning_losses),
        "speeds": list(state.speeds),
        "stacked_bits": state.stacked_bits,
    }


def restored(checkpoint: Checkpoint | None) -> State | None:
    """Return the state that `packed` flattened; None where there is no checkpoint."""
    if checkpoint is None:
        return None
    adapter: Adapter = {}
    moments: dict[int, OptimizerState] = {}
    for key, array in checkpoint.tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "adapter":
            adapter[rest] = torch.from_numpy(array.copy())
        else:
            client, _, entry = rest.partition("/")
            moments.setdefault(int(client), {})[entry] = torch.from_numpy(array.copy())
    payload = checkpoint.payload
    if not {"losses", "pruning_losses", "speeds"} <= payload.keys():
        raise InputError(
            f"the checkpoint of round {checkpoint.round} is an earlier version's: it cannot be "
            "resumed; begin anew with --replace or another --out"
        )
    return State(
        checkpoint.round,
        payload["elapsed_s"],
        adapter,
        moments,
        tuple(payload["losses"]),
        tuple(payload["pruning_losses"]),
        tuple(payload["speeds"]),
        payload.get("stacked_bits"),
    )
