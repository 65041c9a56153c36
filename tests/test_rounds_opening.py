"""What comes before a round: the cell, the opening of the clock, and what is then known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import airtune as at
from airtune.models.devices import profile_of
from airtune.planning.costs import shipped_costs
from airtune.planning.floor import first_queues
from airtune.randomness import generator
from airtune.rounds.loop import opening
from airtune.scenario import Scenario, load_scenario
from scripted import Listening, Round, Scripted


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", ["planning.method=none", *settings])


def test_the_opening_measures_and_says_who_is_never_there(tmp_path: Path) -> None:
    path = tmp_path / "there.csv"
    path.write_text("client,from_s,to_s\n1,5,1e9\n3,5,1e9\n")
    scenario = tiny("participation.cohort=3", f"participation.availability={path}",
                    "participation.too_few=fewer", "planning.method=exact", "rounds=5",
                    "planning.knobs=all", "participation.floor=0.3")  # fmt: skip
    engine, listening = Scripted(scenario), Listening()
    with at.open_cell(scenario, engine=engine, observer=listening) as cell:
        start, description = opening(cell)
        assert listening.heard == [
            ("noticed", f"{path}: 2 clients are never available"),
            "measuring the untrained model",
        ]
        assert engine.evaluations == [(start.adapter, False, ())]
        assert (start.round, start.elapsed_s) == (0, description.setup_s)
        assert start.losses == (description.initial_eval_loss,)
        assert start.queues == tuple(first_queues(4, 0.3, generator(1, "floor")).tolist())
        assert len(start.optimizer_states) == 0
        listening.heard.clear()
        after, record = at.step(cell, start)
    assert ("noticed", "round 1: 2 of the 3 clients asked for are available") in listening.heard
    assert (record.cohort, record.available) == (2, 2)
    assert record.waited_s == max(0.0, 5.0 - start.elapsed_s)
    assert after.elapsed_s == start.elapsed_s + record.waited_s + record.round_latency_s


def test_a_plan_with_odd_units_is_doubted_once() -> None:
    scenario = tiny("devices.0.utilisation=1e-12", "rounds=5")
    doubts = [
        [what for what in Round(scenario, rounds=rounds).listening.heard if what[0] == "noticed"]
        for rounds in (1, 2)
    ]
    assert doubts[0] == doubts[1] != []


@pytest.mark.parametrize(
    ("settings", "cut"),
    [
        (["planning.method=none"], [False] * 4),
        (["planning.method=none", "devices.1.memory_bytes=1.1e6"], [False, False, True, False]),
        # It holds the first round's batches, and not the longer ones of the second: cut there.
        (["planning.method=none", "devices.1.memory_bytes=1.36e6"], [False, False, True, False]),
        (["planning.method=exact"], [True] * 4),
        (["planning.method=exact", "pruning.max_pruning=0"], [False] * 4),
        (["planning.method=exact", "participation.cohort=2"], [True] * 4),
        # Knobs and rules may take pruning out of the plans, in all rounds or in some.
        (["planning.method=exact", 'planning.knobs=["bandwidth","steps"]'], [False] * 4),
        (["planning.method=exact", 'planning.knobs=["bandwidth","steps","pruning"]'],
         [True] * 4),
        (["planning.method=exact", "participation.rule=partial"], [False] * 4),
        (["planning.method=exact", "participation.rule=deadline"], [True] * 4),
        (["planning.method=exact", "participation.rule=in-turn"], [True] * 4),
        (["planning.method=bandwidth-only", "participation.rule=in-turn"], [False] * 4),
        (["planning.method=none", "participation.cohort=2", "devices.1.memory_bytes=1.1e6"],
         [False, False, True, False]),
    ],
)  # fmt: skip
def test_calibration_opens_the_clock_for_those_who_may_be_cut(
    settings: list[str], cut: list[bool]
) -> None:
    scenario = tiny(*settings)
    with at.open_cell(scenario, engine=Scripted(scenario)) as cell:
        _, told = opening(cell)
        profiles, placement = cell.profiles, cell.placement
    flops = [1e6 * (k + 1) if may else 0.0 for k, may in enumerate(cut)]
    assert told.setup_flops == sum(flops)
    assert told.setup_s == max(
        f / profile.effective_flops for f, profile in zip(flops, profiles, strict=True)
    )
    assert (told.model_fingerprint, told.model_parameters) == ("a fingerprint", 4321)
    assert told.vocabulary == 259
    assert bool(told.knob_costs) == any("planning.knobs" in setting for setting in settings)
    assert told.initial_metrics == {"accuracy": 0.25}
    assert told.initial_eval_loss == pytest.approx(2.5, abs=0.2)
    for k, site in enumerate(told.clients):
        assert site.name == scenario.client_names[k]
        assert site.profile == profiles[k].name
        assert (site.x_m, site.y_m) == tuple(placement.positions_m[k])
        assert site.distance_m == placement.distance_m[k]
        assert site.is_los == placement.is_los[k]
        assert site.path_loss_db == placement.path_loss_db[k]
        assert site.shadowing_db == placement.shadowing_db[k]
        assert site.effective_flops == profiles[k].effective_flops
        assert site.memory_bytes == profiles[k].memory_bytes
        assert (site.examples, site.labels) == (10 * (k + 1), {f"label {k}": 10 * (k + 1)})


def test_clients_nearby_have_a_line_of_sight() -> None:
    scenario = tiny("cell.radius_m=15")
    with at.open_cell(scenario, engine=Scripted(scenario)) as cell:
        _, told = opening(cell)
    assert [site.is_los for site in told.clients] == [True] * 4


def test_the_adapter_is_counted_at_the_servers_rank() -> None:
    scenario = tiny("devices.0.lora_rank=1", 'planning.knobs=["bandwidth"]',
                    "planning.method=exact")  # fmt: skip
    engine = Scripted(scenario)
    with at.open_cell(scenario, engine=engine) as cell:
        _, told = opening(cell)
    assert told.adapter_values == sum(v.numel() for v in engine.initial_adapter().values())
    assert told.knob_costs.startswith("smollm2-135m.json (shipped), ")


def test_costs_of_ones_own_are_named_by_their_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(shipped_costs().model_dump_json())
    scenario = tiny("planning.knobs=all", "planning.method=exact", f"planning.costs={path}")
    with at.open_cell(scenario, engine=Scripted(scenario)) as cell:
        _, told = opening(cell)
    assert told.knob_costs.startswith(f"{path}, ")


def test_profiles_that_devices_measured_keep_the_powers_of_their_kind() -> None:
    scenario = tiny("devices.0.memory_bytes=5e9")
    named = profile_of(scenario.client_devices[0])
    own = replace(named, name="mine", peak_flops=7e9, power_w=None, idle_power_w=1.0)
    engine = Scripted(scenario, profiles=(None, own, None, None))
    with at.open_cell(scenario, engine=engine) as cell:
        assert cell.profiles[0] == named
        assert cell.profiles[1] == replace(
            own, power_w=named.power_w, idle_power_w=named.idle_power_w
        )
    assert engine.closed == 0
