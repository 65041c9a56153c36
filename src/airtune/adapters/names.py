"""An adapter's entries by PEFT's names: factors A and B of each layer, and their ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Adapter = dict[str, "Tensor"]
"""PEFT's state-dict names; lora_A is (rank, inputs), lora_B is (outputs, rank); float32."""

_A, _B = "lora_A.weight", "lora_B.weight"


def pairs(adapter: Adapter) -> list[tuple[str, str]]:
    """Return the names of (A, B) of every layer, in order."""
    return [(name, name.removesuffix(_A) + _B) for name in sorted(adapter) if name.endswith(_A)]


def rank_of(adapter: Adapter) -> int:
    """Return the rank of an adapter: the rows of its first A."""
    return next(value.shape[0] for name, value in adapter.items() if name.endswith(_A))


def leading(adapter: Adapter, rank: int) -> Adapter:
    """Return the first `rank` rows of every A and columns of every B: what a client takes."""
    return {name: v[:rank] if name.endswith(_A) else v[:, :rank] for name, v in adapter.items()}


def padded(tensors: Adapter, rank: int) -> Adapter:
    """Return values or masks of a lower rank with zeros (False) up to `rank`."""
    filled = {}
    for name, value in tensors.items():
        shape = (rank, value.shape[1]) if name.endswith(_A) else (value.shape[0], rank)
        if tuple(value.shape) == shape:
            filled[name] = value
            continue
        whole = value.new_zeros(shape)
        whole[: value.shape[0], : value.shape[1]] = value
        filled[name] = whole
    return filled


def units_held(mask: Tensor, name: str) -> Tensor:
    """Widen a mask over all ranks: whether the client has the unit, at whatever rank."""
    return mask.any(dim=0 if name.endswith(_A) else 1, keepdim=True).expand_as(mask)
