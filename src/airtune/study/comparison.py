"""What a study shows: the target, what reaching it took, and each method against the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.study.jobs import Point
from airtune.study.results import Result
from airtune.study.statistics import Estimate, difference, ratio

Groups = Mapping[str, Mapping[int, Result]]
"""Results of one point by method and seed."""
RULE = (
    "The target on a seed is the final loss there of the best baseline: the one with the lowest "
    "mean final loss over the seeds that most baselines have (of equals, the one that took less "
    "virtual time). It is reached in the first evaluated round whose loss is not above it."
)


@dataclass(frozen=True)
class Standing:
    """One method at one point, against the reference on the same seeds.

    Attributes:
        method: its name.
        kind: joint, baseline, rival or ablation.
        seeds: seeds on which it finished with a finite loss.
        broken: seeds on which it failed or diverged.
        final_loss: mean over its seeds; NaN without any.
        loss: final loss against the reference's, as a difference.
        time: virtual time to the target, as a ratio to the reference's.
        uplink: uplink bits to the target, as a ratio.
        energy: energy to the target, as a ratio; None where it was not recorded.
        reached: seeds on which it reached the target.
    """

    method: str
    kind: str
    seeds: int
    broken: int
    final_loss: float
    loss: Estimate
    time: Estimate
    uplink: Estimate
    energy: Estimate | None
    reached: int


@dataclass(frozen=True)
class Comparison:
    """All methods at one point.

    Attributes:
        point: where on the axes.
        reference: the method that the others are compared with; None where none has finished.
        targets: the target loss of each seed.
        standings: a method each, the lowest mean final loss first.
    """

    point: Point
    reference: str | None
    targets: Mapping[int, float]
    standings: tuple[Standing, ...]


def compare(results: Sequence[Result], reference: str | None = None) -> list[Comparison]:
    """Compare the methods at every point that the results hold."""
    points = dict.fromkeys(result.point for result in results)
    return [_at([r for r in results if r.point == point], point, reference) for point in points]


def grouped(results: Sequence[Result]) -> dict[str, dict[int, Result]]:
    """Return the results by method and seed, in their order."""
    groups: dict[str, dict[int, Result]] = {}
    for result in results:
        groups.setdefault(result.method, {})[result.seed] = result
    return groups


def best_baseline(groups: Groups) -> str | None:
    """Return the baseline with the lowest mean final loss; None where none has finished.

    One baseline for all seeds: the lowest of each seed would be the luckiest of many noisy ends.
    Compared on the seeds that most baselines have: another set of seeds is another set of cells,
    and a single run of a new seed must not choose. Of equal losses, the one sooner at its end.
    """
    usable = {
        name: {seed: one for seed, one in own.items() if one.usable}
        for name, own in groups.items()
        if any(one.kind == "baseline" for one in own.values())
    }
    usable = {name: own for name, own in usable.items() if own}
    sets = Counter(frozenset(own) for own in usable.values())
    if not sets:
        return None
    # Of sets that as many have, the one that more others cover.
    seeds = max(sets, key=lambda s: (sets[s], sum(s <= own.keys() for own in usable.values())))

    def end(name: str) -> tuple[float, float]:
        own = usable[name]
        return (
            float(np.mean([own[seed].loss[-1] for seed in sorted(seeds)])),
            float(np.mean([own[seed].elapsed_s[-1] for seed in sorted(seeds)])),
        )

    return min((name for name, own in usable.items() if seeds <= own.keys()), key=end)


def _at(results: Sequence[Result], point: Point, wanted: str | None) -> Comparison:
    groups = grouped(results)
    best = best_baseline(groups)
    reference = wanted or best
    targets: dict[int, float] = {}
    if best is not None:
        for seed, one in groups[best].items():
            if one.final_loss is not None:
                targets[seed] = one.final_loss
    theirs = groups.get(reference, {}) if reference else {}
    standings = [_standing(name, own, theirs, targets) for name, own in groups.items()]
    standings.sort(key=lambda s: (math.isnan(s.final_loss), s.final_loss))
    return Comparison(point, reference, targets, tuple(standings))


def _standing(
    name: str, own: Mapping[int, Result], theirs: Mapping[int, Result], targets: Mapping[int, float]
) -> Standing:
    usable = {seed: one for seed, one in own.items() if one.usable}
    ended = _ended(own)
    others = {seed: one for seed, one in theirs.items() if one.usable}
    shared = [seed for seed in usable if seed in others]
    # A pair is lost where one of the two has failed; one that has not been run yet is not lost.
    lost = len([seed for seed in ended & _ended(theirs) if seed not in shared])
    losses = [(usable[seed].loss[-1], others[seed].loss[-1]) for seed in shared]
    with_energy = shared and all(usable[s].energy_j and others[s].energy_j for s in shared)
    return Standing(
        method=name,
        kind=next(iter(own.values())).kind,
        seeds=len(usable),
        broken=len(ended) - len(usable),
        final_loss=float(np.mean([one.loss[-1] for one in usable.values()]))
        if usable
        else math.nan,
        loss=difference([(a, b) for a, b in losses if a is not None and b is not None], lost),
        time=_to_target("elapsed_s", usable, others, targets, lost),
        uplink=_to_target("uplink_bits", usable, others, targets, lost),
        energy=_to_target("energy_j", usable, others, targets, lost) if with_energy else None,
        reached=sum(
            targets.get(seed) is not None and one.reached(targets[seed]) is not None
            for seed, one in usable.items()
        ),
    )


def _ended(results: Mapping[int, Result]) -> set[int]:
    return {seed for seed, one in results.items() if one.usable or one.error}


def taken(result: Result, key: str, target: float | None) -> float | None:
    """Return what a run took to reach the target; None where it did not, or nothing is known."""
    at = result.reached(target) if result.usable and target is not None else None
    series = getattr(result, key)
    return None if at is None or not series else float(series[at])


def _to_target(
    key: str,
    own: Mapping[int, Result],
    theirs: Mapping[int, Result],
    targets: Mapping[int, float],
    lost: int,
) -> Estimate:
    """Compare what reaching the target took on the seeds where the reference reached it.

    Where it did not, nothing is known of the pair: the others alone would be a choice.
    """
    pairs, censored = [], []
    for seed, one in own.items():
        if seed not in theirs or seed not in targets:
            continue
        other = taken(theirs[seed], key, targets[seed])
        if other is None:
            lost += 1
            continue
        if other <= 0.0:
            continue
        mine = taken(one, key, targets[seed])
        if mine is None:
            censored.append(getattr(one, key)[-1] / other)
        elif mine > 0.0:
            pairs.append((mine, other))
    return ratio(pairs, censored, lost)
