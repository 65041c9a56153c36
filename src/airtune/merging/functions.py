"""Merging by a rule of the table, whatever rule it is, and the check of what comes out.

One function a rule, all with the same shape: the server's adapter and the contributions in,
the new adapter out. Values are float32, accumulated in float64, so that the order in which
clients answer cannot be seen in the result beyond rounding, and is fixed to client order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from airtune.adapters.names import Adapter, leading, padded, rank_of
from airtune.errors import InputError
from airtune.merging.averages import fedit, fedmp, fedspallm, ffa_lora, heterofl, hetlora
from airtune.merging.contributions import Contribution, fault_of, normalised
from airtune.merging.products import flexlora, flora
from airtune.merging.rules import MERGING
from airtune.plugins import called

Rule = Callable[[Adapter, Sequence[Contribution]], Adapter]

__all__ = [
    "Adapter",
    "Contribution",
    "Rule",
    "fault_of",
    "fedit",
    "fedmp",
    "fedspallm",
    "ffa_lora",
    "flexlora",
    "flora",
    "heterofl",
    "hetlora",
    "leading",
    "merge",
    "normalised",
    "padded",
    "rank_of",
]


def merge(name: str, server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Merge by a rule's name and check the new adapter.

    Args:
        name: a key of `MERGING`.
        server: the adapter that the round began with.
        contributions: sound ones, in client order.

    Raises:
        InputError: no such rule, or what it returned is not an adapter like the server's; names
            the rule and what is wrong.
    """
    rule, what = MERGING.find(name), f"merging rule '{name}'"
    merged = called(what, rule.function, server, contributions)
    fault = _fault(server, merged, any_rank=rule.restarts)
    if fault is not None:
        raise InputError(f"{what}: {fault}")
    return {key: merged[key].to(value.dtype) for key, value in server.items()}


def _fault(server: Adapter, merged: object, *, any_rank: bool) -> str | None:
    """Say what is wrong with a merged adapter, or None."""
    if not isinstance(merged, dict):
        return f"it returned {type(merged).__name__}; allowed: a dict of tensors, as the server's"
    if merged.keys() != server.keys():
        missing, extra = len(server.keys() - merged.keys()), len(merged.keys() - server.keys())
        return f"wrong names ({missing} missing, {extra} unknown); allowed: the server's"
    for name in server:
        if not (isinstance(merged[name], torch.Tensor) and merged[name].ndim == 2):
            return f"{name} is not a matrix (a tensor of two dimensions)"
    for name, old in server.items():
        new = merged[name]
        rank = 0 if name.endswith("lora_A.weight") else 1
        wanted = list(old.shape)
        if any_rank:
            wanted[rank] = rank_of(merged)
        if list(new.shape) != wanted:
            return f"wrong shape of {name}: {tuple(new.shape)}, not {tuple(wanted)}"
        if not bool(torch.isfinite(new).all()):
            return f"not finite: {name}"
    return None
