"""Changes of an adapter in few bits: up, rounded without bias; down, to the nearest."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from airtune.adapters.names import Adapter, leading


@dataclass(frozen=True, eq=False)
class Change:
    """An adapter's change as it is sent.

    Attributes:
        bits: of a value, its sign included.
        codes: each value's whole multiple, float64, shaped as the values.
        scales: of each rank, float32, broadcastable to the values.
    """

    bits: int
    codes: Adapter
    scales: Adapter

    def leading(self, rank: int) -> Change:
        """Return the change of the first ranks."""
        return Change(self.bits, leading(self.codes, rank), leading(self.scales, rank))

    def onto(self, before: Adapter) -> Adapter:
        """Return the adapter at a receiver that holds `before`."""
        return received(before, self.codes, self.scales)


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
    return received(before, *rounded_codes(before, after, bits, seed=seed))


def nearest_change(before: Adapter, after: Adapter, bits: int) -> Change:
    """Return how `after` differs from `before`, each value at its nearest multiple.

    For a sender that remembers what its receivers hold, and sends the rest of the change the next
    time (error feedback: Karimireddy et al., ICML 2019). Of a rank whose values change by at most
    D a round, no value is ever off by more than D/(2^bits − 3).

    Args:
        before: as for `rounded_change`.
        after: as for `rounded_change`.
        bits: of a value, its sign included; at least 2.
    """
    return Change(bits, *rounded_codes(before, after, bits, seed=None))


def rounded_codes(
    before: Adapter, after: Adapter, bits: int, *, seed: int | None
) -> tuple[Adapter, Adapter]:
    """Return what is sent: each value's whole multiple, and each rank's scale, by entry.

    Args:
        before: as for `rounded_change`.
        after: as for `rounded_change`.
        bits: of a value, its sign included; at least 2.
        seed: of the rounding; None: to the nearest.

    Returns:
        Whole numbers from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1 in float64, shaped as the
        values; scales in float32, broadcastable to them.
    """
    levels = 2 ** (bits - 1) - 1
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    codes, scales = {}, {}
    for name in sorted(after):
        change = (after[name] - before[name]).double()
        largest = change.abs().amax(dim=_along(name), keepdim=True)
        # As it is sent; what its rounding loses is made up for by the clamp below.
        scales[name] = (largest / levels).float()
        scale = scales[name].double()
        steps = torch.where(scale > 0, change / scale, torch.zeros_like(change))
        drawn = torch.full_like(steps, 0.5)
        if generator is not None:
            drawn = torch.rand(steps.shape, generator=generator, dtype=torch.float64)
        codes[name] = (steps + drawn).floor().clamp(-levels, levels)
    return codes, scales


def received(before: Adapter, codes: Adapter, scales: Adapter) -> Adapter:
    """Return the adapter at the receiver: `before` plus the changes that the codes stand for."""
    return {
        name: before[name] + (codes[name] * scales[name].double()).to(before[name].dtype)
        for name in codes
    }


def scale_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an entry's scales."""
    along = _along(name)
    return tuple(1 if i == along else size for i, size in enumerate(shape))


def _along(name: str) -> int:
    """Return the dimension that a scale spans: A is (rank, inputs), B is (outputs, rank)."""
    return 1 if name.endswith("lora_A.weight") else 0
