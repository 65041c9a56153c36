from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.planning import METHODS, PlanningProblem, plan
from airtune.planning.bcd import bandwidth_block
from airtune.planning.optimum.deadline import bound_at, solve
from airtune.planning.optimum.reduced import reduced
from oracles import cvxpy_loss, extreme_problem, grid_objective, random_problem

TOLERANCE = 1e-6
SEEDS = st.integers(0, 2**32 - 1)
few = settings(max_examples=25, deadline=None, derandomize=True)


def ends(problem: PlanningProblem) -> tuple[float, float]:
    """The smallest deadline with everybody pruned most, and with everybody pruned least."""
    return tuple(
        bandwidth_block(
            problem,
            problem.downlink_s + problem.compute_s(pruning),
            problem.payload_bits(pruning),
        )[0]
        for pruning in (problem.max_pruning, problem.min_pruning)
    )


BATCHES = [0, 1, *(pytest.param(one, marks=pytest.mark.slow) for one in range(2, 10))]


@pytest.mark.parametrize("batch", BATCHES)
def test_a_thousand_random_problems_against_the_dense_grid(batch: int) -> None:
    rng = np.random.default_rng(1000 + batch)
    looser = []
    for _ in range(100):
        problem = random_problem(rng, int(rng.integers(1, 8)))
        made = plan(problem)
        assert made.gap is not None
        assert made.lower_bound_s is not None
        assert 0 <= made.gap <= TOLERANCE
        assert made.bandwidth_hz.sum() <= problem.bandwidth_hz * (1 + 1e-12)
        assert (made.pruning >= problem.min_pruning).all()
        assert (made.pruning <= problem.max_pruning).all()
        feasible = grid_objective(problem, made.round_latency_s)
        # The grid's plans are real plans: none may beat the optimum or undercut its bound.
        assert made.objective_s <= feasible * (1 + TOLERANCE)
        assert made.lower_bound_s <= feasible * (1 + 1e-9)
        looser.append(feasible / made.objective_s - 1)
    assert np.max(looser) < 0.03
    assert np.median(looser) < 1e-3


def test_a_fixed_deadline_against_cvxpy() -> None:
    rng = np.random.default_rng(3)
    compared = 0
    for _ in range(40):
        count = int(rng.integers(2, 7))
        # Milder than elsewhere: on the full ranges its solvers give up on every third problem.
        problem = random_problem(
            rng,
            count,
            bandwidth_hz=10 ** rng.uniform(6, 7.5),
            snr_hz=10 ** rng.uniform(6, 8.5, count),
            compute_full_s=10 ** rng.uniform(0, 1.5, count),
            payload_full_bits=10 ** rng.uniform(6, 8, count),
        )
        least_s, latest = ends(problem)
        deadline = least_s + rng.uniform(0.1, 0.9) * (latest - least_s)
        small = reduced(problem)
        at = solve(small, deadline - small.base)
        theirs = cvxpy_loss(problem, deadline)
        if np.isnan(theirs):
            continue
        compared += 1
        assert at.loss == pytest.approx(theirs, abs=2e-5)
        assert at.bound <= theirs + 2e-5
    assert compared >= 30


@few
@given(seed=SEEDS)
def test_the_bound_at_one_deadline_holds_at_others(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    small = reduced(problem)
    least_s, latest = ends(problem)
    offsets = least_s + np.sort(rng.uniform(0.01, 1.0, 4)) * (latest - least_s) - small.base
    solved = [solve(small, float(offset)) for offset in offsets]
    for one in solved:
        assert one.bound <= one.loss + 1e-12
        assert one.loss - one.bound <= 1e-8
        for other in solved:
            assert bound_at(small, one, other.offset_s)[0] <= other.loss + 1e-8
    losses = [one.loss for one in solved]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(losses))


@few
@given(seed=SEEDS)
def test_the_chord_of_the_relaxed_loss_bounds_what_lies_between(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    small = reduced(problem)
    least_s, latest = ends(problem)
    left, middle, right = (
        float(least_s + share * (latest - least_s) - small.base)
        for share in np.sort(rng.uniform(0.05, 1.0, 3))
    )
    if not left < middle < right:
        return  # nobody has anything to choose
    centre = solve(small, float(rng.uniform(left, right)))
    low, high = bound_at(small, centre, left)[0], bound_at(small, centre, right)[0]
    share = (middle - left) / (right - left)
    chord = (1 - share) * low + share * high
    assert solve(small, middle).loss >= chord - 1e-8


@few
@given(seed=SEEDS)
def test_no_method_beats_the_bound_and_all_plans_are_feasible(seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    best = plan(problem)
    for method in METHODS:
        made = plan(problem, method, rng=np.random.default_rng(seed), bound=method != "exact")
        assert made.objective_s >= best.objective_s * (1 - TOLERANCE)
        assert made.objective_s >= made.lower_bound_s * (1 - 1e-12)
        assert made.gap == pytest.approx(made.objective_s / made.lower_bound_s - 1)
        assert made.bandwidth_hz.sum() <= problem.bandwidth_hz * (1 + 1e-12)
        assert (made.bandwidth_hz >= 0).all()
        assert (made.pruning >= problem.min_pruning - 1e-12).all()
        assert (made.pruning <= problem.max_pruning + 1e-12).all()
        assert made.round_latency_s == made.total_s.max()
        assert made.method == method


BETTER = {
    "more band": lambda p: {"bandwidth_hz": p.bandwidth_hz * 1.3},
    "better channel": lambda p: {"snr_hz": p.snr_hz * 2.0},
    "faster device": lambda p: {"compute_full_s": p.compute_full_s * 0.7},
    "smaller payload": lambda p: {"payload_full_bits": p.payload_full_bits * 0.7},
    "looser bounds": lambda p: {"min_pruning": p.min_pruning * 0.5},
    "milder pruning": lambda p: {"kappa": p.kappa * 0.8},
}


@pytest.mark.parametrize("what", BETTER)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_more_of_a_resource_never_worsens_the_optimum(what: str, seed: int) -> None:
    problem = random_problem(np.random.default_rng(seed))
    better = plan(replace(problem, **BETTER[what](problem)))
    assert better.objective_s <= plan(problem).objective_s * (1 + 2 * TOLERANCE)


@few
@given(seed=SEEDS)
def test_the_order_of_the_clients_is_irrelevant(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    order = rng.permutation(problem.clients)
    fields = ("weight", "snr_hz", "downlink_s", "compute_fixed_s", "compute_full_s",
              "payload_fixed_bits", "payload_full_bits", "min_pruning", "max_pruning",
              "max_spectral_efficiency")  # fmt: skip
    curves = problem.pruning_cost
    shuffled = replace(
        problem,
        names=tuple(problem.names[k] for k in order),
        pruning_cost=None if curves is None else tuple(curves[k] for k in order),
        **{field: getattr(problem, field)[order] for field in fields},
    )
    made, again = plan(problem), plan(shuffled)
    assert again.objective_s == pytest.approx(made.objective_s, rel=2 * TOLERANCE)


@few
@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_scaling_time_and_payload_scales_the_answer(seed: int, scale: float) -> None:
    problem = random_problem(np.random.default_rng(seed))
    fields = ("downlink_s", "compute_fixed_s", "compute_full_s", "payload_fixed_bits",
              "payload_full_bits")  # fmt: skip
    scaled = replace(problem, **{field: getattr(problem, field) * scale for field in fields})
    ours, theirs = plan(problem), plan(scaled)
    assert theirs.objective_s == pytest.approx(ours.objective_s * scale, rel=2 * TOLERANCE)


@few
@given(seed=SEEDS, share=st.floats(0.0, 1.0))
def test_a_bound_on_the_loss_gives_the_soonest_deadline(seed: int, share: float) -> None:
    problem = random_problem(np.random.default_rng(seed))
    least = problem.pruning_loss(problem.min_pruning)
    most = problem.pruning_loss(problem.max_pruning)
    limit = least + share * (most - least)
    bounded = replace(problem, max_pruning_loss=limit)
    made = plan(bounded)
    assert made.pruning_loss <= limit * (1 + 1e-9) + 1e-12
    assert made.objective_s == made.round_latency_s
    assert 0 <= made.gap <= TOLERANCE
    least_s, latest = ends(problem)
    assert least_s * (1 - 1e-9) <= made.round_latency_s <= latest * (1 + TOLERANCE)
    small = reduced(problem)
    earlier = 0.999 * made.round_latency_s
    if earlier > least_s * (1 + 1e-9):
        assert solve(small, earlier - small.base).bound > limit
    for method in ("bcd", "uniform", "random", "pruning-only"):
        other = plan(bounded, method)
        assert other.pruning_loss <= limit * (1 + 1e-9) + 1e-12
        assert other.objective_s >= other.lower_bound_s * (1 - 1e-9)


@pytest.mark.parametrize("batch", range(4))
def test_far_ends_of_every_range(batch: int) -> None:
    rng = np.random.default_rng(77 + batch)
    for _ in range(40):
        problem = extreme_problem(rng)
        made = plan(problem)
        assert 0 <= made.gap <= TOLERANCE
        for field in ("pruning", "bandwidth_hz", "rate_bps", "compute_s", "upload_s", "total_s"):
            assert np.isfinite(getattr(made, field)).all(), field
        assert made.bandwidth_hz.sum() <= problem.bandwidth_hz * (1 + 1e-12)
        if problem.max_pruning_loss is not None:
            assert made.pruning_loss <= problem.max_pruning_loss * (1 + 1e-9) + 1e-12
        other = plan(problem, "bcd", bound=False)
        assert other.objective_s >= made.lower_bound_s * (1 - 1e-9)


def one_client(**changed: object) -> PlanningProblem:
    values: dict = {
        "bandwidth_hz": 1e6, "kappa": 0.6, "names": ("a",), "weight": [1.0], "snr_hz": [1e8],
        "downlink_s": [0.1], "compute_fixed_s": [1.0], "compute_full_s": [10.0],
        "payload_fixed_bits": [1e5], "payload_full_bits": [1e7], "min_pruning": [0.0],
        "max_pruning": [0.8],
    }  # fmt: skip
    return PlanningProblem(**{**values, **changed})


def test_one_client_has_a_closed_form() -> None:
    # J(ρ) = t(ρ)/(1 − κρ) is a quotient of affine functions: its minimum is at an end.
    for kappa in (0.1, 0.5, 0.9, 1.2):
        problem = one_client(kappa=kappa)
        rate = 1e6 * np.log2(1 + 100)
        ends = [
            (1.1 + 10 * (1 - p) + (1e5 + 1e7 * (1 - p)) / rate) / (1 - kappa * p) for p in (0, 0.8)
        ]
        assert plan(problem).objective_s == pytest.approx(min(ends), rel=TOLERANCE)


def test_the_better_of_two_valleys_is_found() -> None:
    # Found by a search: over the deadline, J has two local minima here, 1.5 % apart, and the
    # descent ends in the worse one. Random problems with one this clear are rare.
    problem = PlanningProblem(
        bandwidth_hz=312_902.0, kappa=0.8965 / (0.93416 * 1.0 + 0.06584 * 0.86335),
        names=("a", "b"), weight=[0.93416, 0.06584], snr_hz=[742_092.0, 6_403_552.0],
        downlink_s=[0.0, 0.0], compute_fixed_s=[18.718, 14.844],
        compute_full_s=[0.051477, 0.059432], payload_fixed_bits=[431_833.0, 0.0],
        payload_full_bits=[96_362_730.0, 19_827_484.0], min_pruning=[0.0, 0.0],
        max_pruning=[1.0, 0.86335],
    )  # fmt: skip
    made = plan(problem)
    assert made.gap <= TOLERANCE
    assert made.objective_s <= grid_objective(problem, made.round_latency_s) * (1 + TOLERANCE)
    least_s, latest = ends(problem)
    small = reduced(problem)
    values = []
    for deadline in np.geomspace(least_s, latest, 400)[1:]:
        at = solve(small, deadline - small.base)
        values.append(at.deadline_s / (1 - problem.kappa * at.loss))
    inner = np.array(values)
    valleys = inner[1:-1][(inner[1:-1] < inner[:-2]) & (inner[1:-1] < inner[2:])]
    assert len(valleys) >= 2
    assert made.objective_s <= valleys.min() * (1 + TOLERANCE)


def test_identical_clients_share_equally() -> None:
    count = 7
    problem = PlanningProblem(
        bandwidth_hz=1e6, kappa=0.5, names=tuple("abcdefg"), weight=np.ones(count),
        snr_hz=np.full(count, 1e7), downlink_s=np.zeros(count), compute_fixed_s=np.ones(count),
        compute_full_s=np.full(count, 5.0), payload_fixed_bits=np.zeros(count),
        payload_full_bits=np.full(count, 1e7), min_pruning=np.zeros(count),
        max_pruning=np.full(count, 0.5),
    )  # fmt: skip
    made = plan(problem)
    equal = [plan(problem, method).objective_s for method in ("uniform", "pruning-only", "none")]
    assert made.objective_s <= min(equal) * (1 + TOLERANCE)
    assert made.total_s == pytest.approx(np.full(count, made.round_latency_s), rel=1e-6)


def test_a_client_without_payload_gets_no_band_and_no_upload_time() -> None:
    base = random_problem(np.random.default_rng(5), 3, pruning_cost=None)
    silent = replace(
        base, payload_fixed_bits=base.payload_fixed_bits * [1, 0, 1],
        payload_full_bits=base.payload_full_bits * [1, 0, 1],
    )  # fmt: skip
    made = plan(silent)
    assert made.bandwidth_hz[1] == 0.0
    assert made.upload_s[1] == 0.0
    nobody = replace(base, payload_fixed_bits=np.zeros(3), payload_full_bits=np.zeros(3))
    assert plan(nobody).upload_s.max() == 0.0
    assert plan(nobody).gap <= TOLERANCE


def test_clients_with_nothing_to_choose() -> None:
    problem = random_problem(np.random.default_rng(8), 5)
    fixed = replace(problem, min_pruning=problem.max_pruning)
    made = plan(fixed)
    assert made.objective_s == pytest.approx(plan(fixed, "bandwidth-only").objective_s, rel=1e-9)


def test_kappa_near_its_limit_and_at_zero() -> None:
    problem = random_problem(np.random.default_rng(9), 6, pruning_cost=None)
    most = problem.pruning_loss(problem.max_pruning)
    near = replace(problem, kappa=(1 - 1e-8) / most)
    assert plan(near).gap <= TOLERANCE
    free = plan(replace(problem, kappa=0.0))
    assert free.round_latency_s == pytest.approx(ends(problem)[0], rel=TOLERANCE)


def test_flat_parts_of_a_curve_are_pruned_for_nothing() -> None:
    curve = np.array([[0.0, 0.0], [0.4, 0.0], [0.8, 20.0]])
    made = plan(one_client(pruning_cost=(curve,), kappa=0.04))
    assert made.pruning[0] == pytest.approx(0.4, abs=1e-6)
    assert made.rounds_factor == pytest.approx(1.0, abs=1e-6)


def test_a_tighter_tolerance_is_reached() -> None:
    problem = random_problem(np.random.default_rng(12), 10)
    assert plan(problem, tolerance=1e-9).gap <= 1e-9
    assert plan(problem, tolerance=1e-2).gap <= 1e-2


def test_many_clients_take_the_chunked_path() -> None:
    rng = np.random.default_rng(0)
    count = 70_000
    problem = PlanningProblem(
        bandwidth_hz=2e6 * count, kappa=0.6, names=tuple(map(str, range(count))),
        weight=np.ones(count), snr_hz=10 ** rng.uniform(6, 9, count), downlink_s=np.zeros(count),
        compute_fixed_s=np.ones(count), compute_full_s=10 ** rng.uniform(0, 1.5, count),
        payload_fixed_bits=np.full(count, 1e5), payload_full_bits=np.full(count, 3e7),
        min_pruning=np.zeros(count), max_pruning=np.full(count, 0.8),
    )  # fmt: skip
    made = plan(problem, tolerance=1e-4)
    assert made.gap <= 1e-4
    assert plan(problem, "bcd", bound=False).objective_s >= made.lower_bound_s
