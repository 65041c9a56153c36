"""What is under way between two merges, where rounds are not synchronous."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from airtune.adapters.names import Adapter
from airtune.rounds.bills import Outcome
from airtune.rounds.clock import Turn

Key = tuple[int, int]
"""A client and the number of its turn."""


def key_of(turn: Turn) -> Key:
    """Return what names a turn in a run."""
    return turn.client, turn.number


@dataclass(frozen=True)
class Flight:
    """The turns that are not merged yet, and what they began with.

    What came of a turn follows from the adapter that it began with and its draws: outcomes are not
    in a checkpoint, and a resumed run computes them again.
    """

    turns: tuple[Turn, ...] = ()
    numbers: dict[int, int] = field(default_factory=dict)
    """Turns that each client has begun so far."""
    adapters: dict[int, Adapter] = field(default_factory=dict)
    """By the merges made before: what the turns began with."""
    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    periods: dict[int, int] = field(default_factory=dict)
    """With tiers, every how many rounds each client answers; follows from the first channel."""

    @property
    def begun(self) -> int:
        """Turns begun so far, of all clients."""
        return sum(self.numbers.values())


def flight_payload(flight: Flight) -> dict[str, Any]:
    """Return what a checkpoint's JSON holds of it; `adapters` go with the tensors."""
    return {
        "turns": [asdict(turn) for turn in flight.turns],
        "numbers": {str(client): number for client, number in flight.numbers.items()},
    }


def restored_flight(payload: Mapping[str, Any], adapters: Mapping[str, Adapter]) -> Flight:
    """Return the flight that `flight_payload` flattened, without outcomes."""
    return Flight(
        turns=tuple(
            Turn(**{"can_be_merged": values["uplink_bits"] > 0, **values})
            for values in payload.get("turns", ())
        ),
        numbers={int(k): number for k, number in payload.get("numbers", {}).items()},
        adapters={int(merges): adapter for merges, adapter in adapters.items()},
    )
