"""The gateway: what passes, what does not, and what it writes down; the meter that reads it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from airtune.deploy.door import Limits, fingerprint
from airtune.deploy.forkserver import write_command
from airtune.deploy.gateway import Gateway
from airtune.deploy.meter import (
    LogPosition,
    earlier_log,
    end_of_log,
    read_wire_log,
    recent_devices,
    wire_times,
)
from airtune.deploy.metrics import Metrics, serve_metrics
from airtune.deploy.processes import free_port
from gateway_server import Signer, Upstream, served

SIGNER = Signer()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "wire.jsonl"


@pytest.fixture
def gateway(log: Path) -> Iterator[str]:
    with (
        served(Upstream()) as inner,
        served(Gateway(inner, None, log, Limits(body_bytes=10_000))) as outer,
    ):
        yield outer


def test_devices_calls_pass_with_headers_and_body(gateway: str, log: Path) -> None:
    body = bytes(range(256)) * 30
    with httpx.Client() as client:
        answer = client.post(
            f"{gateway}/v1/fleet/push-object",
            content=body,
            headers=SIGNER.headers(flwr_own="kept", x_own="dropped"),
        )
    assert answer.status_code == 200
    assert answer.headers["x-up"] == "1"
    said, _, echoed = answer.content.partition(b"\n")
    assert json.loads(said) == ["/v1/fleet/push-object", "kept", False, len(body)]
    assert echoed == body
    while not (lines := read_wire_log(log)[0]):  # written once the answer is out
        time.sleep(0.01)
    (line,) = lines
    assert line["device"] == fingerprint(SIGNER.pem)
    assert (line["call"], line["status"], line["up_bytes"]) == ("push-object", 200, len(body))
    assert line["down_bytes"] == len(answer.content)
    assert line["begin_s"] <= line["uploaded_s"] <= line["end_s"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/control/start-run", 403),
        ("POST", "/v1/runtime/push-messages", 403),
        ("POST", "/v1/fleetx", 403),
        ("POST", "/v1/fleet/", 403),
        ("POST", "/v1/fleet/start-run", 403),
        ("POST", "/v1/fleet/register-node", 403),
        ("POST", "/x/v1/fleet/pull-messages", 403),
        ("POST", "/", 403),
        ("GET", "/v1/fleet/pull-messages", 405),
        ("DELETE", "/v1/fleet/pull-messages", 405),
    ],
)
def test_nothing_else_passes(gateway: str, log: Path, method: str, path: str, status: int) -> None:
    with httpx.Client() as client:
        assert (
            client.request(method, gateway + path, headers=SIGNER.headers()).status_code == status
        )
    assert not log.exists()


@pytest.mark.parametrize(
    "path", ["/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run"]
)
def test_a_path_does_not_climb_out(gateway: str, path: str) -> None:
    host, port = gateway.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as link:
        link.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
        status = link.recv(1000).split()[1]
    assert status == b"403"


def test_a_body_has_a_limit(gateway: str) -> None:
    with httpx.Client() as client:
        answer = client.post(
            f"{gateway}/v1/fleet/push-object", content=b"x" * 20_000, headers=SIGNER.headers()
        )
    assert answer.status_code == 503  # not accepted yet: it may become one that is
    with httpx.Client() as client:
        client.post(f"{gateway}/v1/fleet/get-run", headers=SIGNER.headers())
        answer = client.post(
            f"{gateway}/v1/fleet/push-object", content=b"x" * 20_000, headers=SIGNER.headers()
        )
    assert answer.status_code == 413


def test_a_server_that_is_away_is_tried_again_later(log: Path) -> None:
    app = Gateway(f"http://127.0.0.1:{free_port()}", None, log)
    with served(app) as outer, httpx.Client() as client:
        answer = client.post(f"{outer}/v1/fleet/pull-messages", headers=SIGNER.headers())
        assert answer.status_code == 503


def test_without_keys_a_transfer_is_logged_by_the_key_that_it_names(log: Path) -> None:
    unsigned = SIGNER.headers(flwr_signature="none")
    with (
        served(Upstream()) as inner,
        served(Gateway(inner, None, log, signed=False)) as outer,
        httpx.Client() as client,
    ):
        for headers in (unsigned, {}, {"flwr-public-key": "ä".encode()}):
            assert client.post(f"{outer}/v1/fleet/get-run", headers=headers).status_code == 200
    lines, _ = read_wire_log(log)
    assert [line["device"] for line in lines] == [fingerprint(SIGNER.pem), None, None]
    assert recent_devices(log) == set()  # a key that has signed nothing is not trusted later


def call(name: str, begin: float, **values: Any) -> dict[str, Any]:
    return {
        "device": "d1", "call": name, "status": 200, "begin_s": begin, "uploaded_s": begin,
        "answered_s": begin, "end_s": begin, "up_bytes": 0, "down_bytes": 0, **values,
    }  # fmt: skip


TIMES = ("begin_s", "uploaded_s", "answered_s", "end_s")
ROUND = [
    call("pull-messages", 10.0),
    call("pull-object", 10.50, end_s=10.51, down_bytes=100),
    call("pull-object", 10.52, end_s=10.52, down_bytes=2),  # not there yet
    call("pull-object", 11.53, answered_s=11.9, end_s=13.0, down_bytes=200),  # read, then sent
    call("confirm-message-received", 13.0),
    call("push-messages", 20.0, uploaded_s=20.01, up_bytes=50),
    call("push-object", 20.02, up_bytes=500, uploaded_s=22.0),
    call("push-object", 20.03, up_bytes=600, uploaded_s=24.0),
    call("push-object", 24.5, up_bytes=5, uploaded_s=24.6),
]


def test_a_round_is_read_from_its_requests() -> None:
    times = wire_times(ROUND, since_s=9.0)["d1"]
    assert times.downlink_s == pytest.approx(0.01 + 1.1)
    assert times.upload_s == pytest.approx(4.0 + 0.1)
    assert (times.downlink_bytes, times.uplink_bytes) == (300, 1155)


def test_rounds_before_and_half_rounds_do_not_count() -> None:
    assert wire_times(ROUND, since_s=11.0)["d1"].downlink_s == pytest.approx(1.1)
    assert wire_times(ROUND, since_s=15.0) == {}
    assert wire_times(ROUND[:6], since_s=9.0) == {}
    greeting = [{**line, **{key: line[key] - 20 for key in TIMES}} for line in ROUND]
    assert wire_times(greeting + ROUND, since_s=-20.0) == wire_times(ROUND, since_s=9.0)
    refused = [{**line, "status": 401} for line in ROUND]
    assert wire_times(refused, since_s=0.0) == {}


def test_the_log_is_read_line_by_line(log: Path) -> None:
    assert read_wire_log(log) == ([], LogPosition())
    log.write_text('{"a": 1}\n{"b"')
    lines, offset = read_wire_log(log)
    assert lines == [{"a": 1}]
    with log.open("a") as file:
        file.write(": 2}\n")
    assert read_wire_log(log, offset)[0] == [{"b": 2}]
    assert read_wire_log(log, end_of_log(log))[0] == []


def test_the_log_is_read_across_a_new_file(log: Path) -> None:
    assert end_of_log(log) == LogPosition()
    log.write_text('{"a": 1}\n')
    began = end_of_log(log)
    with log.open("a") as file:
        file.write('{"b": 2}\nhalf a li\n')
    log.rename(earlier_log(log))
    log.write_text('{"c": 3}\n')
    lines, position = read_wire_log(log, began)
    assert lines == [{"b": 2}, {"c": 3}]
    assert read_wire_log(log, position) == ([], position)


def test_the_stand_in_command_becomes_the_real_one_where_nobody_forks(tmp_path: Path) -> None:
    write_command(tmp_path, tmp_path / "nobody.sock")
    done = subprocess.run(
        [tmp_path / "flwr-clientapp", "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
    assert "Run a Flower ClientApp" in done.stdout


def test_the_fork_server_runs_the_command_with_its_output_and_status(tmp_path: Path) -> None:
    path = tmp_path / "fork.sock"
    write_command(tmp_path, path)
    server = subprocess.Popen([sys.executable, "-m", "airtune.deploy.forkserver", str(path)])
    try:
        deadline = time.monotonic() + 30
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        command = tmp_path / "flwr-clientapp"
        shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
        assert shown.returncode == 0
        assert "Run a Flower ClientApp" in shown.stdout
        wrong = subprocess.run([command, "--nonsense"], capture_output=True, text=True, check=False)
        assert wrong.returncode == 2
        assert "unrecognized arguments" in wrong.stderr + shown.stderr or "token" in wrong.stderr
    finally:
        server.terminate()
        server.wait()


def test_a_long_head_at_the_metrics_closes_the_connection() -> None:
    async def ask() -> list[dict[str, object]]:
        faults: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, fault: faults.append(fault))
        server = await serve_metrics(Metrics(lambda: 0), 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 20_000)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 4) == b""
            writer.close()
        return faults

    assert asyncio.run(ask()) == []
