"""Attacks on the gateway: keys, headers, bodies, senders; what it lets through and writes down."""

from __future__ import annotations

import base64
import datetime
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from airtune.deploy import gateway as gateway_module
from airtune.deploy.door import Accepted, Held, Limits, Refused, signer_of
from airtune.deploy.envelope import fault_of_push
from airtune.deploy.gateway import Gateway
from airtune.deploy.listener import Connection, check_host
from airtune.deploy.meter import earlier_log, read_wire_log
from airtune.deploy.metrics import Metrics
from airtune.errors import InputError
from gateway_server import Signer, Upstream, served

LIMITS = Limits(
    header_s=0.5, stall_s=0.5, stranger_s=0.5, stranger_bytes=1000, body_bytes=100_000,
    call_bytes=5000, requests_per_key=4, bytes_per_key=150_000, connections_per_address=20,
)  # fmt: skip
NOW = datetime.datetime.now(datetime.UTC)


@pytest.fixture(scope="module")
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("door") / "wire.jsonl"


@pytest.fixture(scope="module")
def app(upstream: Upstream, log: Path) -> Iterator[tuple[Gateway, str]]:
    before, Connection.limits = Connection.limits, LIMITS
    with served(upstream) as inner:
        gateway = Gateway(inner, None, log, LIMITS)
        bounded = {"http": Connection, "h11_max_incomplete_event_size": LIMITS.header_bytes}
        with served(gateway, **bounded) as url:
            yield gateway, url
    Connection.limits = before


@pytest.fixture
def url(app: tuple[Gateway, str], upstream: Upstream) -> str:
    upstream.calls.clear()
    upstream.received_bytes, upstream.status = 0, 200
    return app[1]


def post(url: str, call: str = "get-run", **arguments: Any) -> httpx.Response:
    with httpx.Client(timeout=20) as client:
        return client.post(f"{url}/v1/fleet/{call}", **arguments)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def accepted(url: str) -> Signer:
    """Return a signer that the stand-in for Flower's server has answered."""
    signer = Signer()
    assert post(url, headers=signer.headers()).status_code == 200
    return signer


def bad_keys() -> dict[str, tuple[dict[str, str], str]]:
    good, other = Signer(), Signer()
    rsa_like = base64.b64encode(
        b"-----BEGIN PUBLIC KEY-----\nxx\n-----END PUBLIC KEY-----"
    ).decode()
    edwards = ed25519.Ed25519PrivateKey.generate().public_key()
    wrong_kind = base64.b64encode(Signer.pem_of(edwards)).decode()
    mixed = {**good.headers(), "flwr-public-key": other.headers()["flwr-public-key"]}
    return {
        "no key": ({}, "flwr-public-key is needed"),
        "no signature": ({**good.headers(), "flwr-signature": ""}, "does not fit"),
        "not base64": (good.headers(flwr_public_key="%%%\x7f"), "cannot be read"),
        "not a key": (good.headers(flwr_public_key=rsa_like), "cannot be read"),
        "another kind of key": (good.headers(flwr_public_key=wrong_kind), "cannot be read"),
        "huge": (good.headers(flwr_public_key="A" * 8000), "is needed"),
        "another's key": (mixed, "does not fit"),
        "no time": (good.headers(flwr_timestamp="yesterday"), "cannot be read"),
        "no zone": (good.headers(flwr_timestamp="2026-01-01T00:00:00"), "cannot be read"),
        "another time": (good.headers(flwr_timestamp=NOW.isoformat()), "does not fit"),
        "an old request": (good.headers(ago_s=400), "400 s behind the server's"),
        "a clock ahead": (good.headers(ago_s=-60), "ahead of the server's"),
    }


@pytest.mark.parametrize("case", bad_keys())
def test_a_key_that_is_not_one_gets_an_answer(url: str, upstream: Upstream, case: str) -> None:
    headers, said = bad_keys()[case]
    answer = post(url, "push-object", headers=headers, content=b"x" * 500)
    assert answer.status_code == 401
    assert said in answer.text
    assert upstream.calls == []


@given(st.dictionaries(st.sampled_from(["flwr-public-key", "flwr-timestamp", "flwr-signature"]),
                       st.binary(max_size=300)))  # fmt: skip
def test_any_headers_are_refused_in_one_way(changes: dict[str, bytes]) -> None:
    values = {name: value.encode() for name, value in SIGNER.headers().items()}
    headers = [(name.encode(), value) for name, value in {**values, **changes}.items()]
    if not changes:
        signer_of(headers, datetime.datetime.now(datetime.UTC))
        return
    with pytest.raises(Refused):
        signer_of(headers, datetime.datetime.now(datetime.UTC))


SIGNER = Signer()


def test_two_keys_in_one_request_are_none(url: str) -> None:
    headers = [*Signer().headers().items(), *Signer().headers().items()]
    assert post(url, headers=headers).status_code == 401


def test_a_body_of_a_key_that_was_not_accepted_is_not_read(url: str, upstream: Upstream) -> None:
    stranger = Signer()
    answer = post(url, "push-object", headers=stranger.headers(), content=b"x" * 90_000)
    assert (answer.status_code, upstream.calls) == (503, [])
    assert "not accepted this key" in answer.text
    chunks = (b"x" * 500 for _ in range(40))  # no length is declared
    answer = post(url, "push-object", headers=stranger.headers(), content=chunks)
    assert answer.status_code == 503
    assert upstream.received_bytes < 2 * LIMITS.stranger_bytes
    friend = accepted(url)
    answer = post(url, "push-object", headers=friend.headers(), content=b"x" * 90_000)
    assert answer.status_code == 200
    answer = post(url, "push-object", headers=friend.headers(), content=b"x" * 110_000)
    assert answer.status_code == 413
    assert post(url, headers=friend.headers(), content=b"x" * 6000).status_code == 413


def test_a_key_that_the_server_refuses_is_a_stranger_again(url: str, upstream: Upstream) -> None:
    revoked = accepted(url)
    upstream.status = 401
    assert post(url, headers=revoked.headers()).status_code == 401
    answer = post(url, "push-object", headers=revoked.headers(), content=b"x" * 90_000)
    assert answer.status_code == 503


def test_headers_have_a_number_and_a_size(url: str, upstream: Upstream) -> None:
    headers = SIGNER.headers()
    many = {f"x-{i}": "1" for i in range(80)}
    assert post(url, headers={**headers, **many}).status_code == 431
    # 15 kB in one header pass the parser's buffer, 17 kB do not.
    assert post(url, headers={**headers, "x-large": "1" * 16_300}).status_code in (400, 431)
    assert post(url, headers={**headers, "x-large": "1" * 100_000}).status_code in (400, 431)
    both = {**headers, "transfer-encoding": "chunked", "content-length": "3"}
    assert post(url, headers=both, content=iter([b"abc"])).status_code in (400, 401)
    assert upstream.calls == []


def test_an_endless_header_is_cut_off(url: str) -> None:
    with connect(url) as link:
        link.sendall(b"POST /v1/fleet/get-run HTTP/1.1\r\n")
        sent = 0
        try:
            for i in range(20_000):
                sent += link.send(b"x-%d: 1\r\n" % i)
        except OSError:
            pass
        assert sent < 20 * LIMITS.header_bytes
    assert post(url, headers=SIGNER.headers()).status_code == 200


def closed_after_s(link: socket.socket) -> float:
    begin = time.monotonic()
    try:
        while link.recv(1000):
            pass
    except ConnectionError:
        pass
    return time.monotonic() - begin


@pytest.mark.parametrize(
    "begin",
    [b"", b"POST /v1/fleet/get-run HTTP/1.1\r\nx-a: 1\r\n", b"\x16\x03\x01"],
    ids=["silent", "half a header", "not HTTP"],
)
def test_a_connection_without_a_request_is_closed(url: str, begin: bytes) -> None:
    with connect(url) as link:
        link.sendall(begin)
        assert closed_after_s(link) < 15


def test_a_slow_body_holds_nobody_up(url: str, upstream: Upstream) -> None:
    head = "".join(f"{name}: {value}\r\n" for name, value in SIGNER.headers().items())
    with connect(url) as link:
        start = f"POST /v1/fleet/get-run HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n{head}\r\nab"
        link.sendall(start.encode())
        assert post(url, headers=Signer().headers()).status_code == 200
        assert b"503" in link.recv(1000)
    assert upstream.calls == ["/v1/fleet/get-run"]


def test_connections_of_one_address_are_bounded(url: str) -> None:
    links = [connect(url) for _ in range(30)]
    try:
        open_links = 0
        for link in links:
            link.settimeout(0.05)
            try:
                open_links += link.recv(1) != b""
            except TimeoutError:
                open_links += 1
            except OSError:
                pass
        assert open_links <= LIMITS.connections_per_address
    finally:
        for link in links:
            link.close()


def test_what_a_key_holds_is_bounded_and_given_back() -> None:
    held = Held(LIMITS)
    for _ in range(LIMITS.requests_per_key):
        held.enter("a")
    with pytest.raises(Refused):
        held.enter("a")
    held.enter("b")
    held.take("a", 150_000)
    with pytest.raises(Refused, match="of this key"):
        held.take("a", 1)
    total = Held(Limits(bytes_at_once=100))
    total.take("a", 60)
    with pytest.raises(Refused, match="too much at once"):
        total.take("b", 60)
    for size in (150_000, 0, 0, 0):
        held.leave("a", size)
    held.leave("b", 0)
    assert not held.requests
    assert not held.body_bytes


def test_nothing_is_held_afterwards(url: str, app: tuple[Gateway, str]) -> None:
    friend = accepted(url)

    def push() -> None:
        post(url, "push-object", headers=friend.headers(), content=b"x" * 90_000)

    threads = [threading.Thread(target=push) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held, deadline_s = app[0]._held, time.monotonic() + 10
    while held.requests and time.monotonic() < deadline_s:
        time.sleep(0.01)  # it is given back after the answer
    assert not held.requests
    assert not held.body_bytes


def push(
    node: int = 7, source: int = 7, target: int = 1, reply_to: str = "m", count: int = 1
) -> bytes:
    from flwr.proto.fleet_pb2 import PushMessagesRequest
    from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
    from flwr.proto.node_pb2 import Node

    metadata = Metadata(src_node_id=source, dst_node_id=target, reply_to_message_id=reply_to)
    request = PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[Message(metadata=metadata)] * count,
        message_object_trees=[ObjectTree(object_id="o")] * count,
    )
    return bytes(request.SerializeToString())


FORGED = {
    "another sender": (push(source=8), "claims another sender"),
    "no node": (push(node=0), "claims another sender"),
    "to another device": (push(target=9, reply_to=""), "not an answer"),
    "an answer to another device": (push(target=9), "not an answer"),
    "an instruction to the server": (push(reply_to=""), "not an answer"),
    "two messages": (push(count=2), "one message"),
    "none": (push(count=0), "one message"),
    "rubbish": (b"\xff\xff\xff", "not a message"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_message_is_from_its_signer_to_the_server(
    url: str, upstream: Upstream, case: str
) -> None:
    body, said = FORGED[case]
    answer = post(url, "push-messages", headers=SIGNER.headers(), content=body)
    assert answer.status_code == 403
    assert said in answer.text
    assert upstream.calls == []
    answer = post(url, "push-messages", headers=SIGNER.headers(), content=push())
    assert answer.status_code == 200


@given(st.binary(max_size=200))
def test_any_push_is_judged(body: bytes) -> None:
    fault = fault_of_push(body)
    assert fault is not None


def test_escape_codes_reach_no_log(url: str, log: Path) -> None:
    with connect(url) as link:
        link.sendall(b"POST /v1/fleet/\x1b[2J HTTP/1.1\r\nhost: \x1b]0;x\x07\r\n\r\n")
        assert b"HTTP/1.1 4" in link.recv(1000)
    agent = {"user-agent": "\x1b[31mred", **SIGNER.headers()}
    assert post(url, headers=agent).status_code in (200, 400)
    text = log.read_text() if log.exists() else ""
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_looks_for_work_that_found_none_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    log, signer = tmp_path / "wire.jsonl", Signer()
    monkeypatch.setattr(gateway_module, "MOST_LOG_BYTES", 500)
    with served(nothing, lifespan="off") as inner:
        gateway = Gateway(inner, None, log)
        with served(gateway) as url:
            for call in ["pull-messages"] * 5 + ["send-node-heartbeat"] * 6:
                assert post(url, call, headers=signer.headers()).status_code == 200
        lines, _ = read_wire_log(log)
        both = lines + read_wire_log(earlier_log(log))[0]
        assert {line["call"] for line in both} == {"send-node-heartbeat"}
        assert log.stat().st_size < 1000
        # A gateway that is started again knows its devices, and their uploads go on.
        with served(Gateway(inner, None, log)) as url:
            answer = post(url, "push-object", headers=signer.headers(), content=b"x" * 90_000)
            assert answer.status_code == 200


def test_the_server_without_tls_listens_on_loopback_alone() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_host(host)
    for host in ("0.0.0.0", "::", "192.0.2.1", "server.example"):
        with pytest.raises(InputError, match="--insecure"):
            check_host(host)


def test_keys_are_learnt_from_answers() -> None:
    keys = Accepted({"a"})
    keys.answered("b", 200)
    keys.answered("a", 401)
    keys.answered("c", 503)
    assert ("a" in keys, "b" in keys, "c" in keys, len(keys)) == (False, True, False, 1)


def test_metrics_are_prometheus_text(app: tuple[Gateway, str], url: str) -> None:
    accepted(url)
    post(url, headers={})
    text = app[0].metrics.text()
    assert 'airtune_gateway_requests_total{call="get-run",status="200"}' in text
    assert 'airtune_gateway_refused_total{reason="one header' in text
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
    crowded = Metrics(accepted_keys=lambda: 0)
    for i in range(500):
        crowded.refused(f'reason "{i}"\n')
    assert len(crowded.text().splitlines()) < 100
    assert json.dumps(crowded.text())
