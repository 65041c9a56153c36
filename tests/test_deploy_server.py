"""The server's three parts are kept running, and one server works on a state folder."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy import server
from airtune.deploy.listener import check_port
from airtune.deploy.processes import free_port
from airtune.deploy.server import ServerFolder
from airtune.errors import InputError, RunError

COMMANDS = {name: [name] for name in ("superlink", "superexec", "gateway")}


class Parts:
    """Says which parts have ended, look by look; the last look ends the test."""

    def __init__(self, looks: list[list[str]]) -> None:
        self.looks, self.started = looks, list[str]()

    def ended(self) -> list[str]:
        if not self.looks:
            raise KeyboardInterrupt
        return self.looks.pop(0)

    def start(self, name: str, command: list[str]) -> None:
        assert command == COMMANDS[name]
        self.started.append(name)

    def log(self, name: str) -> str:
        return f"one\nthe last words of {name}\n"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a look takes, and the time; nothing sleeps."""
    times = [0.5, 0.0]

    def sleep(wanted_s: float) -> None:
        times[1] += times[0]

    monkeypatch.setattr(server.time, "sleep", sleep)
    monkeypatch.setattr(server.time, "monotonic", lambda: times[1])
    return times


@pytest.mark.parametrize("name", COMMANDS)
def test_each_part_is_started_again_when_it_ends(
    name: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    parts: Any = Parts([[], [name], [], [name]])
    with pytest.raises(KeyboardInterrupt):
        server._keep_running(parts, COMMANDS)
    assert parts.started == [name, name]
    assert capsys.readouterr().out.count("ended; starting it again") == 2


def test_one_that_ends_again_and_again_ends_the_server(clock: list[float]) -> None:
    parts: Any = Parts([["gateway"]] * 20)
    with pytest.raises(RunError, match="gateway ended 11 times within 60 s: the last words of"):
        server._keep_running(parts, COMMANDS)
    assert parts.started == ["gateway"] * 10
    clock[0] = 7.0  # ten in seventy seconds are not too many
    patient: Any = Parts([["gateway"]] * 20)
    with pytest.raises(KeyboardInterrupt):
        server._keep_running(patient, COMMANDS)
    assert len(patient.started) == 20


def test_a_second_server_on_one_folder_is_refused(tmp_path: Path) -> None:
    state = ServerFolder(tmp_path)
    with (
        server._alone(state),
        pytest.raises(InputError, match="a server is running on this folder already"),
        server._alone(state),
    ):
        pass
    with server._alone(state):
        pass


@pytest.mark.parametrize("option", ["--port", "--metrics"])
def test_a_port_that_is_taken_is_refused_before_anything_starts(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.os, "umask", lambda mask: 0)
    monkeypatch.setattr(server, "_serve", lambda *given: pytest.fail("it was started"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken, free = other.getsockname()[1], free_port()
        port, metrics = (taken, None) if option == "--port" else (free, taken)

        def serve(host: str) -> None:
            state = ServerFolder(tmp_path / "state")
            server.serve(state, host, port, None, lambda: None, metrics_port=metrics)

        with pytest.raises(InputError, match=f"^{option} {taken}: cannot listen on 127.0.0.1:"):
            serve("127.0.0.1")
        with pytest.raises(InputError, match=f"^{option} {taken}: .*another program"):
            serve("localhost")


def test_a_port_can_be_had_again_at_once_and_a_strange_host_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), own.accept()[0] as accepted:
            accepted.shutdown(socket.SHUT_RDWR)  # its side waits for a while after the end
    for host in ("127.0.0.1", "0.0.0.0", "localhost"):
        check_port(host, port, "--port")
    with pytest.raises(InputError, match=r"--port 9443: cannot listen on 192\.0\.2\.1:9443: "):
        check_port("192.0.2.1", 9443, "--port")
    with pytest.raises(InputError, match=r"--host 'a\.\.b': no address"):
        check_port("a..b", port, "--port")


def test_the_two_ports_differ(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--port 9443 and --metrics 9443: give two ports"):
        server.serve(
            ServerFolder(tmp_path), "127.0.0.1", 9443, None, lambda: None, metrics_port=9443
        )


def test_a_folder_of_keys_may_have_quotes_in_its_name(tmp_path: Path) -> None:
    state, keys = ServerFolder(tmp_path / "state"), tmp_path / 'my "own" \\keys'
    state.home.mkdir(parents=True)
    server._write_connection(state, 9092, keys)
    written = tomllib.loads((state.home / "config.toml").read_text(encoding="utf-8"))
    assert written["superlink"]["airtune"]["root-certificates"] == str(keys / "ca.crt")
