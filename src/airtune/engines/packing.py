"""Named tensors as one array, which travels between processes without a copy for each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packed:
    """Float32 tensors one after the other, with their names and shapes."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    values: NDArray[np.float32]


def packed(tensors: Mapping[str, Tensor]) -> Packed:
    """Pack float32 tensors on the CPU; raises `TypeError` for any other."""
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} is {tensor.dtype}, not float32")
    flat = [tensor.reshape(-1) for tensor in tensors.values()]
    values = torch.cat(flat).numpy() if flat else np.empty(0, np.float32)
    return Packed(tuple((name, tuple(t.shape)) for name, t in tensors.items()), values)


def unpacked(packed: Packed) -> dict[str, Tensor]:
    """Return the tensors, each in memory of its own, in their order."""
    tensors, start = {}, 0
    for name, shape in packed.shapes:
        end = start + int(np.prod(shape, dtype=np.int64))
        tensors[name] = torch.from_numpy(packed.values[start:end].reshape(shape).copy())
        start = end
    return tensors
