"""κ from losses that a known κ has made, and from losses that cannot tell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.planning import fitted_kappa
from airtune.planning.kappa import LARGEST_SLOWDOWN


def losses_under(
    kappa: float,
    pruning_losses: list[float],
    *,
    end: float,
    half_rounds: float,
    noise: float = 0.0,
    paces: list[float] | None = None,
) -> list[float]:
    learnt = 1 - kappa * np.array(pruning_losses)
    if paces is not None:
        learnt *= np.array(paces)
    counted = np.concatenate([[0.0], np.cumsum(learnt)])
    rng = np.random.default_rng(0)
    losses = end + (1.5 - end) / (1 + counted / half_rounds)
    return [float(loss) for loss in losses + noise * rng.standard_normal(len(losses))]


UNLIKE = [0.0, 0.3, 0.1, 0.35, 0.2, 0.05, 0.3, 0.25]


@given(
    kappa=st.floats(1.0, 2.5),
    end=st.floats(0.2, 0.8),
    half_rounds=st.floats(1.0, 4.0),
)
def test_rounds_of_unlike_pruning_show_kappa(kappa: float, end: float, half_rounds: float) -> None:
    losses = losses_under(kappa, UNLIKE, end=end, half_rounds=half_rounds)
    fitted = fitted_kappa(losses, UNLIKE, prior=0.5, largest_pruning_loss=0.36)
    assert abs(np.log2(fitted / kappa)) < 0.5 * np.log2(kappa / 0.5)


def test_noisy_losses_show_it_too() -> None:
    losses = losses_under(2.0, UNLIKE, end=0.7, half_rounds=1.0, noise=0.005)
    kappa = fitted_kappa(losses, UNLIKE, prior=0.5, largest_pruning_loss=0.36)
    assert 1.2 < kappa < 2.6


def test_a_learning_rate_that_falls_is_not_taken_for_a_lower_kappa() -> None:
    pruning_losses = [0.0] + [0.2] * 5
    paces = [1 - k / 6 for k in range(6)]
    losses = losses_under(1.2, pruning_losses, end=0.5, half_rounds=1.0, paces=paces)

    def fitted(given: list[float] | None) -> float:
        return fitted_kappa(
            losses, pruning_losses, prior=1.2, largest_pruning_loss=0.4, paces=given
        )

    assert fitted(paces) == pytest.approx(1.2, rel=0.06)
    assert fitted(None) < 0.8


def test_alike_rounds_and_no_rounds_leave_it_where_it_was() -> None:
    alike = [0.2] * 6
    for true in (0.3, 2.0):
        losses = losses_under(true, alike, end=0.7, half_rounds=1.0)
        kappa = fitted_kappa(losses, alike, prior=0.8, largest_pruning_loss=0.5)
        assert kappa == pytest.approx(0.8, rel=0.1)
    assert fitted_kappa([1.5], [], prior=0.8, largest_pruning_loss=0.5) == 0.8


@given(st.lists(st.floats(0.01, 10.0), min_size=2, max_size=9), st.floats(0.05, 0.9))
def test_no_losses_drive_it_to_where_learning_stops(losses: list[float], worst: float) -> None:
    pruning_losses = [worst * (i % 2) for i in range(len(losses) - 1)]
    kappa = fitted_kappa(losses, pruning_losses, prior=1.0, largest_pruning_loss=worst)
    assert 0 < kappa * worst <= LARGEST_SLOWDOWN * (1 + 1e-9)


def test_rounds_that_were_not_evaluated_are_passed_over() -> None:
    losses: list[float | None] = [*losses_under(2.0, UNLIKE, end=0.7, half_rounds=1.0)]
    losses[2] = losses[5] = None
    kappa = fitted_kappa(losses, UNLIKE, prior=1.0, largest_pruning_loss=0.36)
    assert kappa == pytest.approx(2.0, rel=0.25)
