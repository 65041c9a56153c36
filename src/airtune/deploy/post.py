"""Flower's grid as `Post`: one message a device, each with a body of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from airtune.deploy.roster import Node, Reply

RECORD, BODY = "airtune", "body"

_ERRORS = {
    1: "load error: the device's app raised while it was loaded",
    2: "the device's app raised an exception",
    3: "the message was lost",
    5: "the device went away (its heartbeat stopped)",
    8: "the device's app process was killed",
}
"""Flower's error codes, in the record's words."""


class GridPost:
    """Sends through Flower's grid and reads its mailbox without waiting."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

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
                RecordDict({RECORD: ConfigRecord({BODY: bodies[node]})}),
                dst_node_id=node,
                message_type="train",
                group_id=group,
            )
            for node in nodes
        ]
        ids = self._grid.push_messages(messages)
        return {message: node for message, node in zip(ids, nodes, strict=True) if message}

    def collect(self, messages: Iterable[str]) -> list[Reply]:
        """Return the answers that have arrived."""
        return [self._reply(message) for message in self._grid.pull_messages(messages)]

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
