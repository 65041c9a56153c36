"""The network's side of a plan: grants arrive on a Unix socket and become `tc` rates.

It stands where an operator's quality-of-service interface would. A trace, if there is one,
modulates each device's uplink around its grant: the link's share stays what the plan gave, the
capacity moves as it was recorded, from the first round to the last.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from links import Links
from replay import TICK_S, Replay

from airtune.errors import RunError

FREE_BPS = 1e9
"""A link without a grant: only polls and greetings travel there."""


class Shaper:
    """Listens for grants and shapes the links; use it in a `with` block.

    Args:
        links: what to shape.
        path: the Unix socket.
        replay: recorded uplink capacity, or None.

    Attributes:
        begins_s: when each round was granted its rates, since the first one was.
    """

    def __init__(self, links: Links, path: Path, replay: Replay | None = None) -> None:
        self._links, self._path, self._replay = links, path, replay
        self._grants: dict[str, dict[str, float]] = {}
        self._began_s, self.begins_s = time.monotonic(), list[float]()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        if replay is not None:
            self._threads.append(threading.Thread(target=self._follow, daemon=True))

    def __enter__(self) -> Shaper:
        self._listener.bind(str(self._path))
        self._listener.listen(4)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(timeout=5)
        self._path.unlink(missing_ok=True)

    def grant(self, grants: Mapping[str, Mapping[str, float]]) -> None:
        """Shape every link to its grant; those without one are set free."""
        with self._lock:
            self._grants = {name: dict(grant) for name, grant in grants.items()}
            now_s = time.monotonic()
            if grants:
                self._began_s = self._began_s if self.begins_s else now_s
                self.begins_s.append(now_s - self._began_s)
        self._apply(self._factor())

    def _apply(self, factor: float) -> None:
        with self._lock:
            for device in self._links._devices:
                grant = self._grants.get(device)
                self._links.shape(
                    device,
                    uplink_bps=FREE_BPS if grant is None else grant["rate_bps"] * factor,
                    downlink_bps=FREE_BPS if grant is None else grant["downlink_rate_bps"],
                )

    def _factor(self) -> float:
        """Return what the links carry now of what they were granted."""
        if self._replay is None:
            return 1.0
        return self._replay.factor(time.monotonic() - self._began_s)

    def _follow(self) -> None:
        while not self._stop.wait(TICK_S):
            if self._grants:
                with contextlib.suppress(RunError):  # a link that is down has no queue to change
                    self._apply(self._factor())

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.sendall(json.dumps(self._answer(connection)).encode() + b"\n")

    def _answer(self, connection: socket.socket) -> dict[str, Any]:
        try:
            self.grant(json.loads(connection.makefile("rb").readline())["grant"])
        except (ValueError, KeyError, TypeError, RunError) as error:
            return {"ok": False, "error": str(error)}
        return {"ok": True}
