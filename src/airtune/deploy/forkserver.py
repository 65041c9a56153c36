"""A warm parent for Flower's client processes: a fork in place of an interpreter's start.

Flower's executor starts the command `flwr-clientapp` for every message, which spends one to
four seconds importing. The device puts a folder with a command of that name first on the
executor's PATH; the command hands its arguments and its output to this process, which has the
imports behind it and forks. Where this process cannot be reached, the command becomes the real
one: slower, never wrong.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from airtune.deploy.processes import flower_command

_COMMAND = "flwr-clientapp"
_SHIM = """#!{python} -ISE
import array, json, os, socket, sys
REAL, PATH = {real!r}, {path!r}
try:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(PATH)
    body = json.dumps(sys.argv[1:]).encode()
    fds = array.array("i", [0, 1, 2])
    link.sendmsg([len(body).to_bytes(4, "big") + body],
                 [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
except OSError:
    os.execv(REAL, [REAL, *sys.argv[1:]])
code = link.recv(1)
sys.exit(code[0] if code else 1)
"""


def write_command(folder: Path, socket_path: Path) -> None:
    """Write the stand-in for `flwr-clientapp` into a folder that goes first on PATH.

    Raises:
        InputError: Flower is not installed.
    """
    real = flower_command(_COMMAND)
    command = folder / _COMMAND
    command.write_text(_SHIM.format(python=sys.executable, real=real, path=str(socket_path)))
    command.chmod(0o700)
    # SuperNode starts its executor by name; this one keeps tokens out of process arguments.
    executor = folder / "flower-superexec"
    executor.write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m airtune.deploy.guarded superexec "$@"\n'
    )
    executor.chmod(0o700)


def serve(socket_path: Path) -> None:
    """Listen and fork, until the parent process goes away or a signal ends it."""
    import airtune.deploy.resident  # the app's own import, warmed here
    from airtune.deploy.flower_names import client_process

    run = client_process()

    del airtune
    parent = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries finished children
    socket_path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(socket_path))
        socket_path.chmod(0o600)
        listener.listen(8)
        listener.settimeout(1.0)
        while os.getppid() == parent:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            if os.fork() == 0:
                listener.close()
                _child(connection, run)
            connection.close()


def _child(connection: socket.socket, run: object) -> None:
    assert callable(run)
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        connection.settimeout(10)
        arguments = _receive(connection)
        connection.settimeout(None)
        threading.Thread(target=_follow, args=(connection,), daemon=True).start()
        sys.argv = [_COMMAND, *arguments]
        run()
        code = 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        with contextlib.suppress(OSError):
            connection.sendall(bytes([code & 0xFF]))
        os._exit(code)


def _receive(connection: socket.socket) -> list[str]:
    descriptors = array.array("i")
    data, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_SPACE(3 * 4))
    for _, kind, content in ancillary:
        if kind == socket.SCM_RIGHTS:
            descriptors.frombytes(content[: len(content) - len(content) % 4])
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
        more = connection.recv(1 << 16)
        if not more:
            raise SystemExit(1)
        data += more
    return [str(argument) for argument in json.loads(data[4:])]


def _follow(connection: socket.socket) -> None:
    """End with the command that stands for this process: killing it kills the work."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
