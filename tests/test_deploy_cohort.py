"""Cohorts on devices: drawn from those connected; what is for simulation only is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from airtune.deploy.device import Device
from airtune.deploy.engine import Conditions, FlowerEngine
from airtune.deploy.pacing import Unpaced
from airtune.errors import InputError
from airtune.merging.rules import check_deployable
from airtune.record import Record
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from fake_mailbox import FakeMailbox

SMALL = ["rounds=3", "devices.0.count=1", "planning.method=none", "task.train_examples=96",
         "task.eval_examples=16", "training.local_steps=2", "participation.cohort=2",
         "aggregation.payload_bits_per_value=32"]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


def on_devices(scenario: Scenario, mailbox: FakeMailbox, out: Path) -> Record:
    conditions = Conditions(devices=2, wait_s=5.0)
    engine = FlowerEngine(scenario, mailbox, conditions, run="run-1", say=lambda line: None)
    return run(scenario, out=out, engine=engine)


def test_devices_of_the_cohort_are_asked_and_those_away_are_not_drawn(tmp_path: Path) -> None:
    scenario = load_scenario("tiny", SMALL)
    names = scenario.client_names
    devices = {name: Device(scenario, name, Unpaced(), tmp_path) for name in names}
    on_air = on_devices(scenario, FakeMailbox(devices), tmp_path / "devices")
    alone = run(scenario, out=tmp_path / "alone")
    for real, counted in zip(on_air.rounds, alone.rounds, strict=True):
        assert [c.name for c in real.clients] == [c.name for c in counted.clients]
        assert real.eval_loss == counted.eval_loss
        assert (real.cohort, real.available) == (2, 3)
    away = FakeMailbox(devices)
    away.away = {names[1]}
    del away.devices[names[1]]
    for entry in on_devices(scenario, away, tmp_path / "away").rounds:
        assert [client.name for client in entry.clients] == [names[0], names[2]]
        assert {client.status for client in entry.clients} == {"ok"}
        assert (entry.cohort, entry.available) == (2, 2)


@pytest.mark.parametrize(
    "setting",
    ["cell.csi_error_db=2.0", "cell.outage_probability=0.1", "participation.deadline_slack=2.0",
     "participation.availability=there.csv"],
)  # fmt: skip
def test_what_is_for_simulation_only_is_refused(setting: str) -> None:
    key, _, value = setting.partition("=")
    shown = f"'{value}'" if value.endswith("csv") else value
    with pytest.raises(InputError, match=f"^{key} = {shown} is for simulation only"):
        check_deployable(load_scenario("tiny", [setting]))
