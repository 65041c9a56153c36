"""The server's own optimiser: a step along what a merge changed (Reddi et al., ICLR 2021).

D = merged - server, the pseudo-gradient with its sign turned. An entry that no client holds has
D = 0; its momentum goes on.

    momentum (FedAvgM: Hsu et al., 2019)   m = beta m + D                 w = w + lr m
    adam (FedAdam: Reddi et al., 2021)     m = beta_1 m + (1 - beta_1) D
                                           v = beta_2 v + (1 - beta_2) D^2, at first tau^2
                                           w = w + lr m/(sqrt(v) + tau)

As in the paper, FedAdam has no correction of its first steps' bias.
"""

from __future__ import annotations

import torch

from airtune.adapters.names import Adapter
from airtune.scenario import AggregationSection

ServerMoments = dict[str, Adapter]
"""`momentum` (m) and, with adam, `second` (v), shaped as the server's adapter."""


def server_step(
    section: AggregationSection, server: Adapter, merged: Adapter, moments: ServerMoments
) -> tuple[Adapter, ServerMoments]:
    """Return the next adapter and the moments to keep; float64 inside, the adapter's type outside.

    Args:
        section: the optimiser and its constants.
        server: the adapter that the round began with.
        merged: what the merging rule made of the round.
        moments: of the round before; empty before the first.
    """
    if section.server_optimizer == "none":
        return merged, {}
    with_second = section.server_optimizer == "adam"
    beta, rate, tau = section.server_momentum, section.server_rate, section.server_adaptivity
    adapter: Adapter = {}
    first: Adapter = {}
    second: Adapter = {}
    for name, old in server.items():
        before = old.double()
        change = merged[name].double() - before
        known = moments["momentum"][name].double() if moments else torch.zeros_like(change)
        if with_second:
            m = beta * known + (1.0 - beta) * change
            squares = moments["second"][name].double() if moments else torch.full_like(m, tau**2)
            share = section.server_second_momentum
            v = share * squares + (1.0 - share) * change.square()
            step = m / (v.sqrt() + tau)
            second[name] = v.to(old.dtype)
        else:
            m = step = beta * known + change
        first[name] = m.to(old.dtype)
        adapter[name] = (before + rate * step).to(old.dtype)
    return adapter, {"momentum": first, "second": second} if with_second else {"momentum": first}
