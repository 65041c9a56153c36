"""Messages as Flower carries them: fields and arrays in records of their own, joined again."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from airtune.deploy.mailbox import _content
from airtune.deploy.protocol import Refusal, pack, parts_of
from airtune.deploy.resident import SOCKET_VARIABLE, Resident
from airtune.deploy.runs import APP

ARRAYS = {"values": np.arange(7, dtype=np.float32), "kept": np.zeros(3, dtype=np.uint8)}


def test_arrays_that_several_devices_are_sent_are_one_record() -> None:
    """Flower's server is sent them once: it knows records by their content."""
    bodies = [pack(Refusal(reason=reason), ARRAYS) for reason in ("a", "another")]
    assert all(b"".join(parts_of(body)) == body for body in bodies)
    first, second = (_content(body).config_records for body in bodies)
    assert first["data"].object_id == second["data"].object_id
    assert first["airtune"].object_id != second["airtune"].object_id
    assert set(_content(pack(Refusal(reason="none"))).config_records) == {"airtune"}


def test_a_device_joins_them_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[bytes] = []

    def handle(body: bytes) -> bytes:
        asked.append(body)
        return b"answer"

    resident = Resident(tmp_path / "socket", handle)
    monkeypatch.setenv(SOCKET_VARIABLE, str(resident.path))
    train: Any = runpy.run_path(str(APP / "airtune_flower" / "client_app.py"))["train"]
    # A real message is made only within one of Flower's tasks.
    monkeypatch.setitem(train.__globals__, "Message", lambda content, reply_to: content)
    bodies = [pack(Refusal(reason="a"), ARRAYS), pack(Refusal(reason="none"))]
    try:
        for body in bodies:
            answer = train(SimpleNamespace(content=_content(body)), None)
            assert answer.config_records["airtune"]["body"] == b"answer"
        with pytest.raises(TypeError, match="without a body"):
            train(SimpleNamespace(content=RecordDict()), None)
    finally:
        resident.close()
    assert asked == bodies
