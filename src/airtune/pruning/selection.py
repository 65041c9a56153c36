"""Which units of a sublayer a submodel keeps, once it is known how many.

The same units in every round, by importance, leave the others without any training as long as
no client holds them. The other selections make cuts differ over rounds and clients.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from airtune.randomness import generator

Units = NDArray[np.int64]
Selection = Callable[[Units, int, int], Units]
"""(a sublayer's units from the most important one on, how many are kept, how many are always cut
together) → the kept ones."""

ROTATED_SHARE = 0.25
"""Of the kept or the removed units, whichever are fewer: how many are exchanged by `rotating`.
A quarter on each side of the threshold has nearly the threshold's harm (docs/pruning.md)."""


def by_importance(order: Units, kept: int, step: int) -> Units:
    """Keep the most important units."""
    return order[:kept]


def rolling(round: int) -> Selection:
    """Return FedRolex's selection: a window that rolls over the units, whatever their importance.

    Round r keeps the units i, i + 1, …, i + kept − 1 modulo their number, with i = (r − 1) times
    those that are cut together (Alam et al., NeurIPS 2022; their window rolls by one unit, here
    channels roll by as many as the model's matrix products are padded to).
    """

    def select(order: Units, kept: int, step: int) -> Units:
        return (np.arange(kept) + (round - 1) * step) % max(order.size, 1)

    return select


def rotating(rng: np.random.Generator) -> Selection:
    """Return a selection by importance whose least important kept units are exchanged at random.

    With m = `ROTATED_SHARE` of the fewer of kept and removed units: the first kept − m stay, and m
    of the next 2 m are drawn.
    """

    def select(order: Units, kept: int, step: int) -> Units:
        exchanged = int(ROTATED_SHARE * min(kept, order.size - kept))
        sure, near = order[: kept - exchanged], order[kept - exchanged : kept + exchanged]
        return np.concatenate([sure, rng.permutation(near)[:exchanged]])

    return select


def selection_of(name: str, *, seed: int, round: int, client: int) -> Selection:
    """Return a scenario's selection (`pruning.selection`) for one client and round."""
    if name == "rolling":
        return rolling(round)
    if name == "rotating":
        return rotating(generator(seed, "rotated units", round=round, client=client))
    return by_importance
