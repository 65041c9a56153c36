"""Flower's private names: each is there, and what replaces it does what it is for."""

from __future__ import annotations

import socket
import ssl
import threading
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import httpx
import pytest

from airtune.deploy import flower_names
from airtune.deploy.flower_names import (
    IDLE_POLL_S,
    TURNED_AWAY,
    UNAUTHORISED,
    USED,
    Idle,
    Name,
    patient,
)
from airtune.deploy.keys import make_server_keys

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("used", USED, ids=lambda used: f"{used.module}.{used.name}")
def test_a_private_name_is_still_there(used: Name) -> None:
    gone = (
        f"Flower {metadata.version('flwr')} has no {used.module}.{used.name}, which {used.purpose}."
        f" What to do: {used.instead}."
    )
    try:
        module = import_module(used.module)
    except ImportError:
        pytest.fail(gone)
    assert hasattr(module, used.name), gone


def test_no_other_file_reaches_into_flower() -> None:
    public = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.proto")
    for path in sorted((ROOT / "src" / "airtune").rglob("*.py")):
        if path.name == "flower_names.py":
            continue
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].split(".")[0] == "flwr":
                assert words[1].startswith(public), f"{path}: {line.strip()}"


def test_the_names_inside_are_used_as_flower_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
    from flwr.proto.message_pb2 import PushObjectRequest
    from flwr.supercore import heartbeat
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.superlink.grid import http_grid
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.runtime import run_clientapp

    asked: list[dict[str, Any]] = []

    def ask(self: object, **request: Any) -> Any:
        asked.append(request)
        return PullMessagesResponse()

    monkeypatch.setattr(ProtobufClient, "_unary_unary", ask)
    changed = (fleet_http_connection, heartbeat, start_client_internal, http_grid, run_clientapp)
    before = [dict(vars(module)) for module in changed]
    try:
        entry = flower_names.prepare_supernode(0.2, lambda _: None, lambda _: None, lambda: None)
        assert callable(entry)
        assert callable(fleet_http_connection.FleetHttpClient.SendNodeHeartbeat)
        client = fleet_http_connection.FleetHttpClient("http://127.0.0.1:1")
        client.PushObject(PushObjectRequest(object_content=b"x"))
        client.PullMessages(PullMessagesRequest())
        upload, look = asked
        assert upload["timeout"].read == flower_names.UPLOAD_S
        assert upload["timeout"].connect == flower_names.ANSWER_S
        assert look.get("timeout") is None
        sender = heartbeat.HeartbeatSender(lambda: True)
        waits = sender._retry_invoker.wait_gen_factory()
        assert max(next(waits) for _ in range(9)) <= flower_names.MOST_BACKOFF_S
        invoker = fleet_http_connection.make_simple_http_retry_invoker()
        assert not invoker.should_giveup(httpx.ConnectError("[SSL: UNEXPECTED_EOF_WHILE_READING]"))
        waits = invoker.wait_gen_factory()
        assert max(next(waits) for _ in range(9)) == flower_names.MOST_BACKOFF_S
        start_client_internal.time.sleep(0.001)
        assert callable(flower_names.client_process())
        grid = http_grid.HttpGrid("127.0.0.1:1", insecure=True, token="t")
        flower_names.prepare_grid(grid, 0.2)
        assert not grid._retry_invoker.should_giveup(httpx.ReadError("ssl"))
    finally:
        for module, values in zip(changed, before, strict=True):
            vars(module).update(values)


def broken_handshakes(listener: socket.socket, keys: Path, times: int) -> None:
    """Close this many connections in the middle of their TLS handshake, then answer one request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.crt", keys / "server.key")
    for _ in range(times):
        connection, _ = listener.accept()
        connection.recv(65536)  # all of it: with bytes unread the close would be a reset
        connection.close()
    connection, _ = listener.accept()
    with context.wrap_socket(connection, server_side=True) as secured:
        secured.recv(65536)
        secured.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


def test_a_broken_handshake_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.retry import make_simple_http_retry_invoker

    make_server_keys(tmp_path, ["127.0.0.1"])
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        work = threading.Thread(target=broken_handshakes, args=(listener, tmp_path, 2))
        work.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        with httpx.Client(verify=context, trust_env=False) as client:
            # As it comes, Flower gives up for good at the first of them.
            with pytest.raises(httpx.TransportError):
                make_simple_http_retry_invoker().invoke(client.get, url)
            invoker = patient(make_simple_http_retry_invoker())
            monkeypatch.setattr(invoker, "wait_function", lambda wait_s: None)
            assert invoker.invoke(client.get, url).text == "ok"
        work.join(timeout=10)


def test_who_is_not_admitted_is_told_of() -> None:
    from flwr.supercore.retry import make_simple_http_retry_invoker

    told: list[int] = []
    invoker = make_simple_http_retry_invoker()
    invoker.should_giveup = lambda error: True
    patient(invoker, told.append)

    def answer(status: int) -> httpx.HTTPStatusError:
        request = httpx.Request("POST", "https://x/")
        return httpx.HTTPStatusError("", request=request, response=httpx.Response(status))

    assert not invoker.should_giveup(answer(TURNED_AWAY))
    assert invoker.should_giveup(answer(UNAUTHORISED))
    assert invoker.should_giveup(answer(400))
    assert told == [TURNED_AWAY, UNAUTHORISED]


def test_a_part_that_takes_long_is_not_given_up() -> None:
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
    from flwr.supernode import start_client_internal

    looks = iter(range(700))

    def pull(object_id: str) -> bytes:
        if next(looks) < 600:
            raise ObjectUnavailableError(object_id)
        return b"there"

    often = flower_names._looking_often(start_client_internal.pull_objects, 1e-4)
    assert often(["a"], pull) == {"a": b"there"}


def test_looks_are_rare_only_where_no_message_is_to_be_expected() -> None:
    now = [0.0]
    idle = Idle(0.5, lambda: now[0])

    def at(time_s: float) -> float:
        now[0] = time_s
        return idle.wait_s(3.0)

    # Before the first message: a tenth of the silence.
    assert at(4.0) == 0.5
    assert at(20.0) == pytest.approx(2.0)
    assert at(100.0) == IDLE_POLL_S
    # A greeting, a rehearsal of some minutes, rounds of a minute: a fiftieth of the silence.
    idle.received()
    assert at(109.0) == 0.5
    assert at(140.0) == pytest.approx(0.8)
    assert at(300.0) == pytest.approx(4.0)
    idle.received()
    idle.sent()
    assert at(300.1) == 0.5
    for begin_s, waited_s in ((360.0, 1.2), (420.0, 0.6), (480.0, 0.6)):
        assert at(begin_s) == pytest.approx(waited_s)
        idle.received()
        now[0] = begin_s + 30.0
        idle.sent()
        assert at(begin_s + 31.0) == 0.5
    # Twice the last round and a minute later none is expected.
    assert at(480.0 + 175.0) == pytest.approx(0.02 * 145.0)
    assert at(480.0 + 185.0) == IDLE_POLL_S
    # A pause of an hour is forgotten after some rounds.
    now[0] = 4000.0
    idle.received()
    for begin_s in range(4060, 4660, 60):
        now[0] = float(begin_s)
        idle.received()
    assert at(4600.0 + 185.0) == IDLE_POLL_S
    assert idle.wait_s(0.5) == 0.5  # within a message the silence does not matter
    assert Idle(10.0, lambda: now[0]).wait_s(3.0) == 10.0
