"""Flower's server and its starter, closed to other users of the same machine.

Flower 1.41 lets every process that reaches its loopback port start runs, which is code under the
account of the server, and it hands each app process a token in its arguments, which every user
can list. This runs the same two programs with two changes: a connection from another user's
process is refused (Linux tells whose a loopback connection is), and tokens are in a file that
their owner alone can read.
"""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from airtune.deploy.flower_names import superexec_started_by, superlink_served_by

SOCKETS = Path("/proc/net/tcp")
"""Where Linux lists TCP sockets with the user that each belongs to."""
_LOCAL, _REMOTE, _USER = 1, 2, 7

Address = tuple[str, int]
App = Callable[[Any, Any, Any], Awaitable[None]]


class SameUser:
    """An ASGI application that answers this account and root alone.

    Args:
        app: what answers them.
        sockets: the kernel's list. Where there is none (not Linux), no one is refused.
    """

    def __init__(self, app: App, sockets: Path = SOCKETS) -> None:
        self._app, self._sockets = app, sockets
        self._allowed = {0, os.getuid()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Refuse a request of another user's process, and of one whose user is not known."""
        if scope["type"] not in ("http", "websocket") or not self._sockets.exists():
            await self._app(scope, receive, send)
            return
        user = user_of(tuple(scope["client"]), tuple(scope["server"]), self._sockets)
        if user in self._allowed:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            body = b"this server answers the account that started it alone"
            await send({"type": "http.response.body", "body": body})


def user_of(client: Address, server: Address, sockets: Path = SOCKETS) -> int | None:
    """Return the user number of the process at the other end of a loopback connection.

    Args:
        client: its address and port (IPv4).
        server: this end's.
        sockets: in the format of `/proc/net/tcp`.
    """
    wanted = (_hexadecimal(client), _hexadecimal(server))
    for line in sockets.read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if (fields[_LOCAL], fields[_REMOTE]) == wanted:
            return int(fields[_USER])
    return None


def _hexadecimal(address: Address) -> str:
    packed = ipaddress.IPv4Address(address[0]).packed
    return f"{int.from_bytes(packed, sys.byteorder):08X}:{address[1]:04X}"


def with_token_file(command: Sequence[str], folder: Path) -> tuple[list[str], Path | None]:
    """Return a command whose token is in a file of its own, and that file; None without token."""
    changed = list(command)
    if "--token" not in changed:
        return changed, None
    at = changed.index("--token")
    descriptor, name = tempfile.mkstemp(dir=folder)  # created closed to others
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(changed[at + 1])
    changed[at : at + 2] = ["--token-file", name]
    return changed, Path(name)


def _start(command: Sequence[str], folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    changed, file = with_token_file(command, folder)
    process = subprocess.Popen(changed, **options)

    def clean() -> None:
        process.wait()
        if file is not None:
            file.unlink(missing_ok=True)

    threading.Thread(target=clean, daemon=True).start()
    return process


def superlink() -> None:
    """Run `flower-superlink` with its application behind `SameUser`."""
    import uvicorn

    def run(app: App, **options: Any) -> None:
        uvicorn.run(SameUser(app), **options)

    superlink_served_by(run)()


def superexec() -> None:
    """Run `flower-superexec` with tokens in files."""
    with tempfile.TemporaryDirectory(prefix="airtune-token-") as folder:
        superexec_started_by(lambda command, **options: _start(command, Path(folder), **options))()


PROGRAMS = {"superlink": superlink, "superexec": superexec}


def main() -> None:
    """Run the program that the first argument names; the others are its own."""
    os.umask(0o077)
    PROGRAMS[sys.argv.pop(1)]()


if __name__ == "__main__":
    main()
