"""What comes in to be merged: updates in the server's shapes, checked, of any rank."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from airtune.adapters.names import Adapter


@dataclass(frozen=True)
class Contribution:
    """One client's update in the shapes of the full adapter.

    LoRA's scale is the same for every client, whatever its rank (alpha is given in proportion
    to the rank), so that it can stay outside of the rules.
    """

    values: Adapter
    """Zero where the client holds nothing."""
    held: dict[str, Tensor]
    """Boolean, shaped as `values`: which entries the client's submodel has."""
    weight: float
    """p_k before normalisation: the client's number of examples."""
    steps: int = 1
    """Local steps done; only `normalised` looks at them."""


def normalised(server: Adapter, contributions: Sequence[Contribution]) -> list[Contribution]:
    """Undo that clients did different numbers of steps: FedNova (Wang et al., NeurIPS 2020).

    w_k' = w + (tau_eff / tau_k)(w_k - w) with tau_eff = sum p_k tau_k, after which an average
    gives w + tau_eff sum p_k (w_k - w)/tau_k. Plain steps are counted (a_k = tau_k): FedNova's
    vector for SGD, taken over for AdamW.
    """
    total = sum(c.weight for c in contributions)
    effective = sum(c.weight * c.steps for c in contributions) / total
    rescaled = []
    for contribution in contributions:
        factor, values = effective / contribution.steps, {}
        for name, value in contribution.values.items():
            moved = server[name] + factor * (value - server[name])
            values[name] = torch.where(contribution.held[name], moved, value)
        rescaled.append(replace(contribution, values=values))
    return rescaled


def fault_of(
    update: Adapter, expected: Mapping[str, tuple[int, ...]], train_loss: float | None
) -> str | None:
    """Say what is wrong with an update, or None: wrong keys, wrong shapes, not finite.

    Args:
        update: what the client sent.
        expected: the shapes of the adapter of the submodel it was asked to train.
        train_loss: the loss it reports; None where privacy keeps it back.
    """
    if update.keys() != expected.keys():
        missing, extra = expected.keys() - update.keys(), update.keys() - expected.keys()
        return (
            f"rejected: wrong keys ({len(missing)} missing, {len(extra)} unknown)"
            f"{_first('; missing', missing)}{_first('; unknown', extra)}"
        )
    wrong = [name for name, shape in expected.items() if tuple(update[name].shape) != shape]
    if wrong:
        name = wrong[0]
        more = f" and {len(wrong) - 1} more of {len(expected)} tensors" if len(wrong) > 1 else ""
        return (
            f"rejected: wrong shape of {name}: {tuple(update[name].shape)}, not {expected[name]}"
            f"{more}{_first('; also', wrong[1:])}"
        )
    for name in expected:
        if not bool(torch.isfinite(update[name]).all()):
            return f"rejected: not finite: {name}"
    if train_loss is not None and not math.isfinite(train_loss):
        return "rejected: training loss is not finite"
    return None


def _first(what: str, names: Collection[str], count: int = 3) -> str:
    """Name the first few tensors."""
    if not names:
        return ""
    more = ", …" if len(names) > count else ""
    return f"{what} {', '.join(sorted(names)[:count])}{more}"
