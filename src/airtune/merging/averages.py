"""Rules that average the factors A and B, each for itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from airtune.adapters.names import Adapter, pairs, units_held
from airtune.merging.contributions import Contribution

TOGETHER = 65_536
"""Values that are averaged at a time: a call for each small entry takes longer than its sum."""


def fedit(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Weighted average of A and of B over the clients that hold an entry.

    With every entry held by every client this is FedIT (FedAvg on both factors):
    A = Σ p_k A_k, B = Σ p_k B_k, whose product is not Σ p_k B_k A_k. Entries that no client
    holds keep the server's value, as in HeteroFL, and the weights are normalised over the
    holders of each entry.
    """
    merged: Adapter = {}
    for names in _together(server):
        old = _flat(server, names)
        total = torch.zeros(old.shape, dtype=torch.float64)
        # A number for as long as all entries are held by all, which is the same sum.
        weight = torch.zeros((), dtype=torch.float64)
        for contribution in contributions:
            held, value = _flat(contribution.held, names), _flat(contribution.values, names)
            share = torch.tensor(contribution.weight, dtype=torch.float64)
            if not bool(held.all()):
                share = held.to(torch.float64) * contribution.weight
            total += value.to(torch.float64).mul_(share)
            weight = weight + share
        weight = weight.expand(old.shape)
        average = total / torch.where(weight > 0, weight, 1.0)
        new = torch.where(weight > 0, average, old.to(torch.float64)).to(old.dtype)
        parts = new.split([server[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            merged[name] = part.reshape(server[name].shape).clone()
    return merged


def _together(server: Adapter) -> Iterator[list[str]]:
    """Yield the entries in groups of about `TOGETHER` values: one sum for many small ones."""
    names: list[str] = []
    count = 0
    for name, value in server.items():
        names.append(name)
        count += value.numel()
        if count >= TOGETHER:
            yield names
            names, count = [], 0
    if names:
        yield names


def _flat(tensors: Adapter, names: Sequence[str]) -> Tensor:
    return torch.cat([tensors[name].reshape(-1) for name in names])


def heterofl(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Average each entry over the clients that hold it; the others keep the server's value.

    The same sum as `fedit`, which extends FedIT to submodels in this way. By sample counts, as
    the paper weighs its clients; its published code counts each client once, which here is
    `fedspallm`.
    """
    return fedit(server, contributions)


def fedspallm(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Average each entry over its holders, all alike: W_j = Σ m_kj W_kj / Σ m_kj.

    Masks say who holds an entry: a value that happens to be zero is not read as pruned. The
    paper's mask expansion brings a merged model back to a wanted sparsity; an adapter has none.
    """
    return fedit(server, [replace(one, weight=1.0) for one in contributions])


def fedmp(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """R2SP: (1/K) Σ [scatter(W_k) + (W − m_k ⊙ W)].

    What a client left out counts as the server's old value, which pulls entries that few hold
    back to it. That is not HeteroFL.
    """
    share = 1.0 / len(contributions)
    merged: Adapter = {}
    for name, old in server.items():
        total = torch.zeros(old.shape, dtype=torch.float64)
        for one in contributions:
            total += torch.where(one.held[name], one.values[name], old).to(torch.float64)
        merged[name] = (share * total).to(old.dtype)
    return merged


def hetlora(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Average zero-padded factors with ω_k = ‖B_k A_k‖_F / Σ ‖B_j A_j‖_F.

    The norm is over all layers together. Ranks that a client does not have count as zeros,
    units that its submodel does not have count as not held (as in `fedit`). Where every product
    is zero the sample counts weigh.
    """
    norms = [product_norm(one.values) for one in contributions]
    if sum(norms) == 0:
        norms = [one.weight for one in contributions]
    widened = [
        replace(
            one,
            weight=norm,
            held={name: units_held(mask, name) for name, mask in one.held.items()},
        )
        for one, norm in zip(contributions, norms, strict=True)
    ]
    return fedit(server, widened)


def product_norm(adapter: Adapter) -> float:
    """Return ‖BA‖_F over all layers, from the small products: ‖BA‖² = tr(BᵀB · AAᵀ)."""
    total = 0.0
    for a, b in pairs(adapter):
        rows, columns = adapter[a].to(torch.float64), adapter[b].to(torch.float64)
        total += float(((columns.T @ columns) * (rows @ rows.T)).sum())
    return math.sqrt(max(total, 0.0))


def ffa_lora(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Average B over its holders; A does not change.

    Exact where everything is held: (Σ p_k B_k) A = Σ p_k B_k A.
    """

    def of_b(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensors[name] for _, name in pairs(tensors)}

    averaged = fedit(of_b(server), [replace(one, values=of_b(one.values)) for one in contributions])
    return {**server, **averaged}
