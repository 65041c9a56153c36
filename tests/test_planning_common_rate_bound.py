"""What one pruning rate bounds of the rates above it: against every assignment of modes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from airtune.planning.common_rate import Ratios
from common_rate_problems import MOST, kinked, pinned, problem_of
from mode_oracles import best_of_all_assignments


@pytest.mark.parametrize("kappa", [1.0, 0.7])
@pytest.mark.parametrize("absence", ["nobody", "at one price", "beside the rate"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_optimum_is_below_that_at_a_lower_rate_times_the_ratios(
    seed: int, absence: str, kappa: float
) -> None:
    problem = replace(problem_of(np.random.default_rng(3500 + seed)), kappa=kappa)
    absent = None if absence == "nobody" else np.array([0.7, np.inf, 0.7])
    problem = replace(problem, absent_cost=absent)
    out_cost = 0.3 if absence == "beside the rate" else None
    low, tightest = 0.24, np.inf  # memory holds all modes from 0.23 on
    start_s = best_of_all_assignments(pinned(problem, low, out_cost))
    ratios = Ratios(problem, low, out_cost)
    for rate in np.linspace(low, MOST, 9):
        truth_s = best_of_all_assignments(pinned(problem, float(rate), out_cost))
        assert start_s * ratios.of(float(rate)) <= truth_s * (1 + 1e-9)
        tightest = min(tightest, truth_s / (start_s * ratios.of(float(rate))))
    assert tightest == pytest.approx(1.0)
    inside = [ratios.of(float(rate)) for rate in np.linspace(low, 0.5, 300)]
    assert ratios.lowest(0.5) <= min(1.0, *inside) + 1e-12
    assert ratios.lowest(0.5) >= min(1.0, *inside) - 1e-3


def test_the_ratios_of_one_mode_are_exact() -> None:
    # All of a second's work shrinks, and nothing else takes time; e goes from 0 to 0.9.
    problem = kinked(free_to=0.3)
    ratios = Ratios(problem, 0.2, None)
    assert ratios.times(0.5) == pytest.approx((0.1 + 5.0) / (0.1 + 8.0))
    assert ratios.of(0.5) == pytest.approx((0.1 + 5.0) / (0.1 + 8.0) / (1 - 0.9 * 2 / 3))
    assert ratios.lowest(0.5) == pytest.approx(7.1 / 8.1)  # at the kink
    assert ratios.refuted_to(0.5, 7.1 / 8.1 + 1e-3) < 0.3
    assert ratios.refuted_to(0.5, 7.1 / 8.1 - 1e-3) == 0.5
    assert ratios.refuted_to(0.29, 7.6 / 8.1) == pytest.approx(0.25)
    # Absence that is priced beside the rate loses as much as work does; at one price it does not.
    absent = replace(problem, absent_cost=np.array([0.7, np.inf]))
    assert Ratios(absent, 0.2, 0.3).of(0.5) == pytest.approx(ratios.of(0.5))
    assert Ratios(absent, 0.2, None).of(0.5) == ratios.times(0.5)
    # With a limit on what is lost the round's time alone is planned.
    limited = replace(problem, max_pruning_loss=0.9)
    assert Ratios(limited, 0.2, None).of(0.5) == ratios.times(0.5)


@pytest.mark.parametrize(
    ("owner", "change"),
    [
        (0, {"payload_fixed_bits": 1e3, "payload_full_bits": 9e3}),
        (1, {"payload_fixed_bits": 1e3, "payload_full_bits": 9e3}),
        (0, {"compute_fixed_s": 1.0, "compute_full_s": 9.0}),
        (1, {"compute_fixed_s": 1.0, "compute_full_s": 9.0}),
    ],
)
def test_the_mode_that_gains_most_decides(owner: int, change: dict[str, float]) -> None:
    problem = kinked(shrinks=False)
    assert problem.modes is not None
    assert Ratios(problem, 0.2, None).times(0.5) == 1.0
    modes = list(problem.modes)
    modes[owner] = tuple(replace(mode, **change) for mode in modes[owner] or ())
    ratios = Ratios(replace(problem, modes=tuple(modes)), 0.2, None)
    assert ratios.times(0.5) == pytest.approx((0.1 + 0.9 * 0.5) / (0.1 + 0.9 * 0.8))


@pytest.mark.parametrize("kappa", [1.5, 0.0])
def test_where_lost_rounds_do_not_bound_anything_the_times_still_do(kappa: float) -> None:
    problem = replace(kinked(free_to=0.3), kappa=kappa)
    expected = 5.1 / 8.1 / (1 - kappa * 0.6) if kappa < 1 else 5.1 / 8.1
    if kappa > 1:  # more than the whole round is lost at the lower rate already
        problem = replace(problem, pruning_cost=(np.array([[0, 0], [0.1, 0.7], [MOST, 4.2]]),) * 2)
    assert Ratios(problem, 0.2, None).of(0.5) == pytest.approx(expected)
