"""The best price on bandwidth at one deadline a node, for many nodes at once.

D(μ) = Σ_k min_i (loss + μ·b) − μ·B is concave in μ with the slope (band asked for) − B. Where two
choices of a client tie, its band jumps and so does the slope: what is asked for at the two sides of
the best price is what a plan is made of, and the clients whose choice differs are undecided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.planning.optimum.batch import Batch
from airtune.planning.optimum.pricing import Limits, Taken, at_price
from airtune.planning.problem import Array

# What is left open goes into the bound. Half of the prices take 9 turns or fewer and some all of
# them; with 8 turns 8 % more nodes have to be evaluated, with 60 none fewer
# (benchmarks/constants.py).
_MAX_TURNS = 24
# Newton steps on the bands from a neighbour's values, and from the turn before, which is near. One
# step in place of two evaluates 1 % more nodes; more steps change nothing.
_FIRST_STEPS = 5
_STEPS = 2
# Relative excess of the bands over B below which the price is the best one.
_SETTLED = 1e-10


@dataclass(eq=False)
class Side:
    """What the clients take at the prices last tried on one side of the best one.

    Attributes:
        log_price: (nodes,). ``value``: D there. ``excess``: its slope, band asked for less B, Hz.
        row: (S,) chosen rows. ``band``: their bands. ``loss``: their losses.
    """

    log_price: Array
    value: Array
    excess: Array
    row: NDArray[np.intp]
    band: Array
    loss: Array

    def update(self, batch: Batch, nodes: NDArray[np.bool_], new: Side) -> None:
        """Take over what was tried last in some of the nodes."""
        segments = nodes[batch.head_node]
        for name in ("log_price", "value", "excess"):
            getattr(self, name)[nodes] = getattr(new, name)[nodes]
        for name in ("row", "band", "loss"):
            getattr(self, name)[segments] = getattr(new, name)[segments]


@dataclass(frozen=True, eq=False)
class Priced:
    """The outcome: the better of the two sides' prices, the bands y (R,) there, both sides.

    ``rich`` asks for more than the band, ``poor`` for less; where one was never met its price is
    infinite and it repeats the other.
    """

    log_price: Array
    y: Array
    rich: Side
    poor: Side


def best_prices(batch: Batch, limits: Limits, log_price: Array, y: Array, enough: Array) -> Priced:
    """Return the price of each node at which D is largest, to within ``enough``."""
    total = batch.total
    floor, roof = np.log(1e-14 / total), np.log(1e14 / total)
    price = np.clip(log_price, floor, roof)
    rich = poor = None
    done = np.zeros(batch.nodes, dtype=bool)
    step = np.full(batch.nodes, 0.5)
    for turn in range(_MAX_TURNS):
        taken = at_price(batch, limits, price, y, _FIRST_STEPS if turn == 0 else _STEPS)
        y = taken.y
        now = _side(batch, price, taken)
        if rich is None or poor is None:
            rich = _copy(now, -np.inf)
            poor = _copy(now, np.inf)
        up = now.excess > 0
        rich.update(batch, up & ~done, now)
        poor.update(batch, ~up & ~done, now)
        done |= np.abs(now.excess) <= _SETTLED * total
        done |= ~up & (price <= floor)
        done |= up & (price >= roof)
        both = np.isfinite(rich.log_price) & np.isfinite(poor.log_price)
        meet, peak = _tangents(rich, poor)
        known = np.maximum(rich.value, poor.value)
        with np.errstate(invalid="ignore"):  # where a side is not known yet
            met = peak - known <= enough
            done |= both & (met | (poor.log_price - rich.log_price < 1e-12))
        if done.all():
            break
        cut = np.where(turn % 2 == 0, meet, _secant(rich, poor, total))
        width = poor.log_price - rich.log_price
        with np.errstate(invalid="ignore"):
            edge = 0.02 * width
            cut = np.clip(cut, rich.log_price + edge, poor.log_price - edge)
        step = np.where(both, step, np.minimum(2.0 * step, 8.0))
        outward = np.clip(price + np.where(up, step, -step), floor, roof)
        price = np.where(done, price, np.where(both, cut, outward))
    assert rich is not None
    assert poor is not None
    best = np.where(
        np.isfinite(poor.log_price) & ((poor.value >= rich.value) | ~np.isfinite(rich.log_price)),
        poor.log_price,
        rich.log_price,
    )
    return Priced(best, y, _whole(batch, rich, poor), _whole(batch, poor, rich))


def _whole(batch: Batch, side: Side, other: Side) -> Side:
    """Return a side in which what was never met repeats the other one."""
    missing = ~np.isfinite(side.log_price)
    log_price = side.log_price.copy()
    side.update(batch, missing, other)
    side.log_price = log_price
    return side


def _side(batch: Batch, price: Array, taken: Taken) -> Side:
    least = batch.least(taken.value)
    row = batch.chosen(taken.value, least)
    extra, whose = batch.someone(taken.value, least)
    alone = np.flatnonzero((extra > 0) & np.isfinite(extra))
    if len(alone):
        present = np.where(batch.rows.absent, np.inf, taken.value)
        segment = whose[alone]
        least[segment] += extra[alone]
        row[segment] = batch.chosen(present, batch.least(present))[segment]
    band, loss = taken.band[row], taken.loss[row]
    excess = batch.per_node(band) - batch.total
    value = batch.per_node(least) - np.exp(price) * batch.total
    return Side(price.copy(), value, excess, row, band, loss)


def _copy(side: Side, log_price: float) -> Side:
    return Side(
        np.full_like(side.log_price, log_price),
        np.full_like(side.value, -np.inf),
        side.excess.copy(),
        side.row.copy(),
        side.band.copy(),
        side.loss.copy(),
    )


def _tangents(rich: Side, poor: Side) -> tuple[Array, Array]:
    """Return ln μ where the tangents of both sides meet, and D's upper bound there."""
    with np.errstate(all="ignore"):
        left, right = np.exp(rich.log_price), np.exp(poor.log_price)
        meet = (poor.value - rich.value + rich.excess * left - poor.excess * right) / (
            rich.excess - poor.excess
        )
        peak = rich.value + rich.excess * (meet - left)
        log_meet = np.log(meet)
    middle = 0.5 * (rich.log_price + poor.log_price)
    with np.errstate(invalid="ignore"):
        fine = np.isfinite(log_meet) & (log_meet > rich.log_price) & (log_meet < poor.log_price)
    return np.where(fine, log_meet, middle), np.where(np.isfinite(peak), peak, np.inf)


def _secant(rich: Side, poor: Side, total: float) -> Array:
    """Return ln μ where ln(band asked for) is that of the band, between the two sides."""
    with np.errstate(all="ignore"):
        above, below = np.log1p(rich.excess / total), np.log1p(poor.excess / total)
        share = above / (above - below)
        cut = rich.log_price + share * (poor.log_price - rich.log_price)
        middle = 0.5 * (rich.log_price + poor.log_price)
    return np.where(np.isfinite(cut), cut, middle)
