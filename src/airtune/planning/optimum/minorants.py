"""The bound over an interval of deadlines that one deadline and price give: see pricing.py."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.planning.optimum.batch import Batch, part_of
from airtune.planning.optimum.pricing import (
    TINY,
    Branch,
    Limits,
    Taken,
    at_price,
    deadline_limit,
    kept_at,
    rate_at,
    stationary,
)
from airtune.planning.problem import Array

# Of a sum of up to some thousand doubles, relative to its terms: taken off every bound.
_ROUNDING = 1e-13
# Newton steps from a solved neighbour; the tangent's error then is below the rounding.
_STEPS = 3
# In ln(s/b): how near to the end of its range a band counts as at the end.
_CORNER = 1e-10


@dataclass(frozen=True, eq=False)
class Minorants:
    """Per row a lower bound on loss + μ·b, concave in T, that touches at the solved deadline.

    base + steep·(ξ0 − ξ(b, T)) + price·b, minimised over b, for the rows in ``moving``; for silent
    ones base + steep·(ξ0 − (T − d − a)/c); base for the others.

    Attributes:
        base: (R,) w·loss + what of μ·b does not move with T. ``touch``: (R,) ξ0.
        steep: (R,) S·λ. ``price``: (R,) λ's share of μ. ``y``: (R,) where it touches, ln(s/b).
        moving: rows whose band depends on T. ``quiet``: silent rows whose loss depends on T.
        price_node: (nodes,) μ.
    """

    base: Array
    touch: Array
    steep: Array
    price: Array
    y: Array
    moving: NDArray[np.intp]
    quiet: NDArray[np.intp]
    price_node: Array


def minorants_at(
    batch: Batch, limits: Limits, latest: Limits, log_price: Array, taken: Taken
) -> Minorants:
    """Return the minorants that touch at a solved deadline.

    Args:
        batch: the rows.
        limits: at the solved deadline.
        latest: at the end of the interval, where more can be chosen; what is alive only there is
            bounded by its loss in the whole band and its least band there.
        log_price: (nodes,) ln μ.
        taken: what the rows take at that price.
    """
    rows = batch.rows
    price_node = np.exp(log_price)
    price = price_node[batch.node]
    base, touch = taken.loss.copy(), taken.kept
    late = ~limits.alive & latest.alive
    if late.any():
        most = np.where(late, latest.widest, latest.least)
        last_kept = kept_at(rows, latest, most)
        last_band = np.where(limits.sends, rows.snr_hz * np.exp(-latest.least), 0.0)
        base[late] = (rows.loss - rows.gain * (last_kept - rows.low) + price * last_band)[late]
    base[~latest.alive] = np.inf
    quiet = limits.alive & rows.silent & ~rows.absent & (rows.gain > 0) & (touch < rows.high)
    steep = np.where(quiet, rows.gain, 0.0)
    moving = np.flatnonzero(limits.alive & limits.sends)
    share = np.zeros(len(base))
    if len(moving):
        _touch(batch, limits, taken, price, moving, (base, steep, share))
    return Minorants(
        base=base,
        touch=touch,
        steep=steep,
        price=share,
        y=taken.y,
        moving=moving[share[moving] > 0],
        quiet=np.flatnonzero(quiet),
        price_node=price_node,
    )


def _touch(
    batch: Batch,
    limits: Limits,
    taken: Taken,
    price: Array,
    moving: NDArray[np.intp],
    out: tuple[Array, Array, Array],
) -> None:
    """Fill in base, steep and price of the rows that take band."""
    base, steep, share = out
    rows = part_of(batch.rows, moving)
    y, kept, mu, band = taken.y[moving], taken.kept[moving], price[moving], taken.band[moving]
    rate = rate_at(rows, y)
    first = limits.deadline.part(moving)
    left, right = first.slopes(rows, y, rate)
    slope = np.clip(mu / np.maximum(rows.gain, TINY), right, left)
    weight = np.ones(len(moving))
    other = np.zeros(len(moving))
    costly = np.flatnonzero(rows.bounded)
    if len(costly):
        small = part_of(rows, costly)
        two = _budget_rows(limits, moving, costly)
        left, right = two.slopes(small, y[costly], rate[costly])
        second = np.clip(mu[costly] / np.maximum(small.gain, TINY), right, left)
        ours, theirs = first.part(costly).kept(rate[costly]), two.kept(rate[costly])
        gap = (ours - theirs) / np.maximum(np.abs(ours) + np.abs(theirs), TINY)
        mixed = (mu[costly] / np.maximum(small.gain, TINY) - second) / np.where(
            slope[costly] == second, np.inf, slope[costly] - second
        )
        part = np.where(gap < -_CORNER, 1.0, np.where(gap > _CORNER, 0.0, np.clip(mixed, 0.0, 1.0)))
        weight[costly] = part
        other[costly] = second
    total = weight * slope + (1.0 - weight) * other
    with np.errstate(over="ignore", divide="ignore"):
        wanted = np.minimum(mu / np.maximum(total, TINY), 1e200)
    at_least = y >= limits.least[moving] - _CORNER
    at_most = (
        (y <= limits.most[moving] + _CORNER)
        & (kept > rows.low)
        & (limits.most > limits.widest)[moving]
    )
    at_least &= ~at_most | (rows.high <= rows.low)
    # Where the budget alone asks for the least band, more than the least may be kept in it.
    at_least &= rows.bounded | ~rows.budgeted | (kept <= rows.low)
    sure = np.where(at_least, np.maximum(wanted, rows.gain), rows.gain)
    sure = np.where(at_most, np.minimum(wanted, rows.gain), sure)
    # With a single ξ to choose any slope will do.
    sure = np.where(rows.high <= rows.low, wanted, sure)
    mine = np.where(weight >= 1.0, mu, np.minimum(sure * weight * slope, mu))
    mine = np.where(weight <= 0.0, 0.0, mine)
    rest = mu - mine
    pull = rest - sure * (1.0 - weight) * other
    # The budget's part, by its tangent at the band: over all bands in [0, B].
    loose = np.where(pull > 0, -pull * band, -pull * (band - batch.total))
    apart = np.zeros(len(moving))
    if len(costly):
        apart[costly] = np.minimum(kept[costly] - theirs, 0.0)
    paid = rest * band + np.minimum(loose, 0.0) + sure * (1.0 - weight) * apart
    base[moving] += np.where(weight >= 1.0, 0.0, paid)
    steep[moving] = sure * weight
    share[moving] = np.where(sure * weight > 0, mine, 0.0)


def _budget_rows(limits: Limits, moving: NDArray[np.intp], costly: NDArray[np.intp]) -> Branch:
    place = np.searchsorted(limits.costly, moving[costly])
    return limits.budget.part(place)


def value_at(batch: Batch, minorants: Minorants, deadline: Array) -> Array:
    """Return the minorants' least values (R,) at one deadline a node."""
    rows = batch.rows
    left = batch.left_s(deadline)
    value = minorants.base.copy()
    quiet = minorants.quiet
    if len(quiet):
        kept = left[quiet] / np.maximum(rows.compute[quiet], TINY)
        value[quiet] += minorants.steep[quiet] * (minorants.touch[quiet] - kept)
    move = minorants.moving
    if len(move):
        part = part_of(rows, move)
        steep, price = minorants.steep[move], minorants.price[move]
        branch = deadline_limit(part, left[move])
        log_weight = np.log(steep) - np.log(price)
        widest = np.log(part.snr_hz / batch.total)
        narrow = np.maximum(widest, 300.0)
        y = stationary(part, branch, log_weight, widest, narrow, minorants.y[move], _STEPS)
        rate = rate_at(part, y)
        band = part.snr_hz * np.exp(-y)
        steeper, flatter = branch.slopes(part, y, rate)
        # dφ/db of φ = −steep·ξ(b) + price·b: what is not zero is paid over the whole range of b.
        tilt = price - steep * np.clip(price / steep, flatter, steeper)
        loose = np.where(tilt > 0, -tilt * band, -tilt * (band - batch.total))
        kept = branch.kept(rate)
        value[move] += steep * (minorants.touch[move] - kept) + price * band
        value[move] += np.minimum(loose, 0.0)
        value[move] -= _ROUNDING * (steep * np.abs(kept) + price * band)
    return value


def constants_at(batch: Batch, latest: Limits, log_price: Array, y: Array) -> Array:
    """Return per row the least loss + μ·b at the end of the interval, less what is not settled.

    It holds in the whole interval, because what a choice loses in a band falls as T grows.
    """
    taken = at_price(batch, latest, log_price, y, _STEPS + 1)
    value = np.where(latest.alive, taken.value - _ROUNDING * np.abs(taken.value), np.inf)
    move = latest.move
    if not len(move.index):
        return value
    rows, at, mine = move.rows, taken.y[move.index], move.index
    band, price = taken.band[mine], np.exp(log_price)[move.node]
    steep, flat = move.deadline.slopes(rows, at, rate_at(rows, at))
    slope = np.clip(price / rows.gain, flat, steep)
    tilt = price - rows.gain * slope
    narrow, wide = rows.snr_hz * np.exp(-move.high), rows.snr_hz * np.exp(-move.low)
    loose = np.where(tilt > 0, tilt * (band - narrow), tilt * (band - wide))
    # With a budget as well the slope is another one.
    loose = np.where(rows.budgeted, np.inf, loose)
    value[mine] -= loose
    return value


def merged(
    batch: Batch, tilted: list[Array], constant: Array, chosen: NDArray[np.intp]
) -> list[Array]:
    """Return per row and deadline the better one of its two minorants.

    The better one is what takes less away from the minorant that the client's best row has.

    Args:
        batch: the rows.
        tilted: (R,) at each deadline. ``constant``: (R,) at all of them.
        constant: see tilted.
        chosen: (S,) the rows that the clients take at T0.
    """
    by_tilt, by_constant = np.zeros(len(constant)), np.zeros(len(constant))
    for value in tilted:
        line = value[chosen][batch.segment]
        by_tilt += np.maximum(line - value, 0.0)
        by_constant += np.maximum(line - constant, 0.0)
    with np.errstate(invalid="ignore"):
        better = by_constant < by_tilt
    return [np.where(better, constant, value) for value in tilted]


def dual_of(batch: Batch, minorants: Minorants, value: Array) -> tuple[Array, Array]:
    """Return D less rounding, without and with the condition that someone takes part."""
    least = batch.least(value)
    total = batch.per_node(least)
    size = batch.per_node(np.abs(least))
    bill = minorants.price_node * batch.total
    bound = total - bill - _ROUNDING * (size + bill)
    both = bound, bound + batch.someone(value, least)[0]
    # What is no number proves nothing.
    proved, of_someone = (np.where(np.isnan(one), -np.inf, one) for one in both)
    return proved, of_someone
