"""Paired statistics over seeds, by SciPy: intervals, verdicts, and how many seeds are missing.

On a seed, all methods have the same cell, channels, data and batches, so a method is compared with
another by their difference (losses) or the logarithm of their ratio (times, bits, energy) on each
seed. What varies from seed to seed and is common to both then falls out.

The interval of a mean is Student's, from SciPy's `t.interval`; it supposes that differences over
seeds are about normal. A method that does not reach the target on some seed has no finite time
there: its value is censored, the mean is unknown, and the median is given instead with the
distribution-free interval of SciPy's `quantile_test`.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
POWER = 0.8
MOST_SEEDS = 10_000
"""Beyond this a claim is out of reach, and no number is given."""

BETTER, WORSE, OPEN = "better", "worse", "no difference shown"


@dataclass(frozen=True)
class Estimate:
    """A paired comparison over seeds.

    Attributes:
        seeds: pairs that it rests on.
        value: the mean difference or the geometric mean ratio; with censored pairs the median
            ratio, infinite where half or more are censored; NaN without pairs.
        low: lower end of the 95 % interval; −inf (ratio: 0) where the seeds are too few for one.
        high: upper end; +inf where there is none.
        neutral: the value that means no difference: 0, or 1 for a ratio.
        censored: pairs whose value is known only to be larger than what was followed.
        lost: pairs that are missing because a run failed or diverged, or because the reference
            did not reach the target.
        effect: |mean| over the standard deviation of the pairs' values (of ratios, their
            logarithms); None where there is no spread or a pair is censored.
    """

    seeds: int
    value: float
    low: float
    high: float
    neutral: float
    censored: int = 0
    lost: int = 0
    effect: float | None = None

    @property
    def more_seeds(self) -> int | None:
        """Further seeds that a claim would need; 0 where it stands, None where it cannot be said.

        After them the interval would exclude `neutral` with a probability of 80 %, were mean and
        spread those seen.
        """
        if self.low > self.neutral or self.high < self.neutral:
            return 0
        return None if self.effect is None else more_seeds(self.seeds, self.effect)

    @property
    def verdict(self) -> str:
        """Say `better` (lower) or `worse` only where the interval says so and no pair is lost."""
        if self.seeds < 2 or self.lost:
            return OPEN
        if self.high < self.neutral:
            return BETTER
        return WORSE if self.low > self.neutral else OPEN


def difference(pairs: Sequence[tuple[float, float]], lost: int = 0) -> Estimate:
    """Compare by differences: own minus the other's, mean and 95 % interval."""
    values = np.array([own - other for own, other in pairs], dtype=float)
    mean, low, high = mean_interval(values)
    return Estimate(len(values), mean, low, high, 0.0, 0, lost, effect_of(values))


def ratio(
    pairs: Sequence[tuple[float, float]], censored: Sequence[float] = (), lost: int = 0
) -> Estimate:
    """Compare by ratios: own over the other's, geometric mean and 95 % interval.

    Args:
        pairs: positive.
        censored: for each further seed the ratio that the own run was followed up to without
            getting there: the true one is larger.
        lost: seeds on which one of the two failed or diverged, or the other did not get there.
    """
    logs = np.array([math.log(own / other) for own, other in pairs], dtype=float)
    if len(censored):
        bounds = np.log(np.array(censored, dtype=float))
        middle, low, high = median_interval(logs, bounds)
        count = len(logs) + len(bounds)
        return Estimate(count, _exp(middle), _exp(low), _exp(high), 1.0, len(bounds), lost)
    mean, low, high = mean_interval(logs)
    effect = effect_of(logs)
    return Estimate(len(logs), _exp(mean), _exp(low), _exp(high), 1.0, 0, lost, effect)


def mean_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean and the ends of Student's 95 % interval; infinite ends from one value."""
    if not len(values):
        return math.nan, -math.inf, math.inf
    mean = float(values.mean())
    if len(values) < 2:
        return mean, -math.inf, math.inf
    # Identical on all seeds but for rounding, as of one training under two plans.
    if _alike(values):
        return mean, mean, mean
    low, high = stats.t.interval(CONFIDENCE, len(values) - 1, loc=mean, scale=stats.sem(values))
    return mean, float(low), float(high)


def median_interval(values: np.ndarray, bounds: np.ndarray) -> tuple[float, float, float]:
    """Return the median and the ends of its distribution-free 95 % interval.

    A censored value lies anywhere above its bound, and not necessarily above the other values. So
    the lower end is that of the bounds themselves and the upper end that of infinite values: the
    interval holds whatever the censored values are. With fewer than six values there is none.
    """
    lowest, highest = np.append(values, bounds), np.append(values, np.full(len(bounds), math.inf))
    middle = float(np.sort(highest)[len(highest) // 2])
    if len(lowest) < 2:
        return middle, -math.inf, math.inf
    # The test looks at the order alone: a number above all others stands for the infinite ones.
    above = float(lowest.max()) + 1.0
    finite = np.where(np.isinf(highest), above, highest)
    low = stats.quantile_test(lowest, p=0.5).confidence_interval(CONFIDENCE).low
    high = stats.quantile_test(finite, p=0.5).confidence_interval(CONFIDENCE).high
    return (
        middle,
        -math.inf if math.isnan(low) else float(low),
        math.inf if math.isnan(high) or high == above else float(high),
    )


def effect_of(values: np.ndarray) -> float | None:
    """Return |mean| over the standard deviation; None from one value or without spread."""
    if len(values) < 2 or _alike(values):
        return None
    return abs(float(values.mean())) / float(values.std(ddof=1))


def more_seeds(count: int, effect: float) -> int | None:
    """Return how many seeds more than `count` a claim needs, were the effect the one seen.

    The smallest n for which Student's test at 5 % has a power of 80 %: with noncentrality
    δ = effect √n, P(|t'(n − 1, δ)| > t(0.975, n − 1)) ≥ 0.8. None beyond 10,000.
    """

    def power(size: int) -> float:
        limit = stats.t.ppf((1 + CONFIDENCE) / 2, size - 1)
        shift = effect * math.sqrt(size)
        return float(stats.nct.sf(limit, size - 1, shift) + stats.nct.cdf(-limit, size - 1, shift))

    # Power grows with the number of seeds: the smallest one that is enough, by bisection.
    sizes = range(count + 1, MOST_SEEDS + 1)
    if power(sizes[-1]) < POWER:
        return None
    return sizes[bisect.bisect_left(sizes, POWER, key=power)] - count


def _alike(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * max(1.0, float(np.abs(values).max())))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
