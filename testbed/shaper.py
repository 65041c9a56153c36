"""The network's side of a plan: grants arrive on a Unix socket and become `tc` rates.

It stands where an operator's quality-of-service interface would. A trace, if there is one,
modulates each device's uplink around its grant: the link's share stays what the plan gave, the
capacity moves as it was recorded.
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

from airtune.channel.trace import WINDOW_MS, Trace
from airtune.errors import InputError, RunError

FREE_BPS = 1e9
"""A link without a grant: only polls and greetings travel there."""
TICK_S = 0.1


class Shaper:
    """Listens for grants and shapes the links; use it in a `with` block.

    Args:
        links: what to shape.
        path: the Unix socket.
        trace: recorded uplink capacity that replays from each grant on, or None.
    """

    def __init__(self, links: Links, path: Path, trace: Trace | None = None) -> None:
        self._links, self._path, self._trace = links, path, trace
        self._grants: dict[str, dict[str, float]] = {}
        self._granted_s, self._round = time.monotonic(), 0
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        if trace is not None:
            self._threads.append(threading.Thread(target=self._replay, daemon=True))

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
            self._granted_s = time.monotonic()
            self._round += 1
        self._apply(1.0 if self._trace is None else self._factor())

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
        """Return the trace's capacity now over its mean in this round's window."""
        assert self._trace is not None
        passed_ms = int((time.monotonic() - self._granted_s) * 1000)
        begin = self._round * WINDOW_MS
        mean_bps = self._trace.round_rate_bps(self._round)
        now_bps = capacity_bps(self._trace, begin + passed_ms, int(TICK_S * 1000))
        return max(now_bps / mean_bps, 0.01)

    def _replay(self) -> None:
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


def capacity_bps(trace: Trace, begin_ms: int, length_ms: int) -> float:
    """Return a trace's mean capacity over an interval, bit/s; the trace repeats."""
    if length_ms <= 0:
        raise InputError(f"an interval of {length_ms} ms")
    return trace.mean_bps(begin_ms, length_ms)
