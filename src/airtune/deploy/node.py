"""The device's side of a deployment: the resident worker, the relay, and Flower's SuperNode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from airtune.deploy.forkserver import write_command
from airtune.deploy.pacing import Pacer, TcPacer, TokenBucket, Unpaced, relay
from airtune.deploy.processes import (
    Children,
    check_server,
    children,
    flower_command,
    flower_environment,
    free_port,
    last_words,
)
from airtune.deploy.protocol import Privacy
from airtune.deploy.resident import SOCKET_VARIABLE, Resident
from airtune.errors import InputError, RunError
from airtune.scenario import Scenario

_TURNED_AWAY = "[code: 2004]"
"""Flower's server answers so where the key is unknown, and where it is in use."""
_FORGOTTEN_S = 75.0
"""The server counts a device that died without a word as connected for 60 s."""


@dataclass(frozen=True)
class Place:
    """Where a device reaches its server, and how both know each other.

    Attributes:
        server: host and port of the gateway.
        authority: `ca.crt`; None for a server without TLS.
        key: this device's private key; None for a server without authentication.
        pace: `relay`, `none`, or `tc:INTERFACE`.
        poll_s: longest wait between two looks for work.
    """

    server: tuple[str, int]
    authority: Path | None
    key: Path | None
    pace: str = "relay"
    poll_s: float = 0.5


def run_device(
    scenario: Scenario,
    client: str,
    place: Place,
    folder: Path,
    *,
    privacy: Privacy | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Take part until interrupted.

    Args:
        scenario: this device's copy.
        client: the scenario's client that it plays.
        place: the server.
        folder: where the device keeps sockets, logs and its privacy ledger.
        privacy: protect every update, or None.
        ready: called once the device looks for work.

    Raises:
        InputError: the server cannot be reached or is another, the key file is missing.
        RunError: the device was turned away.
    """
    if place.key is not None and not place.key.is_file():
        raise InputError(
            f"--key '{place.key}': no such file; `airtune deploy keys device` makes it"
        )
    bucket = TokenBucket()
    pacer = _pacer(place.pace, bucket)
    check_server(place.server, place.authority)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)

    from airtune.deploy.device import Device

    device = Device(scenario, client, pacer, folder, privacy)
    with ExitStack() as stack:
        # A folder of its own, closed to others and with a short name: the path of a Unix socket
        # may have 107 characters.
        sockets = Path(stack.enter_context(TemporaryDirectory(prefix="airtune-")))
        environment = flower_environment(
            folder.resolve() / "flower", **{SOCKET_VARIABLE: str(sockets / "resident")}
        )
        write_command(sockets, sockets / "fork")
        environment["PATH"] = f"{sockets}:{environment['PATH']}"
        held = stack.enter_context(children(folder / "logs", environment))
        _, port = stack.enter_context(relay(place.server, bucket))
        stack.callback(Resident(sockets / "resident", device.handle).close)
        stack.callback(pacer.grant, None)
        # Left behind by a device that died; a clean end removes it.
        stack.callback((folder / "connected").unlink, missing_ok=True)
        held.start(
            "forkserver",
            [sys.executable, "-m", "airtune.deploy.forkserver", str(sockets / "fork")],
        )
        marker = folder / "connected"
        patience_s = time.monotonic() + (_FORGOTTEN_S if marker.exists() else 0.0)
        held.start("supernode", _supernode_command(place, port))
        marker.touch()
        ready()
        _watch(held, client, lambda: _supernode_command(place, port), patience_s)


def _watch(
    held: Children, client: str, supernode: Callable[[], list[str]], patience_s: float
) -> None:
    """Wait for an end that is not ours; one that the server's memory explains is tried again."""
    told = False
    while True:
        time.sleep(0.2)
        if not (ended := held.ended()):
            continue
        log = held.log(ended[0])
        if _TURNED_AWAY not in log[-3000:]:
            raise RunError(f"client {client}: {ended[0]} ended: {last_words(log)}")
        if time.monotonic() > patience_s:
            raise RunError(
                f"client {client}: the server turned this device away: its key is not registered "
                "(`airtune deploy register`), or another device with the same key is connected"
            )
        if not told:
            print("the server still counts the last connection; trying again", flush=True)
            told = True
        time.sleep(3)
        held.start("supernode", supernode())


def _supernode_command(place: Place, port: int) -> list[str]:
    flower_command("flower-supernode")  # a clear refusal where Flower is not installed
    command = [sys.executable, "-m", "airtune.deploy.supernode", f"{place.poll_s:g}"]
    command += ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
    if place.authority is None:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(place.authority)]
    if place.key is not None:
        command += ["--auth-supernode-private-key", str(place.key)]
    return command


def _pacer(pace: str, bucket: TokenBucket) -> Pacer:
    kind, _, interface = pace.partition(":")
    if kind == "relay" and not interface:
        return bucket
    if kind == "none" and not interface:
        return Unpaced()
    if kind == "tc" and interface:
        return TcPacer(interface)
    raise InputError(f"--pace '{pace}': allowed are relay, none, tc:INTERFACE")
