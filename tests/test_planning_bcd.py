from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.planning import plan
from airtune.planning.bcd import bandwidth_block, pruning_at, pruning_block
from airtune.planning.problem import priced
from oracles import corner_objective, random_problem

SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=30, deadline=None, derandomize=True)


@few
@given(seed=SEEDS)
def test_the_pruning_block_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    band = rng.dirichlet(np.ones(problem.clients)) * problem.bandwidth_hz
    made = priced(problem, "", pruning_block(problem, band), band)
    assert made.objective_s == pytest.approx(corner_objective(problem, band), rel=1e-9)


@few
@given(seed=SEEDS)
def test_the_bandwidth_block_is_exact(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    pruning = rng.uniform(problem.min_pruning, problem.max_pruning)
    fixed = problem.downlink_s + problem.compute_s(pruning)
    payload = problem.payload_bits(pruning)
    deadline, band = bandwidth_block(problem, fixed, payload)
    assert band.sum() == pytest.approx(problem.bandwidth_hz if payload.any() else 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        upload = np.where(payload > 0, payload / problem.rate_bps(band), 0.0)
    assert (fixed + upload).max() <= deadline * (1 + 1e-9)
    # Whoever sends finishes at the deadline, unless somebody's fixed time is the deadline.
    if deadline > fixed.max() * (1 + 1e-6):
        assert (fixed + upload)[payload > 0] == pytest.approx(deadline, rel=1e-6)
        sooner = (payload / np.maximum(0.999 * (deadline - fixed), 1e-300))[payload > 0]
        all_rates = np.zeros(problem.clients)
        all_rates[payload > 0] = sooner
        assert problem.band_hz(all_rates).sum() > problem.bandwidth_hz


@few
@given(seed=SEEDS)
def test_each_sweep_of_the_descent_improves_and_it_stops_where_no_block_can(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    made = plan(problem, "bcd", tolerance=1e-9, bound=False)
    assert made.objective_s <= plan(problem, "pruning-only", bound=False).objective_s * (1 + 1e-9)
    again = priced(problem, "", pruning_block(problem, made.bandwidth_hz), made.bandwidth_hz)
    assert again.objective_s >= made.objective_s * (1 - 1e-6)


def test_the_descent_depends_on_where_it_begins() -> None:
    # The weakness that the exact planner is there for: shown, not hidden.
    rng = np.random.default_rng(4)
    gaps = {"bcd": [], "bcd-bandwidth-first": []}
    for _ in range(20):
        problem = random_problem(rng, 10)
        for method, found in gaps.items():
            found.append(plan(problem, method).gap)
    assert max(gaps["bcd"]) > 0.01
    assert np.median(gaps["bcd-bandwidth-first"]) > 0.2


def test_the_smallest_pruning_meets_the_deadline_just_so() -> None:
    problem = random_problem(np.random.default_rng(1), 8)
    band = np.full(8, problem.bandwidth_hz / 8)
    plain = priced(problem, "", problem.min_pruning, band)
    deadline = float(np.median(plain.total_s))
    made = priced(problem, "", pruning_at(problem, band, deadline), band)
    between = (made.pruning > problem.min_pruning) & (made.pruning < problem.max_pruning)
    assert between.any()
    assert made.total_s[between] == pytest.approx(deadline, rel=1e-9)


def test_baselines_are_what_they_say() -> None:
    problem = random_problem(np.random.default_rng(3), 6, min_pruning=np.zeros(6))
    none = plan(problem, "none", bound=False)
    assert none.pruning.tolist() == [0.0] * 6
    assert none.bandwidth_hz.tolist() == [problem.bandwidth_hz / 6] * 6
    assert none.lower_bound_s is None
    assert plan(problem, "bandwidth-only").pruning.tolist() == [0.0] * 6
    assert plan(problem, "pruning-only").bandwidth_hz.tolist() == none.bandwidth_hz.tolist()
    free = replace(problem, max_pruning=np.full(6, 0.6))
    uniform = plan(free, "uniform")
    assert np.ptp(uniform.pruning) <= 1e-12
    first = plan(problem, "random", rng=np.random.default_rng(1))
    again = plan(problem, "random", rng=np.random.default_rng(1))
    assert np.array_equal(first.pruning, again.pruning)
    assert not np.array_equal(first.pruning, plan(problem, "random").pruning)
