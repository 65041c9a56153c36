from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.errors import InputError
from airtune.planning import METHODS, plan
from oracles import brute_force_blocks, random_problem

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, int(rng.integers(1, 4)))
    blocks = int(rng.integers(problem.clients, 7))
    width = problem.bandwidth_hz / blocks
    made = plan(problem, block_hz=width, blocks=blocks)
    assert made.objective_s == pytest.approx(brute_force_blocks(problem, width, blocks), rel=2e-6)
    assert 0 <= made.gap <= 1e-6


@settings(max_examples=12, deadline=None, derandomize=True)
@given(seed=SEEDS)
def test_whole_blocks_cost_little_and_never_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, int(rng.integers(2, 11)), bandwidth_hz=2e7)
    made = plan(problem, block_hz=360e3, blocks=51)
    split = plan(replace(problem, bandwidth_hz=51 * 360e3))
    assert made.blocks.sum() <= 51
    assert made.bandwidth_hz == pytest.approx(made.blocks * 360e3)
    assert made.objective_s >= split.lower_bound_s * (1 - 1e-9)
    assert made.block_loss == pytest.approx(made.objective_s / split.objective_s - 1, abs=2e-6)
    for method in METHODS:
        other = plan(problem, method, block_hz=360e3, blocks=51)
        assert other.blocks.sum() <= 51
        assert other.objective_s >= made.lower_bound_s * (1 - 1e-9)
        assert (other.blocks[other.upload_s > 0] >= 1).all()


def test_a_bound_on_the_loss_in_blocks() -> None:
    problem = random_problem(np.random.default_rng(2), 6, bandwidth_hz=2e7)
    limit = 0.5 * problem.pruning_loss(problem.max_pruning) + 0.5 * problem.pruning_loss(
        problem.min_pruning
    )
    made = plan(replace(problem, max_pruning_loss=limit), block_hz=360e3)
    assert made.pruning_loss <= limit * (1 + 1e-9)
    free = plan(replace(problem, max_pruning_loss=limit, bandwidth_hz=55 * 360e3))
    assert made.objective_s >= free.lower_bound_s


def test_as_many_blocks_as_fit_by_default() -> None:
    problem = random_problem(np.random.default_rng(2), 4, bandwidth_hz=2e7)
    assert plan(problem, "none", block_hz=360e3, bound=False).blocks.sum() == 55


@pytest.mark.parametrize(
    ("width", "blocks", "message"),
    [
        (0.0, None, "block_hz: 0.0 is not allowed"),
        (float("nan"), None, "block_hz: nan is not allowed"),
        (360e3, 56, "blocks: 56 blocks of 360000 Hz are not allowed; allowed: 1 to 55"),
        (360e3, 0, "blocks: 0 blocks"),
        (1e9, None, r"block_hz: 1e\+09 Hz is wider than bandwidth_hz, 2e\+07"),
        (1e7, 2, "blocks: 2 blocks are fewer than the 6 clients that"),
    ],
)
def test_refusals(width: float, blocks: int | None, message: str) -> None:
    problem = random_problem(
        np.random.default_rng(2), 6, bandwidth_hz=2e7, payload_fixed_bits=np.full(6, 1e5)
    )
    with pytest.raises(InputError, match=message):
        plan(problem, block_hz=width, blocks=blocks)
