"""From a pruning rate to what is left out: the least harm per FLOP and payload bit first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from airtune.errors import InputError
from airtune.models.structure import Structure, check_structure
from airtune.models.workload import ModelShape, check_rate
from airtune.pruning.selection import Selection, by_importance
from airtune.pruning.statistics import Statistics

CURVE_POINTS = 9


@dataclass(frozen=True)
class Removal:
    """One step of the order in which units are given up."""

    block: int
    unit: str
    kept_units: int
    """How many units of the sublayer are left after it."""
    parameters: int
    """Weight-matrix entries that it removes."""
    harm: float
    """Expected loss increase per label token that it adds."""


def choose(
    statistics: Statistics,
    shape: ModelShape,
    pruning: float,
    units: str = "mixed",
    *,
    select: Selection = by_importance,
) -> Structure:
    """Return the structure of a pruning rate: by importance deterministic, and nested over rates.

    Args:
        statistics: the client's calibration.
        shape: of the model.
        pruning: share of the blocks' parameters to leave out, met as nearly as units allow.
        units: `mlp`, `attention`, `mixed` (both) or `blocks` (whole ones).
        select: which units of a sublayer are kept, once it is known how many.

    Raises:
        InputError: a rate outside [0, 1), or one that these units cannot reach.
    """
    check_rate(pruning)
    statistics.check_shape(shape)
    kept = {
        "mlp": [shape.mlp_channels] * shape.blocks,
        "group": [shape.kv_heads] * shape.blocks,
    }
    target = pruning * shape.block_parameters
    removed = 0
    for step in removal_order(statistics, shape, units):
        if removed + step.parameters / 2 > target:
            break
        removed += step.parameters
        for unit in kept if step.unit == "block" else (step.unit,):
            kept[unit][step.block] = step.kept_units
    else:
        _check_reach(removed, shape, pruning, units)
    channels, groups = (
        tuple(
            tuple(
                sorted(
                    select(
                        statistics.sublayer(b, unit).order.numpy(),
                        kept[unit][b],
                        _step_of(shape, unit),
                    ).tolist()
                )
            )
            for b in range(shape.blocks)
        )
        for unit in ("mlp", "group")
    )
    structure = Structure(channels, groups)
    check_structure(structure, shape)
    return structure


def removal_order(statistics: Statistics, shape: ModelShape, units: str) -> list[Removal]:
    """Return all steps in the order in which rising rates take them.

    Within a sublayer units go in its order of importance. Between sublayers the least harm per
    cost goes first, on the convex hull of each sublayer's harm, so that a step which is cheap
    only because of the next one does not jump the queue. Each sublayer's harm is drawn half way
    towards the median of its kind: a single block's estimate is too sure of itself.
    """
    if units == "blocks":
        return _block_steps(statistics, shape)
    kinds = _kinds(units)
    typical = {unit: _typical_steps(statistics, shape, unit) for unit in kinds}
    steps: list[tuple[float, int, Removal]] = []
    for block in range(shape.blocks):
        for unit in kinds:
            run = list(_sublayer_steps(statistics, shape, block, unit))
            for price, step in zip(_hull_prices(run, typical[unit]), run, strict=True):
                steps.append((price, len(steps), step))
    steps.sort(key=lambda entry: entry[:2])
    return [step for _, _, step in steps]


def cost_curve(
    statistics: Statistics,
    shape: ModelShape,
    units: str = "mixed",
    *,
    max_pruning: float,
) -> tuple[tuple[float, float], ...]:
    """Return the learning cost of pruning as (rate, cost): convex, non-decreasing, 0 at 0.

    e(ρ) = harm(ρ) / (log V − L), with the harm that the calibration expects, V token kinds and the
    whole model's loss L: the share that is lost of what the model knows beyond guessing, or of the
    harm of leaving everything out where that is less. Nowhere above the linear cost e(ρ) = ρ; a
    model that knows no more than guessing is on that bound at `max_pruning`.

    Args:
        statistics: the client's calibration.
        shape: of the model.
        units: as for `choose`.
        max_pruning: where the curve ends.

    Raises:
        InputError: a rate outside [0, 1), or one that these units cannot reach.
    """
    check_rate(max_pruning)
    if max_pruning == 0:
        return ((0.0, 0.0), (1.0, 1.0))
    steps = removal_order(statistics, shape, units)
    _check_reach(sum(step.parameters for step in steps), shape, max_pruning, units)
    rates = np.cumsum([0] + [step.parameters for step in steps]) / shape.block_parameters
    harms = np.cumsum([0.0] + [step.harm for step in steps])
    grid = np.linspace(0, max_pruning, CURVE_POINTS)
    values = np.interp(grid, rates, harms)
    slopes = np.maximum.accumulate(np.maximum(np.diff(values), 0))
    curve = np.concatenate([[0.0], np.cumsum(slopes)])
    # Harm is a second-order estimate: of everything together it is far too large.
    known = math.log(shape.vocab) - statistics.loss
    everything = sum(float(s.harm[0]) for s in statistics.mlp + statistics.attention)
    scale = min(max(known, 0.0), everything)
    curve /= max(scale, curve[-1] / max_pruning, np.finfo(float).tiny)
    return tuple((float(rate), float(cost)) for rate, cost in zip(grid, curve, strict=True))


def _check_reach(removable: int, shape: ModelShape, pruning: float, units: str) -> None:
    reach = removable / shape.block_parameters
    if pruning > reach + 0.01:
        raise InputError(
            f"pruning = {pruning:g}: cutting {units} units reaches at most {reach:.3f}"
        )


def _kinds(units: str) -> tuple[str, ...]:
    kinds = {"mixed": ("mlp", "group"), "mlp": ("mlp",), "attention": ("group",)}
    if units not in kinds:
        raise InputError(f"pruning.units = '{units}': must be one of {', '.join(kinds)}, blocks")
    return kinds[units]


def _step_of(shape: ModelShape, unit: str) -> int:
    """Return how many units of a kind are cut together."""
    return shape.channel_multiple if unit == "mlp" else 1


def _sublayer_steps(
    statistics: Statistics, shape: ModelShape, block: int, unit: str
) -> Iterator[Removal]:
    """Yield a sublayer's steps: MLP channels by the hardware's multiple, groups one by one."""
    total = shape.mlp_channels if unit == "mlp" else shape.kv_heads
    size = _step_of(shape, unit)
    least = size if unit == "mlp" else 0  # attention can go altogether
    harm = statistics.sublayer(block, unit).harm.tolist()
    kept = total
    while kept > least:
        after = max(least, (kept - 1) // size * size)
        yield Removal(
            block=block,
            unit=unit,
            kept_units=after,
            parameters=shape.unit_parameters[unit] * (kept - after),
            harm=max(0.0, harm[after] - harm[kept]),
        )
        kept = after


def _block_steps(statistics: Statistics, shape: ModelShape) -> list[Removal]:
    """Return whole blocks in the order in which they go: the least harmful next, all but one.

    A block is replaced only while the one before it is there to compute the replacement, so a
    block that stands in for its successor costs that replacement too.
    """
    kept = set(range(shape.blocks))
    steps = []

    def harm(block: int) -> float:
        own = statistics.blocks[block]
        total = own.replaced_harm if block - 1 in kept else own.harm
        if block + 1 < shape.blocks and block + 1 not in kept:
            after = statistics.blocks[block + 1]
            total += after.harm - after.replaced_harm
        return total

    while len(kept) > 1:
        block = min(sorted(kept), key=harm)
        parameters = shape.block_parameters // shape.blocks
        steps.append(Removal(block, "block", 0, parameters, harm(block)))
        kept.remove(block)
    return steps


def _typical_steps(statistics: Statistics, shape: ModelShape, unit: str) -> list[float]:
    """Return the harm of each step of a sublayer whose harm is the median over the blocks."""
    runs = [
        [step.harm for step in _sublayer_steps(statistics, shape, block, unit)]
        for block in range(shape.blocks)
    ]
    middle = np.median(np.cumsum(np.asarray(runs), axis=1), axis=0)
    return [float(harm) for harm in np.diff(middle, prepend=0.0)]


def _hull_prices(run: list[Removal], typical: list[float]) -> list[float]:
    """Return each step's harm per parameter on the lower convex hull of the run's harm.

    The harm of a step is the mean of its own and the typical one.
    """
    pools: list[list[float]] = []  # harm, parameters, steps
    for step, usual in zip(run, typical, strict=True):
        pools.append([(step.harm + usual) / 2, float(step.parameters), 1])
        while len(pools) > 1 and pools[-2][0] * pools[-1][1] > pools[-1][0] * pools[-2][1]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    return [harm / cost for harm, cost, count in pools for _ in range(int(count))]
