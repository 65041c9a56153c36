"""Keeping a device connected: its SuperNode is started again, or the device ends with a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from airtune.deploy.processes import Children, Unreachable, last_words
from airtune.deploy.supernode import CONNECTED, REFUSED
from airtune.errors import RunError

SILENT_S = 30.0
"""A device whose requests have not been answered for so long has lost its connection."""
MOST_SILENT_S = 240.0
"""One that was started again gets twice as long each time, up to this: on a busy machine the start
alone may take minutes, and to begin it anew would never end."""
FORGOTTEN_S = 45.0
"""The server counts a device that died without a word as connected for 30 s."""
MOST_FAILURES = 5
"""After this many ends in a row, with no connection between them, and the device ends too."""
_FLOWING_BYTES = 32768
"""An upload that moves so much in `SILENT_S` is no silence; failing handshakes move less."""


@dataclass(frozen=True)
class Parts:
    """What a `Watch` works with.

    Attributes:
        supernode: returns SuperNode's command line.
        contact: the file in which SuperNode says how it goes.
        marker: a file that is there once the server has admitted this device.
        check: reaches the server once; raises as `processes.check_server` does, and
            `InputError` where the clocks differ.
        uplink_bytes: what has left the device so far.
    """

    supernode: Callable[[], list[str]]
    contact: Path
    marker: Path
    check: Callable[[], None]
    uplink_bytes: Callable[[], int]


class Watch:
    """One device's connection.

    Args:
        held: where SuperNode runs.
        client: the device's name in messages.
        parts: what is watched.
        ready: called once, when the server has admitted the device.
        say: called with a line when the connection is lost and when it is back.
        clock: tests replace it.
    """

    def __init__(
        self,
        held: Children,
        client: str,
        parts: Parts,
        ready: Callable[[], None],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._held, self._client, self._parts = held, client, parts
        self._ready, self._say, self._clock = ready, say, clock
        self._was_ready = self._connected = False
        self._failures = 0
        self._heard: tuple[int, str] = (0, "")
        self._heard_s = self._stepped_s = clock()
        self._bytes, self._silent_s = 0, SILENT_S
        self._restart_s: float | None = None
        self._patience_s = clock() + (FORGOTTEN_S if parts.marker.exists() else 0.0)
        self._held.start("supernode", parts.supernode())

    def step(self) -> None:
        """Look once.

        Raises:
            InputError: the server's certificate is not accepted, or the clocks differ.
            RunError: the server does not admit this device, or SuperNode ends again and again.
        """
        now_s = self._clock()
        if now_s > self._stepped_s + 5:
            # This process stood still, and SuperNode with it: the silence was ours.
            self._heard_s += now_s - self._stepped_s
        self._stepped_s = now_s
        if self._restart_s is not None:
            if now_s >= self._restart_s:
                self._start()
            return
        if "supernode" in self._held.ended():
            self._ended()
            return
        self._listen(now_s)
        if now_s > self._heard_s + self._silent_s:
            self._silent(now_s)

    def _listen(self, now_s: float) -> None:
        try:
            heard = (self._parts.contact.stat().st_mtime_ns, self._parts.contact.read_text())
        except OSError:
            return
        if heard == self._heard or not heard[1]:
            return
        self._heard, self._heard_s = heard, now_s
        if heard[1] == CONNECTED:
            self._connect(now_s)
        elif heard[1].startswith(REFUSED):
            self._refused(now_s)

    def _connect(self, now_s: float) -> None:
        self._failures, self._silent_s = 0, SILENT_S
        self._patience_s = now_s + FORGOTTEN_S
        if self._connected:
            return
        self._connected = True
        self._parts.marker.touch()
        if self._was_ready:
            self._say(f"{self._client} is connected again")
        else:
            self._was_ready = True
            self._ready()

    def _refused(self, now_s: float) -> None:
        self._lost("the server does not admit this device yet; trying again")
        if now_s > self._patience_s:
            self._reach()
            raise RunError(
                f"client {self._client}: the server turned this device away: its key is not "
                "registered or was revoked (`airtune deploy register`), or another device with "
                "the same key is connected"
            )

    def _silent(self, now_s: float) -> None:
        moved = self._parts.uplink_bytes()
        flowing, self._bytes = moved - self._bytes > _FLOWING_BYTES, moved
        self._heard_s = now_s
        if flowing:
            return
        self._lost(f"no answer from the server for {self._silent_s:.0f} s; trying again")
        if self._reach():
            self._silent_s = min(2 * self._silent_s, MOST_SILENT_S)
            self._say("the server is there: starting anew")
            self._start()

    def _ended(self) -> None:
        self._failures += 1
        words = last_words(self._held.log("supernode"))
        self._lost(f"SuperNode ended ({words}); starting it again")
        if self._reach() and self._failures >= MOST_FAILURES:
            raise RunError(
                f"client {self._client}: SuperNode ended {self._failures} times in a row: {words}"
            )
        self._restart_s = self._clock() + min(2.0 ** (self._failures - 1), 5.0)

    def _start(self) -> None:
        if self._parts.marker.exists():
            self._patience_s = max(self._patience_s, self._clock() + FORGOTTEN_S)
        self._restart_s = None
        self._heard_s = self._clock()
        self._held.start("supernode", self._parts.supernode())

    def _reach(self) -> bool:
        try:
            self._parts.check()
        except Unreachable:
            return False
        return True

    def _lost(self, why: str) -> None:
        if self._connected or not self._was_ready:
            self._say(f"{self._client}: {why}")
        self._connected = False
