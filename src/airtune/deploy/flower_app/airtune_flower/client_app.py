"""The device's end: carries a message to the resident worker and its answer back."""

from __future__ import annotations

import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from airtune.deploy.resident import SOCKET_VARIABLE, ask

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Hand the body over; every check and all work are the resident worker's."""
    records = message.content.config_records
    # The header, and the arrays where there are any: a record of their own.
    found = [records[name]["body"] for name in ("airtune", "data") if name in records]
    parts = [part for part in found if isinstance(part, bytes)]
    if not parts or len(parts) < len(found):
        raise TypeError("a message without a body")
    answer = ask(os.environ[SOCKET_VARIABLE], b"".join(parts))
    return Message(RecordDict({"airtune": ConfigRecord({"body": answer})}), reply_to=message)
