"""Greeting devices without waiting for any one of them.

A device that is new to a run is greeted, rehearses a round and introduces itself. Its answer is
taken whenever it comes; one that never answers holds up neither the others nor a round.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from airtune.deploy.protocol import pack
from airtune.deploy.roster import Mailbox, Node, Reply, Roster

AGAIN_S = 60.0
"""A device that was refused, or that did not answer, is greeted again after this."""


class Greetings:
    """Greetings under way.

    Args:
        mailbox: how messages reach devices.
        roster: decides who takes part.
        patience_s: how long an answer is awaited before the device is greeted again.
        welcome: called with the node of each device that takes part from now on.
        say: called with a line for each device that was refused, and why.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        roster: Roster,
        *,
        patience_s: float,
        welcome: Callable[[int], None],
        say: Callable[[str], None],
    ) -> None:
        self._mailbox, self._roster, self._patience_s = mailbox, roster, max(patience_s, AGAIN_S)
        self._welcome, self._say = welcome, say
        self._pending: dict[str, tuple[Node, float]] = {}
        self._first_s: dict[int, float] = {}
        self._refused_s: dict[int, float] = {}
        self._said: dict[int, str] = {}

    @property
    def pending(self) -> list[str]:
        """The messages whose answers are awaited."""
        return list(self._pending)

    def send(self) -> None:
        """Greet the connected devices that take no part yet."""
        nodes, now_s = self._mailbox.nodes(), time.time()
        self._forget({node.id for node in nodes if node.online}, now_s)
        waiting = {node.id for node, _ in self._pending.values()}
        strangers = [node for node in self._roster.strangers(nodes) if node.id not in waiting]
        if not strangers:
            return
        body = pack(self._roster.hello())
        by_id = {node.id: node for node in strangers}
        for node in strangers:
            self._first_s.setdefault(node.id, now_s)
        posted = self._mailbox.send({node.id: body for node in strangers}, group="hello")
        self._pending |= {message: (by_id[node], now_s) for message, node in posted.items()}

    def answered(self, reply: Reply) -> bool:
        """Take the answer to a greeting; False where the reply answers something else."""
        found = self._pending.pop(reply.message, None)
        if found is None:
            return False
        node, _ = found
        waited_s = time.time() - self._first_s[node.id]
        reason = self._roster.admit(node, reply, waited_s=waited_s)
        if reason is None:
            self._said.pop(node.id, None)
            self._welcome(node.id)
            return True
        self._refused_s[node.id] = time.time()
        if self._said.get(node.id) != reason:
            self._said[node.id] = reason
            self._say(f"device {node.name or node.id} refused: {reason}")
        return True

    def _forget(self, online: set[int], now_s: float) -> None:
        for message, (node, sent_s) in list(self._pending.items()):
            if node.id not in online or now_s > sent_s + self._patience_s:
                del self._pending[message]
        for node_id, refused_s in list(self._refused_s.items()):
            if node_id not in online or now_s > refused_s + AGAIN_S:
                del self._refused_s[node_id]
                self._roster.refused.pop(node_id, None)
