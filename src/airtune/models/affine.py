"""What a client's round costs, as a line over its pruning rate, through two counted submodels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from airtune.assignment import Mode
from airtune.models.workload import (
    KeptSizes,
    ModelShape,
    StepTokens,
    full_sizes,
    memory_bytes,
    payload_bits,
    realised_pruning,
    training_flops,
    uniform_sizes,
)


@dataclass(frozen=True)
class AffineCosts:
    """Costs as `fixed + full x (1 - pruning)`, fitted to counts."""

    flops_fixed: float
    flops_full: float
    payload_fixed_bits: float
    payload_full_bits: float
    memory_fixed_bytes: float
    memory_full_bytes: float

    def flops(self, pruning: float) -> float:
        """Return the FLOPs of the steps at a pruning rate."""
        return self.flops_fixed + self.flops_full * (1 - pruning)

    def payload_bits(self, pruning: float) -> float:
        """Return the bits of the uplink message at a pruning rate."""
        return self.payload_fixed_bits + self.payload_full_bits * (1 - pruning)

    def min_pruning(self, available_bytes: float) -> float:
        """Return the smallest pruning rate that fits into memory; above 1 where none does."""
        if self.memory_fixed_bytes >= available_bytes:
            return math.inf
        return max(0.0, 1 - (available_bytes - self.memory_fixed_bytes) / self.memory_full_bytes)


def affine_coefficients(
    shape: ModelShape,
    steps: tuple[StepTokens, ...],
    mode: Mode,
    *,
    bytes_per_weight: int = 4,
    quantize: str | None = None,
    max_pruning: float = 0.8,
    sizes_at: Callable[[float], KeptSizes] | None = None,
) -> AffineCosts:
    """Return the planner's cost model of one round: the line through two counted submodels.

    Args:
        shape: the model.
        steps: the sizes of the round's steps, of which the mode's first ones are done; FLOPs
            are summed, memory is the largest.
        mode: steps, rank, precision on the air, trained factors.
        bytes_per_weight: of the base model's dtype.
        quantize: the blocks' weights are in 8 (`int8`) or 4 bits (`nf4`).
        max_pruning: the line meets the counts at no pruning and at this rate.
        sizes_at: the submodel at a rate; default: cut to the same share everywhere.
    """
    sizes_at = sizes_at or (lambda rate: uniform_sizes(shape, rate))
    steps = steps[: mode.local_steps]
    largest = max(
        dict.fromkeys(steps),
        key=lambda step: memory_bytes(
            shape,
            full_sizes(shape),
            step,
            mode,
            bytes_per_weight=bytes_per_weight,
            quantize=quantize,
        ),
    )
    anchor = max_pruning if max_pruning > 0 else 0.5

    def counts(sizes: KeptSizes) -> tuple[float, float, float, float]:
        return (
            realised_pruning(shape, sizes),
            sum(
                times * training_flops(shape, sizes, step, mode)
                for step, times in Counter(steps).items()
            ),
            payload_bits(shape, sizes, mode),
            memory_bytes(
                shape, sizes, largest, mode, bytes_per_weight=bytes_per_weight, quantize=quantize
            ),
        )

    _, *whole = counts(full_sizes(shape))
    rate, *least = counts(sizes_at(anchor))
    if rate == 0:  # the largest rate is less than one unit of this model
        rate, *least = counts(uniform_sizes(shape, 0.5))
    lines = []
    for at_zero, at_rate in zip(whole, least, strict=True):
        # Attention alone can cost more per entry than the rest: what is fixed is at least 0.
        full = min((at_zero - at_rate) / rate, at_zero)
        lines += [at_zero - full, full]
    return AffineCosts(*lines)
