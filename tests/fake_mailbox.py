"""Devices in the process of a test, behind a stand-in for Flower's mailbox."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from airtune.deploy.device import Device
from airtune.deploy.roster import Node, Reply

Tamper = Callable[[bytes], bytes | None]


class FakeMailbox:
    """Devices in this process; `tamper` changes or swallows what one of them answers."""

    def __init__(self, devices: Mapping[str, Device]) -> None:
        self.devices = dict(devices)
        self.tamper: dict[tuple[str, str], Tamper] = {}
        self.registered = True
        self.away: set[str] = set()
        self._answers: dict[str, Reply] = {}
        self._sent = 0

    def nodes(self) -> list[Node]:
        return [
            Node(i, name if self.registered else "", name.encode(), online=name not in self.away)
            for i, name in enumerate(self.devices)
        ]

    def send(self, bodies: Mapping[int, bytes], group: str) -> dict[str, int]:
        names, posted = list(self.devices), {}
        for node, body in bodies.items():
            self._sent += 1
            message = f"m{self._sent}"
            posted[message] = node
            answer: bytes | None = self.devices[names[node]].handle(body)
            tamper = self.tamper.get((names[node], group))
            if tamper is not None and answer is not None:
                answer = tamper(answer)
            if answer is not None:
                error = answer.decode() if answer.startswith(b"error") else ""
                self._answers[message] = Reply(message, None if error else answer, error)
        return posted

    def collect(self, messages: Iterable[str]) -> list[Reply]:
        return [self._answers.pop(m) for m in list(messages) if m in self._answers]
