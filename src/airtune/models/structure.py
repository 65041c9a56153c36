"""What a submodel keeps: indices of MLP channels and key/value groups, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from airtune.errors import InputError
from airtune.models.workload import Axis, KeptSizes, ModelShape


@dataclass(frozen=True)
class Structure:
    """The kept units of every block, ascending; a block with none of either is left out."""

    channels: tuple[tuple[int, ...], ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def sizes(self) -> KeptSizes:
        """How many of each, for counting FLOPs and bits."""
        return KeptSizes(tuple(map(len, self.channels)), tuple(map(len, self.groups)))

    def units(self, block: int, unit: str) -> tuple[int, ...]:
        """Return the kept units of a kind (`mlp` or `group`) of a block."""
        return (self.channels if unit == "mlp" else self.groups)[block]

    def dropped(self, block: int) -> bool:
        """Whether nothing of the block is left."""
        return not self.channels[block] and not self.groups[block]


@lru_cache(maxsize=8)
def whole(shape: ModelShape) -> Structure:
    """Return the structure that keeps everything."""
    channels, groups = tuple(range(shape.mlp_channels)), tuple(range(shape.kv_heads))
    return Structure((channels,) * shape.blocks, (groups,) * shape.blocks)


def check_structure(structure: Structure, shape: ModelShape) -> None:
    """Refuse a structure that is not one of this model; raises `InputError`."""
    for name, kept, count in (
        ("MLP channels", structure.channels, shape.mlp_channels),
        ("key/value groups", structure.groups, shape.kv_heads),
    ):
        if len(kept) != shape.blocks:
            raise InputError(f"structure of {len(kept)} blocks for a model of {shape.blocks}")
        for block, units in enumerate(kept):
            ascending = list(units) == sorted(set(units))
            if units and not (ascending and units[0] >= 0 and units[-1] < count):
                raise InputError(
                    f"structure, block {block}: {name} must be ascending indices below {count}"
                )
    for block in range(shape.blocks):
        if structure.groups[block] and not structure.channels[block]:
            raise InputError(
                f"structure, block {block}: attention without any MLP channel cannot be cut out; "
                "keep a channel, or leave the whole block out"
            )


def entries(axis: Axis, units: Sequence[int], total: int) -> np.ndarray:
    """Return which entries of a matrix side the kept units own, in the side's own order.

    Args:
        axis: the side; each of its runs has `width` entries a unit for all `total` units.
        units: the kept units, ascending.
        total: how many units the whole side has.
    """
    kept = np.asarray(units, dtype=np.int64)
    runs, start = [], 0
    for width in axis.widths:
        runs.append((start + kept[:, None] * width + np.arange(width)).ravel())
        start += width * total
    return np.concatenate(runs)
