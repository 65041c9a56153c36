"""The aims of the experiments: what was measured for each, and whether it was reached."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pairs import MEASURES, Measured, pairs_of

from airtune.study.console import DASH
from airtune.study.jobs import Point
from airtune.study.results import Result


@dataclass(frozen=True)
class Aim:
    """What a method should reach against another one, at most `limit`; `measure`: of `MEASURES`.

    `time` and `uplink`: to the loss at which the other one ends, as a ratio. `loss` and
    `worst client`: at the end, as a difference. `loss against the lowest`: the loss at the end less
    the lowest one that the other had at any time.
    """

    study: str
    method: str
    against: str
    measure: str
    limit: float
    point: Point = ()


AIMS = (
    Aim("clinc150", "heard", "heard-unpruned", "time", 0.6),
    Aim("clinc150", "heard", "heard-unpruned", "loss", 0.0),
    Aim("clinc150", "heard", "heard-unpruned", "worst client", 0.0),
    Aim("clinc150", "all-floor", "unpruned-floor", "time", 0.6),
    Aim("clinc150", "all-floor", "unpruned-floor", "loss", 0.0),
    Aim("clinc150", "all-floor", "unpruned-floor", "worst client", 0.0),
    Aim("clinc150", "heard", "fedit", "time", 0.15),
    Aim("clinc150", "heard", "fedit", "uplink", 0.15),
    Aim("clinc150", "all-floor", "fedit", "time", 0.15),
    Aim("clinc150", "all-floor", "fedit", "uplink", 0.15),
    Aim("clinc150", "bcd", "fedit", "time", 0.6),
    Aim("clinc150", "bcd", "fedit", "uplink", 0.54),
    Aim("clinc150", "bcd-longer", "fedit", "time", 0.6),
    Aim("clinc150", "bcd-longer", "fedit", "uplink", 0.54),
    Aim("memory", "heard", "fedit", "loss against the lowest", 0.0),
    Aim("memory", "heard", "heard-unpruned", "loss against the lowest", 0.0),
    Aim("memory", "heard", "unpruned-floor", "loss against the lowest", 0.0),
    Aim("memory", "all-floor", "unpruned-floor", "loss against the lowest", 0.0),
)


def measured(results: Sequence[Result], aim: Aim) -> Measured | None:
    """Return what was measured for an aim; None where no seed has both methods."""
    pairs = pairs_of(results, aim.method, aim.against)
    if not pairs.usable and not pairs.lost:
        return None
    return MEASURES[aim.measure](pairs)


def verdict(found: Measured | None, limit: float) -> str:
    """Say whether an aim was reached.

    Yes and no are said by the whole interval alone. The interval of a mean needs two seeds. Where a
    run ended above the target it is that of a median, which needs six.
    """
    if found is None:
        return DASH
    estimate, bounds = found.estimate, found.bounds
    if estimate.lost:
        return f"not judged: {estimate.lost} of the pairs diverged"
    if not estimate.seeds:
        return DASH
    if estimate.seeds == 1:
        reached = not bounds and estimate.value <= limit
        followed = not bounds or min(bounds) >= limit
        return f"one seed: {'within it' if reached else 'missed' if followed else 'open'}"
    if estimate.high <= limit:
        return "yes"
    if estimate.low > limit:
        return "no"
    if bounds and min(bounds) < limit:
        return "not followed far enough"
    if bounds and estimate.low == 0.0:
        within = sum(value <= limit for value in found.values)
        return f"within the aim on {within} of {estimate.seeds}, no interval"
    middle = "median" if bounds else "mean"
    if estimate.value <= limit:
        return f"in {middle}, not by the interval"
    return f"not in {middle}; the interval holds it"
