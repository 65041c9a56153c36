"""Orders, errors and refits against direct least squares; never NaN."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.pruning.importance import (
    elimination_order,
    ordered_features,
    refit_errors,
    regularised,
    stable_cholesky,
)
from airtune.pruning.reconstruct import refit


def problem(seed: int, features: int = 12, outputs: int = 5, tokens: int = 200):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(features, features))
    hidden = torch.from_numpy(rng.normal(size=(tokens, features)) @ mixing)
    weight = torch.from_numpy(rng.normal(size=(outputs, features)))
    return hidden, weight, hidden.T @ hidden / tokens


def least_squares_error(moment, weight, kept: list[int]) -> float:
    """Σ E‖W h − W' h_S‖² of the best W', by the normal equations."""
    if not kept:
        return float(torch.trace(weight @ moment @ weight.T))
    inside = moment[kept][:, kept]
    fitted = torch.linalg.solve(inside, moment[kept] @ weight.T).T
    padded = torch.zeros_like(weight)
    padded[:, kept] = fitted
    gap = weight - padded
    return float(torch.trace(gap @ moment @ gap.T))


@given(st.integers(0, 50), st.sampled_from([1, 3]))
@settings(max_examples=25, deadline=None)
def test_refit_errors_are_those_of_least_squares(seed: int, width: int) -> None:
    _, weight, moment = problem(seed)
    factor = stable_cholesky(moment, 0.0)
    errors = refit_errors(factor, weight, width)
    for units in range(12 // width + 1):
        expected = least_squares_error(moment, weight, list(range(units * width)))
        assert float(errors[units]) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.integers(0, 50), st.integers(1, 11), st.booleans())
@settings(max_examples=50, deadline=None)
def test_refit_solves_the_ridge_problem(seed: int, count: int, leading: bool) -> None:
    hidden, weight, moment = problem(seed)
    ridge = 0.1
    kept = torch.arange(12) < count
    if not leading:  # any features, not the most important ones
        kept = kept[torch.randperm(12, generator=torch.Generator().manual_seed(seed))]
    fitted = refit(weight, stable_cholesky(moment, ridge), kept)
    # As plain least squares: rows of data, and rows that draw towards the uncut columns.
    strength = float(moment.diagonal().mean()) * ridge * len(hidden)
    rows = torch.cat([hidden[:, kept], strength**0.5 * torch.eye(count, dtype=hidden.dtype)])
    target = torch.cat([hidden @ weight.T, strength**0.5 * weight[:, kept].T])
    expected = torch.linalg.lstsq(rows, target).solution.T
    torch.testing.assert_close(fitted, expected)


@given(st.integers(0, 30))
@settings(max_examples=15, deadline=None)
def test_elimination_takes_the_least_harmful_unit_first(seed: int) -> None:
    _, weight, moment = problem(seed)
    order = elimination_order(moment, weight, width=1, ridge=0.0, chunk=1)
    kept = list(range(12))
    for unit in order.flip(0).tolist()[:-1]:
        errors = {u: least_squares_error(moment, weight, [k for k in kept if k != u]) for u in kept}
        assert errors[unit] == pytest.approx(min(errors.values()), rel=1e-6, abs=1e-12)
        kept.remove(unit)


@pytest.mark.parametrize(("width", "chunk"), [(1, 1), (1, 5), (3, 1), (3, 2), (12, 1)])
def test_orders_are_permutations(width: int, chunk: int) -> None:
    _, weight, moment = problem(1)
    order = elimination_order(moment, weight, width=width, ridge=0.01, chunk=chunk)
    assert sorted(order.tolist()) == list(range(12 // width))
    assert sorted(ordered_features(order, width).tolist()) == list(range(12))


def test_wide_units_are_scored_together() -> None:
    _, weight, moment = problem(2)
    order = elimination_order(moment, weight, width=3, ridge=0.0, chunk=1)
    errors = {
        lost: least_squares_error(moment, weight, [f for f in range(12) if f // 3 != lost])
        for lost in range(4)
    }
    assert int(order[-1]) == min(errors, key=errors.__getitem__)


@pytest.mark.parametrize("case", ["zero", "constant", "rank one", "huge", "tiny"])
def test_singular_moments_fall_back_to_ridge(case: str) -> None:
    moment = {
        "zero": torch.zeros(6, 6),
        "constant": torch.ones(6, 6),
        "rank one": torch.outer(torch.arange(6.0), torch.arange(6.0)),
        "huge": 1e30 * torch.ones(6, 6),
        "tiny": 1e-30 * torch.ones(6, 6),
    }[case]
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    factor = stable_cholesky(moment, 0.0)
    order = elimination_order(moment, weight, width=1, ridge=0.0, chunk=2)
    assert sorted(order.tolist()) == list(range(6))
    for kept in range(1, 6):
        assert torch.isfinite(refit(weight, factor, torch.arange(6) < kept)).all()
    assert torch.isfinite(refit_errors(factor, weight, 1)).all()


def test_moments_that_are_not_finite_are_refused() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        stable_cholesky(torch.full((3, 3), torch.nan), 0.1)


def test_ridge_is_relative_to_the_scale() -> None:
    _, _, moment = problem(3)
    for scale in (1e-6, 1.0, 1e6):
        expected = scale * regularised(moment, 0.1)
        torch.testing.assert_close(regularised(scale * moment, 0.1), expected)


def test_order_does_not_depend_on_how_features_are_listed() -> None:
    _, weight, moment = problem(4)
    order = elimination_order(moment, weight, width=1, ridge=0.01, chunk=1)
    for permutation in itertools.islice(itertools.permutations(range(12)), 5, 500, 100):
        index = list(permutation)
        other = elimination_order(
            moment[index][:, index], weight[:, index], width=1, ridge=0.01, chunk=1
        )
        assert [index[u] for u in other.tolist()] == order.tolist()


def test_units_of_many_features_are_scored_also_with_threads_chosen_by_hand() -> None:
    """A batched solve in its place hangs here, on PyTorch 2.13 for CPUs with two cores or more."""
    program = """
import torch
from airtune.pruning.importance import elimination_order
torch.set_num_threads(2)
features = torch.randn(1000, 576)
order = elimination_order(
    features.T @ features / 1000, torch.randn(576, 576), width=192, ridge=0.03, chunk=1
)
print(sorted(order.tolist()))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("[0, 1, 2]", "")
