"""Uplinks of few bits: what an adapter's values changed by, rounded without bias."""

from __future__ import annotations

import torch

from airtune.adapters.names import Adapter


def rounded_change(before: Adapter, after: Adapter, bits: int, *, seed: int) -> Adapter:
    """Return `after` as a receiver has it who knows `before` and is sent the change in few bits.

    Each rank's row of A and column of B has a scale of its own, its largest change over
    2^(bits − 1) − 1; a change is rounded to one of the two multiples around it, with the
    probabilities that keep its mean (stochastic rounding as in QSGD: Alistarh et al., NeurIPS
    2017). No value is off by a whole scale; a rank that did not change is exact.

    Args:
        before: the adapter that both ends have, any shapes.
        after: the trained one, same names and shapes.
        bits: of a value, its sign included; at least 2.
        seed: of the rounding.
    """
    levels = 2 ** (bits - 1) - 1
    generator = torch.Generator().manual_seed(seed)
    received = {}
    for name in sorted(after):
        change = (after[name] - before[name]).double()
        largest = change.abs().amax(dim=_along(name), keepdim=True)
        # As it travels; what its rounding loses is made up for by the clamp below.
        scale = (largest / levels).float().double()
        steps = torch.where(scale > 0, change / scale, torch.zeros_like(change))
        drawn = torch.rand(steps.shape, generator=generator, dtype=torch.float64)
        whole = (steps + drawn).floor().clamp(-levels, levels)
        received[name] = before[name] + (whole * scale).to(before[name].dtype)
    return received


def _along(name: str) -> int:
    """Return the dimension that a scale spans: A is (rank, inputs), B is (outputs, rank)."""
    return 1 if name.endswith("lora_A.weight") else 0
