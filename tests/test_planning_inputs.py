"""From a scenario, a channel and counted work to the round's planning problem: each wire alone."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airtune import channel, planning
from airtune.assignment import Mode
from airtune.channel import ChannelState, numerology
from airtune.channel.outage import backed_off
from airtune.errors import InputError
from airtune.models.affine import affine_coefficients
from airtune.models.devices import DeviceProfile, profile_of
from airtune.models.workload import (
    StepTokens,
    full_sizes,
    largest_step,
    memory_bytes,
    realised_pruning,
    training_flops,
    uniform_sizes,
)
from airtune.planning.floor import first_queues
from airtune.planning.inputs import (
    ClientLoad,
    cost_line,
    least_pruning,
    may_sit_out,
    modes_of,
    nominal_load,
    plan_of_round,
    problem_of_round,
    problem_of_scenario,
    situation_of_scenario,
)
from airtune.randomness import generator
from airtune.scenario import Scenario, load_scenario


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", list(settings))


def test_a_nominal_load_is_full_batches_half_of_them_answers() -> None:
    load = nominal_load(tiny("training.local_steps=3", "training.batch_size=5"))
    assert load == ClientLoad(steps=(StepTokens(rows=5, length=48, label_tokens=120),) * 3,
                              examples=1)  # fmt: skip
    assert load.pruning_cost is load.most_pruned is None


def test_a_clients_mode_is_all_of_its_steps_at_its_devices_rank() -> None:
    scenario = tiny("devices.1.lora_rank=2", "training.local_steps=3", "training.scaffold=true",
                    "aggregation.payload_bits_per_value=32")  # fmt: skip
    mode = Mode(local_steps=3, rank=4, bits_per_value=32, control_variates=True)
    assert modes_of(scenario) == (mode, mode, replace(mode, rank=2), mode)
    assert modes_of(scenario, (2, 0)) == (replace(mode, rank=2), mode)
    few = modes_of(tiny("aggregation.uplink_change_bits=4", "aggregation.rule=ffa-lora"))[0]
    assert (few.bits_per_value, few.bits_per_scale, few.freezes_a) == (4, 32, True)
    assert not few.control_variates


def test_every_field_of_the_problem_is_the_clients_own() -> None:
    scenario = tiny("model.dtype=bfloat16", "model.quantize=nf4", "pruning.max_pruning=0.6",
                    "planning.kappa=0.7", "planning.max_pruning_loss=0.5",
                    "cell.uplink_bandwidth_hz=3e5", "cell.max_spectral_efficiency=7",
                    "devices.0.energy_budget_j=1e6")  # fmt: skip
    at = situation_of_scenario(scenario)
    cohort = (2, 0)
    curve = ((0.0, 0.0), (0.6, 0.3))
    step = StepTokens(rows=8, length=40, label_tokens=100)
    most_pruned = uniform_sizes(at.shape, 0.3)
    loads = (
        ClientLoad(steps=(step,) * 4, examples=30, most_pruned=most_pruned),
        ClientLoad(steps=(replace(step, rows=4),) * 4, examples=10, pruning_cost=curve),
    )
    modes = (replace(at.modes[0], local_steps=3), replace(at.modes[0], rank=2))
    first, second = (profile_of(scenario.client_devices[k]) for k in cohort)
    profiles = (replace(first, memory_bytes=1.15e6), second)
    link = replace(at.link, air=at.link.air.of(cohort), needed_bits=at.link.needed_bits[:2] + 1.0,
                   needs_whole=np.array([True, False]))  # fmt: skip
    problem = problem_of_round(scenario, at.shape, profiles, loads, modes, link, cohort)
    ends = (lambda rate: most_pruned, None)
    counts = [
        affine_coefficients(at.shape, load.steps, mode, bytes_per_weight=2, quantize="nf4",
                            max_pruning=0.6, sizes_at=sizes_at)
        for load, mode, sizes_at in zip(loads, modes, ends, strict=True)
    ]  # fmt: skip
    assert problem.names == ("raspberry-pi-5-1", "jetson-orin-nano-1")
    assert (problem.bandwidth_hz, problem.kappa, problem.max_pruning_loss) == (3e5, 0.7, 0.5)
    np.testing.assert_allclose(problem.weight, [0.75, 0.25])
    np.testing.assert_array_equal(problem.snr_hz, link.air.snr_hz)
    np.testing.assert_array_equal(problem.efficiency, [7.0, 7.0])
    change = link.needed_bits[1]
    rate = link.air.downlink_rate_bps.min()
    np.testing.assert_allclose(problem.downlink_s, [(link.needed_bits[0] + change) / rate,
                                                    change / rate])  # fmt: skip
    speed = np.array([profile.effective_flops for profile in profiles])
    up = largest_step(at.shape, scenario.pruning.units) / 2  # to whole units
    columns = {
        "compute_fixed_s": np.array([c.flops_fixed for c in counts]) / speed,
        "compute_full_s": np.array([c.flops_full for c in counts]) / speed,
        "payload_fixed_bits": [c.payload_fixed_bits for c in counts],
        "payload_full_bits": [c.payload_full_bits for c in counts],
        "min_pruning": [counts[0].min_pruning(1.15e6) + up, 0.0],
        "max_pruning": [0.6, 0.6],
        "energy_budget_j": [np.inf, 1e6],
        "compute_power_w": [profile.power_w for profile in profiles],
    }
    assert 0.05 < columns["min_pruning"][0] < 0.55
    for field, expected in columns.items():
        np.testing.assert_allclose(getattr(problem, field), expected, err_msg=field)
    assert problem.pruning_cost is not None
    assert problem.pruning_cost[0] is None
    np.testing.assert_array_equal(problem.pruning_cost[1], curve)
    both = (replace(loads[0], pruning_cost=curve), loads[1])
    known = problem_of_round(scenario, at.shape, profiles, both, modes, link, cohort)
    assert known.pruning_cost is not None
    np.testing.assert_array_equal(known.pruning_cost[0], curve)
    plain = problem_of_round(scenario, at.shape, profiles, loads[:1] * 2, modes, link, cohort)
    assert plain.pruning_cost is None


def test_a_quantized_model_needs_less_memory() -> None:
    """The rate that is planned is the one at which a step just fits, and half a unit."""
    scenario = tiny("model.quantize=int8", "devices.2.memory_bytes=2.4e6")
    at = situation_of_scenario(scenario)
    least = uniform_sizes(at.shape, scenario.pruning.max_pruning)
    at_whole, at_least = (
        memory_bytes(at.shape, sizes, at.loads[3].steps[0], at.modes[3], quantize="int8")
        for sizes in (full_sizes(at.shape), least)
    )
    rate = realised_pruning(at.shape, least) * (at_whole - 2.4e6) / (at_whole - at_least)
    assert 0.1 < rate < 0.7
    up = largest_step(at.shape, scenario.pruning.units) / 2
    np.testing.assert_allclose(at.problem.min_pruning, [0, 0, 0, rate + up])
    unquantized = situation_of_scenario(tiny("devices.2.memory_bytes=2.4e6"))
    assert unquantized.problem.min_pruning[3] > rate + 0.005


def test_a_cost_line_ends_at_the_clients_own_submodel_where_that_is_known() -> None:
    scenario = tiny("pruning.max_pruning=0.5", "model.dtype=bfloat16")
    at = situation_of_scenario(scenario)
    (load, *_), (mode, *_) = at.loads, at.modes
    sizes = uniform_sizes(at.shape, 0.7)
    line = cost_line(scenario, at.shape, replace(load, most_pruned=sizes), mode)
    rate = realised_pruning(at.shape, sizes)
    counted = sum(training_flops(at.shape, sizes, step, mode) for step in load.steps)
    assert line.flops(rate) == pytest.approx(counted)
    unknown = cost_line(scenario, at.shape, load, mode)
    assert unknown == affine_coefficients(
        at.shape, load.steps, mode, bytes_per_weight=2, max_pruning=0.5
    )
    assert unknown.flops_full != line.flops_full


@pytest.mark.parametrize(
    ("settings", "may"),
    [
        ([], False),
        (['planning.knobs=["bandwidth"]'], False),
        (['planning.knobs=["absence"]'], True),
        (['planning.knobs=["absence"]', "participation.rule=in-turn"], False),
        (["participation.rule=deadline"], False),
    ],
)
def test_who_may_sit_out_need_not_hold_the_model(settings: list[str], may: bool) -> None:
    scenario = tiny("pruning.max_pruning=0.5", *settings)
    at = situation_of_scenario(scenario)
    assert may_sit_out(scenario) == may
    costs = [affine_coefficients(at.shape, at.loads[0].steps, at.modes[0], max_pruning=0.5)] * 3
    fits, pruned = (
        costs[0].memory_fixed_bytes * 100,
        costs[0].memory_fixed_bytes + (0.7 * costs[0].memory_full_bytes),
    )
    profiles = [replace(at.profiles[0], memory_bytes=b) for b in (fits, pruned, 1.0)]
    names = ["a", "b", "c"]
    found = partial(least_pruning, scenario, at.shape)
    up = 0.3 + largest_step(at.shape, "mixed") / 2
    if may:
        assert found(costs, profiles, names) == pytest.approx([0.0, up, 0.5])
        return
    assert found(costs[:2], profiles[:2], names[:2]) == pytest.approx([0.0, up])
    with pytest.raises(InputError) as refused:
        found(costs, [*profiles[:2], replace(profiles[2], memory_bytes=2e3)], names)
    assert str(refused.value) == (
        "client c: its memory of 2e-06 GB does not hold the model even at pruning.max_pruning = "
        "0.5; raise it, or give a device with more memory"
    )


def test_a_rate_of_exactly_the_most_is_held() -> None:
    scenario = tiny("pruning.max_pruning=0.5")
    at = situation_of_scenario(scenario)
    cost = affine_coefficients(at.shape, at.loads[0].steps, at.modes[0], max_pruning=0.5)
    cost = replace(cost, memory_fixed_bytes=100.0, memory_full_bytes=100.0)
    assert least_pruning(scenario, at.shape, [cost], [replace(at.profiles[0], memory_bytes=150.0)],
                         ["a"]) == [0.5]  # fmt: skip


def drawn(scenario: Scenario, round: int) -> ChannelState:
    devices = scenario.client_devices
    placement = channel.place(scenario.cell, devices, generator(scenario.seed, "placement"))
    rng = generator(scenario.seed, "fading", round=round)
    return channel.draw(scenario.cell, devices, placement, rng, round=round)


@pytest.mark.parametrize("round", [1, 2, 3])
def test_a_situation_before_the_run_is_that_of_the_run(round: int) -> None:
    scenario = tiny("seed=5", "participation.cohort=3", "cell.csi_error_db=3.0",
                    "cell.csi_margin_db=2.0", "devices.0.lora_rank=2",
                    "planning.knobs=all", "participation.floor=0.3",
                    "aggregation.downlink_change_bits=4")  # fmt: skip
    at = situation_of_scenario(scenario, round)
    cohort = list(at.cohort)
    assert len(cohort) == 3
    everyone = drawn(scenario, round)
    assert at.round == round
    assert at.air is not None
    np.testing.assert_array_equal(at.air.snr_hz, everyone.snr_hz[cohort])
    np.testing.assert_allclose(at.link.air.snr_hz, everyone.snr_hz[cohort] * 10**-0.2)
    ranks = np.array([2, 2, 4, 4])[cohort]
    assert [mode.rank for mode in at.modes] == ranks.tolist()
    assert at.link.held_ranks.tolist() == (ranks.tolist() if round > 1 else [0, 0, 0])
    assert at.link.needs_whole.tolist() == [round == 1] * 3
    floors = first_queues(4, 0.3, generator(5, "floor"))
    np.testing.assert_array_equal(at.queues, floors[cohort])
    assert at.profiles == tuple(profile_of(scenario.client_devices[k]) for k in cohort)
    assert at.loads == (nominal_load(scenario),) * 3
    assert at.drawn is not None
    assert at.drawn.clients == at.cohort
    assert at.problem.names == tuple(scenario.client_names[k] for k in cohort)


def test_without_a_cohort_all_are_in_it() -> None:
    scenario = tiny()
    at = situation_of_scenario(scenario)
    assert (at.round, at.cohort, at.drawn) == (1, (0, 1, 2, 3), None)
    assert at.air is not None
    np.testing.assert_array_equal(at.air.snr_hz, drawn(scenario, 1).snr_hz)
    known = backed_off(scenario.cell, at.air)
    np.testing.assert_array_equal(at.link.air.snr_hz, known.snr_hz)
    assert at.queues.tolist() == [0.0] * 4
    second = problem_of_scenario(scenario, 2)
    np.testing.assert_array_equal(second.snr_hz, drawn(scenario, 2).snr_hz)
    np.testing.assert_array_equal(problem_of_scenario(scenario).snr_hz, at.problem.snr_hz)


def test_a_table_is_read_at_the_row_of_the_round(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{round},{k},{10 * round}" for round in (1, 2) for k in (1, 2, 3, 4)]
    path.write_text("round,client,snr_db\n" + "\n".join(rows) + "\n")
    scenario = tiny("cell.channel=table", f"cell.table={path}")
    first, second = (problem_of_scenario(scenario, round).snr_hz for round in (1, 2))
    np.testing.assert_allclose(second / first, 10.0)


def test_a_schedule_without_rounds_has_no_situation() -> None:
    with pytest.raises(InputError, match=r"schedule\.kind = 'fedasync'"):
        situation_of_scenario(tiny("schedule.kind=fedasync", "planning.method=none"))


def test_a_round_is_planned_by_the_scenarios_method_blocks_and_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.setattr(planning, "plan", lambda *given, **named: asked.append((given, named)))
    scenario = tiny("seed=9", "planning.method=bcd", "planning.tolerance=1e-4",
                    "cell.uplink_bandwidth_hz=5e6", "cell.subcarrier_spacing_hz=30e3")  # fmt: skip
    problem: Any = object()
    plan_of_round(scenario, problem, 7)
    plan_of_round(tiny(), problem, 7, method="none", bound=False)
    (given, named), (other, without) = asked
    assert given == (problem, "bcd")
    assert named.pop("rng").random() == generator(9, "random-plan", round=7).random()
    assert named == {
        "bound": True,
        "tolerance": 1e-4,
        "block_hz": 360e3,
        "blocks": numerology.resource_blocks(5e6, 30e3),
    }
    assert other == (problem, "none")
    without.pop("rng")
    assert without == {"bound": False, "tolerance": tiny().planning.tolerance}


def test_profiles_with_other_speeds_are_used_as_they_are() -> None:
    at = situation_of_scenario(tiny())
    fast: tuple[DeviceProfile, ...] = tuple(
        replace(p, peak_flops=2 * p.peak_flops) for p in at.profiles
    )
    problem = problem_of_round(tiny(), at.shape, fast, at.loads, at.modes, at.link)
    np.testing.assert_allclose(problem.compute_full_s, at.problem.compute_full_s / 2)
