"""Two methods of a study on the same seeds: times, bits and losses, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airtune.study.comparison import grouped, taken
from airtune.study.console import estimate_text
from airtune.study.results import Result
from airtune.study.statistics import Estimate, difference, ratio


@dataclass(frozen=True)
class Pairs:
    """Two methods on the seeds that both have.

    Attributes:
        usable: own run and the other one's, seed by seed, where both ended with a finite loss.
        lost: pairs that are missing because one of the two diverged.
    """

    usable: tuple[tuple[Result, Result], ...]
    lost: int


@dataclass(frozen=True)
class Measured:
    """A comparison over seeds and, where it is of ratios to a target, what it is made of.

    Attributes:
        estimate: mean or median, with its interval.
        seeds: those of its pairs.
        values: ratios on the seeds on which the target was reached.
        bounds: on the others, the ratio up to which the run was followed: its own is larger.
    """

    estimate: Estimate
    seeds: tuple[int, ...]
    values: tuple[float, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """Value and interval; on how many seeds the target was reached, where not on all."""
        count = self.estimate.seeds
        if not self.bounds:
            return estimate_text(self.estimate)
        if count == 1:
            return "not reached"
        reached = f"reached on {len(self.values)} of {count}"
        if math.isinf(self.estimate.value):
            return reached
        return f"{reached}; {estimate_text(self.estimate)}"


def pairs_of(results: Sequence[Result], method: str, reference: str) -> Pairs:
    """Return a method's runs beside another one's on the same seeds."""
    own, theirs = (grouped(results).get(name, {}) for name in (method, reference))
    pairs = [(own[seed], theirs[seed]) for seed in sorted(own.keys() & theirs.keys())]
    usable = tuple(pair for pair in pairs if all(one.usable for one in pair))
    return Pairs(usable, len(pairs) - len(usable))


def final_loss(pairs: Pairs) -> Measured:
    """Compare the final losses, a difference a seed."""
    return _differences(pairs, lambda one: one.final_loss)


def below_lowest(pairs: Pairs) -> Measured:
    """Compare the final loss with the lowest one that the other had at any time."""
    return _differences(pairs, lambda one: one.final_loss, _lowest_loss)


def worst_client(pairs: Pairs) -> Measured:
    """Compare the final loss of the client that has the highest, a difference a seed."""
    return _differences(pairs, lambda one: one.metrics.get("worst_client_loss"))


def _lowest_loss(one: Result) -> float:
    return min(loss for loss in one.loss[1:] if loss is not None)


def _differences(
    pairs: Pairs,
    value: Callable[[Result], float | None],
    others: Callable[[Result], float | None] | None = None,
) -> Measured:
    others = others or value
    found = [(own.seed, value(own), others(other)) for own, other in pairs.usable]
    known = {seed: (a, b) for seed, a, b in found if a is not None and b is not None}
    return Measured(difference(list(known.values()), pairs.lost), tuple(known))


def totals(pairs: Pairs, key: str) -> Measured:
    """Compare what all rounds took, a ratio a seed."""
    ends = [(getattr(own, key)[-1], getattr(other, key)[-1]) for own, other in pairs.usable]
    return Measured(ratio(ends, lost=pairs.lost), tuple(own.seed for own, _ in pairs.usable))


def to_target(pairs: Pairs, key: str) -> Measured:
    """Compare what the other one's final loss took, a ratio a seed; runs may end above it."""
    values, bounds = [], []
    for own, other in pairs.usable:
        theirs = taken(other, key, other.final_loss)
        assert theirs is not None  # its own final loss
        mine = taken(own, key, other.final_loss)
        if mine is None:
            bounds.append(getattr(own, key)[-1] / theirs)
        else:
            values.append(mine / theirs)
    estimate = ratio([(value, 1.0) for value in values], bounds, pairs.lost)
    seeds = tuple(own.seed for own, _ in pairs.usable)
    return Measured(estimate, seeds, tuple(values), tuple(bounds))
