"""A real round's record holds the energy of its own times and bits, and keeps a budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import airtune as at
from airtune.models.devices import PROFILES
from airtune.rounds.observer import Observer
from airtune.scenario import load_scenario

SMALL = ["rounds=1", "task.eval_examples=4", "training.local_steps=1", "planning.method=exact"]


@pytest.mark.parametrize("budget", [[], ["devices.0.energy_budget_j=1e6"]])
def test_the_record_adds_up_by_hand(budget: list[str]) -> None:
    torch.set_num_threads(1)
    scenario = load_scenario("tiny", [*SMALL, "devices.1.radio=lte", *budget])
    with at.open_cell(scenario) as cell:
        _, record = at.step(cell, at.begin(cell))
    assert record.energy_j == pytest.approx(sum(c.energy_j or 0.0 for c in record.clients))
    for client, device in zip(record.clients, scenario.client_devices, strict=True):
        power_w = PROFILES[device.profile].power_w
        assert power_w is not None
        sends_w = 10 ** (-0.7) / 0.35 + 0.1
        if device.radio == "lte":
            sends_w = 2.926 + 0.0767 * min(client.uplink_bits / client.upload_s / 1e6, 28.0)
        assert client.compute_j == pytest.approx(power_w * client.compute_s)
        assert client.transmit_j == pytest.approx(sends_w * client.upload_s)
        down = 1.288 * client.downlink_s + 0.05197e-6 * client.downlink_bits
        assert client.receive_j == pytest.approx(down)
        idle_s = record.round_latency_s - client.compute_s
        assert client.wait_j == pytest.approx(0.3 * power_w * idle_s)
        parts = (client.compute_j, client.transmit_j, client.receive_j, client.wait_j)
        assert client.energy_j == pytest.approx(sum(part or 0.0 for part in parts))


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def noticed(self, what: str) -> None:
        self.notices.append(what)


def test_a_round_says_who_drew_more_than_its_budget(tmp_path: Path) -> None:
    """A cut of few units computes more than the plan's line says."""
    told = Told()
    budgets = [f"devices.{k}.energy_budget_j={j}" for k, j in enumerate((21.05, 20.56, 19.0))]
    asked = load_scenario("tiny", ["rounds=1", "task.train_examples=96", *budgets])
    record = at.run(asked, out=tmp_path / "run", observer=told)
    (client,) = [notice for notice in told.notices if "energy_budget_j" in notice]
    spent = [(one.compute_j or 0) + (one.transmit_j or 0) for one in record.rounds[0].clients]
    given = [device.energy_budget_j or 0.0 for device in asked.client_devices]
    over = [k for k in range(4) if spent[k] > given[k]]
    worst = max(over, key=lambda k: spent[k] / given[k])
    assert client == (
        f"round 1: {len(over)} of 4 clients drew more than their energy_budget_j, "
        f"'{asked.client_names[worst]}' the most: {spent[worst]:.4g} J, its budget is "
        f"{given[worst]:.4g} J"
    )
    plenty = Told()
    more = load_scenario(
        "tiny", ["rounds=1", "task.train_examples=96", "devices.0.energy_budget_j=1e6"]
    )
    at.run(more, out=tmp_path / "more", observer=plenty)
    assert not [notice for notice in plenty.notices if "energy_budget_j" in notice]
