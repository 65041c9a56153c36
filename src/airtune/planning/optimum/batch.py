"""The rows of several nodes of the search over modes, side by side: choices that compete."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from airtune.planning.optimum.choices import Choices
from airtune.planning.problem import Array


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of several nodes, node after node and client after client within a node.

    Attributes:
        rows: the choices, one a row. ``index``: (R,) which they are.
        node: (R,) whose row it is. ``heads``: (S,) first row of each (node, client).
        head_node: (S,) its node. ``segment``: (R,) which (node, client) a row belongs to.
        nodes: how many nodes. ``total``: B. ``broadcast``: (nodes,) s, the end of the broadcast.
        absences: whether someone may sit out.
    """

    rows: Choices
    index: NDArray[np.intp]
    node: NDArray[np.intp]
    heads: NDArray[np.intp]
    head_node: NDArray[np.intp]
    segment: NDArray[np.intp]
    nodes: int
    total: float
    broadcast: Array
    absences: bool

    def least(self, values: Array) -> Array:
        """Return the least value of each (node, client)."""
        return np.minimum.reduceat(values, self.heads)

    def chosen(self, values: Array, least: Array) -> NDArray[np.intp]:
        """Return the row of each (node, client) that has the least value."""
        mine = values <= least[self.segment]
        row = np.where(mine, np.arange(len(values)), -1)
        return np.maximum.reduceat(row, self.heads)

    def someone(self, values: Array, least: Array) -> tuple[Array, NDArray[np.intp]]:
        """Return, per node, what it takes that not everyone sits out, and the (node, client) to.

        A round without anyone is no plan; where all least values are those of sitting out, the
        client with the least to lose takes part.
        """
        first = np.searchsorted(self.head_node, np.arange(self.nodes))
        if not self.absences:
            return np.zeros(self.nodes), first
        present = np.where(self.rows.absent, np.inf, values)
        with np.errstate(invalid="ignore"):
            regret = np.nan_to_num(self.least(present) - least, nan=np.inf)
        extra = np.minimum.reduceat(regret, first)
        mine = np.where(regret <= extra[self.head_node], np.arange(len(regret)), -1)
        return extra, np.maximum.reduceat(mine, first)

    def per_node(self, values: Array) -> Array:
        """Return sums of one value a (node, client) over the nodes."""
        return np.bincount(self.head_node, values, self.nodes).astype(np.float64)

    def left_s(self, deadline: Array) -> Array:
        """Return T − d − a of each row at one deadline a node."""
        return (deadline - self.broadcast)[self.node] - self.rows.ready


def batch_of(
    choices: Choices, parts: list[NDArray[np.intp]], broadcast: Array, total: float
) -> Batch:
    """Return the batch of some nodes, given each one's choices in order of their clients."""
    index = np.concatenate(parts)
    node = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    owner = choices.owner[index]
    new = np.ones(len(index), dtype=bool)
    new[1:] = (owner[1:] != owner[:-1]) | (node[1:] != node[:-1])
    heads = np.flatnonzero(new)
    return Batch(
        rows=part_of(choices, index),
        index=index,
        node=node,
        heads=heads,
        head_node=node[heads],
        segment=np.cumsum(new) - 1,
        nodes=len(parts),
        total=total,
        broadcast=broadcast,
        absences=bool(choices.absent.any()),
    )


def part_of(choices: Choices, index: NDArray[np.intp]) -> Choices:
    """Return some of the choices."""
    columns = {
        field.name: getattr(choices, field.name)[index]
        for field in fields(Choices)
        if field.name != "capped"
    }
    return Choices(capped=choices.capped, **columns)
