"""Flower's grid as `Mailbox`: one message a device, each with a body of its own.

A reply shows in Flower's mailbox before its content has arrived, and pulling it then blocks
until the last byte is there, however slow the device or dead its link. So each awaited reply has
a thread of its own, and a device that stalls in the middle of its upload delays no other.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from airtune.deploy.flower_names import prepare_grid
from airtune.deploy.protocol import parts_of
from airtune.deploy.roster import Node, Reply

RECORD, BODY = "airtune", "body"
DATA = "data"
"""A message's arrays are a record of their own: Flower stores a record that several messages
have once, and the round's adapter goes to its server once in place of once a device."""
POLL_S, PART_POLL_S = 0.2, 0.4
"""Between two looks for a reply, and for a part of one that is on its way, on this machine."""
WAITED_SHARE, MOST_POLL_S = 0.02, 0.5
"""After long work a look comes later: this share of the time waited, and at most so much. Each
look costs Flower's server a request, and there is a thread for every reply."""

_ERRORS = {
    1: "load error: the device's app raised while it was loaded",
    2: "the device's app raised an exception",
    3: "the message was lost",
    5: "the device went away (its heartbeat stopped)",
    8: "the device's app process was killed",
}
"""Flower's error codes, in the record's words."""


def _content(body: bytes) -> RecordDict:
    head, data = parts_of(body)
    content = RecordDict({RECORD: ConfigRecord({BODY: head})})
    if data:
        content[DATA] = ConfigRecord({BODY: data})
    return content


class GridMailbox:
    """Sends through Flower's grid and reads its mailbox without waiting."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._awaited: set[str] = set()
        self._fetching: set[str] = set()
        self._arrived: queue.SimpleQueue[Reply] = queue.SimpleQueue()
        prepare_grid(grid, PART_POLL_S)

    def nodes(self) -> list[Node]:
        """Return the devices that Flower counts as connected."""
        return [
            Node(node.node_id, node.name, node.public_key, online=node.status == "online")
            for node in self._grid.get_nodes()
        ]

    def send(self, bodies: Mapping[int, bytes], group: str) -> dict[str, int]:
        """Send each node its message; return node ids by message id."""
        nodes = list(bodies)
        messages = [
            Message(
                _content(bodies[node]),
                dst_node_id=node,
                message_type="train",
                group_id=group,
            )
            for node in nodes
        ]
        ids = self._grid.push_messages(messages)
        return {message: node for message, node in zip(ids, nodes, strict=True) if message}

    def collect(self, messages: Iterable[str]) -> list[Reply]:
        """Return the answers that have arrived; one that is no longer asked for is given up."""
        self._awaited = set(messages)
        for message in self._awaited - self._fetching:
            self._fetching.add(message)
            threading.Thread(target=self._fetch, args=(message,), daemon=True).start()
        found = []
        while not self._arrived.empty():
            reply = self._arrived.get()
            if reply.message in self._awaited:
                found.append(reply)
        return found

    def _fetch(self, message: str) -> None:
        began_s = time.monotonic()
        while message in self._awaited:
            try:
                replies = [self._reply(reply) for reply in self._grid.pull_messages([message])]
            except Exception as error:
                # Flower's own retries are behind this: its server is gone or refuses.
                replies = [Reply(message, None, f"{type(error).__name__}: {error}")]
            for reply in replies:
                self._arrived.put(replace(reply, arrived_s=time.time()))
            if replies:
                return
            waited_s = time.monotonic() - began_s
            time.sleep(min(max(POLL_S, WAITED_SHARE * waited_s), MOST_POLL_S))

    def _reply(self, message: Message) -> Reply:
        answered = message.metadata.reply_to_message_id
        if message.has_error():
            code, reason = message.error.code, message.error.reason
            known = _ERRORS.get(code)
            return Reply(answered, None, known or f"Flower's error {code}: {reason}")
        record = message.content.config_records.get(RECORD)
        body = None if record is None else record.get(BODY)
        if not isinstance(body, bytes):
            return Reply(answered, None, "rejected: an answer without a body")
        return Reply(answered, body)
