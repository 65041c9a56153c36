"""A round is planned over the devices that are connected: one that is away holds no band."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from airtune.deploy.device import Device
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.pacing import Unpaced
from airtune.deploy.presence import deciding_among, is_away, part_of
from airtune.deploy.privacy import epsilon, parse_privacy
from airtune.deploy.roster import Node
from airtune.models.devices import profile_of
from airtune.planning.inputs import Situation, plan_of_round, situation_of_scenario
from airtune.rounds import run
from airtune.rounds.cell import Cell, Decision, open_cell
from airtune.scenario import Scenario, load_scenario
from fake_mailbox import FakeMailbox

# The last one is far away: it would hold up the broadcast, and most of the band would be its own.
KINDS = (
    "devices=[{profile='jetson-orin-nano', distance_m=30.0}, {profile='raspberry-pi-5', "
    "distance_m=60.0}, {profile='intel-n100', distance_m=190.0}]"
)
SMALL = [
    KINDS, "rounds=2", "task.train_examples=96", "task.eval_examples=16", "training.local_steps=1",
]  # fmt: skip
KNOBS = ["participation.rule=deadline", "participation.left_out_cost=0.05"]


@pytest.fixture(scope="module", params=["the method alone", "with absence"])
def scenario(request: pytest.FixtureRequest) -> Scenario:
    return load_scenario("tiny", [*SMALL, *(KNOBS if request.param == "with absence" else [])])


@pytest.fixture(scope="module")
def cell(scenario: Scenario) -> Cell:
    return open_cell(scenario)


def test_the_plan_is_that_of_those_present_alone(scenario: Scenario, cell: Cell) -> None:
    situation, band_hz = situation_of_scenario(scenario), scenario.cell.uplink_bandwidth_hz
    made = deciding_among(lambda: frozenset({0, 1}))(cell, situation)
    *here, away = made.assignments
    assert away is not None
    assert is_away(away)
    listening = [one for one in here if one is not None]
    assert not any(map(is_away, listening))
    assert sum(one.bandwidth_hz for one in listening) == pytest.approx(band_hz)
    # The broadcast is as fast as the slower one of those who listen hears it.
    rates = situation.link.air.downlink_rate_bps
    assert rates.argmin() == 2
    slowest_bps = min(rates[one.client] for one in listening)
    assert all(one.downlink_rate_bps == pytest.approx(slowest_bps) for one in listening)
    assert made.plan.names == scenario.client_names
    assert made.plan.bandwidth_hz[2] == made.plan.total_s[2] == 0.0


def test_a_plan_by_the_method_is_the_one_of_a_smaller_problem() -> None:
    scenario = load_scenario("tiny", SMALL)
    situation = situation_of_scenario(scenario)
    with open_cell(scenario) as cell:
        made = deciding_among(lambda: frozenset({0, 1}))(cell, situation)
    so_far = {"queues": np.array([0.1, 0.2, 0.3]), "contributed": np.array([0.4, 0.5, 1.0])}
    part = part_of(replace(situation, **so_far), np.array([0, 1]))
    assert part.queues.tolist() == [0.1, 0.2]
    assert part.contributed.tolist() == [0.4, 0.5]
    # Oracle: the weights of two clients, and all that belongs to them, cut out by hand.
    full = situation.problem
    assert part.problem.names == full.names[:2]
    assert part.problem.weight == pytest.approx(full.weight[[0, 1]] / full.weight[[0, 1]].sum())
    assert part.problem.snr_hz == pytest.approx(full.snr_hz[[0, 1]])
    slowest_bps = situation.link.air.downlink_rate_bps[[0, 1]].min()
    heard_s = situation.link.needed_bits[[0, 1]] / slowest_bps
    assert part.problem.downlink_s == pytest.approx(heard_s)
    alone = plan_of_round(scenario, part.problem, 1)
    assert made.plan.bandwidth_hz[[0, 1]] == pytest.approx(alone.bandwidth_hz)
    assert made.plan.pruning[[0, 1]] == pytest.approx(alone.pruning)
    assert made.plan.objective_s == pytest.approx(alone.objective_s)


def test_all_present_and_nobody_present_are_planned_as_ever(scenario: Scenario, cell: Cell) -> None:
    situation = situation_of_scenario(scenario)
    expected = cell.decide(cell, situation)
    for present in (frozenset({0, 1, 2}), frozenset[int]()):
        made = deciding_among(lambda present=present: present)(cell, situation)  # type: ignore[misc]
        assert made.assignments == expected.assignments


def test_a_device_that_is_away_leaves_its_band_to_the_others(
    scenario: Scenario, tmp_path: Path
) -> None:
    names = scenario.client_names
    mailbox = FakeMailbox({n: Device(scenario, n, Unpaced(), tmp_path) for n in names})
    mailbox.away.add(names[2])

    def back(body: bytes) -> bytes:
        mailbox.away.clear()
        return body

    for name in names[:2]:  # whichever of them the plan gives work
        mailbox.tamper[name, "1"] = back
    engine = FlowerEngine(
        scenario, mailbox, Conditions(devices=2, wait_s=0.2), run="run-1", say=lambda line: None
    )
    record = run(
        scenario, out=tmp_path / "run", engine=engine, decide=deciding_among(engine.present)
    )
    first, second = record.rounds
    away = next(client for client in first.clients if client.name == names[2])
    assert (away.status, away.bandwidth_hz, away.total_s) == ("failed: not connected", 0.0, 0.0)
    band_hz = scenario.cell.uplink_bandwidth_hz
    assert sum(client.bandwidth_hz for client in first.clients) == pytest.approx(band_hz)
    assert {client.status for client in second.clients} <= {"ok", "sat out"}
    assert second.clients[2].status == "sat out" or second.clients[2].bandwidth_hz > 0


class _Renewed(FakeMailbox):
    """The first client's device comes back with another node once its first job is done."""

    renewed = False

    def nodes(self) -> list[Node]:
        old, *others = super().nodes()
        if not self.renewed:
            return [old, *others]
        return [replace(old, online=False), *others, replace(old, id=100, public_key=b"new")]

    def send(self, bodies: Mapping[int, bytes], group: str) -> dict[str, int]:
        real = {node % 100: node for node in bodies}
        posted = super().send({node % 100: body for node, body in bodies.items()}, group)
        self.renewed = self.renewed or group == "1"
        return {message: real[node] for message, node in posted.items()}


def test_a_device_with_a_new_key_takes_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, 'planning.method="none"', "rounds=3"])
    names, said = scenario.client_names, list[str]()
    mailbox = _Renewed({n: Device(scenario, n, Unpaced(), tmp_path) for n in names})
    engine = FlowerEngine(
        scenario, mailbox, Conditions(devices=3, wait_s=5), run="run-1", say=said.append
    )
    record = run(
        scenario, out=tmp_path / "run", engine=engine, decide=deciding_among(engine.present)
    )
    assert not [line for line in said if "refused" in line]
    assert [client.status for client in record.rounds[-1].clients] == ["ok"] * 3


def test_a_device_whose_privacy_budget_is_used_up_holds_no_band(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, "rounds=3", "pruning.max_pruning=0"])
    names, said = scenario.client_names, list[str]()
    once = parse_privacy(f"clip=0.5,noise=1.2,budget={1.01 * epsilon([1.2], 1e-5)}")
    devices = {
        n: Device(scenario, n, Unpaced(), tmp_path, once if n == names[0] else None) for n in names
    }
    conditions = Conditions(devices=3, wait_s=5, privacy=parse_privacy("clip=1,noise=2"))
    mailbox = FakeMailbox(devices)
    engine = FlowerEngine(scenario, mailbox, conditions, run="run-1", say=said.append)
    record = run(
        scenario, out=tmp_path / "run", engine=engine, decide=deciding_among(engine.present)
    )
    found = [next(one for one in r.clients if one.name == names[0]) for r in record.rounds]
    assert "privacy budget used up" in found[1].status
    assert (found[2].status, found[2].bandwidth_hz) == ("failed: not connected", 0.0)
    assert any("refused: privacy budget used up" in line for line in said)


def test_a_device_that_joins_late_is_planned_at_the_speed_that_it_measured(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", [*SMALL, "rounds=3"])
    names, planned = scenario.client_names, list[float]()
    mailbox = FakeMailbox({n: Device(scenario, n, Unpaced(), tmp_path) for n in names})
    mailbox.away.add(names[0])
    engine = FlowerEngine(
        scenario, mailbox, Conditions(devices=2, wait_s=0.2), run="run-1", say=lambda line: None
    )
    hook = deciding_among(engine.present)

    def decide(cell: Cell, situation: Situation) -> Decision:
        planned.append(situation.profiles[0].effective_flops)
        made = hook(cell, situation)
        mailbox.away.clear()
        return made

    run(scenario, out=tmp_path / "run", engine=engine, decide=decide)
    named = profile_of(scenario.client_devices[0]).effective_flops
    measured = engine.federation().profiles[0]
    assert measured is not None
    assert planned[:2] == [named, measured.effective_flops]
    assert planned[2] not in (named, measured.effective_flops)  # learnt from its own round
