"""Starting the processes of a deployment, watching them, and ending every one of them."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import FrameType

from airtune.errors import InputError, RunError

FLOWER_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # An app's dependencies would otherwise be fetched from a package index at run time.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}
"""How Flower's processes are kept quiet, offline and quick to look for work."""


CLOCK_BEHIND_S, CLOCK_AHEAD_S = 300.0, 6.0
"""How late and how early Flower's server accepts a device's signature."""
_CLOCK_CODES = {9: "is not yet valid", 10: "has expired"}
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED, in words."""
PARTING_S = 8.0
"""How long a process may take to end; Flower's takes leave of the server meanwhile."""


class Children:
    """Child processes, each with a log file; ended together, in reverse order.

    Each is the leader of its own session, so that what it starts in turn is ended with it.
    """

    def __init__(
        self, logs: Path, environment: Mapping[str, str], parting_s: float = PARTING_S
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self._parting_s = parting_s
        self._logs, self._environment = logs, dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start a process; its output goes to `<name>.log`. One of that name is ended first."""
        self.stop(name)
        with (self._logs / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def stop(self, name: str) -> None:
        """End a process and what it started, by force; one that is not there is no matter."""
        process = self._running.pop(name, None)
        if process is not None:
            _signal_group(process, signal.SIGKILL)
            process.wait()

    def ended(self) -> list[str]:
        """Return the names of the processes that are no longer running."""
        return [name for name, process in self._running.items() if process.poll() is not None]

    def log(self, name: str) -> str:
        """Return what a process has written so far, at most the last 64 kB."""
        with (self._logs / f"{name}.log").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            return file.read().decode("utf-8", errors="replace")

    def close(self) -> None:
        """End all: a request first, after `parting_s` by force."""
        for process in reversed(self._running.values()):
            _signal_group(process, signal.SIGTERM)
        deadline_s = time.monotonic() + self._parting_s
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline_s - time.monotonic()))
        for process in self._running.values():
            # Also where the leader has gone: something it started may have outlived it.
            _signal_group(process, signal.SIGKILL)
            process.wait()
        self._running.clear()


@contextmanager
def children(
    logs: Path, environment: Mapping[str, str], parting_s: float = PARTING_S
) -> Iterator[Children]:
    """Hold child processes for the length of a `with` block; SIGTERM ends the block too."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    held = Children(logs, environment, parting_s)
    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield held
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        held.close()
        signal.signal(signal.SIGTERM, before)


def flower_environment(home: Path, **extra: str) -> dict[str, str]:
    """Return the environment of Flower's processes, with this Python's commands on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    home.mkdir(parents=True, exist_ok=True)
    fixed = {"PATH": path, "FLWR_HOME": str(home)}
    return {**os.environ, **FLOWER_ENVIRONMENT, **fixed, **extra}


def flower_command(name: str) -> str:
    """Return the path of one of Flower's commands; raises `InputError` without Flower."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise InputError(f"the command `{name}` is not installed: install airtune[flower]")
    return found


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def split_address(address: str) -> tuple[str, int]:
    """Split `host:port`; raises `InputError` where it is something else."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"address '{address}': write host:port, e.g. 192.0.2.7:9443")
    return host.strip("[]"), int(port)


class Unreachable(InputError):
    """A server that does not answer, or not as one: it may be starting."""


def check_server(address: tuple[str, int], authority: Path | None, timeout_s: float = 5.0) -> None:
    """Reach the server once, and know it by its certificate, before anything is started.

    Raises:
        Unreachable: it cannot be reached, or speaks no TLS.
        InputError: it shows a certificate that the authority did not sign or that is for
            another address, or this machine's clock is off.
    """
    host, port = address
    where = f"{host}:{port}"
    try:
        with socket.create_connection(address, timeout=timeout_s) as connection:
            if authority is None:
                return
            try:
                context = ssl.create_default_context(cafile=str(authority))
            except (OSError, ssl.SSLError):
                raise InputError(f"--ca '{authority}': not a certificate file") from None
            with context.wrap_socket(connection, server_hostname=host):
                return
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in _CLOCK_CODES:
            raise InputError(
                f"server {where}: its certificate {_CLOCK_CODES[error.verify_code]} by this "
                f"machine's clock, which says {time.strftime('%Y-%m-%d %H:%M:%S %Z')}; set "
                "the clock, or renew the certificate if the clock is right"
            ) from None
        raise InputError(
            f"server {where}: its certificate is not accepted ({error.verify_message}); --ca must "
            "be the ca.crt of its deployment, and its certificate made for this address"
        ) from None
    except ssl.SSLError:
        raise Unreachable(f"server {where}: it does not speak TLS there") from None
    except OSError as error:
        reason = error.strerror or "no answer in time"
        raise Unreachable(f"server {where}: cannot be reached ({reason})") from None


def clock_offset_s(
    address: tuple[str, int], authority: Path | None, timeout_s: float = 5.0
) -> float | None:
    """Return how far this machine's clock is ahead of the server's, s; None if it does not tell.

    The server's time is the `Date` of its answer, so this is right to about a second.
    """
    connection: http.client.HTTPConnection
    if authority is None:
        connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    else:
        context = ssl.create_default_context(cafile=str(authority))
        connection = http.client.HTTPSConnection(*address, timeout=timeout_s, context=context)
    try:
        with contextlib.closing(connection):
            connection.request("GET", "/")
            date = connection.getresponse().getheader("date")
            server_s = None if date is None else parsedate_to_datetime(date).timestamp()
    except (OSError, ValueError, http.client.HTTPException):
        return None
    return None if server_s is None else time.time() - server_s


def check_clock(address: tuple[str, int], authority: Path | None) -> None:
    """Compare this machine's clock with the server's.

    Raises:
        InputError: they differ by more than a device's signature may be old or early.
    """
    offset_s = clock_offset_s(address, authority)
    if offset_s is not None and not -CLOCK_BEHIND_S < offset_s < CLOCK_AHEAD_S:
        how = "ahead of" if offset_s > 0 else "behind"
        raise InputError(
            f"this machine's clock is {abs(offset_s):.0f} s {how} the server's: set it (NTP does); "
            f"a device's signature is accepted up to {CLOCK_BEHIND_S:.0f} s late and "
            f"{CLOCK_AHEAD_S:.0f} s early"
        )


def wait_for_port(address: tuple[str, int], held: Children, name: str, timeout_s: float) -> None:
    """Wait until a child listens; raises `RunError` with its last words if it does not."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
            return
        if name in held.ended():
            break
        time.sleep(0.1)
    raise RunError(f"{name} did not start: {last_words(held.log(name))}")


def sweep(home: Path) -> int:
    """End what a killed server left: processes whose `FLWR_HOME` is this folder (Linux).

    Returns:
        How many there were.
    """
    mark = f"FLWR_HOME={home}".encode()
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                left.append(int(entry.name))
        except OSError:
            continue  # another user's, or gone meanwhile
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        deadline_s = time.monotonic() + 3
        while any(_alive(pid) for pid in left) and time.monotonic() < deadline_s:
            time.sleep(0.1)
    return len(left)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def last_words(log: str) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent dies, however it dies (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
