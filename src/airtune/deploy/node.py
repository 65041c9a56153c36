"""The device's side of a deployment: the resident worker, the relay, and Flower's SuperNode."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from airtune.deploy.emulation import Emulated, emulated_profile
from airtune.deploy.forkserver import write_command
from airtune.deploy.keys import check_device_key
from airtune.deploy.pacing import Pacer, TcPacer, TokenBucket, Unpaced, relay
from airtune.deploy.processes import (
    check_clock,
    check_server,
    children,
    flower_command,
    flower_environment,
    free_port,
)
from airtune.deploy.protocol import Privacy
from airtune.deploy.resident import SOCKET_VARIABLE, Resident
from airtune.deploy.watch import Parts, Watch
from airtune.errors import InputError, RunError
from airtune.record.folder import make_closed_folder
from airtune.scenario import Scenario

_TRIED_BPS = 1e9
"""A rate that holds nothing back for the moment that it is on."""


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
    emulate: str | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Take part until interrupted; a lost server is waited for, however long.

    Args:
        scenario: this device's copy.
        client: the scenario's client that it plays.
        place: the server.
        folder: where the device keeps sockets, logs and its privacy ledger.
        privacy: protect every update, or None.
        emulate: take the time of this profile, or None; see `emulation.emulated_profile`.
        ready: called once the server has admitted the device and it looks for work.

    Raises:
        InputError: the server cannot be reached or is another, the key file is missing, or the
            uplink cannot be paced as `place` says.
        RunError: the device was turned away, or SuperNode ends again and again.
    """
    if place.key is not None:
        check_device_key(place.key)
    emulated = None
    if emulate is not None:
        emulated = Emulated(emulated_profile(emulate, scenario, client))
    bucket = TokenBucket()
    pacer = _pacer(place.pace, bucket)
    _check(place)
    make_closed_folder(folder, "--dir")

    from airtune.deploy.device import Device

    device = Device(scenario, client, pacer, folder, privacy, emulated)
    with ExitStack() as stack:
        # A folder of its own, closed to others and with a short name: the path of a Unix socket
        # may have 107 characters.
        sockets = Path(stack.enter_context(TemporaryDirectory(prefix="airtune-")))
        environment = flower_environment(
            folder.resolve() / "flower", **{SOCKET_VARIABLE: str(sockets / "resident")}
        )
        write_command(sockets, sockets / "fork")
        environment["PATH"] = f"{sockets}:{environment['PATH']}"
        # What is entered last ends first: SuperNode takes leave of the server through the relay,
        # unpaced, so that the next start is admitted at once.
        running, port = stack.enter_context(relay(place.server, bucket))
        stack.callback(Resident(sockets / "resident", device.handle).close)
        held = stack.enter_context(children(folder / "logs", environment))
        stack.callback(pacer.grant, None)
        fork = [sys.executable, "-m", "airtune.deploy.forkserver", str(sockets / "fork")]
        held.start("forkserver", fork)
        contact = sockets / "contact"
        watch = Watch(
            held,
            client,
            Parts(
                supernode=lambda: _supernode_command(place, port, contact),
                contact=contact,
                marker=folder / "admitted",
                check=lambda: _check(place),
                uplink_bytes=lambda: running.uplink_bytes,
            ),
            ready,
            lambda line: print(line, flush=True),
        )
        while True:
            time.sleep(0.2)
            watch.step()
            if "forkserver" in held.ended():
                held.start("forkserver", fork)


def _check(place: Place) -> None:
    check_server(place.server, place.authority)
    check_clock(place.server, place.authority)


def _supernode_command(place: Place, port: int, contact: Path) -> list[str]:
    flower_command("flower-supernode")  # a clear refusal where Flower is not installed
    command = [sys.executable, "-m", "airtune.deploy.supernode", str(contact)]
    command += [f"{place.poll_s:g}"]
    command += ["--superlink", f"127.0.0.1:{port}", "--port", str(free_port())]
    if place.authority is None:
        return [*command, "--insecure"]
    command += ["--root-certificates", str(place.authority)]
    if place.key is not None:
        command += ["--auth-supernode-private-key", str(place.key)]
    return command


def _tried(pacer: TcPacer, pace: str) -> TcPacer:
    """Pace once and lift it: what is missing is said before a round has been trained for nothing.

    Raises:
        InputError: no such interface, no `tc`, or no right to use it.
    """
    try:
        pacer.grant(_TRIED_BPS)
    except RunError as error:
        raise InputError(f"--pace '{pace}': {error}") from None
    pacer.grant(None)
    return pacer


def _pacer(pace: str, bucket: TokenBucket) -> Pacer:
    kind, _, interface = pace.partition(":")
    if kind == "relay" and not interface:
        return bucket
    if kind == "none" and not interface:
        return Unpaced()
    if kind == "tc" and interface:
        return _tried(TcPacer(interface), pace)
    raise InputError(f"--pace '{pace}': allowed are relay, none, tc:INTERFACE")
