"""Paced uploads: the bucket's bound, and the relay that keeps to it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.deploy import pacing
from airtune.deploy.node import Place, run_device
from airtune.deploy.pacing import (
    CHUNK_BYTES,
    URGENT_BYTES,
    TcPacer,
    TokenBucket,
    Urgent,
    relay,
    tbf,
)
from airtune.deploy.processes import free_port
from airtune.errors import InputError, RunError
from airtune.scenario import load_scenario

BURST = 8192


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(
    rate_bps=st.floats(1e3, 1e9),
    packets=st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_no_interval_carries_more_than_burst_and_rate(
    rate_bps: float, packets: list[tuple[int, float]]
) -> None:
    clock = Clock()
    bucket = TokenBucket(BURST, clock)
    bucket.grant(rate_bps)
    sent: list[tuple[float, int]] = []
    for size, pause_s in packets:
        clock.now += pause_s
        clock.now += bucket.take(size)
        sent.append((clock.now, size))
    for first, (begin, _) in enumerate(sent):
        carried = 0
        for at, size in sent[first:]:
            carried += size
            # A packet leaves once its debt is waited off, so the one that opens the interval
            # may stand outside the burst.
            assert carried <= BURST + sent[first][1] + (at - begin) * rate_bps / 8 + 1e-3


def test_a_busy_sender_gets_the_whole_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(BURST, clock)
    bucket.grant(1e6)
    begin = clock.now
    for _ in range(1000):
        clock.now += bucket.take(1000)
    assert clock.now - begin == pytest.approx((1_000_000 - BURST) * 8 / 1e6, rel=1e-9)


def test_without_a_grant_nothing_waits() -> None:
    bucket = TokenBucket(BURST, Clock())
    assert bucket.take(10**9) == 0
    bucket.grant(1e6)
    assert bucket.take(BURST) == 0
    assert bucket.take(1000) > 0
    bucket.grant(None)
    assert bucket.take(10**9) == 0
    with pytest.raises(InputError, match="above 0"):
        bucket.grant(0.0)


def test_the_relay_paces_uploads_and_not_downloads() -> None:
    received = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"d" * 200_000)
                while chunk := connection.recv(65536):
                    received.extend(chunk)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        bucket = TokenBucket(BURST)
        bucket.grant(4e5)
        with relay(server.getsockname(), bucket) as (running, port):
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                down = 0
                while down < 200_000:
                    down += len(client.recv(65536))
                begin = time.monotonic()
                client.sendall(b"u" * 30_000)
                client.shutdown(socket.SHUT_WR)
                assert client.recv(1) == b""
            took_s = time.monotonic() - begin
            thread.join(timeout=30)
            assert running.uplink_bytes == len(received) == 30_000
            assert running.downlink_bytes == 200_000
    # A lower bound holds on any machine: faster than the bucket allows is impossible.
    assert took_s >= (30_000 - BURST - URGENT_BYTES) * 8 / 4e5 * 0.99


def test_a_relay_without_a_server_resets_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    # A reset says "try again"; a plain close would look like a server that breaks TLS.
    monkeypatch.setattr(pacing, "REACH_S", 0.1)
    with (
        relay(("127.0.0.1", free_port()), TokenBucket()) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=10) as client,
        pytest.raises(ConnectionResetError),
    ):
        client.recv(1)


def test_a_request_that_stands_still_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing, "STALL_S", 0.3)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,  # accepts, and never answers
        relay(server.getsockname(), TokenBucket()) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=20) as client,
    ):
        client.sendall(b"a request")
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_an_upload_that_goes_on_is_not_ended_and_silence_without_a_request_neither(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pacing, "STALL_S", 1.0)
    bucket = TokenBucket(BURST)
    bucket.grant(1e5)  # 40 kB take 2 s and more
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        relay(server.getsockname(), bucket) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=20) as client,
    ):
        client.sendall(b"u" * 40_000)
        connection, _ = server.accept()
        with connection:
            received = 0
            while received < 40_000:
                received += len(connection.recv(65536))
            connection.sendall(b"thanks")
            assert client.recv(6) == b"thanks"
            time.sleep(2.0)
            connection.sendall(b"more")
            assert client.recv(4) == b"more"


def test_a_relay_waits_for_a_server_that_is_starting() -> None:
    address = ("127.0.0.1", free_port())
    with (
        relay(address, TokenBucket()) as (_, port),
        socket.create_connection(("127.0.0.1", port), timeout=10) as client,
    ):
        client.sendall(b"hello")
        time.sleep(0.5)  # the relay has tried and failed
        with socket.create_server(address) as server:
            server.settimeout(10)
            connection, _ = server.accept()
            with connection:
                assert connection.recv(5) == b"hello"


def test_a_sign_of_life_passes_ahead_of_an_update_and_an_update_does_not() -> None:
    clock = Clock()
    urgent = Urgent(clock)
    sent = 0
    while urgent.passes(1500):
        sent += 1500
    assert sent <= URGENT_BYTES < sent + 1500
    for _ in range(50):  # as an update would be: at the link's own pace, chunk after chunk
        clock.now += 0.01
        assert not urgent.passes(CHUNK_BYTES)
    clock.now += 8.0  # a heartbeat later
    assert urgent.passes(1500)


def test_tc_is_asked_for_the_rate() -> None:
    asked: list[Sequence[str]] = []
    pacer = TcPacer("wlan0", asked.append)
    pacer.grant(2e6)
    pacer.grant(None)
    assert asked[0] == ["qdisc", "replace", "dev", "wlan0", "root", *tbf(2e6)]
    assert "2000000bit" in asked[0]
    assert asked[1] == ["qdisc", "del", "dev", "wlan0", "root"]


def test_tc_that_fails_is_quoted() -> None:
    with pytest.raises(RunError, match="nowhere0"):
        TcPacer("nowhere0").grant(1e6)


def test_tc_is_tried_before_anything_else(tmp_path: Path) -> None:
    place = Place(("127.0.0.1", 1), None, None, "tc:nowhere0")
    with pytest.raises(InputError, match="--pace 'tc:nowhere0': "):
        run_device(load_scenario("tiny"), "jetson-orin-nano-1", place, tmp_path / "device")
    assert not (tmp_path / "device").exists()
