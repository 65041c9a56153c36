"""The resident worker: one answer a request, whichever process carries it."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from airtune.deploy.resident import Resident, ask


def test_a_request_is_answered_and_the_socket_is_private(tmp_path: Path) -> None:
    path = tmp_path / "s"
    resident = Resident(path, lambda request: request[::-1])
    try:
        assert path.stat().st_mode & 0o077 == 0
        assert ask(path, b"abc") == b"cba"
        assert ask(path, b"") == b""
        big = bytes(5_000_000)
        assert ask(path, big) == big
    finally:
        resident.close()
    assert not path.exists()
    with pytest.raises(ConnectionError, match="no resident worker answers"):
        ask(path, b"abc")


def test_the_same_request_is_worked_on_once(tmp_path: Path) -> None:
    calls: list[bytes] = []
    begun, go_on = threading.Event(), threading.Event()

    def handle(request: bytes) -> bytes:
        calls.append(request)
        begun.set()
        go_on.wait(10)
        return b"done"

    resident = Resident(tmp_path / "s", handle)
    try:
        # The first carrier is killed in the middle of the work.
        carrier = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        carrier.connect(str(tmp_path / "s"))
        carrier.sendall(struct.pack("!Q", 3) + b"job")
        assert begun.wait(10)
        carrier.close()
        go_on.set()
        assert ask(tmp_path / "s", b"job") == b"done"
        assert ask(tmp_path / "s", b"job") == b"done"
        assert ask(tmp_path / "s", b"other") == b"done"
    finally:
        resident.close()
    assert calls == [b"job", b"other"]


def test_a_carrier_that_talks_nonsense_does_no_harm(tmp_path: Path) -> None:
    resident = Resident(tmp_path / "s", lambda request: request)
    try:
        for junk in (b"", b"\x00", b"\xff" * 8, struct.pack("!Q", 100) + b"short"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.connect(str(tmp_path / "s"))
                link.sendall(junk)
        assert ask(tmp_path / "s", b"still here") == b"still here"
    finally:
        resident.close()


def test_the_carrier_imports_nothing_heavy() -> None:
    code = (
        "import sys, airtune.deploy.resident\n"
        "print({'torch', 'numpy', 'pydantic', 'transformers'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
