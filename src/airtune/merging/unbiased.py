"""A merged change that is unbiased over the draws of clients and the losses of uploads."""

from __future__ import annotations

from airtune.adapters.names import Adapter


def unbiased(server: Adapter, merged: Adapter, total: float) -> Adapter:
    """Return the server's adapter with the merged change scaled by the sum of the weights.

    A rule's average is normalised: W + Σ ω_k Δ_k / Σ ω_k. With ω_k = (n_k/N)/(π_k q_k) the sum
    W + Σ ω_k Δ_k is unbiased for what all N examples would give (Horvitz and Thompson, JASA 47,
    1952), and Σ ω_k is 1 on average. Exact for entries that all clients hold; where pruned
    submodels hold an entry, its average over the holders is scaled by the same sum.

    Args:
        server: W, the adapter that the round began with.
        merged: the rule's average.
        total: Σ ω_k over the updates that arrived.
    """
    return {
        name: (old.double() + total * (merged[name].double() - old.double())).to(old.dtype)
        for name, old in server.items()
    }
