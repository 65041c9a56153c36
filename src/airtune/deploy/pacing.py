"""Keeping a device's upload within the band share that it was planned: pacers and the relay.

The bytes of an update leave the device from Flower's own process, not from ours. So the pacing
sits on the path: that process is given the relay's address, and the relay forwards to the
server through a token bucket. TLS passes through it untouched.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from airtune.errors import InputError, RunError
from airtune.units import BITS_PER_BYTE

CHUNK_BYTES = 4096
"""What the relay reads at a time: small beside what even a slow link carries in a second."""


URGENT_BYTES = 8192
"""A TLS handshake, a heartbeat and its headers take about 3 kB."""
URGENT_BPS = 4000.0
"""A heartbeat of 1.5 kB every 7 s is 1.7 kbit/s."""
REACH_S = 20.0
"""How long a new connection waits for a server that is starting; SuperNode waits 30 s."""


STALL_S = 45.0
"""A request without an answer, and nothing that passes for so long: the connection is dead."""
UNSENT_BYTES = 16384
"""What waits in the kernel to be sent: more would be counted as passed long before it is."""


class Pacer(Protocol):
    """What holds a device's uplink to a rate: the relay, the kernel, or an operator's network."""

    def grant(self, uplink_bps: float | None) -> None:
        """Hold the uplink to this rate from now on; None lifts the limit."""


class TokenBucket:
    """A token bucket: `burst_bytes` may go at once, then `rate_bps` on average.

    Over any interval of t seconds at most burst + rate t / 8 bytes pass.
    """

    def __init__(
        self, burst_bytes: float = 2 * CHUNK_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._clock = burst_bytes, clock
        self._rate: float | None = None
        self._level, self._at = burst_bytes, clock()
        self._lock = threading.Lock()

    def grant(self, uplink_bps: float | None) -> None:
        """Change the rate, bit/s; what has accumulated so far stays."""
        if uplink_bps is not None and not uplink_bps > 0:
            raise InputError(f"uplink rate {uplink_bps!r} bit/s: must be above 0")
        with self._lock:
            self._refill()
            self._rate = uplink_bps

    def take(self, size_bytes: int) -> float:
        """Take tokens for this many bytes; return how long to wait before sending, s."""
        with self._lock:
            if self._rate is None:
                return 0.0
            self._refill()
            # The level may go negative: the debt is what the sender waits off.
            self._level -= size_bytes
            return max(0.0, -self._level * BITS_PER_BYTE / self._rate)

    def _refill(self) -> None:
        now = self._clock()
        if self._rate is None:
            self._level = self._burst
        else:
            gained = (now - self._at) * self._rate / BITS_PER_BYTE
            self._level = min(self._burst, self._level + gained)
        self._at = now


class Urgent:
    """What one connection may send ahead of the pacing: a sign of life, never an update.

    A heartbeat has 5 s to be answered; behind an update in a narrow band it would be late and
    the server would take the device for dead. `URGENT_BYTES` may go at once, and they come back
    at `URGENT_BPS`. They are taken from the bucket all the same, so the update waits for them
    and the mean rate stays what was granted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left, self._at = float(URGENT_BYTES), clock()

    def passes(self, size_bytes: int) -> bool:
        """Return whether this many bytes may go at once, and count them if so."""
        now = self._clock()
        gained = (now - self._at) * URGENT_BPS / BITS_PER_BYTE
        self._left, self._at = min(float(URGENT_BYTES), self._left + gained), now
        if size_bytes > self._left:
            return False
        self._left -= size_bytes
        return True


class TcPacer:
    """Linux traffic control: a token bucket filter on the device's own interface (needs root).

    Args:
        interface: the network interface towards the server.
        run: what runs `tc`; tests replace it.
    """

    def __init__(self, interface: str, run: Callable[[Sequence[str]], None] | None = None) -> None:
        self._interface, self._run = interface, run or _run_tc

    def grant(self, uplink_bps: float | None) -> None:
        """Replace the interface's root queue by one of this rate, or remove it."""
        if uplink_bps is None:
            with contextlib.suppress(RunError):  # there may be none to remove
                self._run(["qdisc", "del", "dev", self._interface, "root"])
            return
        self._run(["qdisc", "replace", "dev", self._interface, "root", *tbf(uplink_bps)])


class Unpaced:
    """Leaves the uplink alone: the operator's network holds each device to its share."""

    def grant(self, uplink_bps: float | None) -> None:
        """Do nothing."""


def tbf(rate_bps: float) -> list[str]:
    """Return the arguments of `tc` for a token bucket filter of this rate.

    The burst is what 10 ms carry, and at least two full Ethernet frames; the queue holds 300 ms,
    so that TCP fills it without a long standing queue.
    """
    burst = max(3100, int(rate_bps / BITS_PER_BYTE * 0.01))
    return ["tbf", "rate", f"{max(int(rate_bps), 8)}bit", "burst", str(burst), "latency", "300ms"]


def _run_tc(arguments: Sequence[str]) -> None:
    if shutil.which("tc") is None:
        raise RunError("pacing by tc: the command `tc` (iproute2) is not installed")
    done = subprocess.run(["tc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"tc {' '.join(arguments)}: {done.stderr.strip() or 'failed'}")


class Passed:
    """When something last passed on one connection, and whether it waits for an answer.

    SuperNode cannot know how long an upload takes, and waits for its answer for an hour. Here it is
    seen whether the upload goes on.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at_s, self._waits = clock(), False

    def up(self) -> None:
        """Note bytes of a request."""
        self._at_s, self._waits = self._clock(), True

    def down(self) -> None:
        """Note bytes of an answer."""
        self._at_s, self._waits = self._clock(), False

    def dead(self) -> bool:
        """Say whether a request has stood still for too long."""
        return self._waits and self._clock() > self._at_s + STALL_S


async def _end_when_dead(passed: Passed, *ends: asyncio.StreamWriter) -> None:
    while not passed.dead():
        await asyncio.sleep(STALL_S / 10)
    for end in ends:
        _reset(end)


def _hold_little(writer: asyncio.StreamWriter) -> None:
    """Keep little in the kernel, and notice a server that no longer acknowledges."""
    connection = writer.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    wanted = {"TCP_NOTSENT_LOWAT": UNSENT_BYTES, "TCP_USER_TIMEOUT": round(1000 * STALL_S)}
    for name, value in wanted.items():
        if (option := getattr(socket, name, None)) is not None:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Relay:
    """Forwards TCP connections to the server, upload through a token bucket.

    Counts what passed, so that a device can say what its link really carried.
    """

    def __init__(self, server: tuple[str, int], bucket: TokenBucket) -> None:
        self.server, self._bucket = server, bucket
        self.uplink_bytes = 0
        self.downlink_bytes = 0

    async def serve(self, started: Callable[[int], None], stop: asyncio.Event) -> None:
        """Listen on a free port of 127.0.0.1, tell it, and forward until `stop`."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        async with server:
            started(server.sockets[0].getsockname()[1])
            await stop.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await self._reach()
        except asyncio.CancelledError:
            upstream = None  # the relay ends
        if upstream is None:
            _reset(writer)
            return
        passed = Passed()
        guard = asyncio.create_task(_end_when_dead(passed, writer, upstream[1]))
        try:
            await asyncio.gather(
                self._up(reader, upstream[1], passed), self._down(upstream[0], writer, passed)
            )
        except (OSError, asyncio.CancelledError):
            pass  # either end went away and the caller reconnects, or the relay ends
        finally:
            guard.cancel()
            for end in (writer, upstream[1]):
                end.close()
                with contextlib.suppress(OSError, asyncio.CancelledError):
                    await end.wait_closed()

    async def _reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Connect to the server; one that is starting again is waited for.

        The caller has been accepted already and begins its TLS handshake: to close here would
        look like a server that breaks it.
        """
        deadline_s = time.monotonic() + REACH_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    found = await asyncio.open_connection(*self.server)
                _hold_little(found[1])
                return found
            await asyncio.sleep(0.3)
        return None

    async def _up(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed
    ) -> None:
        # A deep socket buffer would swallow the update at once and let the pacing leak.
        writer.transport.set_write_buffer_limits(high=CHUNK_BYTES)
        urgent = Urgent()
        while chunk := await reader.read(CHUNK_BYTES):
            wait_s = self._bucket.take(len(chunk))
            if wait_s > 0 and not urgent.passes(len(chunk)):
                await asyncio.sleep(wait_s)
            writer.write(chunk)
            await writer.drain()
            passed.up()
            self.uplink_bytes += len(chunk)
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _down(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passed: Passed
    ) -> None:
        while chunk := await reader.read(65536):
            passed.down()
            writer.write(chunk)
            await writer.drain()
            self.downlink_bytes += len(chunk)
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, which says "try again" to any caller; a plain close breaks TLS."""
    with contextlib.suppress(OSError):
        linger = struct.pack("ii", 1, 0)
        connection = writer.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


@contextmanager
def relay(server: tuple[str, int], bucket: TokenBucket) -> Iterator[tuple[Relay, int]]:
    """Run a relay in a thread for the length of a `with` block; yields it and its port."""
    running = Relay(server, bucket)
    loop = asyncio.new_event_loop()
    port: list[int] = []
    ready = threading.Event()
    stop = asyncio.Event()

    def started(number: int) -> None:
        port.append(number)
        ready.set()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(running.serve(started, stop))
        for task in (tasks := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()

    thread = threading.Thread(target=work, name="relay", daemon=True)
    thread.start()
    if not ready.wait(timeout=10):
        raise RunError("the paced relay could not open a port on 127.0.0.1")
    try:
        yield running, port[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=10)
