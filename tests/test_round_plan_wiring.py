"""What joins a round's plan: its knobs, prices, modes and the broadcast, each wire alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.models.affine import affine_coefficients
from airtune.models.workload import full_sizes, largest_step, payload_bits, uniform_sizes
from airtune.planning.broadcast import (
    Broadcast,
    Link,
    Offer,
    broadcasts,
    heard_modes,
    link_of,
    needed_bits,
)
from airtune.planning.costs import KnobCosts, Measured, absent_beside
from airtune.planning.floor import required, weighed
from airtune.planning.inputs import Situation, plan_of_round, situation_of_scenario
from airtune.planning.knobs import name_of
from airtune.planning.modes import ClientMode
from airtune.planning.problem import PlanningProblem
from airtune.planning.round_plan import (
    Prices,
    knobs_of_round,
    plan_round,
    prices_of,
)
from airtune.scenario import Scenario, load_scenario
from oracles import random_problem

NOWHERE = "planning.costs=nowhere.json"
"""A file that is never read: the costs are given."""


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", list(settings))


def costs() -> KnobCosts:
    def of(values: dict) -> dict:
        return {key: Measured(cost=value) for key, value in values.items()}

    return KnobCosts(rank=of({4: 0.0, 2: 0.03, 1: 0.1}), bits=of({16: 0.0, 4: 0.02}),
                     steps=of({1.0: 0.0, 0.5: 0.35}), absent=Measured(cost=0.9),
                     pruning=of({0.3: 0.05, 0.6: 0.4}), provenance={})  # fmt: skip


# --- which knobs ---------------------------------------------------------------------------------

EVERY = {"bandwidth", "pruning", "steps", "rank", "bits", "absence"}


@pytest.mark.parametrize(
    ("settings", "round", "expected"),
    [
        ([], 1, None),
        (["planning.method=uniform"], 1, None),
        (["planning.knobs=all"], 1, EVERY),
        (['planning.knobs=["rank"]'], 1, {"rank"}),
        (["planning.knobs=all", "participation.rule=in-turn"], 1, EVERY),
        (["planning.knobs=all", "participation.rule=in-turn"], 2, EVERY - {"absence"}),
        (["planning.knobs=all", "participation.rule=in-turn", "participation.every_rounds=3"], 2,
         EVERY),
        (["planning.knobs=all", "participation.rule=in-turn", "participation.every_rounds=3"], 6,
         EVERY - {"absence"}),
        (["participation.rule=in-turn"], 1, {"bandwidth", "pruning", "absence"}),
        (["participation.rule=in-turn"], 2, None),
        (["participation.rule=deadline"], 2, {"bandwidth", "pruning", "absence"}),
        (["participation.rule=deadline", "planning.method=none"], 1, {"absence"}),
        (["participation.rule=deadline", "planning.method=pruning-only"], 1,
         {"pruning", "absence"}),
        (["participation.rule=partial"], 1, {"bandwidth", "steps"}),
        (["participation.rule=partial-fednova", "planning.method=none"], 1, {"steps"}),
    ],
)  # fmt: skip
def test_a_round_turns_what_its_rule_and_method_leave_open(
    settings: list[str], round: int, expected: set[str] | None
) -> None:
    found = knobs_of_round(tiny(*settings), round)
    assert (found if found is None else set(found)) == expected


def test_a_rule_needs_a_method_that_is_an_optimum() -> None:
    for round in (1, 2):  # also where everyone comes
        with pytest.raises(InputError) as refused:
            knobs_of_round(tiny("participation.rule=in-turn", "planning.method=bcd"), round)
        assert str(refused.value) == (
            "participation.rule = 'in-turn' with planning.method = 'bcd': allowed are exact, none, "
            "bandwidth-only, pruning-only"
        )


# --- prices --------------------------------------------------------------------------------------


def test_prices_are_the_files_or_in_proportion_to_work() -> None:
    whole = Mode(local_steps=4, rank=4, bits_per_value=16)
    prices = prices_of(tiny("planning.knobs=all", NOWHERE), costs())
    assert prices == Prices(costs(), 0.9)
    assert prices.of(replace(whole, rank=2), whole, 0.25) == pytest.approx(0.03)
    plain = prices_of(tiny("participation.left_out_cost=0.7", "participation.rule=deadline"))
    assert plain == Prices(None, 0.7)
    assert plain.of(replace(whole, rank=2), whole, 0.25) == 0.75


def test_an_absence_costs_more_than_the_least_progress_of_any_mode() -> None:
    problem = random_problem(np.random.default_rng(2), 2)
    modes = (
        (ClientMode("a", 0.1, 1.0, 0.0, 1e3, 0.0, 0.0, 0.5),),
        (ClientMode("b", 0.0, 1.0, 0.0, 1e3, 0.0, 0.0, 0.2),
         ClientMode("c", 0.3, 1.0, 0.0, 1e3, 0.0, 0.0, 0.0)),
    )  # fmt: skip
    asked = replace(problem, modes=modes, pruning_cost=None)
    # 0.9·0.5, 1·0.8 and 0.7·1: the first is the least.
    assert absent_beside(asked, 0.4) == pytest.approx(1 - 0.6 * 0.9 * 0.5)
    # Where no progress is left at the largest rate, absence costs the whole of it and no more.
    steep = (np.array([[0.0, 0.0], [0.5, 1.4]]), np.array([[0.0, 0.0], [0.5, 0.1]]))
    assert absent_beside(replace(asked, pruning_cost=steep), 0.4) == 1.0
    # At one rate: 0.9·0.6, 1·0.6 and 0.7·0.6.
    assert absent_beside(asked, 0.4, rate=0.4) == pytest.approx(1 - 0.6 * 0.7 * 0.6)
    # Where nobody has a mode that memory holds, it is what was measured.
    none = ((replace(modes[0][0], min_pruning=np.inf),), (replace(modes[1][0], min_pruning=1.0),))
    nobody = replace(asked, modes=none, absent_cost=np.full(2, 0.4))
    assert absent_beside(nobody, 0.4) == pytest.approx(0.4)


# --- what is planned -----------------------------------------------------------------------------


def planned(scenario: Scenario, at: Situation | None = None, **given: Any) -> tuple[Any, Situation]:
    at = situation_of_scenario(scenario) if at is None else at
    return plan_round(scenario, at, **given), at


def test_without_knobs_the_method_alone_plans() -> None:
    scenario = tiny("planning.method=random", "seed=3")
    made, at = planned(scenario, situation_of_scenario(scenario, 4))
    expected = plan_of_round(scenario, at.problem, 4)
    np.testing.assert_array_equal(made.plan.pruning, expected.pruning)
    assert made.modes == at.modes
    assert made.link is at.link
    assert made.problem is at.problem


def test_every_mode_is_counted_for_its_own_client() -> None:
    """Field by field, with the wait for the broadcast as part of the computing."""
    scenario = tiny('planning.knobs=["bandwidth","pruning","rank","steps"]', NOWHERE,
                    "planning.rank_values=[1]", "planning.steps_values=[2]",
                    "model.dtype=bfloat16", "model.quantize=nf4", "pruning.max_pruning=0.6",
                    "devices.2.memory_bytes=1.6e6")  # fmt: skip
    at = situation_of_scenario(scenario)
    load = replace(at.loads[1], most_pruned=uniform_sizes(at.shape, 0.3))
    at = replace(at, loads=(at.loads[0], load, *at.loads[2:]))
    made, _ = planned(scenario, at, costs=costs())
    assert made.problem.absent_cost is None
    assert not made.problem.equal_bands
    np.testing.assert_array_equal(made.problem.downlink_s, 0.0)
    rate = float(at.link.air.downlink_rate_bps.min())
    assert made.problem.modes is not None
    for k, own in enumerate(made.problem.modes):
        assert own is not None
        assert len(own) == 4
        for mode, (steps, rank) in zip(own, [(4, 4), (4, 1), (2, 4), (2, 1)], strict=True):
            asked = replace(at.modes[k], local_steps=steps, rank=rank)
            assert mode.name == name_of(asked)
            count = affine_coefficients(
                at.shape, at.loads[k].steps, asked, bytes_per_weight=2, quantize="nf4",
                max_pruning=0.6, sizes_at=None if k != 1 else lambda _: load.most_pruned,
            )  # fmt: skip
            speed = at.profiles[k].effective_flops
            wait = payload_bits(at.shape, full_sizes(at.shape),
                                replace(asked, bits_per_value=16)) / rate  # fmt: skip
            assert mode.compute_fixed_s == pytest.approx(count.flops_fixed / speed + wait)
            assert mode.compute_full_s == pytest.approx(count.flops_full / speed)
            assert mode.payload_fixed_bits == count.payload_fixed_bits
            assert mode.payload_full_bits == count.payload_full_bits
            least = count.min_pruning(at.profiles[k].memory_bytes)
            assert (least > 0) == (k == 3)
            least += largest_step(at.shape, "mixed") / 2 * (k == 3)  # to whole units
            assert (mode.min_pruning, mode.max_pruning) == (least, 0.6)
            lost = 1 - (1 - {4: 0.0, 1: 0.1}[rank]) * (1 - {4: 0.0, 2: 0.35}[steps])
            assert mode.cost == pytest.approx(lost)


def test_without_the_pruning_knob_clients_are_cut_to_what_memory_holds() -> None:
    scenario = tiny('planning.knobs=["rank"]', NOWHERE, "planning.rank_values=[1]",
                    "devices.2.memory_bytes=2.5e6")  # fmt: skip
    made, _ = planned(scenario, costs=costs())
    assert made.problem.equal_bands
    bounds = [[(m.min_pruning, m.max_pruning) for m in own] for own in made.problem.modes]
    assert bounds[:3] == [[(0.0, 0.0)] * 2] * 3
    assert all(0.3 < low == high < 0.6 for low, high in bounds[3])
    chosen = [mode.name for mode in made.problem.modes[3]].index(name_of(made.modes[3]))
    assert made.plan.pruning[3] == pytest.approx(bounds[3][chosen][0])


def test_a_mode_that_memory_does_not_hold_is_none_to_choose() -> None:
    scenario = tiny('planning.knobs=["absence"]', NOWHERE, "pruning.max_pruning=0.3",
                    "devices.2.memory_bytes=2.2e6")  # fmt: skip
    made, _ = planned(scenario, costs=costs())
    (mode,) = made.problem.modes[3]
    assert mode.min_pruning > mode.max_pruning == 0.3
    assert made.modes[3] is None
    assert None not in made.modes[:3]


@pytest.mark.parametrize("cost", ["linear", "measured"])
def test_pruning_costs_what_clients_measured_or_the_pilot(cost: str) -> None:
    scenario = tiny('planning.knobs=["pruning"]', NOWHERE, f"pruning.cost={cost}",
                    "pruning.max_pruning=0.6")  # fmt: skip
    at = situation_of_scenario(scenario)
    own = (np.array([[0.0, 0.0], [0.6, 0.5]]),) * 4
    at = replace(at, problem=replace(at.problem, pruning_cost=own))
    made, _ = planned(scenario, at, costs=costs())
    pilot = np.array(costs().pruning_curve(0.6))
    expected = own[0] if cost == "measured" else pilot
    assert len(made.problem.pruning_cost) == 4
    for curve in made.problem.pruning_cost:
        np.testing.assert_array_equal(curve, expected)


def test_without_a_pilot_pruning_costs_what_the_problem_says() -> None:
    scenario = tiny("participation.rule=deadline", "participation.left_out_cost=0.6")
    at = situation_of_scenario(scenario)
    own = (np.array([[0.0, 0.0], [0.8, 0.3]]),) * 4
    made, _ = planned(scenario, replace(at, problem=replace(at.problem, pruning_cost=own)))
    np.testing.assert_array_equal(made.problem.pruning_cost[2], own[2])
    # A price on absence alone is used as it stands.
    np.testing.assert_array_equal(made.problem.absent_cost, 0.6)


def test_the_floor_weighs_those_to_whom_something_is_owed_and_holds_them() -> None:
    scenario = tiny('planning.knobs=["bandwidth","absence"]', NOWHERE, "participation.floor=0.2",
                    "planning.kappa=0.4")  # fmt: skip
    queues = np.array([0.0, 0.5, 1.0, 0.1])
    at = replace(situation_of_scenario(scenario), queues=queues)
    made, _ = planned(scenario, at, costs=costs())
    weight = at.problem.weight * (1 + queues)
    np.testing.assert_allclose(made.problem.weight, weight / weight.sum())
    assert made.problem.kappa == pytest.approx(0.4 * weight.sum())
    np.testing.assert_array_equal(np.isinf(made.problem.absent_cost), queues >= 1.0)
    bare = replace(made.problem, weight=at.problem.weight, kappa=0.4,
                   absent_cost=np.full(4, 0.9))  # fmt: skip
    again = required(weighed(bare, queues), queues)
    np.testing.assert_array_equal(made.problem.absent_cost, again.absent_cost)
    none, _ = planned(scenario.model_copy(update={"participation": tiny().participation}), at,
                      costs=costs())  # fmt: skip
    np.testing.assert_array_equal(none.problem.weight, at.problem.weight)
    with pytest.raises(InputError, match=r"floor 0\.95 cannot be met"):
        planned(tiny('planning.knobs=["steps","absence"]', NOWHERE, "participation.floor=0.95",
                     "planning.steps_values=[1]", "training.local_steps=2",
                     "devices.2.memory_bytes=2.2e6"), costs=costs())  # fmt: skip


def test_a_plan_says_how_long_it_took_and_keeps_its_bound() -> None:
    began = perf_counter()
    made, _ = planned(tiny("planning.knobs=all", NOWHERE), costs=costs())
    took = perf_counter() - began
    assert 0 < made.plan.solve_s < took
    assert 0 < made.plan.lower_bound_s <= made.plan.objective_s
    assert made.plan.gap == pytest.approx(made.plan.objective_s / made.plan.lower_bound_s - 1)


@pytest.mark.parametrize("bound", [None, 0.3])
def test_the_objective_is_the_latency_where_the_loss_is_bounded(bound: float | None) -> None:
    limit = [] if bound is None else [f"planning.max_pruning_loss={bound}"]
    scenario = tiny("planning.knobs=all", NOWHERE, "planning.kappa=0.6",
                    "cell.uplink_bandwidth_hz=2e4", *limit)  # fmt: skip
    made, _ = planned(scenario, costs=costs())
    plan = made.plan
    assert plan.pruning_loss > 0.01
    factor = 1.0 if bound is not None else 1 / (1 - 0.6 * plan.pruning_loss)
    assert plan.objective_s == pytest.approx(plan.round_latency_s * factor)
    assert plan.round_latency_s == pytest.approx(plan.total_s.max())


@pytest.mark.parametrize(
    ("settings", "solver"),
    [
        (["planning.knobs=all", NOWHERE, "planning.method=bcd-knobs"], "bcd-knobs"),
        (["planning.knobs=all", NOWHERE, "cell.uplink_bandwidth_hz=5e6",
          "cell.subcarrier_spacing_hz=15e3"], "exact"),
        (["participation.rule=partial", "planning.method=bandwidth-only",
          "cell.uplink_bandwidth_hz=5e6", "cell.subcarrier_spacing_hz=15e3"], "exact"),
    ],
)  # fmt: skip
def test_other_solvers_and_whole_blocks_are_planned_like_a_round(
    settings: list[str], solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def seen(*given: Any, **named: Any) -> Any:
        asked.append((*given, named))
        return plan_of_round(*given, **named)

    monkeypatch.setattr("airtune.planning.round_plan.plan_of_round", seen)
    scenario = tiny(*settings, "training.local_steps=2")
    given = costs() if scenario.planning.knobs is not None else None
    made, _ = planned(scenario, situation_of_scenario(scenario, 2), costs=given)
    assert asked
    for one, problem, round, named in asked:
        assert one is scenario
        assert isinstance(problem, PlanningProblem)
        assert (round, named) == (2, {"method": solver})
    assert made.plan.lower_bound_s is not None
    assert (made.plan.blocks is not None) == (scenario.cell.subcarrier_spacing_hz is not None)


def test_a_broadcast_that_too_few_can_hear_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = tiny('planning.knobs=["absence"]', NOWHERE)
    at = situation_of_scenario(scenario)
    calls: list[Broadcast] = []

    def deaf(asked: PlanningProblem, offers: Sequence[Offer], link: Link, sent: Broadcast) -> Any:
        calls.append(sent)
        if len(calls) % 2:
            raise InputError(f"number {len(calls)}")
        return heard_modes(asked, offers, link, sent)

    monkeypatch.setattr("airtune.planning.round_plan.heard_modes", deaf)
    made, _ = planned(scenario, at, costs=costs())
    assert len(calls) == 4
    assert made.plan.objective_s > 0
    calls.clear()
    monkeypatch.setattr(
        "airtune.planning.round_plan.broadcasts", lambda *given: broadcasts(*given)[:1]
    )
    with pytest.raises(InputError, match="number 1"):
        planned(scenario, at, costs=costs())


def test_a_broadcast_without_a_better_plan_does_not_end_the_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of four the second has none; the third makes the best."""
    scenario = tiny('planning.knobs=["absence"]', NOWHERE)
    known: list[Any] = []

    def answered(problem: PlanningProblem, best: Any, *, tolerance: float) -> Any:
        known.append(best)
        if len(known) == 2:
            return None, 1e9
        made = plan_of_round(scenario, problem, 1)
        scale = 0.5 if len(known) == 3 else 1.0
        return replace(made, compute_s=made.compute_s * scale, upload_s=made.upload_s * scale), 1e9

    monkeypatch.setattr("airtune.planning.round_plan.better_than", answered)
    made, _ = planned(scenario, costs=costs())
    assert len(known) == 4
    assert known[0] is None
    assert known[1] is known[2] is not None
    assert known[3] is not known[2]
    assert made.plan.round_latency_s == known[3].round_latency_s < known[2].round_latency_s


def test_who_sits_out_needs_nothing_of_the_broadcast() -> None:
    scenario = tiny('planning.knobs=["rank","absence"]', NOWHERE, "planning.rank_values=[1]",
                    "devices.0.utilisation=1e-4", "devices.1.utilisation=1e-6",
                    "devices.2.utilisation=1e-2",
                    "planning.kappa=0.6", "cell.downlink_bandwidth_hz=1e6",
                    "cell.uplink_bandwidth_hz=5e6",
                    "aggregation.downlink_change_bits=4")  # fmt: skip
    at = situation_of_scenario(scenario, 2)
    held = (4, 1, 4, 0)
    at = replace(at, link=link_of(scenario, at.shape, at.modes, at.link.air, held_ranks=held))
    made, _ = planned(scenario, at, costs=costs())
    assert [mode is None for mode in made.modes] == [False, False, True, False]
    # The second takes the one rank that it holds, so that the change is enough for it.
    assert made.modes[1].rank == 1
    assert made.link.needs_whole.tolist() == [False, False, False, True]
    assert made.link.needed_bits[2] == 0.0
    for k in (0, 1, 3):
        (bits,), (whole,) = needed_bits(scenario, at.shape, [made.modes[k]], 0.0, held[k])
        assert made.link.needed_bits[k] == bits
        assert made.link.needs_whole[k] == whole
    listens = np.array([mode is not None for mode in made.modes])
    np.testing.assert_allclose(made.plan.downlink_s, made.link.needed_s(listens))
    assert made.plan.downlink_s[3] > made.plan.downlink_s[0] > made.plan.downlink_s[2] == 0
    total = made.plan.downlink_s + made.plan.compute_s + made.plan.upload_s
    np.testing.assert_allclose(made.plan.total_s, total)
    for k in (0, 1, 3):
        count = affine_coefficients(at.shape, at.loads[k].steps, made.modes[k])
        assert made.plan.compute_s[k] == pytest.approx(
            count.flops(0.0) / at.profiles[k].effective_flops
        )
