"""Rounds planned over every knob: told, obeyed, billed as planned, and fair over the rounds."""

from __future__ import annotations

from pathlib import Path

import pytest

import airtune as at
from airtune.scenario import Scenario, load_scenario
from pilot_costs import pilot_costs
from scripted import stopped_and_resumed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> str:
    made = pilot_costs(
        absent=0.6,
        rank={4: 0.0, 2: 0.03, 1: 0.1},
        steps={1.0: 0.0, 0.5: 0.35},
        pruning={0.3: 0.05, 0.6: 0.4},
    )
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    path.write_text(made.model_dump_json())
    return str(path)


def scenario(costs: str, *settings: str) -> Scenario:
    given = ["rounds=4", "task.eval_examples=8", "training.local_steps=2", "planning.knobs=all",
             f"planning.costs={costs}", "planning.tolerance=1e-4"]  # fmt: skip
    return load_scenario("tiny", [*given, *settings])


def test_every_knob_is_told_obeyed_and_billed_as_planned(costs: str, tmp_path: Path) -> None:
    record = at.run(scenario(costs), out=tmp_path / "run")
    everyone = [client for entry in record.rounds for client in entry.clients]
    assert {client.status for client in everyone} <= {"ok", "sat out"}
    told = [client for client in everyone if client.status == "ok"]
    assert len({client.rank for client in told} | {4}) > 1
    assert len({client.bits_per_value for client in told} | {16}) > 1
    assert any(client.status == "sat out" for client in everyone)
    for client in told:
        assert client.binds in ("air", "compute")
    for entry in record.rounds:
        # A model of 32 channels meets a pruning rate only roughly.
        assert entry.predicted_latency_s == pytest.approx(entry.round_latency_s, rel=0.25)
        assert entry.gap is not None
        assert entry.gap <= 1e-4 * 1.01
        assert sum(client.bandwidth_hz for client in entry.clients) <= 1e5 * (1 + 1e-9)
    assert record.description is not None
    assert record.description.knob_costs.startswith(costs)
    page = at.write_report(tmp_path / "run").read_text()
    assert "What each client was told" in page
    assert f"{told[0].local_steps}/{told[0].rank}/{told[0].bits_per_value}" in page


def test_without_pruning_rounds_take_exactly_what_was_planned(costs: str, tmp_path: Path) -> None:
    knobs = 'planning.knobs=["bandwidth","steps","rank","bits","absence"]'
    record = at.run(scenario(costs, knobs, "rounds=3"), out=tmp_path / "run")
    for entry in record.rounds:
        # Every payload, step and wait was planned as it then was.
        assert entry.predicted_latency_s == pytest.approx(entry.round_latency_s, rel=1e-6)
        for client in entry.clients:
            assert (client.pruning or 0.0) == 0.0


def heard(record: at.Record) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in record.rounds:
        for client in entry.clients:
            counts[client.name] = counts.get(client.name, 0) + (client.status == "ok")
    return counts


def test_a_floor_brings_everyone_back(costs: str, tmp_path: Path) -> None:
    cheap = ["devices.1.utilisation=4e-5", "rounds=6"]  # one client far slower than the others
    without = at.run(scenario(costs, *cheap), out=tmp_path / "without")
    floor = at.run(scenario(costs, *cheap, "participation.floor=0.3"), out=tmp_path / "floor")
    assert min(heard(without).values()) == 0
    assert min(heard(floor).values()) >= 1
    bound = [client.binds for entry in floor.rounds for client in entry.clients if client.binds]
    assert any("floor" in binds for binds in bound)
    assert floor.rounds[-1].elapsed_s > without.rounds[-1].elapsed_s


def test_the_floor_is_kept_over_a_stop(costs: str, tmp_path: Path) -> None:
    asked = scenario(costs, "participation.floor=0.3")
    whole = at.run(asked, out=tmp_path / "whole")
    resumed = stopped_and_resumed(asked, tmp_path / "cut", after=2)
    for ours, theirs in zip(resumed.rounds, whole.rounds, strict=True):
        assert ours.clients == theirs.clients
        assert ours.eval_loss == theirs.eval_loss
