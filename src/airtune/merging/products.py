"""Rules that merge the products B·A, not the factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from airtune.adapters.names import Adapter, pairs, units_held
from airtune.merging.contributions import Contribution


def flora(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Stack the factors behind the server's: A = [A; A_1; …], B = [B, p_1 B_1, …].

    So B A grows by exactly Σ p_k B_k A_k. The server's adapter stands for what clients have
    merged into their base so far; they begin anew each round, and an entry that a client does
    not hold is one that it does not change. A stack of more rows than the model can have ranks
    is written with an identity as one of the factors, which changes nothing in the product.
    """
    total = sum(one.weight for one in contributions)
    began = any(bool(server[b].any()) for _, b in pairs(server))
    merged: Adapter = {}
    for a, b in pairs(server):
        rows = [one.values[a] for one in contributions]
        columns = [one.values[b] * (one.weight / total) for one in contributions]
        # An adapter that has not been trained adds ranks and nothing else.
        merged[a] = torch.cat([server[a]] * began + rows)
        merged[b] = torch.cat([server[b]] * began + columns, dim=1)
    enough = max(min(merged[b].shape[0], merged[a].shape[1]) for a, b in pairs(merged))
    for a, b in pairs(merged):
        if merged[a].shape[0] > enough:
            merged[a], merged[b] = _with_identity(merged[a], merged[b], enough)
    return merged


def _with_identity(rows: Tensor, columns: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of the same product with `rank` rows: it, and an identity, zero-padded."""
    product = (columns.to(torch.float64) @ rows.to(torch.float64)).to(rows.dtype)
    outputs, inputs = product.shape
    a, b = rows.new_zeros(rank, inputs), columns.new_zeros(outputs, rank)
    if inputs <= outputs:
        a[:inputs], b[:, :inputs] = torch.eye(inputs), product
    else:
        a[:outputs], b[:, :outputs] = product, torch.eye(outputs)
    return a, b


def flexlora(server: Adapter, contributions: Sequence[Contribution]) -> Adapter:
    """Best approximation of Σ p_k B_k A_k at the server's rank, by singular value.

    B = U Σ and A = Vᵀ, so that the first r ranks are the best approximation at rank r: what a
    client of rank r takes. A keeps unit rows where the sum has fewer ranks than the server: a
    zero there would never train again. Units that a client's submodel leaves out keep the
    server's values in its factors. The sum is never formed: QR of the stacked factors, SVD of
    the small core.
    """
    total = sum(one.weight for one in contributions)
    merged: Adapter = {}
    for a, b in pairs(server):
        rows = [_completed(one, server, a) for one in contributions]
        columns = [_completed(one, server, b) * (one.weight / total) for one in contributions]
        merged[a], merged[b] = _truncated(torch.cat(rows), torch.cat(columns, dim=1), server[a])
    return merged


def _completed(one: Contribution, server: Adapter, name: str) -> Tensor:
    """Give a client's factor the server's values in units that its submodel does not have."""
    rank_held = one.held[name].any(dim=1 if name.endswith("lora_A.weight") else 0, keepdim=True)
    unit = units_held(one.held[name], name)
    # Ranks are held alike in all units, so a layer left out whole has none: it stays as it was.
    kept = rank_held.expand_as(unit) if bool(unit.any()) else torch.ones_like(unit)
    value = torch.where(unit, one.values[name], server[name] * kept)
    return value.to(torch.float64)


def _truncated(rows: Tensor, columns: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    rank = old.shape[0]
    left, core_left = torch.linalg.qr(columns)
    right, core_right = torch.linalg.qr(rows.T)
    u, sizes, vt = torch.linalg.svd(core_left @ core_right.T, full_matrices=False)
    found = min(rank, sizes.shape[0])
    a, b = old.clone(), old.new_zeros(columns.shape[0], rank)
    a[:found] = (vt[:found] @ right.T).to(old.dtype)
    b[:, :found] = ((left @ u[:, :found]) * sizes[:found]).to(old.dtype)
    return a, b
