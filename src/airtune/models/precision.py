"""Compute in the dtype of the weights, also where the processor cannot multiply in it.

Processors without instructions for bfloat16 multiply it more slowly than float32, with AVX2 and on
the Raspberry Pi 5 many times as slowly (docs/log.md). There the factors are turned into float32
piece by piece, and the product is rounded to bfloat16. This is what the instructions do: products
of two bfloat16 values are exact in float32, so that only the order of the sum differs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from peft.helpers import disable_input_dtype_casting
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CHUNK_VALUES = 2**20
"""Values of a weight that are in float32 at a time: 4 MiB, which caches hold."""

PLAIN_ATTENTION_TOKENS = 256
"""Up to this length plain attention trains faster than the fused one in bfloat16; see the log."""


@contextlib.contextmanager
def mixed_precision(model: nn.Module) -> Iterator[None]:
    """Let an adapter of float32 values compute in the dtype of the weights it is put on.

    PEFT alone would turn every layer's input into float32 and multiply there. A float32 model
    computes as ever.
    """
    weight = next(model.parameters())
    if weight.dtype == torch.float32:
        yield
        return
    with (
        disable_input_dtype_casting(model),
        torch.autocast(weight.device.type, weight.dtype),
        wide_products(model),
    ):
        yield


def wide_products(model: nn.Module) -> contextlib.AbstractContextManager[object]:
    """Return a context in which the model multiplies in float32 where that is faster."""
    wide = needs_wide_products(next(model.parameters()))
    return WideProducts() if wide else contextlib.nullcontext()


def speed_up_attention(model: nn.Module, *, longest: int) -> None:
    """Choose the attention kernel for a model that stays on its device.

    On a CPU the backward pass of PyTorch's fused attention is slow in bfloat16: a plain one is
    faster for short texts, and slower beyond (see the log). In float32 the fused one is faster.

    Args:
        model: a causal language model of Transformers.
        longest: tokens of the longest text.
    """
    weight = next(model.parameters())
    plain = weight.device.type == "cpu" and weight.dtype == torch.bfloat16
    if plain and not needs_wide_products(weight) and longest <= PLAIN_ATTENTION_TOKENS:
        causal: Any = model
        causal.set_attn_implementation("eager")


def needs_wide_products(weight: Tensor) -> bool:
    """Return whether products with this weight are faster in float32, converted on the way."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not _has_bfloat16()


@functools.cache
def _has_bfloat16() -> bool:
    """Return whether this processor has instructions for bfloat16 that PyTorch uses."""
    if not torch.backends.mkldnn.is_available():  # then there is no such operator
        return False
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        # oneDNN takes any AVX-512 for enough, and converts the values itself where need be: slowly.
        return bool(torch.cpu._is_avx512_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class WideProducts(TorchFunctionMode):
    """While active, linear layers and attention in bfloat16 on a CPU multiply in float32.

    Inputs, results and gradients are in bfloat16, and so is what a linear layer keeps for the
    backward pass; attention keeps float32. Autocast decides the dtype where it is on, else the
    weight. Quantised layers multiply by themselves (airtune.models.quantize).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call PyTorch's function, or what stands in for it."""
        instead = _INSTEAD.get(func)
        cast = torch.is_autocast_enabled("cpu")
        if instead is None or len(args) < 2 or _dtype(args[1], cast) != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return instead(*args, **(kwargs or {}))


def _dtype(factor: Tensor, cast: bool) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if cast else factor.dtype


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    offset = None if bias is None else bias.bfloat16()
    product: Tensor = _Linear.apply(input.bfloat16(), weight.bfloat16(), offset)
    return product


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor) -> Tensor:
    return _linear(mat1, mat2.mT, input)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    made = functional.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask, **options
    )
    return made.bfloat16()


_INSTEAD: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.linear: _linear,
    torch.addmm: _addmm,  # of GPT-2, whose weights are (inputs, outputs)
    functional.scaled_dot_product_attention: _attention,
}


class _Linear(torch.autograd.Function):
    """x Wᵀ + b and its gradients, of values in one dtype, summed in float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (..., outputs) of an input (..., inputs) and a weight (outputs, inputs)."""
        ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
        wide, offset = input.float(), None if bias is None else bias.float()
        made = input.new_empty((*input.shape[:-1], len(weight)))
        for rows in _chunks(weight):
            part = None if offset is None else offset[rows]
            made[..., rows] = functional.linear(wide, weight[rows].float(), part)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the weight and the bias."""
        input, weight = ctx.saved_tensors
        wide = gradients[0].float()
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            parts = (wide[..., rows] @ weight[rows].float() for rows in _chunks(weight))
            of_input = functools.reduce(Tensor.add_, parts).to(weight.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = wide.flatten(0, -2).mT @ input.float().flatten(0, -2)
            of_weight = of_weight.to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = wide.flatten(0, -2).sum(0).to(weight.dtype)
        return of_input, of_weight, of_bias


def _chunks(weight: Tensor) -> list[slice]:
    """Divide a weight (outputs, inputs) into rows of at most `CHUNK_VALUES` values."""
    outputs, inputs = weight.shape
    step = max(1, CHUNK_VALUES // max(1, inputs))
    return [slice(first, first + step) for first in range(0, outputs, step)]
