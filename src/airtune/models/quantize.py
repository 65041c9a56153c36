"""Base weights in 8 or 4 bits, with bitsandbytes: put on, taken off layer by layer.

Only the linear layers of the blocks are quantized; embeddings, norms and the LM head stay in
the model's dtype, and so does all computation: a layer's weight is unpacked while it is used.

    int8   one byte a weight, one scale an output: w ≈ absmax(row) / 127 · q
    nf4    half a byte a weight, one scale every 64 (QLoRA, Dettmers et al. 2023)
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from airtune.errors import InputError
from airtune.models.shapes import ModelShape

_BLOCK = 64
"""Weights of one scale in NF4."""


@functools.cache
def _bitsandbytes() -> Any:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it goes without
    try:
        import bitsandbytes
    except ImportError:
        raise InputError(
            "model.quantize needs bitsandbytes: install the extra 'quantize' "
            "(pip install 'airtune[quantize]'), or leave model.quantize out"
        ) from None
    return bitsandbytes


def quantize_blocks(model: Any, shape: ModelShape, kind: str) -> None:
    """Quantize the linear layers of a model's blocks in place.

    Args:
        model: a causal language model, frozen.
        shape: of the model.
        kind: `int8` or `nf4`.

    Raises:
        InputError: bitsandbytes is missing, or the family stores its weights transposed.
    """
    _bitsandbytes()
    if shape.table.transposed:
        raise InputError(
            f"model.quantize = '{kind}': {shape.family} stores its weights as inputs x outputs, "
            "which bitsandbytes has no layer for; leave model.quantize out"
        )
    for block in model.get_submodule(shape.table.blocks):
        for matrix in shape.matrices:
            layer = block.get_submodule(matrix.name)
            block.set_submodule(matrix.name, quantized(kind, layer.weight, layer.bias))
    # PEFT chooses its layers by these.
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = kind == "int8", kind == "nf4"


def kind_of(layer: nn.Module) -> str | None:
    """Return `int8` or `nf4`, or None for a layer of plain weights."""
    if not type(layer).__mro__[1].__module__.startswith("bitsandbytes"):
        return None
    return "int8" if isinstance(layer, _bitsandbytes().nn.Linear8bitLt) else "nf4"


def quantized(kind: str, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a frozen layer with these values in 8 or 4 bits, on the weight's device.

    Args:
        kind: `int8` or `nf4`.
        weight: (outputs, inputs), in the dtype to compute in.
        bias: (outputs,), or None for none.
    """
    outputs, inputs = weight.shape
    with torch.device("meta"):
        layer = _classes()[kind](inputs, outputs, dtype=weight.dtype)
    device, parameters = weight.device, _bitsandbytes().nn
    values = weight.detach().cpu()
    if kind == "int8":
        new = parameters.Int8Params(values, requires_grad=False, has_fp16_weights=False).to(device)
        layer.register_buffer("scale", new.SCB[:, None] / 127)
    else:
        # The library's kernels for the CPU give an incomplete last block the scale of another.
        padded = nn.functional.pad(values.reshape(-1), (0, -values.numel() % _BLOCK))
        options = {"quant_type": "nf4", "compress_statistics": False, "requires_grad": False}
        new = parameters.Params4bit(padded.reshape(-1, _BLOCK), **options).to(device)
    layer.weight = new
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def unpacked(layer: Any) -> Tensor:
    """Return a quantized layer's weight as numbers, (outputs, inputs), in its dtype."""
    weight = layer.weight
    if kind_of(layer) == "int8":
        return (weight.data * layer.scale).to(layer.compute_dtype)
    values: Tensor = _bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
    outputs, inputs = layer.out_features, layer.in_features
    numbers = values.reshape(-1)[: outputs * inputs].reshape(outputs, inputs)
    return numbers.to(layer.compute_dtype)


@functools.cache
def _classes() -> dict[str, Any]:
    """Return a class a kind, made when bitsandbytes is first needed."""
    bnb = _bitsandbytes()

    class Int8Linear(bnb.nn.Linear8bitLt):  # type: ignore[name-defined]
        """Weights of 8 bits; activations keep their dtype.

        The library's own product also rounds the activations, by way of float16, which some
        models' activations do not fit into.
        """

        def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype) -> None:
            super().__init__(inputs, outputs, bias=False, has_fp16_weights=False)
            self.compute_dtype = dtype

        def forward(self, x: Tensor) -> Tensor:
            return _product(x, self)

    class Nf4Linear(bnb.nn.Linear4bit):  # type: ignore[name-defined]
        """Weights of 4 bits."""

        def __init__(self, inputs: int, outputs: int, *, dtype: torch.dtype) -> None:
            super().__init__(inputs, outputs, bias=False, compute_dtype=dtype, quant_type="nf4")

        def forward(self, x: Tensor) -> Tensor:
            return _product(x, self)

    return {"int8": Int8Linear, "nf4": Nf4Linear}


def _product(x: Tensor, layer: Any) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    product: Tensor = _Product.apply(x, layer)
    return product if bias is None else product + bias


class _Product(torch.autograd.Function):
    """x Wᵀ, with W unpacked once forward and once backward and never kept."""

    @staticmethod
    def forward(context: Any, x: Tensor, layer: Any) -> Tensor:
        context.layer = layer
        return x @ unpacked(layer).to(x.dtype).T

    @staticmethod
    def backward(context: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        return gradient @ unpacked(context.layer).to(gradient.dtype), None
