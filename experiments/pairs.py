"""Two methods of a study on the same seeds: times, bits, losses and accuracy, with intervals.

    python experiments/pairs.py memory heard fedit      # what `heard` has against FedIT

Ratios are to the other one's, differences from it.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from rows import ROWS, read_rows, result_of

from airtune.study.comparison import grouped, taken
from airtune.study.console import DASH, estimate_text, point_text
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


def results_of(study: str) -> list[Result]:
    """Return the committed runs of a study, seed by seed."""
    return [result_of(row) for row in read_rows(ROWS / f"{study}.jsonl")]


def ranges(seeds: Sequence[int]) -> str:
    """Return numbers as ranges, e.g. 12–14, 16; a dash where there are none."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    parts = [f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(parts) or DASH


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


def accuracy(pairs: Pairs) -> Measured:
    """Compare the accuracy at the end, a difference a seed."""
    return _differences(pairs, lambda one: one.metrics.get("accuracy"))


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


MEASURES: Mapping[str, Callable[[Pairs], Measured]] = {
    "loss": final_loss,
    "loss against the lowest": below_lowest,
    "worst client": worst_client,
    "accuracy": accuracy,
    "time": lambda pairs: to_target(pairs, "elapsed_s"),
    "uplink": lambda pairs: to_target(pairs, "uplink_bits"),
    "time of all rounds": lambda pairs: totals(pairs, "elapsed_s"),
    "uplink of all rounds": lambda pairs: totals(pairs, "uplink_bits"),
}
"""What two methods are compared by; time and uplink: to the other one's final loss."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what one method has against another one, at each point of the study's axes."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    studies = sorted(path.stem for path in ROWS.glob("*.jsonl"))
    parser.add_argument("study", choices=studies)
    parser.add_argument("method")
    parser.add_argument("against", metavar="other")
    given = parser.parse_args(arguments)
    results = results_of(given.study)
    known = list(dict.fromkeys(one.method for one in results))
    for name in (given.method, given.against):
        if name not in known:
            parser.error(f"'{given.study}' has no rows of '{name}'; it has {', '.join(known)}")
    for point in dict.fromkeys(one.point for one in results):
        pairs = pairs_of([o for o in results if o.point == point], given.method, given.against)
        if point:
            print(f"{point_text(point)}:")
        for name, measure in MEASURES.items():
            found = measure(pairs)
            print(f"{name:24} {found.text}   seeds {ranges(found.seeds)}")


if __name__ == "__main__":
    main()
