"""SCAFFOLD's control variates at the server: c_k of each client, and their weighted sum c.

c = sum p_k c_k over all clients of the run, p_k their shares of the examples, as the average of
the updates weighs them. A client that did not answer keeps its c_k, and so does an entry that the
client's submodel or rank does not have: both are as a client that was not sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from airtune.adapters.names import Adapter, padded, rank_of
from airtune.adapters.slices import scatter_adapter
from airtune.models.workload import ModelShape
from airtune.training.client import ClientUpdate


@dataclass(frozen=True)
class Controls:
    """The control variates between two rounds; an absent client's is zero."""

    server: Adapter = field(default_factory=dict)
    clients: dict[int, Adapter] = field(default_factory=dict)

    def correction(self, client: int, adapter: Adapter) -> Adapter:
        """Return c - c_k in the shapes of the server's adapter."""
        zero = {name: torch.zeros_like(value) for name, value in adapter.items()}
        c, own = self.server or zero, self.clients.get(client, zero)
        return {name: c[name] - own[name] for name in adapter}


def controls_after(
    controls: Controls,
    adapter: Adapter,
    updates: Sequence[ClientUpdate],
    examples: Sequence[int],
    shape: ModelShape,
) -> Controls:
    """Return the control variates after a round.

    Args:
        controls: before it.
        adapter: the server's, for its shapes.
        updates: the sound ones, with their new control variates.
        examples: of every client of the run.
        shape: of the full model.
    """
    total, rank = float(sum(examples)), rank_of(adapter)
    zero = {name: torch.zeros_like(value) for name, value in adapter.items()}
    server = {name: value.double() for name, value in (controls.server or zero).items()}
    clients = dict(controls.clients)
    for update in updates:
        assert update.control is not None
        values, held = scatter_adapter(update.control, update.structure, shape)
        values, held = padded(values, rank), padded(held, rank)
        before = clients.get(update.client, zero)
        after = {n: torch.where(held[n], values[n], before[n]) for n in before}
        share = examples[update.client] / total
        for name in server:
            server[name] += share * (after[name] - before[name]).double()
        clients[update.client] = after
    return Controls({name: value.float() for name, value in server.items()}, clients)
