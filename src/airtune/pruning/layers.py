"""The linear layers inside a model's blocks: where they are, and smaller ones like them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from airtune.models.quantize import kind_of, quantized, unpacked
from airtune.models.workload import Matrix, ModelShape


def blocks_of(model: nn.Module, shape: ModelShape) -> nn.ModuleList:
    """Return the model's list of decoder blocks."""
    blocks = model.get_submodule(shape.table.blocks)
    assert isinstance(blocks, nn.ModuleList)
    return blocks


def output_projection(shape: ModelShape, unit: str) -> Matrix:
    """Return the matrix that reads the units of a kind (`mlp` or `group`)."""
    return next(matrix for matrix in shape.matrices if matrix.inputs.unit == unit)


def weight_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight as (outputs, inputs), whichever way it is stored.

    A quantized one is unpacked; what is returned is then a copy.
    """
    if kind_of(layer) is not None:
        return unpacked(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def layer_like(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a frozen layer of the same kind with other values, quantized if the layer is.

    Args:
        layer: a linear layer, a quantized one, or a Conv1D.
        weight: (outputs, inputs).
        bias: (outputs,), or None for none.
    """
    outputs, inputs = weight.shape
    like: Any = layer
    kind, device = kind_of(layer), like.weight.device
    if kind is not None:
        dtype = like.compute_dtype
        bias = None if bias is None else bias.to(device=device, dtype=dtype)
        again = quantized(kind, weight.to(device=device, dtype=dtype), bias)
        return again.train(layer.training)
    dtype = like.weight.dtype
    new: Any
    if isinstance(layer, Conv1D):
        new = Conv1D(1, 1)
        new.nf, new.nx = outputs, inputs
        weight = weight.T
        bias = torch.zeros(outputs) if bias is None else bias
    else:
        new = nn.Linear(1, 1, bias=False, device="meta")
        new.out_features, new.in_features = outputs, inputs
    new.weight = nn.Parameter(
        weight.to(device=device, dtype=dtype).contiguous(), requires_grad=False
    )
    new.bias = None
    if bias is not None:
        new.bias = nn.Parameter(bias.to(device=device, dtype=dtype), requires_grad=False)
    return new.train(layer.training)
