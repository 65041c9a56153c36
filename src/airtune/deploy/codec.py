"""Between the round loop's values and the arrays of a message."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from airtune.adapters.few_bits import Change, received, rounded_codes, scale_shape
from airtune.adapters.names import Adapter
from airtune.assignment import Mode
from airtune.deploy.protocol import Arrays, ProtocolError, to_air
from airtune.models.structure import Structure
from airtune.models.workload import ModelShape

_VALUES = "values"
_KEPT = "kept"
_CODES = "codes"
_SCALES = "scales"

Layout = Mapping[str, tuple[int, ...]]
"""Shapes by entry name: what both ends know, so that it need not be sent."""


def layout_of(adapter: Adapter) -> Layout:
    """Return an adapter's layout, in the order in which its values are sent."""
    return {name: tuple(adapter[name].shape) for name in sorted(adapter)}


def adapter_arrays(adapter: Adapter, bits_per_value: int) -> Arrays:
    """Return an adapter as one flat array: entries by name, in the precision sent.

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
    return _split(torch.from_numpy(flat.astype(np.float32)), layout)


def arrays_of(mode: Mode) -> frozenset[str]:
    """Return the names of all arrays that an update has."""
    return frozenset({_CODES, _SCALES, _KEPT} if mode.sends_change else {_VALUES, _KEPT})


def trained(adapter: Adapter, mode: Mode) -> Adapter:
    """Return the entries that a client trains and sends: all, or B alone."""
    return {n: v for n, v in adapter.items() if not (mode.freezes_a and ".lora_A." in n)}


def update_arrays(before: Adapter, after: Adapter, mode: Mode, *, seed: int) -> Arrays:
    """Return an update's values as they are sent: themselves, or their rounded change.

    Args:
        before: what the server sent, in the submodel's shapes.
        after: the trained entries.
        mode: bits of a value and of a scale.
        seed: of the rounding.
    """
    if not mode.sends_change:
        return adapter_arrays(after, mode.bits_per_value)
    bits = mode.bits_per_value
    return change_arrays(Change(bits, *rounded_codes(before, after, bits, seed=seed)))


def change_arrays(change: Change) -> Arrays:
    """Return a change as it is sent: codes of few bits packed, scales in float32."""
    whole = np.concatenate([change.codes[name].numpy().ravel() for name in sorted(change.codes)])
    levels = 2 ** (change.bits - 1) - 1
    unsigned = (whole + levels).astype(np.uint8)
    bits = (unsigned[:, None] >> np.arange(change.bits, dtype=np.uint8)) & 1
    flat = [change.scales[name].numpy().ravel() for name in sorted(change.scales)]
    return {_CODES: np.packbits(bits), _SCALES: np.concatenate(flat)}


def updated_adapter(arrays: Arrays, before: Adapter, mode: Mode) -> Adapter:
    """Return the trained entries of a message; the inverse of `update_arrays`.

    Raises:
        ProtocolError: there are not as many values as `before` has, or a code or a scale is none.
    """
    if not mode.sends_change:
        return adapter_of(arrays, layout_of(before))
    return changed_adapter(arrays, before, mode.bits_per_value)


def changed_adapter(arrays: Mapping[str, np.ndarray], before: Adapter, width: int) -> Adapter:
    """Return `before` with a message's change; the inverse of `change_arrays`.

    Args:
        arrays: of the message.
        before: the adapter that changes.
        width: bits of a code.

    Raises:
        ProtocolError: there are not as many values as `before` has, or a code or a scale is none.
    """
    layout = layout_of(before)
    packed, scales = arrays.get(_CODES), arrays.get(_SCALES)
    values = sum(math.prod(shape) for shape in layout.values())
    shapes = {name: scale_shape(name, shape) for name, shape in layout.items()}
    count = sum(math.prod(shape) for shape in shapes.values())
    if packed is None or packed.dtype != np.uint8 or packed.shape != (-(-values * width // 8),):
        raise ProtocolError(f"wrong shape: {values} codes of {width} bits were expected")
    if scales is None or scales.dtype != np.float32 or scales.shape != (count,):
        raise ProtocolError(f"wrong shape: {count} scales in float32 were expected")
    if not (np.isfinite(scales).all() and (scales >= 0).all()):
        raise ProtocolError("a scale that is not finite or is below 0")
    bits = np.unpackbits(packed)
    if bits[values * width :].any():
        raise ProtocolError("codes after the last value")
    weights = 1 << np.arange(width)
    levels = 2 ** (width - 1) - 1
    whole = (bits[: values * width].reshape(values, width) * weights).sum(axis=1) - levels
    if (whole > levels).any():
        raise ProtocolError(f"a code above {levels}")
    codes = _split(torch.from_numpy(whole.astype(np.float64)), layout)
    return received(before, codes, _split(torch.from_numpy(scales.copy()), shapes))


def adapter_sha256(adapter: Adapter) -> str:
    """Return a hash of an adapter's values, entries by name, as float32: what both ends compare."""
    found = hashlib.sha256()
    for name in sorted(adapter):
        found.update(np.ascontiguousarray(adapter[name].numpy(), dtype="<f4").tobytes())
    return found.hexdigest()


def _split(flat: Tensor, layout: Layout) -> Adapter:
    sizes = [math.prod(shape) for shape in layout.values()]
    parts = torch.split(flat, sizes)
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
