"""A node of the search over modes: an interval of deadlines and the choices left in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.planning.optimum.batch import batch_of
from airtune.planning.optimum.choices import Choices
from airtune.planning.optimum.minorants import constants_at, dual_of, merged, minorants_at, value_at
from airtune.planning.optimum.prices import best_prices
from airtune.planning.optimum.pricing import at_price, limits_at
from airtune.planning.problem import Array

# What a bound may miss by rounding beside the threshold that it has to reach.
_SAFE = 1e-15


@dataclass(frozen=True, eq=False)
class Threshold:
    """The loss above which a deadline is no better than the target: at + slope·T, both in Q.

    T·N(Q) >= target exactly where Q >= (1 − T/target)/κ. With a bound on Q it is that bound.
    """

    at: float
    slope: float

    def loss(self, deadline: Array) -> Array:
        """Return the loss at some deadlines."""
        return self.at + self.slope * deadline


@dataclass(eq=False)
class Node:
    """Deadlines from ``first_s`` to ``last_s``, and what evaluating them gave.

    Attributes:
        choices: (R,) the choices left, client after client.
        log_price, y: ln μ and (R,) ln(s/b) to start from.
        low_level, high_level: which ends of the broadcast are possible, as indices into levels.
        centre_s: T0. ``bounds``: D̂ at the first deadline, at T0 and at the last one.
        floor_s: no plan in the node has a smaller objective.
        undecided: the choices in the richer part of the client that is to be split, or None.
        candidate: Q of a plan at T0, with (K,) its choices and bands.
    """

    first_s: float
    last_s: float
    choices: NDArray[np.intp]
    log_price: float
    y: Array
    low_level: int = 0
    high_level: int = 0
    centre_s: float = 0.0
    bounds: tuple[float, float, float] = (-np.inf, -np.inf, -np.inf)
    floor_s: float = 0.0
    undecided: NDArray[np.bool_] | None = None
    candidate: tuple[float, NDArray[np.intp], Array] | None = None


def evaluate(
    nodes: list[Node],
    all_choices: Choices,
    levels: Array,
    total: float,
    threshold: Threshold,
    at_last: bool,
    enough: float,
) -> list[Node]:
    """Return the nodes that are not refuted, with bounds, fewer choices and a candidate plan.

    A node is refuted where D̂ reaches the threshold at both of its ends, or where the least bands
    of its clients do not fit even at its last deadline. A choice that is so if it is forced is
    dropped.

    Args:
        nodes: to be evaluated.
        all_choices: of the problem.
        levels: possible ends of the broadcast, s.
        total: B.
        threshold: the loss to reach.
        at_last: take T0 at the last deadline (enough with a bound on Q, which falls with T).
        enough: how far D may stay below its maximum over the price.
    """
    first = np.array([node.first_s for node in nodes])
    last = np.array([node.last_s for node in nodes])
    centre = last if at_last else np.sqrt(first * last)
    broadcast = levels[[node.low_level for node in nodes]]
    nodes, keep = _feasible(nodes, all_choices, broadcast, total, last)
    if not nodes:
        return []
    first, last, centre, broadcast = first[keep], last[keep], centre[keep], broadcast[keep]
    batch = batch_of(all_choices, [node.choices for node in nodes], broadcast, total)
    limits = limits_at(batch, centre)
    latest = limits if at_last else limits_at(batch, last)
    price = np.array([node.log_price for node in nodes])
    y = np.concatenate([node.y for node in nodes])
    y = np.clip(y, limits.most, limits.least)
    alive = batch.least(np.where(limits.alive, 0.0, np.inf))
    whole = batch.per_node(alive) == 0
    priced = best_prices(batch, limits, price, y, np.full(len(nodes), enough))
    taken = at_price(batch, limits, priced.log_price, priced.y, 1)
    lower = minorants_at(batch, limits, latest, priced.log_price, taken)
    times = (last,) if at_last else (first, centre, last)
    values = [value_at(batch, lower, time) for time in times]
    if not at_last:
        constant = constants_at(batch, latest, priced.log_price, priced.y)
        best = batch.chosen(taken.value, batch.least(taken.value))
        values = merged(batch, values, constant, best)
    found = [(value, *dual_of(batch, lower, value)) for value in values]
    asked = [threshold.loss(time) for time in times]
    refuted = (found[0][2] >= asked[0]) & (found[-1][2] >= asked[-1])
    refuted |= found[-1][2] >= asked[0]
    hopeless = np.ones(len(batch.node), dtype=bool)
    for side in (0, -1):
        value, bound, _ = found[side]
        forced = bound[batch.node] + (value - batch.least(value)[batch.segment]) - _SAFE
        hopeless &= forced >= asked[side][batch.node]
    # Also forced, the loss falls as T grows.
    hopeless |= forced >= asked[0][batch.node]
    made = []
    ends = np.searchsorted(batch.node, np.arange(len(nodes) + 1))
    for n, node in enumerate(nodes):
        if refuted[n]:
            continue
        rows = slice(ends[n], ends[n + 1])
        stays = ~hopeless[rows]
        node.centre_s = float(centre[n])
        at_end = float(found[-1][2][n])
        if at_last:
            node.bounds = (-np.inf, at_end, at_end)
        else:
            node.bounds = (float(found[0][2][n]), float(found[1][2][n]), at_end)
        node.log_price = float(priced.log_price[n])
        node.candidate = node.undecided = None
        if whole[n]:
            _propose(node, batch, priced, n, total, taken.band, stays, rows)
        node.choices, node.y = node.choices[stays], priced.y[rows][stays]
        made.append(node)
    return made


def _feasible(
    nodes: list[Node], all_choices: Choices, broadcast: Array, total: float, last: Array
) -> tuple[list[Node], NDArray[np.intp]]:
    """Drop the choices, and the nodes, whose least bands do not fit at the last deadline."""
    batch = batch_of(all_choices, [node.choices for node in nodes], broadcast, total)
    limits = limits_at(batch, last)
    least = np.where(limits.sends, batch.rows.snr_hz * np.exp(-limits.least), 0.0)
    least = np.where(limits.alive, least, np.inf)
    mine = batch.least(least)
    asked = batch.per_node(mine)
    room = total * (1.0 + 1e-12)
    with np.errstate(invalid="ignore"):
        forced = asked[batch.node] - mine[batch.segment] + least
    fits = forced <= room
    ends = np.searchsorted(batch.node, np.arange(len(nodes) + 1))
    keep = np.flatnonzero(asked <= room)
    kept = []
    for n in keep:
        rows = slice(ends[n], ends[n + 1])
        node, stays = nodes[n], fits[rows]
        if not stays.all():
            node.choices, node.y = node.choices[stays], node.y[stays]
        kept.append(node)
    return kept, keep


def _propose(node, batch, priced, n, total, band, stays, rows) -> None:  # type: ignore[no-untyped-def]
    """Fill in a plan at T0, and the client whose choices are to be split.

    The plan begins with what is taken on the poor side of the price, and goes over to the rich
    side client by client, those who need the least more first, as long as the band allows it.
    """
    mine = batch.head_node == n
    rich_row, poor_row = priced.rich.row[mine], priced.poor.row[mine]
    rich_band, poor_band = priced.rich.band[mine], priced.poor.band[mine]
    rich_loss, poor_loss = priced.rich.loss[mine], priced.poor.loss[mine]
    spare = total - float(poor_band.sum())
    row, bands, losses = poor_row.copy(), poor_band.copy(), poor_loss.copy()
    if spare >= -1e-9 * total:
        more = rich_band - poor_band
        better = np.flatnonzero(rich_loss < poor_loss)
        for k in better[np.argsort(more[better], kind="stable")]:
            if more[k] <= spare:
                spare -= more[k]
                row[k], bands[k], losses[k] = rich_row[k], rich_band[k], rich_loss[k]
        node.candidate = (float(losses.sum()), batch.index[row], bands)
    differs = np.flatnonzero(rich_row != poor_row)
    if not len(differs):
        return
    jump = np.abs(rich_loss - poor_loss)[differs] + np.exp(priced.log_price[n]) * np.abs(
        rich_band - poor_band
    )[differs]  # fmt: skip
    k = differs[int(np.argmax(jump))]
    middle = 0.5 * (rich_band[k] + poor_band[k])
    first = batch.heads[mine][k]
    own = batch.segment[rows] == batch.segment[first]
    more = own & (band[rows] >= middle)
    more[rich_row[k] - rows.start] = True
    more[poor_row[k] - rows.start] = False
    if not (own & ~more & stays).any() or not (more & stays).any():
        return
    split = np.where(own, np.where(more, 1, 0), 2)
    node.undecided = split[stays]
