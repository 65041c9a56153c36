"""A choice of modes: against every assignment, a mixed-integer program, and what must hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from airtune.channel.rate import band_of_rate
from airtune.errors import InputError
from airtune.planning import METHODS, ClientMode, PlanningProblem, plan
from airtune.planning.mode_plans import keeps_budgets
from airtune.planning.optimum.batch import batch_of
from airtune.planning.optimum.choices import choices_of
from airtune.planning.optimum.fixed_bands import at_bands
from airtune.planning.optimum.minorants import dual_of, minorants_at, value_at
from airtune.planning.optimum.modes_search import exact_over_modes
from airtune.planning.optimum.prices import best_prices
from airtune.planning.optimum.pricing import at_price, limits_at
from mode_oracles import best_of_all_assignments, mode_problem
from oracles import random_problem

TOLERANCE = 1e-6


def check(problem: PlanningProblem, truth: float) -> None:
    made = plan(problem)
    assert made.gap is not None
    assert made.lower_bound_s is not None
    assert 0 <= made.gap <= TOLERANCE
    assert made.objective_s <= truth * (1 + TOLERANCE)
    assert made.lower_bound_s <= truth * (1 + 1e-9)
    assert made.objective_s >= truth * (1 - 2 * TOLERANCE)
    assert made.bandwidth_hz.sum() <= problem.bandwidth_hz * (1 + 1e-12)


def many(count: int, batches: int, first: int | None = None) -> list:
    """The first batch always, the others with --run-slow."""
    return [
        pytest.param(
            batch, count if batch else first or count, marks=[pytest.mark.slow] if batch else []
        )
        for batch in range(batches)
    ]


@pytest.mark.parametrize(("batch", "count"), many(25, 21, first=6))
def test_every_assignment_of_modes(batch: int, count: int) -> None:
    rng = np.random.default_rng(500 + batch)
    for _ in range(count):
        problem = mode_problem(rng, int(rng.integers(1, 4 if batch == 0 else 5)), 3)
        check(problem, best_of_all_assignments(problem))


@pytest.mark.parametrize(("batch", "count"), many(8, 8))
def test_a_bound_on_the_loss(batch: int, count: int) -> None:
    rng = np.random.default_rng(700 + batch)
    for _ in range(count):
        problem = mode_problem(rng, int(rng.integers(1, 4)), 3)
        least = float(problem.weight @ problem.least_losses())
        limit = least + rng.random() * 0.6 * (1 - least)
        bounded = replace(problem, kappa=0.5, max_pruning_loss=limit)
        truth = best_of_all_assignments(bounded)
        if not np.isfinite(truth):  # only a round without anyone keeps the bound
            with pytest.raises(InputError, match="no plan in which someone takes part"):
                plan(bounded)
            continue
        check(bounded, truth)
        assert plan(bounded).pruning_loss <= limit * (1 + 1e-8)


@pytest.mark.parametrize(("batch", "count"), many(6, 6))
def test_the_broadcast_waits_for_those_who_listen(batch: int, count: int) -> None:
    rng = np.random.default_rng(800 + batch)
    for _ in range(count):
        problem = mode_problem(rng, 3, 3, absent=1.0)
        scale = plan(problem, bound=False).round_latency_s
        listening = replace(problem, listen_s=rng.uniform(0, scale, 3))
        check(listening, best_of_all_assignments(listening))


def loss_by_milp(problem: PlanningProblem, deadline_s: float) -> float:
    """Q at a deadline for modes that are not pruned: one binary a mode, the band as a budget.

    Someone takes part; infinity where nobody can.
    """
    table = problem.table
    need = table.payload_fixed_bits + table.payload_full_bits * (1 - table.min_pruning)
    busy = table.compute_fixed_s + table.compute_full_s * (1 - table.min_pruning)
    left = deadline_s - problem.downlink_s[table.owner] - busy
    rate = np.zeros(len(need))
    np.divide(need, left, out=rate, where=(need > 0) & (left > 0))
    rate[(need > 0) & (left <= 0)] = np.inf
    owner = np.concatenate([table.owner, np.arange(problem.clients)])
    snr, cap = problem.snr_hz[table.owner], problem.efficiency[table.owner]
    band = np.where(left >= 0, band_of_rate(rate, snr, cap), np.inf)
    band = np.concatenate([band, np.zeros(problem.clients)])
    lost = 1 - (1 - table.cost) * (1 - problem.costs_of(table.owner, table.min_pruning))
    loss = problem.weight[owner] * np.concatenate([lost, problem.absent_costs])
    use = (band <= problem.bandwidth_hz) & np.isfinite(loss)
    one_each = (owner[use] == np.arange(problem.clients)[:, None]).astype(float)
    shares = band[use] / problem.bandwidth_hz
    present = np.concatenate([np.ones(len(need)), np.zeros(problem.clients)])[use]
    if not present.any():
        return np.inf
    found = milp(
        loss[use],
        integrality=np.ones(use.sum()),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(shares[None], 0, 1),
            LinearConstraint(present[None], 1, np.inf),
        ],
        options={"mip_rel_gap": 1e-9},
    )
    return float(found.fun) if found.success else np.inf


@pytest.mark.parametrize(("batch", "count"), many(6, 5))
def test_a_fixed_deadline_against_a_mixed_integer_program(batch: int, count: int) -> None:
    rng = np.random.default_rng(900 + batch)
    compared = 0
    for _ in range(count):
        clients = int(rng.integers(5, 21))
        base = random_problem(
            rng, clients, kappa=0.9, max_pruning=np.zeros(clients), min_pruning=np.zeros(clients),
            bandwidth_hz=1e6 * clients, snr_hz=10 ** rng.uniform(6, 8.5, clients),
        )  # fmt: skip
        problem = mode_problem(
            rng, clients, 4, **{k: getattr(base, k) for k in ("snr_hz", "bandwidth_hz",
            "min_pruning", "max_pruning")},
        )  # fmt: skip
        deadline = plan(problem, bound=False).round_latency_s * rng.uniform(0.9, 1.3)
        theirs = loss_by_milp(problem, deadline)
        if not np.isfinite(theirs):
            continue
        # The smallest deadline whose loss stays within theirs is no later than this one.
        limit = theirs * (1 + 1e-9)
        bounded = plan(replace(problem, kappa=0.5, max_pruning_loss=limit))
        assert bounded.round_latency_s <= deadline * (1 + TOLERANCE)
        if theirs > problem.weight @ problem.least_losses() + 1e-4:
            tighter = replace(problem, kappa=0.5, max_pruning_loss=theirs - 1e-5)
            assert plan(tighter).round_latency_s >= deadline * (1 - TOLERANCE)
            compared += 1
    assert compared >= 1


def test_budgets_are_kept_and_planned_as_well_as_any_split_of_the_band() -> None:
    rng = np.random.default_rng(31)
    for _ in range(6):
        problem = mode_problem(rng, 2, 3, budgets=1.0)
        made = plan(problem)
        assert made.gap <= TOLERANCE
        assert keeps_budgets(problem, made)
        shares = np.concatenate([np.geomspace(1e-4, 0.5, 25), 1 - np.geomspace(1e-4, 0.5, 25)])
        for share in (0.0, *shares, 1.0):
            band = np.array([share, 1 - share]) * problem.bandwidth_hz
            other, _ = at_bands(problem, band)
            if other is not None and keeps_budgets(problem, other):
                assert other.objective_s >= made.lower_bound_s * (1 - 1e-9)


def test_more_of_anything_never_worsens_the_optimum() -> None:
    rng = np.random.default_rng(41)
    for _ in range(6):
        problem = mode_problem(rng, int(rng.integers(2, 6)), 4, budgets=1.0)
        best = plan(problem).objective_s * (1 + 2 * TOLERANCE)
        wider = replace(problem, bandwidth_hz=problem.bandwidth_hz * 1.3)
        assert plan(wider).objective_s <= best
        if problem.energy_budget_j is not None:
            richer = replace(problem, energy_budget_j=problem.energy_budget_j * 1.2)
            assert plan(richer).objective_s <= best
        fewer = replace(
            problem, modes=tuple(None if m is None else m[:-1] or m for m in problem.modes or ())
        )
        try:
            poorer = plan(fewer)
        except InputError:  # what is left fits no budget
            continue
        assert poorer.objective_s >= plan(problem).lower_bound_s * (1 - 1e-9)


def test_one_mode_is_todays_client_and_order_is_irrelevant() -> None:
    rng = np.random.default_rng(51)
    for _ in range(8):
        plain = random_problem(rng, int(rng.integers(1, 7)))
        single = replace(plain, modes=(None,) * plain.clients)
        assert plan(single).objective_s == pytest.approx(plan(plain).objective_s, rel=2e-6)
        problem = mode_problem(rng, 4, 4)
        order = rng.permutation(4)
        shuffled = problem.of_clients(order)
        shuffled = replace(
            shuffled, modes=tuple(None if m is None else m[::-1] for m in shuffled.modes or ())
        )
        assert plan(shuffled).objective_s == pytest.approx(plan(problem).objective_s, rel=2e-6)


def test_no_method_beats_the_bound() -> None:
    rng = np.random.default_rng(61)
    for _ in range(5):
        problem = mode_problem(rng, 4, 4)
        best = plan(problem)
        for method in METHODS:
            try:
                made = plan(problem, method, rng=np.random.default_rng(0), bound=False)
            except InputError:
                continue
            assert made.objective_s >= best.lower_bound_s * (1 - 1e-9)
        equal = plan(replace(problem, equal_bands=True))
        assert equal.gap <= TOLERANCE
        assert equal.objective_s >= best.lower_bound_s * (1 - 1e-9)
        used = equal.bandwidth_hz[[mode is not None for mode in equal.modes or ()]]
        assert used == pytest.approx(np.full(len(used), problem.bandwidth_hz / len(used)))
        blocks = plan(problem, block_hz=problem.bandwidth_hz / 9, blocks=9)
        assert blocks.objective_s >= best.lower_bound_s * (1 - 1e-9)
        assert blocks.gap <= TOLERANCE


def test_whole_blocks_against_every_split() -> None:
    rng = np.random.default_rng(71)
    for _ in range(4):
        problem = mode_problem(rng, 2, 3)
        made = plan(problem, block_hz=problem.bandwidth_hz / 6, blocks=6)
        splits = [np.array([n, 6 - n]) * problem.bandwidth_hz / 6 for n in range(7)]
        values = [at_bands(problem, band)[0] for band in splits]
        truth = min(value.objective_s for value in values if value is not None)
        assert made.objective_s == pytest.approx(truth, rel=2e-6)


def test_the_bound_over_an_interval_holds_for_plans_inside_it() -> None:
    rng = np.random.default_rng(81)
    for _ in range(10):
        problem = mode_problem(rng, 3, 3, budgets=0.5)
        made = plan(problem)
        choices = choices_of(problem)
        batch = batch_of(
            choices, [np.arange(len(choices.owner))], np.zeros(1), problem.bandwidth_hz
        )
        centre = np.array([made.round_latency_s * 1.01])
        with np.errstate(all="ignore"):
            limits = limits_at(batch, centre)
            latest = limits_at(batch, centre * 1.05)
            y = np.clip(np.log(choices.snr_hz / 1e5), limits.most, limits.least)
            price = best_prices(batch, limits, np.array([-15.0]), y, np.array([1e-10]))
            taken = at_price(batch, limits, price.log_price, price.y, 2)
            lower = minorants_at(batch, limits, latest, price.log_price, taken)
            for factor in (1 / 1.01, 1.0, 1.04):
                value = value_at(batch, lower, centre * factor)
                # This plan meets every deadline from its own on.
                assert dual_of(batch, lower, value)[1][0] <= made.pruning_loss + 1e-12


def test_modes_where_a_plan_can_make_no_progress_are_planned_all_the_same() -> None:
    plain = random_problem(np.random.default_rng(3), 4, min_pruning=np.zeros(4), kappa=0.5)
    most = plain.pruning_loss(plain.max_pruning)
    made = plan(replace(plain, kappa=1.3 / most))
    assert np.isfinite(made.objective_s)
    assert made.gap <= TOLERANCE
    assert made.pruning_loss * 1.3 / most < 1
    with pytest.raises(InputError, match=r"kappa: .*at its least loss, kappa·Q is 1\.5"):
        replace(plain, kappa=1.5 / 0.2, min_pruning=np.full(4, 0.2), max_pruning=np.full(4, 0.9),
                pruning_cost=None)  # fmt: skip


def test_dominated_modes_change_nothing() -> None:
    rng = np.random.default_rng(91)
    problem = mode_problem(rng, 3, 3)
    worse = tuple(
        None
        if mine is None
        else (*mine, ClientMode("worse", min(mine[0].cost + 0.01, 1.0), mine[0].compute_fixed_s + 1,
                                mine[0].compute_full_s, mine[0].payload_fixed_bits,
                                mine[0].payload_full_bits))
        for mine in problem.modes or ()
    )  # fmt: skip
    more = replace(problem, modes=worse)
    assert len(choices_of(more).owner) == len(choices_of(problem).owner)
    assert plan(more).objective_s == pytest.approx(plan(problem).objective_s, rel=2e-6)


def test_what_is_not_proved_is_reported() -> None:
    problem = mode_problem(np.random.default_rng(5), 4, 4)
    with np.errstate(all="ignore"):
        made = exact_over_modes(problem, max_work=0)
    best = plan(problem)
    assert made.gap is not None
    assert made.gap > TOLERANCE
    assert made.lower_bound_s is not None
    assert made.lower_bound_s <= best.objective_s
