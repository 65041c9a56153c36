"""The adapter as a round's broadcast brings it, where it carries changes in few bits.

The server remembers what its listeners hold. It sends how its own adapter differs from that, to
the nearest multiples of few bits, and the clients' changes go onto its own adapter: what one
broadcast rounds off is in the next one (error feedback). A client that did not hear the round
before, or fewer ranks of it than it now trains, gets the whole adapter that the others then hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from airtune.adapters.few_bits import Change, nearest_change
from airtune.adapters.names import Adapter, leading, rank_of
from airtune.assignment import Assignment
from airtune.merging.rules import rule_of
from airtune.rounds.bills import Outcome
from airtune.rounds.state import State
from airtune.scenario import Scenario
from airtune.training.client import ClientUpdate


@dataclass(frozen=True, eq=False)
class Sent:
    """What a round's broadcast brings.

    Attributes:
        adapter: what all who listen have after it.
        change: what is sent of it to those who hold what changed; None where nobody does.
        held_ranks: how many ranks of that each client holds; () where no changes are sent.
    """

    adapter: Adapter
    change: Change | None = None
    held_ranks: tuple[int, ...] = ()

    def change_for(self, told: Assignment) -> Change | None:
        """Return what a client is sent in place of the whole adapter, at its rank, or None."""
        if self.change is None or told.mode.rank > self.held_ranks[told.client]:
            return None
        return self.change.leading(told.mode.rank)


def broadcast_of(
    scenario: Scenario, state: State, assignments: Iterable[Assignment | None]
) -> Sent:
    """Return what a round's broadcast brings to those who listen.

    Args:
        scenario: says whether changes are sent, and in how many bits.
        state: before the round.
        assignments: who listens, and at which rank.
    """
    bits = scenario.aggregation.downlink_change_bits
    if bits is None or state.held is None:
        return Sent(state.adapter)
    follow = any(
        one is not None and one.mode.rank <= state.held_ranks[one.client] for one in assignments
    )
    if not follow:  # where all are sent the whole adapter, it can be the server's own
        return Sent(state.adapter)
    change = nearest_change(state.held, state.adapter, bits)
    return Sent(change.onto(state.held), change, state.held_ranks)


def held_ranks_after(
    scenario: Scenario, assignments: Mapping[int, Assignment], outcomes: Mapping[int, Outcome]
) -> tuple[int, ...]:
    """Return how many ranks of the round's broadcast each client has; () where none are sent.

    A client whose work failed counts as one that did not hear the round.
    """
    if scenario.aggregation.downlink_change_bits is None:
        return ()
    heard = {k for k, outcome in outcomes.items() if isinstance(outcome, ClientUpdate)}
    clients = range(len(scenario.client_devices))
    return tuple(assignments[k].mode.rank if k in heard else 0 for k in clients)


def missed_bits_after(
    scenario: Scenario,
    before: Sequence[float],
    merged: Sequence[ClientUpdate],
    outcomes: Mapping[int, Outcome],
) -> tuple[float, ...]:
    """Return what each client lacks after a round, bit; () where clients do not restart.

    A client whose work failed counts as one that did not hear the round.

    Args:
        scenario: merging rule.
        before: what each lacked before the round; (): nothing.
        merged: the round's updates, which all clients are to merge into their base.
        outcomes: of those who took part.
    """
    if not rule_of(scenario).restarts:
        return ()
    heard = {k for k, outcome in outcomes.items() if isinstance(outcome, ClientUpdate)}
    stacked = sum(update.uplink_bits for update in merged)
    lacked = before or (0.0,) * len(scenario.client_devices)
    return tuple((0.0 if k in heard else bits) + stacked for k, bits in enumerate(lacked))


def onto_server(server: Adapter, sent: Adapter, values: Adapter, held: Adapter) -> Adapter:
    """Return a client's values as if it had begun from the server's own adapter.

    Args:
        server: its adapter.
        sent: what the broadcast made of it.
        values: the client's, in the full model's shapes, of its own rank.
        held: which of them it has.
    """
    if sent is server:
        return values
    rank = rank_of(values)
    own, theirs = leading(server, rank), leading(sent, rank)
    return {
        name: torch.where(held[name], value + (own[name] - theirs[name]), value)
        for name, value in values.items()
    }
