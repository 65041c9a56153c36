"""docs/extend.md's blocks are plugins that work: each is run on the scenario `tiny`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import airtune as at
from airtune.channel import CHANNEL_MODELS
from airtune.merging import MERGING
from airtune.planning import METHODS
from airtune.scenario import TASKS

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "extend.md"
BLOCKS = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", DOCUMENT.read_text(), re.S))
SHORT = ("rounds=1", "task.eval_examples=8", "training.local_steps=1")


pytestmark = pytest.mark.usefixtures("no_plugins_left", "one_thread")


@pytest.fixture
def plugin(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    path = tmp_path / request.param
    path.write_text(BLOCKS[request.param])
    return str(path)


def test_every_kind_of_part_is_shown_in_twenty_lines() -> None:
    assert list(BLOCKS) == ["proportional.py", "median.py", "blocked.py", "compare.py"]
    assert all(len(block.splitlines()) <= 20 for block in BLOCKS.values())


@pytest.mark.parametrize("plugin", ["proportional.py"], indirect=True)
def test_a_method_of_ones_own_runs_and_carries_its_gap(plugin: str, tmp_path: Path) -> None:
    settings = [*SHORT, "planning.method=proportional"]
    scenario = at.load_scenario("tiny", settings, plugins=[plugin])
    assert scenario.plugins == (plugin,)
    record = at.run(scenario, out=tmp_path / "run")
    (entry,) = record.rounds
    assert entry.method == "proportional"
    assert entry.gap is not None
    assert entry.lower_bound_s is not None
    assert entry.gap > 0.001
    assert entry.objective_s == pytest.approx(entry.lower_bound_s * (1 + entry.gap))
    (recorded,) = json.loads((tmp_path / "run" / "run.json").read_text())["plugins"]
    assert recorded["plugin"] == plugin
    assert len(recorded["sha256"]) == 64
    assert record.plugins == (recorded,)


@pytest.mark.parametrize("plugin", ["median.py"], indirect=True)
def test_a_rule_of_ones_own_merges(plugin: str, tmp_path: Path) -> None:
    scenario = at.load_scenario("tiny", [*SHORT, "aggregation.rule=median"], plugins=[plugin])
    record = at.run(scenario, out=tmp_path / "run")
    assert record.description is not None
    assert record.rounds[-1].eval_loss < record.description.initial_eval_loss  # type: ignore[operator]
    # Its name is the median: against the same by hand, on entries that some do not hold.
    from airtune.merging.functions import Contribution, merge

    server = {"x.lora_A.weight": torch.zeros(1, 2), "x.lora_B.weight": torch.zeros(2, 1)}
    parts = [
        Contribution(
            {name: torch.full(value.shape, number) for name, value in server.items()},
            {name: torch.full(value.shape, number < 9) for name, value in server.items()},
            weight=1.0,
        )
        for number in (1.0, 2.0, 4.0, 9.0)
    ]
    assert merge("median", server, parts)["x.lora_A.weight"].tolist() == [[2.0, 2.0]]
    assert MERGING["median"].source == "a plugin"


@pytest.mark.parametrize("plugin", ["blocked.py"], indirect=True)
def test_a_channel_of_ones_own_is_what_the_run_hears(plugin: str, tmp_path: Path) -> None:
    settings = [*SHORT, "cell.channel=blocked", "cell.uplink_bandwidth_hz=1e6"]
    scenario = at.load_scenario("tiny", settings, plugins=[plugin])
    record = at.run(scenario, out=tmp_path / "run")
    assert record.description is not None
    for client, site in zip(record.rounds[0].clients, record.description.clients, strict=True):
        free_db = 20 * np.log10(4 * np.pi * site.distance_m * 3.5e9 / 299_792_458.0)
        snr_db = 23 - free_db + 174 - 5 - 10 * np.log10(client.bandwidth_hz)
        assert client.snr_db is not None
        assert min(abs(client.snr_db - snr_db), abs(client.snr_db - snr_db + 20)) < 1e-6
    assert "blocked" in CHANNEL_MODELS


@pytest.mark.parametrize("plugin", ["compare.py"], indirect=True)
def test_a_task_of_ones_own_is_trained(plugin: str, tmp_path: Path) -> None:
    settings = [*SHORT, "task.name=larger", "task.train_examples=64"]
    scenario = at.load_scenario("tiny", settings, plugins=[plugin])
    record = at.run(scenario, out=tmp_path / "run")
    assert record.description is not None
    labels = [set(site.labels) for site in record.description.clients]
    assert set().union(*labels) == {"0", "1"}
    assert 0 <= record.rounds[-1].metrics["accuracy"] <= 1
    assert "larger" in TASKS
    assert "larger" not in METHODS
