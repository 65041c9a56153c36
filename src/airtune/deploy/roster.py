"""Who takes part: devices introduce themselves, and each is bound to one client of the scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from airtune.deploy.gateway import fingerprint
from airtune.deploy.introductions import Known, check_introduction, most_pruned
from airtune.deploy.protocol import (
    PROTOCOL,
    Hello,
    Introduction,
    ProtocolError,
    Refusal,
    agreement,
    kind_of,
    plain,
    unpack,
)
from airtune.models.devices import DeviceProfile
from airtune.training.worker import ClientData


@dataclass(frozen=True)
class Node:
    """A connected device, as Flower knows it."""

    id: int
    name: str
    """Given by the operator with the key; empty where devices register themselves."""
    public_key: bytes
    """PEM; empty where unknown."""
    online: bool

    @property
    def key(self) -> str:
        """The key's fingerprint, as the wire log has it."""
        return fingerprint(self.public_key)


@dataclass(frozen=True)
class Reply:
    """What came back for one message: a body, or why there is none."""

    message: str
    """Of the message that was answered."""
    body: bytes | None
    error: str = ""
    arrived_s: float | None = None
    """When it was here, by this machine's clock; None where that was not noted."""


class Mailbox(Protocol):
    """How messages reach devices."""

    def nodes(self) -> list[Node]:
        """Return the devices that are registered, connected or not."""

    def send(self, bodies: Mapping[int, bytes], group: str) -> dict[str, int]:
        """Send each node its message; return node ids by message id."""

    def collect(self, messages: Iterable[str]) -> list[Reply]:
        """Return the answers that have arrived for these messages; each is returned once."""


@dataclass(frozen=True)
class Member:
    """A device that plays a client."""

    node: Node
    introduction: Introduction


@dataclass
class Roster:
    """Members by client; who was refused, and why."""

    known: Known
    """What the server knows itself, and holds introductions against."""
    model_fingerprint: str
    run: str
    members: dict[str, Member] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)
    _accepted: dict[str, Introduction] = field(default_factory=dict)
    _online: set[int] = field(default_factory=set)

    def hello(self) -> Hello:
        """Return the greeting that opens a device's part in this run."""
        return Hello(
            protocol=PROTOCOL,
            version=version("airtune"),
            run=self.run,
            scenario=agreement(self.known.scenario),
        )

    def strangers(self, nodes: Iterable[Node]) -> list[Node]:
        """Return the connected devices that take no part and were not refused.

        Which nodes are connected now is noted: a member that has gone away since it was admitted
        makes room for a device with another key that plays the same client.
        """
        nodes = list(nodes)
        self._online = {node.id for node in nodes if node.online}
        known = {member.node.id for member in self.members.values()} | self.refused.keys()
        return [node for node in nodes if node.online and node.id not in known]

    def admit(self, node: Node, reply: Reply, *, waited_s: float) -> str | None:
        """Bind a device to the client it introduces itself as; return why not, or None.

        Whatever is wrong with the introduction refuses this device and nothing else.

        Args:
            node: the device.
            reply: its answer to the greeting.
            waited_s: how long after its first greeting in this run the answer was here.
        """
        try:
            reason = self._reason_against(node, reply, waited_s)
        except Exception as error:  # a fault of the checks must not end the run either
            reason = f"its introduction cannot be checked: {type(error).__name__}: {error}"
        reason = None if reason is None else plain(reason)
        # A lost greeting refuses no device: the device is greeted again when it is back.
        if reason is not None and reply.body is not None:
            self.refused[node.id] = reason
        return reason

    def _reason_against(self, node: Node, reply: Reply, waited_s: float) -> str | None:
        if reply.body is None:
            return reply.error or "no answer"
        try:
            if kind_of(reply.body) == Refusal.model_fields["kind"].default:
                return unpack(reply.body, Refusal)[0].reason or "refused"
            own, arrays = unpack(reply.body, Introduction)
            if arrays:
                return "arrays in an introduction"
            reason = self._foreign(node, own)
            # The same words once more, as after a lost connection, were checked before. SuperNode
            # may have another node id by then: the worker behind it stayed.
            if reason is None and own != self._accepted.get(own.client):
                client = self.known.scenario.client_names.index(own.client)
                check_introduction(own, self.known, client, waited_s=waited_s)
        except ProtocolError as error:
            return str(error)
        if reason is None:
            self.members[own.client] = Member(node, own)
            self._accepted[own.client] = own
        return reason

    def _foreign(self, node: Node, own: Introduction) -> str | None:
        """Return why a device does not belong to this run or client, or None."""
        if own.protocol != PROTOCOL:
            return f"version mismatch: it speaks protocol {own.protocol}, the server {PROTOCOL}"
        if own.client not in self.known.scenario.client_names:
            return f"client '{own.client}' is not in the scenario"
        if node.name and node.name != own.client:
            return f"its key is registered for client '{node.name}', it says '{own.client}'"
        if own.model_fingerprint != self.model_fingerprint:
            return (
                f"its model differs: fingerprint {own.model_fingerprint[:16]}, the server's is "
                f"{self.model_fingerprint[:16]}"
            )
        present = self.members.get(own.client)
        if present is not None and present.node.id != node.id and present.node.id in self._online:
            return f"client '{own.client}' is already played by another device"
        return None


def client_data(own: Introduction) -> ClientData:
    """Return what planning knows of a client, as its device introduced it."""
    cost = own.pruning_cost
    return ClientData(
        examples=own.examples,
        labels=own.labels,
        pruning_cost=None if cost is None else tuple((rate, value) for rate, value in cost),
        most_pruned=most_pruned(own),
    )


def measured_profile(own: Introduction) -> DeviceProfile:
    """Return a device's profile at the speed that it measured itself."""
    return DeviceProfile(
        name=own.profile,
        peak_flops=own.effective_flops,
        utilisation=1.0,
        memory_bytes=own.memory_bytes,
        power_w=None,
        source="measured by the device itself, on the model that it trains",
    )
