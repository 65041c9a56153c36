"""Every client's joules in real rounds, recomputed from its times, its device and its radio."""

from __future__ import annotations

from pathlib import Path

import pytest

import airtune as at
from airtune.models.devices import PROFILES, DeviceProfile
from airtune.record import ClientRecord, Record
from airtune.rounds.bills import SAT_OUT
from airtune.rounds.cell import _known
from airtune.scenario import Scenario

# Kinds with powers and radios of their own: one client's in another's place is seen.
DEVICES = (
    "devices.0.profile=jetson-agx-orin", "devices.0.count=1", "devices.0.radio=mmwave",
    "devices.1.radio=lte", "devices.2.count=2", "devices.2.power_dbm=10",
    "evaluation.every_rounds=10",
)  # fmt: skip
RADIO_W = {"mmwave": (5.664, 0.0089), "lte": (2.926, 0.0767), "amplifier": (10**-2 / 0.35 + 0.1, 0)}


def run(tmp_path: Path, *changes: str) -> tuple[Scenario, Record]:
    scenario = at.load_scenario("tiny", [*DEVICES, *changes])
    return scenario, at.run(scenario, out=tmp_path / "run")


def by_hand(scenario: Scenario, row: ClientRecord, on_s: float) -> dict[str, float]:
    """A client's four shares; `on_s`: how long its device is on."""
    device = scenario.client_devices[scenario.client_names.index(row.name)]
    power_w = PROFILES[device.profile].power_w
    assert power_w is not None
    base_w, slope = RADIO_W[device.radio]
    return {
        "compute_j": power_w * row.compute_s,
        "transmit_j": base_w * row.upload_s + slope * row.uplink_bits / 1e6,
        "receive_j": 1.288 * row.downlink_s + 0.05197 * row.downlink_bits / 1e6,
        "wait_j": 0.3 * power_w * (on_s - row.compute_s),
    }


def check(row: ClientRecord, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(value), (row.name, name)
    assert row.energy_j == pytest.approx(sum(expected.values()))


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("participation.rule=deadline",),
        ("participation.cohort=3", "cell.csi_error_db=6"),
        ("training.keep_optimizer=true", "planning.method=none"),
    ],
    ids=["plain", "some sit out", "lost uploads of a cohort", "equal bands"],
)
def test_a_round_that_waits_for_its_slowest(tmp_path: Path, changes: tuple[str, ...]) -> None:
    scenario, record = run(tmp_path, "rounds=3", *changes)
    seen = set()
    for one in record.rounds:
        for row in one.clients:
            seen.add(row.status.partition(":")[0])
            if row.status == SAT_OUT:
                assert row.energy_j == 0.0
                continue
            assert row.compute_s > 0
            check(row, by_hand(scenario, row, one.round_latency_s))
        together = sum(row.energy_j or 0.0 for row in one.clients)
        assert one.energy_j == pytest.approx(together)
    assert {"participation.rule=deadline": SAT_OUT, "participation.cohort=3": "lost"}.get(
        changes[0] if changes else "", "ok"
    ) in seen


@pytest.mark.parametrize("kind", ["fedbuff", "tiers"])
def test_rounds_that_overlap(tmp_path: Path, kind: str) -> None:
    buffer = ["schedule.buffer_size=6"] if kind == "fedbuff" else []
    scenario, record = run(
        tmp_path, "rounds=6", f"schedule.kind={kind}", "planning.method=bandwidth-only", *buffer
    )
    merged: dict[str, int] = {}
    most = 0
    for one in record.rounds:
        turns: dict[str, list[float]] = {}
        for turn in one.turns:
            # With tiers a device stays on until the merge; otherwise it is free at its end.
            over_s = one.elapsed_s if kind == "tiers" else turn.ended_s
            turns.setdefault(turn.name, []).append(over_s - turn.started_s)
            merged[turn.name] = merged.get(turn.name, 0) + 1
        for row in one.clients:
            if row.name not in turns:
                assert row.energy_j == 0.0
                continue
            most = max(most, len(turns[row.name]))
            check(row, by_hand(scenario, row, sum(turns[row.name])))
        assert one.energy_j == pytest.approx(sum(row.energy_j or 0.0 for row in one.clients))
    assert len(merged) == 4
    assert len(set(merged.values())) > 1
    assert (most > 1) == (kind == "fedbuff")  # several turns of a client in one merge


def test_a_device_that_measured_its_speed_keeps_the_power_of_its_kind() -> None:
    measured = DeviceProfile("measured", 3e9, 1.0, 1e9, None, "measured")
    known = _known(measured, PROFILES["raspberry-pi-5"])
    assert (known.power_w, known.peak_flops) == (11.0, 3e9)
