"""What pruning costs in learning: e(ρ), convex, non-decreasing, zero at 0, piecewise linear."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError

Array = NDArray[np.float64]

# The relative dent that rounding may put into a curve's slopes before it counts as not convex.
_SLOPE_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Pieces:
    """The linear pieces of the clients' cost curves e(ρ), flattened, client after client.

    Attributes:
        client: (M,) whose piece it is. ``first``: (K,) each client's first piece.
        left, right: (M,) the pruning rates between which the piece lies.
        slope: (M,) e' there, 0 or more, non-decreasing within a client.
    """

    client: NDArray[np.intp]
    first: NDArray[np.intp]
    left: Array
    right: Array
    slope: Array


def checked_curve(name: str, points: object, top: float) -> Array:
    """Return a curve's breakpoints (J, 2), from (0, 0) to pruning ``top`` or beyond.

    Raises:
        InputError: a curve that is not convex, non-decreasing and zero at 0.
    """
    where = f"client {name!r}: pruning_cost"
    try:
        curve = np.array(points, dtype=np.float64)
    except (TypeError, ValueError):
        curve = np.empty(0)
    if curve.ndim != 2 or curve.shape[1] != 2 or not np.isfinite(curve).all():
        raise InputError(f"{where} is not allowed; allowed: a list of [pruning, cost] pairs")
    rate, cost = curve[:, 0], curve[:, 1]
    if rate[0] != 0 or cost[0] != 0:
        raise InputError(f"{where} starts at {curve[0].tolist()}; allowed: a curve from [0, 0]")
    if (np.diff(rate) <= 0).any():
        raise InputError(f"{where}: the pruning rates {rate.tolist()} do not increase")
    if rate[-1] < top:
        raise InputError(
            f"{where} ends at pruning {float(rate[-1])!r}; it must reach max_pruning {top!r}"
        )
    if (np.diff(cost) < 0).any():
        raise InputError(f"{where}: the costs {cost.tolist()} decrease; allowed: non-decreasing")
    slope = np.diff(cost) / np.diff(rate)
    if (np.diff(slope) < -_SLOPE_SLACK * slope.max(initial=0.0)).any():
        raise InputError(f"{where} is not convex: its slopes are {slope.round(6).tolist()}")
    return curve


def pieces_of(clients: int, curves: tuple[Array | None, ...] | None) -> Pieces:
    """Return the pieces of all curves; None stands for e(ρ) = ρ."""
    if curves is None:
        index = np.arange(clients)
        return Pieces(index, index, np.zeros(clients), np.ones(clients), np.ones(clients))
    linear = np.array([[0.0, 0.0], [1.0, 1.0]])
    points = [linear if curve is None else curve for curve in curves]
    counts = np.array([len(curve) - 1 for curve in points])
    rate = np.concatenate([curve[:, 0] for curve in points])
    cost = np.concatenate([curve[:, 1] for curve in points])
    # The step from one client's last point to the next client's first is no piece.
    real = np.ones(len(rate) - 1, dtype=bool)
    real[np.cumsum(counts + 1)[:-1] - 1] = False
    step = np.where(real, np.diff(rate), 1.0)
    return Pieces(
        client=np.repeat(np.arange(clients), counts),
        first=np.concatenate([[0], np.cumsum(counts)[:-1]]),
        left=rate[:-1][real],
        right=rate[1:][real],
        slope=(np.diff(cost) / step)[real],
    )
