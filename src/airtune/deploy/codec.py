"""Between the round loop's values and the arrays of a message."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from airtune.adapters.names import Adapter
from airtune.deploy.protocol import Arrays, ProtocolError, to_air
from airtune.models.structure import Structure
from airtune.models.workload import ModelShape

_VALUES = "values"
_KEPT = "kept"
ARRAYS = frozenset({_VALUES, _KEPT})
"""All arrays that an update has."""

Layout = Mapping[str, tuple[int, ...]]
"""Shapes by entry name: what both ends know, so that it need not travel."""


def layout_of(adapter: Adapter) -> Layout:
    """Return an adapter's layout, in the order in which its values travel."""
    return {name: tuple(adapter[name].shape) for name in sorted(adapter)}


def adapter_arrays(adapter: Adapter, bits_per_value: int) -> Arrays:
    """Return an adapter as one flat array: entries by name, in the precision in which they travel.

    Names and shapes follow from the structure. Sending them would add a hundred bytes an entry:
    more than the values of a small model.
    """
    values = [adapter[name].numpy().ravel() for name in sorted(adapter)]
    return {_VALUES: to_air(np.concatenate(values), bits_per_value)}


def adapter_of(arrays: Mapping[str, np.ndarray], layout: Layout) -> Adapter:
    """Return the adapter of a message, float32.

    Raises:
        ProtocolError: there are no values, or not as many as the layout has.
    """
    flat = arrays.get(_VALUES)
    wanted = sum(math.prod(shape) for shape in layout.values())
    if flat is None or flat.dtype == np.uint8 or flat.shape != (wanted,):
        found = "none" if flat is None else f"{flat.dtype} {flat.shape}"
        raise ProtocolError(f"wrong shape: {wanted} values were expected, not {found}")
    whole = torch.from_numpy(flat.astype(np.float32))
    sizes = [math.prod(shape) for shape in layout.values()]
    parts = torch.split(whole, sizes)
    return {n: part.reshape(layout[n]) for n, part in zip(layout, parts, strict=True)}


def structure_array(structure: Structure, shape: ModelShape) -> Arrays:
    """Return the bitmap of the kept units: a row a block, channels then groups, packed."""
    kept = np.zeros((shape.blocks, shape.mlp_channels + shape.kv_heads), dtype=bool)
    for block in range(shape.blocks):
        kept[block, list(structure.channels[block])] = True
        kept[block, [shape.mlp_channels + group for group in structure.groups[block]]] = True
    return {_KEPT: np.packbits(kept, axis=1)}


def structure_of(arrays: Mapping[str, np.ndarray], shape: ModelShape) -> Structure:
    """Return the kept units of a message.

    Raises:
        ProtocolError: there is no bitmap, or it is not one of this model.
    """
    units = shape.mlp_channels + shape.kv_heads
    packed = arrays.get(_KEPT)
    expected = (shape.blocks, (units + 7) // 8)
    if packed is None or packed.dtype != np.uint8 or packed.shape != expected:
        raise ProtocolError(f"the bitmap of kept units must be uint8 of shape {expected}")
    bits = np.unpackbits(packed, axis=1)
    if bits[:, units:].any():
        raise ProtocolError("the bitmap of kept units names units that the model does not have")
    channels, groups = bits[:, : shape.mlp_channels], bits[:, shape.mlp_channels : units]
    return Structure(
        channels=tuple(tuple(np.flatnonzero(row).tolist()) for row in channels),
        groups=tuple(tuple(np.flatnonzero(row).tolist()) for row in groups),
    )
