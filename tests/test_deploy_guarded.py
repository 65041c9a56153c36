"""Flower's server closed to other users: whose a connection is, and where tokens are."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest

from airtune.deploy.guarded import SOCKETS, SameUser, user_of, with_token_file

LISTED = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:2383 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0
   1: 0100007F:C350 0100007F:2383 01 00000000:00000000 00:00000000 00000000  1234        0 2 1 0
   2: 0100007F:C351 0100007F:2383 01 00000000:00000000 00:00000000 00000000  {own}        0 3 1 0
"""
SERVER = ("127.0.0.1", 0x2383)


@pytest.fixture
def sockets(tmp_path: Path) -> Path:
    path = tmp_path / "tcp"
    path.write_text(LISTED.replace("{own}", str(os.getuid())))
    return path


def test_the_kernel_says_whose_a_connection_is(sockets: Path) -> None:
    assert user_of(("127.0.0.1", 0xC350), SERVER, sockets) == 1234
    assert user_of(("127.0.0.1", 0xC351), SERVER, sockets) == os.getuid()
    assert user_of(("127.0.0.1", 0xC352), SERVER, sockets) is None
    assert user_of(("127.0.0.2", 0xC350), SERVER, sockets) is None


@pytest.mark.skipif(not SOCKETS.exists(), reason="the kernel lists no sockets (not Linux)")
def test_a_real_connection_is_ones_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
        with socket.create_connection(address) as link:
            assert user_of(link.getsockname(), address) == os.getuid()


def asked(sockets: Path, port: int) -> httpx.Response:
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"runs"})

    async def ask() -> httpx.Response:
        guarded = SameUser(answer, sockets)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            changed = {**scope, "client": ("127.0.0.1", port), "server": SERVER}
            await guarded(changed, receive, send)

        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.post("/v1/control/list-runs")

    return asyncio.run(ask())


def test_another_users_process_is_refused(sockets: Path, tmp_path: Path) -> None:
    assert asked(sockets, 0xC351).text == "runs"
    for port in (0xC350, 0xC352):  # another's, and one that is not listed
        refused = asked(sockets, port)
        assert refused.status_code == 403
        assert "alone" in refused.text
    assert asked(tmp_path / "none", 0xC350).text == "runs"  # not Linux


def test_a_token_travels_in_a_file(tmp_path: Path) -> None:
    command = ["flwr-serverapp", "--runtime-api-address", "x", "--token", "secret", "--insecure"]
    changed, file = with_token_file(command, tmp_path)
    assert file is not None
    assert "secret" not in " ".join(changed)
    assert changed[3:] == ["--token-file", str(file), "--insecure"]
    assert file.read_text() == "secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert with_token_file(["a", "b"], tmp_path) == (["a", "b"], None)
