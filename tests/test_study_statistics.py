"""What a study claims: intervals cover a known truth, and nothing is claimed without one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from airtune.study.statistics import (
    BETTER,
    OPEN,
    WORSE,
    difference,
    mean_interval,
    median_interval,
    ratio,
)

TIMES = 2000


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_of_a_difference_cover_the_truth_as_often_as_they_say(seeds: int) -> None:
    rng = np.random.default_rng(15)
    truth, common, own = -0.02, 0.3, 0.05
    covered = 0
    for _ in range(TIMES):
        # What is common to both on a seed (the cell, the data) is much larger than their gap.
        cell = rng.normal(1.0, common, seeds)
        mine = cell + truth + rng.normal(0.0, own, seeds)
        theirs = cell + rng.normal(0.0, own, seeds)
        estimate = difference(list(zip(mine, theirs, strict=True)))
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / TIMES <= 0.97


def test_intervals_of_a_ratio_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(16)
    truth, covered = 0.6, 0
    for _ in range(TIMES):
        theirs = rng.lognormal(3.0, 0.8, 5)
        mine = theirs * truth * rng.lognormal(0.0, 0.2, 5)
        estimate = ratio(list(zip(mine, theirs, strict=True)))
        covered += estimate.low <= truth <= estimate.high
    assert 0.93 <= covered / TIMES <= 0.97


def test_intervals_of_a_censored_median_hold_the_truth_however_runs_were_cut_off() -> None:
    rng = np.random.default_rng(17)
    covered = 0
    for _ in range(TIMES):
        logs = rng.normal(0.0, 0.5, 12)
        # Each run is followed up to a time of its own: some are cut off below others' values.
        limits = rng.normal(0.4, 0.5, 12)
        known, bounds = logs[logs <= limits], limits[logs > limits]
        _, low, high = median_interval(known, bounds)
        covered += low <= 0.0 <= high
    assert covered / TIMES >= 0.95


def test_a_mean_interval_is_students() -> None:
    # t(0.975, 4) = 2.776445, from printed tables; s of these is 1.581139.
    mean, low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert mean == 3.0
    assert (high - low) / 2 == pytest.approx(2.776445 * 1.581139 / math.sqrt(5), rel=1e-6)


def test_only_an_interval_makes_a_claim() -> None:
    assert difference([(1.0, 2.0), (1.1, 2.0), (0.9, 2.0)]).verdict == BETTER
    assert difference([(3.0, 2.0), (3.1, 2.0), (2.9, 2.0)]).verdict == WORSE
    assert difference([(1.0, 2.0), (3.2, 2.0), (0.9, 2.0)]).verdict == OPEN
    # Never from one seed, and not where a seed went wrong.
    assert difference([(1.0, 2.0)]).verdict == OPEN
    assert difference([(1.0, 2.0), (1.1, 2.0), (0.9, 2.0)], lost=1).verdict == OPEN
    assert ratio([(5.0, 10.0)]).verdict == OPEN


def test_a_ratio_is_not_that_of_sums() -> None:
    estimate = ratio([(1.0, 2.0), (400.0, 200.0)])
    assert estimate.value == pytest.approx(1.0)
    assert estimate.neutral == 1.0


def test_censored_runs_give_a_median_and_are_counted() -> None:
    known = [(x, 1.0) for x in (0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.7, 0.72)]
    estimate = ratio(known, [0.9])
    assert (estimate.seeds, estimate.censored) == (9, 1)
    assert estimate.value == pytest.approx(0.60)
    assert estimate.verdict == BETTER
    # Cut off early, the same run says nothing of its ratio from below.
    early = ratio(known, [0.01])
    assert early.low < estimate.low
    assert early.high == estimate.high
    none = ratio([], [0.9, 0.8, 0.7])
    assert math.isinf(none.value)
    assert none.verdict == OPEN
    # More than half never got there: worse, once the bounds say so.
    assert ratio([], [2.0] * 8).verdict == WORSE


def test_how_many_seeds_a_claim_needs() -> None:
    assert difference([(1.9, 2.0), (1.89, 2.0), (1.91, 2.0)]).more_seeds == 0
    # Cohen's d = 0.5: 34 pairs for 80 % power at 5 %, two-sided (Cohen 1988; G*Power gives 34).
    wide = np.array([0.5 + math.sqrt(1.5), 0.5 - math.sqrt(1.5), 0.5, 0.5])
    assert wide.std(ddof=1) == pytest.approx(1.0)
    assert difference([(value, 0.0) for value in wide]).more_seeds == 34 - 4
    assert difference([(1.0, 0.0)]).more_seeds is None
    assert difference([(1.0, 0.0), (-1.0, 0.0)]).more_seeds is None


def test_what_is_alike_but_for_rounding_warns_of_nothing() -> None:
    estimate = ratio([(0.1 * 3, 1.2), (0.3, 1.2), (0.3000000000000001, 1.2)])
    assert estimate.value == pytest.approx(0.25)
    assert estimate.verdict == BETTER
