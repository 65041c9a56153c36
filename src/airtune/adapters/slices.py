"""Adapters of the full model and of a submodel: the way there, and the way back."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from airtune.adapters.names import Adapter
from airtune.errors import RunError
from airtune.models.structure import Structure, entries
from airtune.models.workload import Axis, ModelShape

# lora_A is (rank, inputs): its columns are cut. lora_B is (outputs, rank): its rows are cut.
MOST_LAYOUTS = 32
"""Structures of which the kept entries are remembered: one client's are asked for several times."""

_SIDES = (("lora_A", 1), ("lora_B", 0))


def gather_adapter(adapter: Adapter, structure: Structure, shape: ModelShape) -> Adapter:
    """Return the submodel's adapter: the entries of the full one that its units own.

    Layers that the submodel does not have are left out; names stay those of the full model.

    Args:
        adapter: PEFT's state-dict names, shapes of the full model.
        structure: what the submodel keeps.
        shape: of the full model.

    Raises:
        RunError: an entry is missing or does not have the full model's size.
    """
    gathered = {}
    for name, dim, length, kept in _layout(structure, shape):
        value = _entry(adapter, name, dim, length)
        if kept is None:
            gathered[name] = value.clone()
        elif len(kept):
            gathered[name] = value.index_select(dim, kept)
    return gathered


def scatter_adapter(
    sub_adapter: Adapter, structure: Structure, shape: ModelShape
) -> tuple[Adapter, dict[str, Tensor]]:
    """Return the submodel's adapter in the full model's shapes, and which entries it holds.

    Args:
        sub_adapter: PEFT's state-dict names, shapes of the submodel.
        structure: what the submodel keeps.
        shape: of the full model.

    Returns:
        Values, zero where the submodel has nothing, and boolean masks of the same shapes.

    Raises:
        RunError: an entry is missing or does not have the submodel's size.
    """
    rank = _rank(sub_adapter)
    values, held = {}, {}
    for name, dim, length, kept in _layout(structure, shape):
        size = (rank, length) if dim == 1 else (length, rank)
        if kept is None:
            values[name] = _entry(sub_adapter, name, dim, length).to(torch.float32, copy=True)
            held[name] = torch.ones(size, dtype=torch.bool)
            continue
        values[name] = torch.zeros(size)
        held[name] = torch.zeros(size, dtype=torch.bool)
        if len(kept):
            part = _entry(sub_adapter, name, dim, len(kept))
            values[name].index_copy_(dim, kept, part.to(values[name]))
            held[name].index_fill_(dim, kept, True)
    return values, held


def submodel_shapes(
    structure: Structure, shape: ModelShape, rank: int
) -> dict[str, tuple[int, int]]:
    """Return the shape of every entry of a submodel's adapter of a rank."""
    shapes = {}
    for name, dim, length, kept in _layout(structure, shape):
        size = length if kept is None else len(kept)
        if size:
            shapes[name] = (rank, size) if dim == 1 else (size, rank)
    return shapes


def entry_name(shape: ModelShape, block: int, matrix: str, factor: str) -> str:
    """Return PEFT's name of an adapter entry, e.g. of `lora_A` of a block's `mlp.up_proj`."""
    return f"base_model.model.{shape.table.blocks}.{block}.{matrix}.{factor}.weight"


@lru_cache(maxsize=MOST_LAYOUTS)
def _layout(
    structure: Structure, shape: ModelShape
) -> tuple[tuple[str, int, int, Tensor | None], ...]:
    """Return per adapter entry its name, cut dimension, full length, and what is kept of it.

    None means all of a side, as it is; an empty tensor means that the layer is not there.
    """
    layout: list[tuple[str, int, int, Tensor | None]] = []
    for block in range(shape.blocks):
        kept_of: dict[tuple[tuple[int, ...], str], Tensor] = {}  # gate and up keep the same ones
        for matrix in shape.matrices:
            sides: tuple[Axis, Axis] = (matrix.inputs, matrix.outputs)
            unit = next(side.unit for side in sides if side.unit != "hidden")
            units = structure.units(block, unit)
            total = shape.mlp_channels if unit == "mlp" else shape.kv_heads
            for (factor, dim), side in zip(_SIDES, sides, strict=True):
                name = entry_name(shape, block, matrix.name, factor)
                length = side.size(1 if side.unit == "hidden" else total)
                if units and (side.unit == "hidden" or len(units) == total):
                    layout.append((name, dim, length, None))
                    continue
                known = (side.widths if units else (), unit)
                if known not in kept_of:
                    kept = entries(side, units, total) if units else np.empty(0, np.int64)
                    kept_of[known] = torch.from_numpy(kept)
                layout.append((name, dim, length, kept_of[known]))
    return tuple(layout)


def _rank(adapter: Adapter) -> int:
    for name, value in adapter.items():
        if name.endswith("lora_A.weight"):
            return value.shape[0]
    raise RunError("the adapter has no lora_A entry: nothing was trained")


def _entry(adapter: Adapter, name: str, dim: int, length: int) -> Tensor:
    if name not in adapter:
        raise RunError(f"the adapter does not fit the model: '{name}' is missing")
    if adapter[name].dim() != 2 or adapter[name].shape[dim] != length:
        raise RunError(
            f"the adapter does not fit the model: '{name}' has shape "
            f"{tuple(adapter[name].shape)}, expected {length} along dimension {dim}"
        )
    return adapter[name]
