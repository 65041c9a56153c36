"""Between the round loop's values and the arrays of a message."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from airtune.client import Adapter
from airtune.deploy.protocol import Arrays, ProtocolError, to_air
from airtune.pruning import Structure
from airtune.workload import ModelShape

_ADAPTER = "adapter/"
_KEPT = "kept"


def adapter_arrays(adapter: Adapter, bits_per_value: int) -> Arrays:
    """Return an adapter as arrays in the precision in which it travels."""
    values = to_air({name: tensor.numpy() for name, tensor in adapter.items()}, bits_per_value)
    return {_ADAPTER + name: value for name, value in values.items()}


def adapter_of(arrays: Mapping[str, np.ndarray]) -> Adapter:
    """Return the adapter of a message, float32."""
    return {
        name.removeprefix(_ADAPTER): torch.from_numpy(array.astype(np.float32))
        for name, array in arrays.items()
        if name.startswith(_ADAPTER)
    }


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
