"""The assignment: what one client is told in a round.

It is decided once a round, carried in the client's job and in the message to its device, obeyed
by the worker, billed from and recorded. A client that sits the round out has none.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mode:
    """How much a client works and sends, whatever share of the model it leaves out."""

    local_steps: int
    """AdamW steps of the round: the first ones of those that its data was drawn for."""
    rank: int
    """LoRA rank of its adapter: the leading ranks of the server's."""
    bits_per_value: int
    """Of an adapter value in its uplink message."""
    bits_per_scale: int = 0
    """Of each rank's scale of A and of B in each layer. Above 0, the uplink carries the adapter's
    change, rounded to `bits_per_value` bits; 0: the values themselves."""
    freezes_a: bool = False
    """Only B is trained and sent."""
    control_variates: bool = False
    """A control variate is sent with each adapter value, both ways (SCAFFOLD)."""

    @property
    def sends_change(self) -> bool:
        """Whether the uplink carries a rounded change in place of the values."""
        return self.bits_per_scale > 0


@dataclass(frozen=True)
class PlannedTimes:
    """What the round's plan expects of one client, s; devices are held to it."""

    downlink_s: float
    compute_s: float
    upload_s: float
    round_s: float
    """The whole round's planned latency."""


@dataclass(frozen=True)
class Assignment:
    """What one client is told in a round."""

    client: int
    """Its place in the scenario's order of clients."""
    mode: Mode
    pruning: float
    """The planned pruning rate; the client realises it as nearly as its units allow."""
    bandwidth_hz: float
    """Its share of the uplink."""
    rate_bps: float
    """What that band carries in this round's channel."""
    downlink_rate_bps: float
    """The broadcast's rate: that of the slowest client that listens."""
    downlink_bits: float
    """What it receives of the broadcast, until it has its ranks of the adapter or its change."""
    planned: PlannedTimes | None = None
    """None at the device: the plan's times stay with the server."""
