"""Run directories with made-up but plausible figures, for the tests of record and report.

Deterministic: the same arguments give the same bytes of rounds.jsonl.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from airtune.record import (
    ClientRecord,
    ClientSite,
    RoundRecord,
    RunDescription,
    RunDirectory,
)
from airtune.scenario import scenario_from_dict

SPEEDS = {
    "jetson-agx-orin": 10.5e12,
    "jetson-orin-nano": 2.5e12,
    "apple-m4": 1.1e12,
    "laptop-cpu": 4e11,
    "raspberry-pi-5": 3e10,
}
BANDWIDTH_HZ = 10e6


def scenario_values(clients: int, rounds: int, seed: int = 0) -> dict[str, Any]:
    kinds = list(SPEEDS)[: min(clients, len(SPEEDS))]
    counts = [clients // len(kinds) + (i < clients % len(kinds)) for i in range(len(kinds))]
    scenario = scenario_from_dict(
        {
            "name": "made-up",
            "description": "Figures that no run produced.",
            "seed": seed,
            "rounds": rounds,
            "devices": [
                {"profile": kind, "count": count} for kind, count in zip(kinds, counts, strict=True)
            ],
            "cell": {"uplink_bandwidth_hz": BANDWIDTH_HZ},
        }
    )
    return scenario.model_dump(mode="json")


def description(values: dict[str, Any]) -> RunDescription:
    scenario = scenario_from_dict(values)
    rng = np.random.default_rng(scenario.seed)
    sites = []
    for name, device in zip(scenario.client_names, scenario.client_devices, strict=True):
        distance = float(scenario.cell.radius_m * math.sqrt(rng.uniform(0.02, 1)))
        angle = rng.uniform(0, 2 * math.pi)
        is_los = bool(rng.uniform() < math.exp(-distance / 120))
        counts = rng.multinomial(int(rng.integers(20, 120)), rng.dirichlet(np.full(4, 0.6)))
        sites.append(
            ClientSite(
                name=name,
                profile=device.profile,
                x_m=distance * math.cos(angle),
                y_m=distance * math.sin(angle),
                distance_m=distance,
                is_los=is_los,
                path_loss_db=(43 if is_los else 53) + 30 * math.log10(distance) - 20,
                shadowing_db=float(rng.normal(0, 4)),
                effective_flops=SPEEDS[device.profile],
                memory_bytes=8e9,
                min_pruning=0.0,
                examples=int(counts.sum()),
                labels={str(i + 2): int(n) for i, n in enumerate(counts)},
            )
        )
    return RunDescription(
        clients=tuple(sites),
        initial_eval_loss=1.6604,
        initial_metrics={"accuracy": 0.02},
        model_fingerprint="0123456789abcdef",
        model_parameters=134_515_008,
        adapter_values=2_442_240,
    )


def rounds(
    values: dict[str, Any], method: str = "exact", *, faults: bool = False
) -> list[RoundRecord]:
    """Plausible rounds: equal finishing times for exact, stragglers for none."""
    sites = description(values).clients
    rng = np.random.default_rng(values["seed"] + 1)
    elapsed, records = 0.0, []
    for round in range(1, values["rounds"] + 1):
        fading = rng.exponential(size=len(sites))
        noise = rng.normal(size=len(sites) + 2)
        clients = [
            _client(site, len(sites), method, float(fade), float(jitter))
            for site, fade, jitter in zip(sites, fading, noise, strict=False)
        ]
        if faults and round % 2 == 0:
            clients[-1] = _with(clients[-1], status="rejected: not finite", train_loss=None)
        latency = max(client.total_s for client in clients)
        unpruned = [_client(s, len(sites), "none", float(f), 0.0) for s, f in zip(sites, fading, strict=True)]  # fmt: skip  # noqa: E501
        elapsed += latency
        pruning_loss = float(np.mean([client.asked_pruning for client in clients]))
        loss = 1.1 + 0.56 * math.exp(-0.35 * round * (1 - 0.5 * pruning_loss)) + 0.01 * noise[-1]
        objective = latency / (1 - 0.5 * pruning_loss)
        bound = objective / (1 + (1e-7 if method == "exact" else 0.04))
        skip = round % 2 == 1 and values["rounds"] > 20
        records.append(
            RoundRecord(
                round=round,
                method=method,
                round_latency_s=latency,
                elapsed_s=elapsed,
                predicted_latency_s=latency * (1 + 0.01 * float(noise[-2])),
                none_latency_s=max(client.total_s for client in unpruned),
                eval_loss=None if skip else float(loss),
                train_loss=float(loss + 0.05),
                metrics={} if skip else {"accuracy": float(0.5 - 0.3 * loss + 0.1)},
                uplink_bits=sum(client.uplink_bits for client in clients),
                downlink_bits=39e6,
                flops=sum(client.flops for client in clients),
                pruning_loss=pruning_loss,
                kappa=0.5,
                objective_s=objective,
                lower_bound_s=bound,
                gap=objective / bound - 1,
                wall_s=7.5,
                clients=tuple(clients),
            )
        )
    return records


def _client(site: ClientSite, count: int, method: str, fade: float, jitter: float) -> ClientRecord:
    assert site.effective_flops is not None
    assert site.path_loss_db is not None
    pruned = method != "none"
    speed = site.effective_flops
    pruning = min(0.6, max(0.0, 0.12 * (12.3 - math.log10(speed)) + 0.03)) if pruned else 0.0
    share = 1 / count
    if pruned:
        share *= 0.8 + 0.4 * pruning
    bandwidth = BANDWIDTH_HZ * share
    snr = 10 ** ((175 - site.path_loss_db - 10 * math.log10(bandwidth)) / 10) * (0.2 + fade) / 60
    rate = bandwidth * math.log2(1 + snr)
    bits = 39e6 * (1 - 0.9 * pruning)
    flops = 1.6e12 * (1 - 0.8 * pruning) * (1 + 0.02 * jitter)
    times = (0.8, flops / speed, bits / rate)
    return ClientRecord(
        name=site.name,
        asked_pruning=pruning,
        pruning=pruning * 0.995,
        bandwidth_hz=bandwidth,
        rate_bps=rate,
        snr_db=10 * math.log10(snr),
        downlink_s=times[0],
        compute_s=times[1],
        upload_s=times[2],
        total_s=sum(times),
        uplink_bits=bits,
        downlink_bits=39e6,
        flops=flops,
        examples=site.examples,
        label_tokens=400,
        train_loss=1.3 + 0.05 * jitter,
    )


def _with(client: ClientRecord, **changes: Any) -> ClientRecord:
    return ClientRecord(**{**client.__dict__, **changes})


def write_run(
    folder: Path,
    *,
    clients: int = 8,
    rounds_: int = 6,
    method: str = "exact",
    seed: int = 0,
    faults: bool = False,
    finished: bool = True,
) -> Path:
    values = scenario_values(clients, rounds_, seed)
    with RunDirectory.create(folder, scenario_values=values, method=method) as directory:
        directory.describe(description(values))
        for record in rounds(values, method, faults=faults):
            directory.append_round(record)
        if finished:
            directory.finish({"accuracy": 0.21})
    return folder
