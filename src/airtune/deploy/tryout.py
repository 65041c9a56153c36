"""A whole deployment on this machine: server, devices and one run, with TLS and fresh keys."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from airtune.deploy import admission, runs
from airtune.deploy.keys import make_device_key, make_server_keys
from airtune.deploy.processes import Children, children, free_port, last_words
from airtune.deploy.server import ServerFolder
from airtune.errors import RunError
from airtune.scenario import Scenario

_CLI = [sys.executable, "-c", "from airtune.cli import main; main()"]


def run_here(
    scenario: Scenario,
    source: str,
    overrides: Sequence[str],
    settings: dict[str, str | int | float | bool],
    *,
    emulate: bool,
    say: Callable[[str], None],
    follow: Callable[[runs.Run], None],
) -> None:
    """Start a server and every device of a scenario here, run, and end them all.

    Keys, logs and the server's state are in a folder that goes with the run; the record stays.

    Args:
        scenario: what to run.
        source: its file or name, as the devices load it.
        overrides: changes to it.
        settings: the app's configuration, as for `runs.submit`.
        emulate: each device takes the time of its profile.
        say: called with a line at each step.
        follow: shows a run until it ends; raises where it failed.

    Raises:
        RunError: a part did not start; quotes its last line.
    """
    with TemporaryDirectory(prefix="airtune-try-") as short:
        folder = Path(short)
        keys, state = folder / "keys", ServerFolder(folder / "deployment")
        port = free_port()
        make_server_keys(keys, ["127.0.0.1"])
        names = scenario.client_names
        public = {make_device_key(keys, name).public_key: name for name in names}
        with children(folder / "logs", _environment(), parting_s=20) as held:
            say("starting the server")
            held.start("server", [*_CLI, *_server(port, keys, state)])
            _wait(held, "server", "ready on", 300)
            admission.register(state, public)
            say(f"starting {len(names)} devices")
            emulated = ["--emulate", "scenario"] if emulate else []
            changes = [f"--set={value}" for value in overrides]
            for name in names:
                command = [
                    *_CLI, "deploy", "device", "--server", f"127.0.0.1:{port}", "--client", name,
                    "--scenario", source, *changes, "--ca", str(keys / "ca.crt"),
                    "--key", str(keys / name), "--dir", str(folder / "devices" / name), *emulated,
                ]  # fmt: skip
                held.start(name, command)
            for name in names:
                _wait(held, name, f"{name} is ready", 600)
            here = {"wire": str(state.wire_log)}
            run = runs.submit(state, {**settings, **here})
            follow(run)


def _server(port: int, keys: Path, state: ServerFolder) -> list[str]:
    where = ("--host", "127.0.0.1", "--port", str(port), "--keys", str(keys))
    return ["deploy", "server", *where, "--state", str(state.folder)]


def _environment() -> dict[str, str]:
    # One thread a device: they share this machine's cores.
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}


def _wait(held: Children, name: str, sign: str, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while sign not in held.log(name):
        if name in held.ended() or time.monotonic() > deadline_s:
            raise RunError(f"{name} did not start: {last_words(held.log(name))}")
        time.sleep(0.2)
