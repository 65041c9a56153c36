"""How far entries move of units that only some of a round's submodels hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from airtune.adapters.names import Adapter, units_held
from airtune.merging.contributions import Contribution


def covered(
    server: Adapter, merged: Adapter, contributions: Sequence[Contribution], power: float
) -> Adapter:
    """Return the server's adapter with each entry's change multiplied by c^power.

    c is the share of the contributions' weight whose submodels have the entry's unit, at whatever
    rank. An average over the holders moves the units that few have by their data alone (HeteroFL:
    power 0), and the clients that are without them cannot answer it. With power 1 those count as
    no change (R2SP of FedMP: Jiang et al., ICDE 2022, there with equal weights), and with a large
    power almost only units move that all have.

    Args:
        server: the adapter that the round began with.
        merged: a rule's weighted average over the holders of each entry.
        contributions: what was merged.
        power: at least 0.
    """
    total = sum(one.weight for one in contributions)
    adapter: Adapter = {}
    for name, old in server.items():
        share = torch.zeros(old.shape, dtype=torch.float64)
        for one in contributions:
            has = units_held(one.held[name], name)
            share += has.to(torch.float64) * (one.weight / total)
        change = merged[name].to(torch.float64) - old.to(torch.float64)
        adapter[name] = (old.to(torch.float64) + share**power * change).to(old.dtype)
    return adapter
