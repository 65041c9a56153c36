"""Who takes part: devices introduce themselves, and each is bound to one client of the scenario."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

from airtune.deploy.gateway import fingerprint
from airtune.deploy.protocol import (
    PROTOCOL,
    Hello,
    Introduction,
    ProtocolError,
    Refusal,
    agreement,
    kind_of,
    unpack,
)
from airtune.scenario import Scenario


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


class Post(Protocol):
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

    scenario: Scenario
    model_fingerprint: str
    run: str
    members: dict[str, Member] = field(default_factory=dict)
    refused: dict[int, str] = field(default_factory=dict)

    def hello(self) -> Hello:
        """Return the greeting that opens a device's part in this run."""
        return Hello(
            protocol=PROTOCOL,
            version=version("airtune"),
            run=self.run,
            scenario=agreement(self.scenario),
        )

    def strangers(self, nodes: Iterable[Node]) -> list[Node]:
        """Return the connected devices that have not been greeted yet."""
        known = {member.node.id for member in self.members.values()} | self.refused.keys()
        return [node for node in nodes if node.online and node.id not in known]

    def admit(self, node: Node, reply: Reply) -> str | None:
        """Bind a device to the client it introduces itself as; return why not, or None."""
        reason = self._reason_against(node, reply)
        # A greeting that was lost refuses nobody: the device is greeted again when it is back.
        if reason is not None and reply.body is not None:
            self.refused[node.id] = reason
        return reason

    def _reason_against(self, node: Node, reply: Reply) -> str | None:
        if reply.body is None:
            return reply.error
        try:
            if kind_of(reply.body) == Refusal.model_fields["kind"].default:
                return unpack(reply.body, Refusal)[0].reason
            own, _ = unpack(reply.body, Introduction)
        except ProtocolError as error:
            return str(error)
        if own.protocol != PROTOCOL:
            return f"version mismatch: it speaks protocol {own.protocol}, the server {PROTOCOL}"
        if own.client not in self.scenario.client_names:
            return f"client '{own.client}' is not in the scenario"
        if node.name and node.name != own.client:
            return f"its key is registered for client '{node.name}', it says '{own.client}'"
        if own.model_fingerprint != self.model_fingerprint:
            return (
                f"its model differs: fingerprint {own.model_fingerprint[:16]}, the server's is "
                f"{self.model_fingerprint[:16]}"
            )
        present = self.members.get(own.client)
        if present is not None and present.node.id != node.id and present.node.online:
            return f"client '{own.client}' is already played by another device"
        self.members[own.client] = Member(node, own)
        return None
