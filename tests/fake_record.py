"""Run directories with made-up but plausible figures, for the tests of record and report.

Deterministic: the same arguments give the same bytes of rounds.jsonl.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from airtune.record import ClientRecord, ClientSite, RoundRecord, RunDescription, RunDirectory
from airtune.scenario import scenario_from_dict

if TYPE_CHECKING:
    import pytest

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
                path_loss_db=(43.3 + 21 * math.log10(distance))
                if is_los
                else 36.8 + 36.7 * math.log10(distance),
                shadowing_db=float(rng.normal(0, 4)),
                effective_flops=SPEEDS[device.profile],
                memory_bytes=8e9,
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
    many = values["rounds"] > 20
    elapsed, learnt, records = 0.0, 0.0, []
    for round in range(1, values["rounds"] + 1):
        fading = rng.exponential(size=len(sites)) * 0.8 + 0.2
        noise = rng.normal(size=len(sites) + 2)
        clients = _clients(sites, method, fading, noise)
        if faults and round % 2 == 0:
            clients[-1] = replace(clients[-1], status="rejected: not finite", train_loss=None)
        latency = max(client.total_s for client in clients)
        unpruned = max(c.total_s for c in _clients(sites, "none", fading, 0 * noise))
        elapsed += latency
        pruning_loss = float(np.mean([client.asked_pruning for client in clients]))
        learnt += (1 - 0.5 * pruning_loss) * (0.1 if many else 0.4)
        loss = float(1.08 + 0.58 * math.exp(-learnt) + 0.006 * noise[-1])
        measured = round % 2 == 0 or not many
        objective = latency / (1 - 0.5 * pruning_loss)
        gap = 1e-7 if method == "exact" else 0.03 + 0.02 * abs(float(noise[0]))
        records.append(
            RoundRecord(
                round=round,
                method=method,
                round_latency_s=latency,
                elapsed_s=elapsed,
                predicted_latency_s=latency * (1 + 0.02 * float(noise[-2])),
                none_latency_s=unpruned,
                eval_loss=loss if measured else None,
                train_loss=loss + 0.06 + 0.02 * float(noise[1 % len(sites)]),
                metrics={"accuracy": (1.7 - loss) / 2} if measured else {},
                uplink_bits=sum(client.uplink_bits for client in clients),
                downlink_bits=FULL_BITS,
                flops=sum(client.flops for client in clients),
                pruning_loss=pruning_loss,
                kappa=0.5,
                objective_s=objective,
                lower_bound_s=objective / (1 + gap),
                gap=gap,
                wall_s=7.5,
                clients=tuple(clients),
            )
        )
    return records


FULL_BITS, FULL_FLOPS, DOWNLINK_S = 39.1e6, 4.7e11, 0.9


def _clients(
    sites: tuple[ClientSite, ...], method: str, fading: np.ndarray, noise: np.ndarray
) -> list[ClientRecord]:
    """One round: slow devices prune more; bandwidth equal, or so that all end together."""
    speed = np.array([site.effective_flops for site in sites], dtype=float)
    loss_db = np.array([site.path_loss_db for site in sites], dtype=float)
    snr_hz = 10 ** ((192 - 3 - loss_db) / 10) * fading
    if method == "none":
        pruning = np.zeros(len(sites))
    else:
        pruning = np.clip(0.16 * (12.6 - np.log10(speed)) + 0.1 / fading, 0, 0.6)
    bits = FULL_BITS * (1 - 0.93 * pruning)
    flops = FULL_FLOPS * (1 - 0.79 * pruning) * (1 + 0.03 * noise[: len(sites)])
    compute_s = flops / speed
    band = np.full(len(sites), BANDWIDTH_HZ / len(sites))
    if method != "none":
        band = _equalised(snr_hz, bits, compute_s)
    rate = band * np.log2(1 + snr_hz / band)
    return [
        ClientRecord(
            name=site.name,
            asked_pruning=float(pruning[k]),
            pruning=float(pruning[k]) * 0.995,
            bandwidth_hz=float(band[k]),
            rate_bps=float(rate[k]),
            snr_db=10 * math.log10(snr_hz[k] / band[k]),
            downlink_s=DOWNLINK_S,
            compute_s=float(compute_s[k]),
            upload_s=float(bits[k] / rate[k]),
            total_s=DOWNLINK_S + float(compute_s[k] + bits[k] / rate[k]),
            uplink_bits=float(bits[k]),
            downlink_bits=FULL_BITS,
            flops=float(flops[k]),
            examples=site.examples,
            label_tokens=400,
            train_loss=1.3 + 0.05 * float(noise[k]),
        )
        for k, site in enumerate(sites)
    ]


def _equalised(snr_hz: np.ndarray, bits: np.ndarray, compute_s: np.ndarray) -> np.ndarray:
    """The bands in which all end at the same time, by two nested bisections."""

    def bands(finish_s: float) -> np.ndarray:
        wanted = bits / (finish_s - compute_s)
        low, high = np.zeros_like(bits), np.full_like(bits, 10 * BANDWIDTH_HZ)
        for _ in range(40):
            middle = (low + high) / 2
            enough = middle * np.log2(1 + snr_hz / middle) >= wanted
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return high

    early, late = float(compute_s.max()), float(compute_s.max()) + 1e4
    for _ in range(40):
        middle = (early + late) / 2
        early, late = (early, middle) if bands(middle).sum() <= BANDWIDTH_HZ else (middle, late)
    return bands(late)


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
    values["planning"]["method"] = method
    with RunDirectory.create(folder, scenario_values=values, method=method) as directory:
        directory.describe(description(values))
        for record in rounds(values, method, faults=faults):
            directory.append_round(record)
        if finished:
            directory.finish({"accuracy": 0.21})
    return folder


VALUES = scenario_values(2, 4)
ROUNDS = rounds(VALUES)


def create(folder: Path, **changes: Any) -> RunDirectory:
    return RunDirectory.create(folder, **{"scenario_values": VALUES, "method": "exact", **changes})


def resume(folder: Path, **changes: Any) -> RunDirectory:
    return RunDirectory.resume(folder, **{"scenario_values": VALUES, "method": "exact", **changes})


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def started(folder: Path, rounds_: int = 4, **changes: Any) -> Path:
    """A run with checkpoints that stopped after some rounds."""
    with create(folder, **changes) as directory:
        directory.describe(description(VALUES))
        for record in ROUNDS[:rounds_]:
            directory.append_round(record)
            values = np.full(3, float(record.round))
            directory.save_checkpoint(record.round, {"w": values}, {"elapsed_s": record.elapsed_s})
    return folder


def write_runs(folder: Path) -> Path:
    """Write a run of each of three methods, and `faults`, in which updates are left out."""
    for method in ("exact", "bcd", "none"):
        write_run(folder / method, method=method)
    write_run(folder / "faults", faults=True)
    return folder


def text_of(page: str) -> str:
    """Return what a reader sees: a page without its markup."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.S)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())
