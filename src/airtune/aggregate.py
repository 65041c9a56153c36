"""Merging rules: unequal updates of several clients become the next global adapter.

One function a rule, all with the same shape: the server's adapter and the contributions in,
the new adapter out. Values are float32, accumulated in float64, so that the order in which
clients answer cannot be seen in the result beyond rounding, and is fixed to client order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Adapter = dict[str, Tensor]


@dataclass(frozen=True)
class Contribution:
    """One client's update in the shapes of the full adapter."""

    values: Adapter
    """Zero where the client holds nothing."""
    held: dict[str, Tensor]
    """Boolean, shaped as `values`: which entries the client's submodel has."""
    weight: float
    """p_k before normalisation: the client's number of examples."""


def fedit(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Weighted average of A and of B over the clients that hold an entry.

    With every entry held by every client this is FedIT (FedAvg on both factors):
    A = Σ p_k A_k, B = Σ p_k B_k. Entries that no client holds keep the server's value, as in
    HeteroFL, and the weights are normalised over the holders of each entry.
    """
    merged: Adapter = {}
    for name, old in server.items():
        total = torch.zeros(old.shape, dtype=torch.float64)
        weight = torch.zeros(old.shape, dtype=torch.float64)
        for contribution in contributions:
            held = contribution.held[name].to(torch.float64) * contribution.weight
            total += held * contribution.values[name].to(torch.float64)
            weight += held
        average = total / torch.where(weight > 0, weight, 1.0)
        merged[name] = torch.where(weight > 0, average, old.to(torch.float64)).to(old.dtype)
    return merged


Rule = Callable[[Adapter, Sequence[Contribution]], Adapter]

RULES: dict[str, tuple[Rule, str]] = {
    "fedit": (fedit, "average of A and of B over the clients that hold an entry (FedIT)"),
}
"""Merging rules by name, each with a line that says what it does."""


def fault_of(
    update: Adapter, expected: dict[str, tuple[int, ...]], train_loss: float | None
) -> str | None:
    """Say what is wrong with an update, or None: wrong keys, wrong shapes, not finite.

    Args:
        update: what the client sent.
        expected: the shapes of the adapter of the submodel it was asked to train.
        train_loss: the loss it reports; None where privacy keeps it back.
    """
    if update.keys() != expected.keys():
        missing, extra = len(expected.keys() - update.keys()), len(update.keys() - expected.keys())
        return f"rejected: wrong keys ({missing} missing, {extra} unknown)"
    for name, shape in expected.items():
        if tuple(update[name].shape) != shape:
            return f"rejected: wrong shape of {name}: {tuple(update[name].shape)}, not {shape}"
        if not bool(torch.isfinite(update[name]).all()):
            return f"rejected: not finite: {name}"
    if train_loss is not None and not math.isfinite(train_loss):
        return "rejected: training loss is not finite"
    return None
