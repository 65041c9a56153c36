"""One pruning rate for all: against a fine grid of rates with every assignment of modes."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.errors import InputError
from airtune.planning import PlanningProblem, plan
from airtune.planning.common_rate import (
    LEAST_TOLERANCE,
    at_common_rate,
    better_at_common_rate,
)
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.mode_plans import chosen_of, keeps_budgets
from airtune.planning.problem import Plan, priced
from airtune.planning.round_plan import RoundPlan, plan_round
from airtune.scenario import Scenario, load_scenario
from common_rate_problems import MOST, kinked, pinned, problem_of
from mode_oracles import best_of_all_assignments
from pilot_costs import pilot_costs

GRID = np.linspace(0.0, MOST, 31)
ONE_ORDER = ("pruning.calibration=shared", "pruning.rates=common")


def best_on_grid(problem: PlanningProblem, out_cost: float | None) -> tuple[float, float]:
    """The least objective over the grid, and its rate."""
    found = []
    for rate in GRID:
        try:
            found.append(
                (best_of_all_assignments(pinned(problem, float(rate), out_cost)), float(rate))
            )
        except InputError:
            continue
    return min(found)


@pytest.mark.parametrize(("seed", "out_cost"), [(0, None), (1, None), (2, 0.2), (3, 0.6)])
def test_no_rate_of_a_fine_grid_is_better_and_the_bound_is_below_all(
    seed: int, out_cost: float | None
) -> None:
    problem = problem_of(np.random.default_rng(3100 + seed))
    if out_cost is not None:
        problem = replace(problem, absent_cost=np.array([0.9, 0.9, np.inf]))
    best, rate = best_on_grid(problem, out_cost)
    made, lower = better_at_common_rate(problem, None, out_cost=out_cost)
    assert made is not None
    assert made.plan.objective_s <= best * (1 + LEAST_TOLERANCE)
    assert lower <= best * (1 + 1e-9)
    assert lower >= made.plan.objective_s * (1 - 1.1 * LEAST_TOLERANCE)
    here = np.array([mode is not None for mode in made.plan.modes or ()])
    rates = made.plan.pruning[here]
    assert np.ptp(rates) == 0
    # Where the grid's best rate lies inside, the plan's is near it.
    at_rate = best_of_all_assignments(pinned(problem, float(rates[0]), out_cost))
    assert made.plan.objective_s == pytest.approx(at_rate, rel=1e-3)
    assert at_rate <= best * (1 + LEAST_TOLERANCE), rate


@pytest.mark.parametrize("free_to", [0.01, 0.305, 0.35, 0.37, 0.58])
@pytest.mark.parametrize("held_from", [0.0, 0.42])
def test_a_rate_between_the_first_ones_is_found(held_from: float, free_to: float) -> None:
    made, lower = better_at_common_rate(kinked(free_to=free_to, held_from=held_from), None)
    assert made is not None
    best = max(free_to, held_from)
    assert made.plan.pruning == pytest.approx([best, best], abs=2e-3)
    harm = (best - free_to) / (MOST - free_to) * 0.9
    upload_s = 1e4 / (5e5 * np.log2(1 + 1e7 / 5e5))
    truth = (0.1 + 10.0 * (1 - best) + upload_s) / (1 - harm)
    assert made.plan.objective_s == pytest.approx(truth, rel=2e-3)
    assert made.plan.losses == pytest.approx([harm, harm], abs=0.01)
    assert truth * (1 - 1.1 * LEAST_TOLERANCE) <= lower <= truth * (1 + 1e-9)


@pytest.mark.parametrize("cost", [0.2, 0.9])
def test_a_mode_that_memory_holds_from_some_rate_on_is_not_used_below(cost: float) -> None:
    problem = kinked(free_to=0.3, held_from=0.42)
    assert problem.modes is not None
    whole, other = problem.modes
    assert whole is not None
    few = replace(whole[0], name="few", cost=cost, min_pruning=0.0)
    problem = replace(problem, modes=((*whole, few), other))
    made, lower = better_at_common_rate(problem, None)
    assert made is not None
    # Below 0.42 the mode that costs more is the only one: the best rate is then 0.3.
    best, rate = min(
        (best_of_all_assignments(pinned(problem, rate)), rate) for rate in (0.3, 0.42, 0.5)
    )
    assert rate == (0.3 if cost < 0.5 else 0.42)
    assert made.plan.pruning == pytest.approx([rate, rate], abs=2e-3)
    assert made.plan.objective_s == pytest.approx(best, rel=2e-3)
    assert best * (1 - 1.1 * LEAST_TOLERANCE) <= lower <= best * (1 + 1e-9)


def checked_on_grid(problem: PlanningProblem) -> Plan:
    """The plan with the best rate; no rate of the grid is better, and the bound is below all."""
    best = np.inf
    for rate in GRID:
        with contextlib.suppress(InputError):
            best = min(best, plan(at_common_rate(problem, float(rate))).objective_s)
    made, lower = better_at_common_rate(problem, None)
    assert made is not None
    assert made.plan.objective_s <= best * (1 + LEAST_TOLERANCE)
    assert lower <= best * (1 + 1e-9)
    assert lower >= made.plan.objective_s * (1 - 1.1 * LEAST_TOLERANCE)
    return made.plan


@pytest.mark.parametrize("seed", [0, 3])
def test_no_more_is_lost_than_is_allowed(seed: int) -> None:
    base = replace(problem_of(np.random.default_rng(3700 + seed)), absent_cost=None)
    free, _ = better_at_common_rate(base, None)
    whole = at_common_rate(base, 0.24)
    assert free is not None
    # Between what the whole work loses at 0.24 and what the free plan does.
    least = float(whole.weight @ whole.least_losses())
    problem = replace(base, max_pruning_loss=0.5 * (least + free.plan.pruning_loss))
    made = checked_on_grid(problem)
    assert made.pruning_loss <= 0.5 * (least + free.plan.pruning_loss) * (1 + 1e-9)


@pytest.mark.parametrize("seed", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_budgets_of_energy_hold_at_the_planned_rate_and_in_the_bound(seed: int) -> None:
    rng = np.random.default_rng(3600 + seed)
    while True:
        base = replace(problem_of(rng), absent_cost=None)
        free, _ = better_at_common_rate(base, None)
        assert free is not None
        if free.plan.pruning.max() < 0.4:
            break
    # As much as the free plan's modes and bands draw at a higher rate.
    power = {"compute_power_w": np.full(3, 4.0), "transmit_power_w": np.full(3, 1.0)}
    unlimited = replace(at_common_rate(base, 0.5), energy_budget_j=np.full(3, np.inf), **power)
    chosen = chosen_of(unlimited, free.plan)
    drawn = priced(
        unlimited, "exact", np.full(3, 0.5), free.plan.bandwidth_hz, chosen=chosen
    ).energy_j
    assert drawn is not None
    problem = replace(base, energy_budget_j=1.001 * drawn, **power)
    made = checked_on_grid(problem)
    assert keeps_budgets(problem, made)
    assert made.objective_s > free.plan.objective_s


def test_a_known_plan_that_is_better_is_not_beaten() -> None:
    problem = problem_of(np.random.default_rng(3300))
    made, lower = better_at_common_rate(problem, None)
    assert made is not None
    known = replace(made.plan, objective_s=0.9 * made.plan.objective_s)
    again, bound = better_at_common_rate(problem, known)
    assert again is None
    assert 0.99 * known.objective_s <= bound <= known.objective_s * (1 + 1e-9)
    assert bound < lower


def test_rates_that_are_possible_between_the_first_ones_are_found() -> None:
    # Memory holds the mode from 0.42 on, and at 0.6 more is lost than may be: 0.9 in all from 0.3.
    window = replace(kinked(free_to=0.3, held_from=0.42), max_pruning_loss=0.4)
    made, lower = better_at_common_rate(window, None)
    assert made is not None
    assert made.plan.pruning_loss <= 0.4 * (1 + 1e-9)
    # 0.9·(r − 0.3)/0.3 = 0.4.
    assert made.plan.pruning == pytest.approx([0.3 + 0.4 / 3] * 2, abs=2e-3)
    assert lower <= made.plan.objective_s
    with pytest.raises(InputError):
        better_at_common_rate(replace(window, max_pruning_loss=0.3), None)


def test_where_nobody_has_a_mode_that_fits_it_is_refused() -> None:
    problem = replace(kinked(), absent_cost=np.full(2, 0.5))
    assert problem.modes is not None
    none = tuple(
        tuple(replace(mode, min_pruning=0.9) for mode in own or ()) for own in problem.modes
    )
    with pytest.raises(InputError, match="no mode of anyone fits"):
        better_at_common_rate(replace(problem, modes=none), None)


def test_a_client_that_learns_nothing_at_a_rate_may_be_pruned_by_it() -> None:
    # One of two loses all of its round from 0.5 on, the other one little.
    dear, cheap = np.array([[0, 0], [0.5, 1.0], [MOST, 1.3]]), np.array([[0, 0], [MOST, 0.01]])
    problem = replace(kinked(), pruning_cost=(dear, cheap), kappa=0.1)
    made, lower = better_at_common_rate(problem, None)
    at_most = plan(at_common_rate(problem, MOST))
    assert at_most.losses == pytest.approx([1.0, 0.01])
    assert made is not None
    assert lower <= made.plan.objective_s <= at_most.objective_s * (1 + 1e-9)


def test_where_nothing_may_be_pruned_the_bound_is_a_bound() -> None:
    whole = kinked()
    assert whole.modes is not None
    modes = tuple(
        tuple(replace(mode, max_pruning=0.0) for mode in own or ()) for own in whole.modes
    )
    made, lower = better_at_common_rate(replace(whole, modes=modes), None)
    assert made is not None
    assert made.plan.objective_s * (1 - LEAST_TOLERANCE) <= lower <= made.plan.objective_s


def test_a_bound_is_never_above_a_known_plan() -> None:
    known = replace(plan(at_common_rate(kinked(), 0.35)), objective_s=1.0)
    made, lower = better_at_common_rate(replace(kinked(), equal_bands=True), known)
    assert made is None
    assert lower <= 1.0


def test_where_no_rate_fits_the_reason_is_given() -> None:
    problem = problem_of(np.random.default_rng(3400))
    assert problem.modes is not None
    modes = tuple(
        tuple(replace(mode, min_pruning=0.59) for mode in own or ()) for own in problem.modes
    )
    first = tuple(replace(mode, min_pruning=0.7) for mode in modes[0])
    with pytest.raises(InputError, match="memory does not hold it"):
        replace(problem, modes=(first, *modes[1:]), absent_cost=None)
    made, _ = better_at_common_rate(replace(problem, modes=modes, absent_cost=None), None)
    assert made is not None
    assert made.plan.pruning.min() >= 0.59


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Costs with which a little pruning is worth its price, as an override of a scenario."""

    made = pilot_costs(
        absent=0.9,
        rank={4: 0.0, 2: 0.1, 1: 0.3},
        steps={1.0: 0.0, 0.5: 0.6},
        pruning={0.3: 0.02, 0.6: 0.4},
    )
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    path.write_text(made.model_dump_json())
    return f"planning.costs={path}"


def scenario(*settings: str) -> Scenario:
    return load_scenario("tiny", ['planning.knobs=["bandwidth","pruning","steps","rank","bits"]',
                                  *ONE_ORDER, *settings])  # fmt: skip


def planned(asked: Scenario) -> RoundPlan:
    return plan_round(asked, situation_of_scenario(asked, 1))


def test_a_scenario_s_round_is_planned_with_one_rate_and_never_worse_than_whole_models(
    costs: str,
) -> None:
    asked = scenario("devices.0.utilisation=1e-4", costs)
    common = planned(asked)
    assert common.plan.pruning.min() == common.plan.pruning.max() > 0
    whole = planned(scenario("devices.0.utilisation=1e-4", "pruning.max_pruning=0",
                             costs))  # fmt: skip
    assert common.plan.objective_s < whole.plan.objective_s
    assert common.plan.gap is not None
    assert common.plan.gap <= 1.1 * LEAST_TOLERANCE
    assert common.problem.kappa == 1.0


@pytest.mark.parametrize("seed", [1, 2])
def test_with_absence_as_well_it_is_never_worse_than_whole_models(costs: str, seed: int) -> None:
    given = ("planning.knobs=all", costs, f"seed={seed}", "cell.downlink_bandwidth_hz=2e4")
    common, whole = (planned(scenario(*given, most)) for most in (
        "pruning.max_pruning=0.6", "pruning.max_pruning=0"
    ))  # fmt: skip
    assert common.plan.objective_s <= whole.plan.objective_s * (1 + LEAST_TOLERANCE)
    # What is absent is priced beside the work that is done at this rate, not at the largest one.
    least = float((1 - common.problem.table.cost).min())
    assert common.problem.absent_costs == pytest.approx(1 - (1 - 0.9) * least)


def test_absence_is_priced_beside_the_work_that_is_done_at_the_rate() -> None:
    problem = replace(kinked(free_to=0.1), absent_cost=np.array([0.7, np.inf]))
    # e(0.35) is half of 0.9.
    at_rate = at_common_rate(problem, 0.35, out_cost=0.2)
    assert at_rate.absent_costs == pytest.approx([1 - 0.8 * 0.55, np.inf])
    assert at_common_rate(problem, 0.5).absent_costs == pytest.approx([0.7, np.inf])


def test_whole_blocks_are_shared_at_the_best_rate(costs: str) -> None:
    asked = scenario("devices.0.utilisation=1e-4", costs,
                     "cell.subcarrier_spacing_hz=15000",
                     "cell.uplink_bandwidth_hz=5e6")  # fmt: skip
    made = planned(asked).plan
    assert made.blocks is not None
    assert made.pruning.min() == made.pruning.max() > 0
    assert made.gap is not None
    assert 0 <= made.gap < 0.2


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("planning.knobs=[\"bandwidth\",\"bits\"]", "knobs with 'pruning' among them"),
        ("planning.method=bcd-knobs", "planning.method = 'exact'"),
        ("pruning.calibration=own", "one order of units"),
        ("pruning.selection=rolling", "one order of units"),
    ],
)  # fmt: skip
def test_what_cannot_have_one_rate_is_refused(setting: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        scenario(setting)


@pytest.mark.usefixtures("one_thread")
def test_all_clients_of_a_round_train_the_same_submodel(costs: str, tmp_path: Path) -> None:
    asked = scenario("rounds=2", "devices.0.utilisation=1e-4", "task.eval_examples=8",
                     costs)  # fmt: skip
    record = at.run(asked, out=tmp_path / "run")
    for entry in record.rounds:
        rates = {client.pruning for client in entry.clients}
        assert len(rates) == 1
        assert rates.pop() > 0
