"""The server's side of a deployment: Flower's server behind the gateway, and runs on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.deploy.keys import public_pem
from airtune.deploy.listener import check_host
from airtune.deploy.processes import (
    Children,
    children,
    flower_command,
    flower_environment,
    free_port,
    last_words,
    wait_for_port,
)
from airtune.errors import InputError, RunError

_STATUS_EVERY_S = 30.0
CONNECTION = "airtune"
"""How Flower's own commands call this server."""


@dataclass(frozen=True)
class State:
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
    def outcome(self) -> Path:
        """How the last run ended."""
        return self.folder / "outcome.json"

    @property
    def progress(self) -> Path:
        """What the last run said."""
        return self.folder / "progress.log"

    @property
    def logs(self) -> Path:
        """Output of Flower's processes."""
        return self.folder / "logs"


def serve(
    state: State,
    host: str,
    port: int,
    keys: Path | None,
    ready: Callable[[], None],
    *,
    metrics_port: int | None = None,
) -> None:
    """Run the server until it is interrupted.

    Flower's server listens on loopback alone and restarts if it dies; its database keeps the
    registered devices and the messages under way. Its app processes are apart from it, so that
    a run survives the restart.

    Args:
        state: where to keep what must last.
        host: address on which the gateway listens.
        port: and its port.
        keys: the folder of `airtune deploy keys server`; None runs without TLS and without
            device authentication.
        ready: called once everything listens.
        metrics_port: where the gateway answers Prometheus, on loopback; None: nowhere.

    Raises:
        InputError: the keys are missing, or the address is taken.
    """
    if keys is None:
        check_host(host)
    os.umask(0o077)  # whatever this process and those that it starts create is its own alone
    state.folder.mkdir(parents=True, exist_ok=True)
    state.folder.chmod(0o700)
    state.home.mkdir(exist_ok=True)
    for name in ("ca.crt", "server.crt", "server.key") if keys is not None else ():
        if keys is not None and not (keys / name).is_file():
            raise InputError(
                f"'{keys / name}' is missing: make it with `airtune deploy keys server --address "
                f"HOST --dir {keys}`, or ask for --insecure by name"
            )
    metrics = [] if metrics_port is None else [str(metrics_port)]
    inner = free_port()
    _write_connection(state, inner, keys)
    environment = flower_environment(state.home)
    with children(state.logs, environment) as held:
        start_superlink = _superlink(state, inner, keys, held)
        start_superlink()
        wait_for_port(("127.0.0.1", inner), held, "superlink", 60)
        held.start("superexec", _superexec_command(state, inner, keys))
        held.start("gateway", [*_gateway_command(state, host, port, inner, keys), *metrics])
        reach = "127.0.0.1" if host in ("0.0.0.0", "::") else host
        wait_for_port((reach, port), held, "gateway", 30)
        state.about.write_text(json.dumps({"port": inner, "secure": keys is not None}))
        ready()
        try:
            _keep_running(held, start_superlink)
        finally:
            state.about.unlink(missing_ok=True)


def _keep_running(held: Children, start_superlink: Callable[[], None]) -> None:
    while True:
        time.sleep(0.5)
        ended = held.ended()
        if "superlink" in ended:
            print("Flower's server ended; starting it again", flush=True)
            start_superlink()
        elif ended:
            raise RunError(f"{ended[0]} ended: {last_words(held.log(ended[0]))}")


def _superlink(state: State, port: int, keys: Path | None, held: Children) -> Callable[[], None]:
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
    return lambda: held.start("superlink", command)


def _superexec_command(state: State, port: int, keys: Path | None) -> list[str]:
    trust = ["--insecure"] if keys is None else ["--root-certificates", str(keys / "ca.crt")]
    return [
        *guarded("superexec"),
        *("--runtime-api-address", f"127.0.0.1:{port}"),
        *("--superexec-auth-secret-file", str(_secret(state))),
        *trust,
    ]


def _gateway_command(
    state: State, host: str, port: int, inner: int, keys: Path | None
) -> list[str]:
    command = [sys.executable, "-m", "airtune.deploy.gateway", host, str(port), str(inner)]
    return [*command, str(state.wire_log), "" if keys is None else str(keys)]


def guarded(program: str) -> list[str]:
    """Return the command of one of Flower's servers, closed to other users of this machine."""
    flower_command(f"flower-{program}")  # a clear refusal where Flower is not installed
    return [sys.executable, "-m", "airtune.deploy.guarded", program]


def _secret(state: State) -> Path:
    path = state.folder / "superexec.secret"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path


def _write_connection(state: State, port: int, keys: Path | None) -> None:
    trust = "insecure = true" if keys is None else f'root-certificates = "{keys / "ca.crt"}"'
    (state.home / "config.toml").write_text(
        f'[superlink]\ndefault = "{CONNECTION}"\n\n'
        f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\n{trust}\n',
        encoding="utf-8",
    )


def flwr(state: State, *arguments: str, timeout_s: float = 60.0) -> dict[str, Any]:
    """Run one of Flower's operator commands on the started server; return its JSON answer.

    Raises:
        InputError: no server is started with this state folder.
        RunError: the command failed; quotes its last line.
    """
    if not state.about.exists():
        raise InputError(
            f"no server is started in '{state.folder}': start one with `airtune deploy server`"
        )
    done = subprocess.run(
        [flower_command("flwr"), *arguments, "--format", "json"],
        env=flower_environment(state.home),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    try:
        answer = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        answer = {"success": False, "error-message": last_words(done.stderr or done.stdout)}
    if not isinstance(answer, dict) or not answer.get("success", True):
        raise RunError(f"flwr {arguments[0]}: {answer.get('error-message', 'failed')}")
    return answer


def register(state: State, public_key: Path, client: str) -> None:
    """Admit a device: its public key, and the client of the scenario that it plays."""
    public_pem(public_key)  # Flower's own refusal is a screenful
    flwr(state, "supernode", "register", str(public_key), CONNECTION, "--name", client)


class Submitted:
    """A run that was handed to the server."""

    def __init__(self, state: State, run_id: str) -> None:
        self._state, self._run_id = state, run_id
        self._asked_s = time.monotonic()

    def outcome(self) -> dict[str, Any] | None:
        """Return how it ended, or None while it goes on: `ok`, `exit`, `error`."""
        found = self._left()
        # The app leaves its outcome in a file; only its violent end shows in Flower's list, and
        # asking for that starts a process.
        if found is not None or time.monotonic() < self._asked_s + _STATUS_EVERY_S:
            return found
        self._asked_s = time.monotonic()
        runs = flwr(self._state, "list", "--run-id", self._run_id).get("runs", [])
        status = str(runs[0].get("status", "")) if runs else ""
        if not status.startswith("finished"):
            return None
        ended = {"ok": False, "exit": 1, "error": f"Flower's run ended as {status}"}
        return self._left() or ended

    def stop(self) -> None:
        """End it; what it recorded stays."""
        flwr(self._state, "stop", self._run_id)

    def _left(self) -> dict[str, Any] | None:
        if not self._state.outcome.exists():
            return None
        found = json.loads(self._state.outcome.read_text())
        return found if isinstance(found, dict) else None


def submit(state: State, app: Path, settings: Mapping[str, str | int | float | bool]) -> Submitted:
    """Start a run.

    Args:
        state: of the started server.
        app: the folder of the Flower app.
        settings: the app's configuration.

    Raises:
        InputError: no such app, or no server.
        RunError: Flower refused the run.
    """
    if not (app / "pyproject.toml").is_file():
        raise InputError(f"--app '{app}': no Flower app there (a folder with pyproject.toml)")
    state.outcome.unlink(missing_ok=True)
    state.progress.unlink(missing_ok=True)
    config = state.folder / "run.toml"
    config.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in settings.items()))
    answer = flwr(state, "run", str(app), CONNECTION, "--run-config", str(config))
    return Submitted(state, str(answer["run-id"]))


def as_json(value: object) -> str:
    """Return a value as JSON, as the app's configuration carries it."""
    return json.dumps(value)


def _toml(value: str | int | float | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, str) else str(value)
