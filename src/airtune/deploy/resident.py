"""A process that stays on the device, and the short-lived process's way to talk to it.

Flower starts a new process for every message. Loading a model there would cost more than the
round, so that process only carries bytes: it hands the request to the resident worker over a
Unix socket that its owner alone can open, and takes the answer back. A request that comes
again (its first carrier was killed) is answered from memory, or joins the work under way.

The carrier's half, `ask`, imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

SOCKET_VARIABLE = "AIRTUNE_RESIDENT"
"""Environment variable with the socket's path, as the carrier finds it."""

_LENGTH = struct.Struct("!Q")
_MAX_BYTES = 2**31
_REMEMBERED = 4


def ask(path: str | Path, request: bytes, *, timeout_s: float | None = None) -> bytes:
    """Hand a request to the resident worker and return its answer.

    Raises:
        ConnectionError: no worker listens there, or it went away before it answered.
        TimeoutError: no answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            _send(connection, request)
            return _receive(connection)
        except TimeoutError:
            raise
        except OSError as error:
            raise ConnectionError(
                f"no resident worker answers at '{path}' ({error}); is the device still started?"
            ) from None


class Resident:
    """Answers requests, one at a time, in the order in which they came.

    Args:
        path: the Unix socket; a stale one is replaced.
        handle: request to answer; it never raises.
    """

    def __init__(self, path: str | Path, handle: Callable[[bytes], bytes]) -> None:
        self.path, self._handle = Path(path), handle
        self._answers: OrderedDict[bytes, Future[bytes]] = OrderedDict()
        self._lock = threading.Lock()
        # One thread works: two jobs at once would time each other wrongly.
        self._work = ThreadPoolExecutor(max_workers=1, thread_name_prefix="resident")
        self._listener = self._listen()
        self._thread = threading.Thread(target=self._accept, name="resident-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(timeout=5)
        self.path.unlink(missing_ok=True)
        self._work.shutdown(wait=False, cancel_futures=True)

    def _listen(self) -> socket.socket:
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(self.path))
        finally:
            os.umask(mask)
        listener.listen(8)
        return listener

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = _receive(connection)
            _send(connection, self._answer(request).result())

    def _answer(self, request: bytes) -> Future[bytes]:
        key = hashlib.sha256(request).digest()
        with self._lock:
            if key not in self._answers:
                self._answers[key] = self._work.submit(self._handle, request)
                while len(self._answers) > _REMEMBERED:
                    self._answers.popitem(last=False)
            return self._answers[key]


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(body)))
    connection.sendall(body)


def _receive(connection: socket.socket) -> bytes:
    (size,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if size > _MAX_BYTES:
        raise ConnectionError(f"a message of {size} bytes is announced; at most {_MAX_BYTES}")
    return bytes(_exactly(connection, size))


def _exactly(connection: socket.socket, size: int) -> bytearray:
    body = bytearray()
    while len(body) < size:
        chunk = connection.recv(min(size - len(body), 1 << 20))
        if not chunk:
            raise ConnectionError("the connection ended in the middle of a message")
        body += chunk
    return body
