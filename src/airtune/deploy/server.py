"""The server's side of a deployment: Flower's server behind the gateway, and runs on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from airtune.deploy.keys import check_server_keys, expiry_warnings
from airtune.deploy.listener import check_host, check_port
from airtune.deploy.processes import (
    Children,
    children,
    flower_command,
    flower_environment,
    free_port,
    last_words,
    sweep,
    wait_for_port,
)
from airtune.errors import InputError, RunError
from airtune.record.folder import make_closed_folder, make_folder
from airtune.scenario.overrides import toml_value

_START_S = 240.0
"""How long a part may take to listen; one that ends is noticed at once."""
_MOST_RESTARTS, _FAILING_S = 10, 60.0
_WHAT = {"superlink": "Flower's server", "superexec": "Flower's starter", "gateway": "the gateway"}
_UNHURRIED = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "2"}
"""Flower's starter looks for a new run, which no round waits for; each look costs Flower's
server a request and a transaction."""
_LOCK, _LOOK_S = "server.lock", 1.0
"""Held by the server of a state folder; `is_running` holds it for a moment."""
SERVER_ENDED = {
    "ok": False,
    "exit": 1,
    "error": "the server ended under it; go on with `airtune deploy run … --resume`",
}
"""The outcome of a run whose server was killed."""
CONNECTION = "airtune"
"""How Flower's own commands call this server."""


@dataclass(frozen=True)
class ServerFolder:
    """Where a server keeps what must outlive it: registered devices, logs, the wire log."""

    folder: Path

    @property
    def home(self) -> Path:
        """Flower's own folder."""
        return self.folder / "flower"

    @property
    def wire_log(self) -> Path:
        """What the gateway saw pass."""
        return self.folder / "wire.jsonl"

    @property
    def about(self) -> Path:
        """What `airtune deploy run` has to know of a started server."""
        return self.folder / "server.json"

    @property
    def runs(self) -> Path:
        """One folder a run: what was asked, what it said, how it ended."""
        return self.folder / "runs"

    @property
    def logs(self) -> Path:
        """Output of Flower's processes."""
        return self.folder / "logs"


def serve(
    state: ServerFolder,
    host: str,
    port: int,
    keys: Path | None,
    ready: Callable[[], None],
    *,
    metrics_port: int | None = None,
    clients: Sequence[str] = (),
) -> None:
    """Run the server until it is interrupted.

    Flower's server listens on loopback alone; its database keeps the registered devices and the
    messages under way. It, the gateway and the starter of app processes are started again when
    they end. App processes are apart from it, so that a run survives the restart. What an
    earlier server on the same folder left running is ended first.

    Args:
        state: where to keep what must last.
        host: address on which the gateway listens.
        port: and its port.
        keys: the folder of `airtune deploy keys server`; None runs without TLS and without
            device authentication.
        ready: called once everything listens.
        metrics_port: where the gateway answers Prometheus, on loopback; None: nowhere.
        clients: those of the scenario that this server is for; none: it is for any.

    Raises:
        InputError: the keys are missing or damaged, another server runs on this folder, or
            another program has the port.
        RunError: one of the three does not start, or ends again and again.
    """
    if keys is None:
        check_host(host)
    if port == metrics_port:
        raise InputError(f"--port {port} and --metrics {port}: give two ports")
    os.umask(0o077)  # whatever this process and those that it starts create is its own alone
    make_closed_folder(state.folder, "--state")
    make_folder(state.home, "--state")
    if keys is not None:
        check_server_keys(keys)
        for warning in expiry_warnings(keys):
            print(warning, flush=True)
    with _alone(state):
        swept = sweep(state.home)
        if swept:
            print(f"ended {swept} processes that an earlier server had left", flush=True)
        # Only now: what an earlier server had left may have held the port.
        check_port(host, port, "--port")
        if metrics_port is not None:
            check_port("127.0.0.1", metrics_port, "--metrics")
        _end_runs(state)
        _serve(state, host, port, keys, ready, metrics_port, clients)


def _serve(
    state: ServerFolder,
    host: str,
    port: int,
    keys: Path | None,
    ready: Callable[[], None],
    metrics_port: int | None,
    clients: Sequence[str],
) -> None:
    metrics = [] if metrics_port is None else [str(metrics_port)]
    inner = free_port()
    _write_connection(state, inner, keys)
    with children(state.logs, flower_environment(state.home, **_UNHURRIED)) as held:
        commands = {
            "superlink": _superlink_command(state, inner, keys),
            "superexec": _superexec_command(state, inner, keys),
            "gateway": [*_gateway_command(state, host, port, inner, keys), *metrics],
        }
        held.start("superlink", commands["superlink"])
        wait_for_port(("127.0.0.1", inner), held, "superlink", _START_S)
        held.start("superexec", commands["superexec"])
        held.start("gateway", commands["gateway"])
        reach = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        wait_for_port((reach, port), held, "gateway", _START_S)
        folder = None if keys is None else str(keys)
        about = {"port": inner, "keys": folder, "clients": list(clients)}
        state.about.write_text(json.dumps(about))
        ready()
        try:
            _keep_running(held, commands)
        finally:
            state.about.unlink(missing_ok=True)


def leave(path: Path, values: Mapping[str, Any]) -> None:
    """Write a small file so that a reader sees all of it or none."""
    written = path.with_suffix(".new")
    written.write_text(json.dumps(values), encoding="utf-8")
    written.replace(path)


def _end_runs(state: ServerFolder) -> None:
    """Say of each run that was going on under an earlier server that it has ended."""
    for about in state.runs.glob("*/about.json"):
        if not (outcome := about.with_name("outcome.json")).exists():
            leave(outcome, SERVER_ENDED)


def is_running(state: ServerFolder) -> bool:
    """Say whether a server works on a state folder, also one that is still starting."""
    lock = FileLock(state.folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


@contextmanager
def _alone(state: ServerFolder) -> Iterator[None]:
    """Hold the state folder, so that no second server works on the same database."""
    lock = FileLock(state.folder / _LOCK)
    try:
        lock.acquire(timeout=_LOOK_S)
    except Timeout:
        raise InputError(
            f"--state '{state.folder}': a server is running on this folder already"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _keep_running(held: Children, commands: Mapping[str, list[str]]) -> None:
    """Start again whatever ends; what ends again and again is an error."""
    restarts: dict[str, list[float]] = {name: [] for name in commands}
    while True:
        time.sleep(0.5)
        for name in held.ended():
            now_s = time.monotonic()
            recent = [at_s for at_s in restarts[name] if at_s > now_s - _FAILING_S]
            if len(recent) >= _MOST_RESTARTS:
                raise RunError(
                    f"{name} ended {len(recent) + 1} times within {_FAILING_S:.0f} s: "
                    f"{last_words(held.log(name))}"
                )
            restarts[name] = [*recent, now_s]
            print(f"{_WHAT[name]} ended; starting it again", flush=True)
            held.start(name, commands[name])


def _superlink_command(state: ServerFolder, port: int, keys: Path | None) -> list[str]:
    command = [
        *guarded("superlink"),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--database", str(state.folder / "superlink.db")),
        *("--isolation", "process"),
        "--disable-runtime-dependency-installation",
        *("--superexec-auth-secret-file", str(_secret(state))),
    ]
    if keys is None:
        command.append("--insecure")
    else:
        command += ["--ssl-ca-certfile", str(keys / "ca.crt")]
        command += ["--ssl-certfile", str(keys / "server.crt")]
        command += ["--ssl-keyfile", str(keys / "server.key"), "--enable-supernode-auth"]
    return command


def _superexec_command(state: ServerFolder, port: int, keys: Path | None) -> list[str]:
    trust = ["--insecure"] if keys is None else ["--root-certificates", str(keys / "ca.crt")]
    return [
        *guarded("superexec"),
        *("--runtime-api-address", f"127.0.0.1:{port}"),
        *("--superexec-auth-secret-file", str(_secret(state))),
        *trust,
    ]


def _gateway_command(
    state: ServerFolder, host: str, port: int, inner: int, keys: Path | None
) -> list[str]:
    command = [sys.executable, "-m", "airtune.deploy.gateway", host, str(port), str(inner)]
    return [*command, str(state.wire_log), "" if keys is None else str(keys)]


def guarded(program: str) -> list[str]:
    """Return the command of one of Flower's servers, closed to other users of this machine."""
    flower_command(f"flower-{program}")  # a clear refusal where Flower is not installed
    return [sys.executable, "-m", "airtune.deploy.guarded", program]


def _secret(state: ServerFolder) -> Path:
    path = state.folder / "superexec.secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path


def _write_connection(state: ServerFolder, port: int, keys: Path | None) -> None:
    trust = "insecure = true"
    if keys is not None:
        trust = f"root-certificates = {toml_value(str(keys / 'ca.crt'))}"
    (state.home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\n{trust}\n',
        encoding="utf-8",
    )


def about(state: ServerFolder) -> dict[str, Any]:
    """Return what a started server left for its operator: `port`, `keys` and `clients`.

    Raises:
        InputError: no server is started with this state folder.
    """
    try:
        found = json.loads(state.about.read_text())
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"no server is started in '{state.folder}': start one with `airtune deploy server`"
        )
    return found


def flwr(state: ServerFolder, *arguments: str, timeout_s: float = 180.0) -> dict[str, Any]:
    """Run one of Flower's operator commands on the started server; return its JSON answer.

    Raises:
        InputError: no server is started with this state folder.
        RunError: the command failed; quotes its last line.
    """
    about(state)
    try:
        done = subprocess.run(
            [flower_command("flwr"), *arguments, "--format", "json"],
            env=flower_environment(state.home),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RunError(f"flwr {arguments[0]}: no answer within {timeout_s:.0f} s") from None
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        answer = {"success": False, "error-message": last_words(done.stderr or done.stdout)}
    if not isinstance(answer, dict) or not answer.get("success", True):
        raise RunError(f"flwr {arguments[0]}: {answer.get('error-message', 'failed')}")
    return answer
