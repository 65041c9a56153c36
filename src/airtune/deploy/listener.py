"""The gateway's listener: uvicorn with a limit on what a connection may do before a request.

uvicorn's faster parser (httptools) knows no limit on headers, and neither parser knows one on
their time. This uses h11 and closes a connection that does not finish its headers in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import resource
import socket
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from airtune.deploy.door import Limits
from airtune.deploy.gateway import Gateway
from airtune.deploy.loglevel import gateway_level
from airtune.deploy.metrics import serve_metrics
from airtune.errors import InputError

_KEEP_ALIVE_S = 600
"""Longer than local training takes: a new TLS handshake would cost each upload some round trips
and about 3 kB."""
_UNSENT_BYTES = 65536
_LOOPBACK_NAMES = ("localhost",)


class Connection(H11Protocol):
    """One connection; counted by address, and closed when its headers take too long."""

    limits: ClassVar[Limits] = Limits()
    addresses: ClassVar[Counter[str]] = Counter()

    def connection_made(self, transport: Any) -> None:
        """Begin to count and to wait for headers."""
        super().connection_made(transport)
        _hold_little(transport)
        self._address = self.client[0] if self.client else ""
        self._timer: asyncio.TimerHandle | None = None
        self.addresses[self._address] += 1
        limits = self.limits
        if (
            self.addresses[self._address] > limits.connections_per_address
            or self.addresses.total() > limits.connections
        ):
            transport.abort()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting."""
        self._rest()
        self.addresses[self._address] -= 1
        if self.addresses[self._address] <= 0:
            del self.addresses[self._address]
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handle what has arrived; wait for the rest where headers have only begun."""
        with contextlib.suppress(h11.LocalProtocolError):  # the answer was under way already
            super().handle_events()
        unfinished, _ = self.conn.trailing_data
        if self.conn.their_state is not h11.IDLE:
            self._rest()
        elif unfinished:
            self._wait()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.header_s, self.transport.abort)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _hold_little(transport: Any) -> None:
    """Keep little of an answer in buffers, so that it is written when it leaves.

    The end of an answer is then known to what 128 KiB take on the device's link. How much may be
    on the way, which a long link needs, is not limited.
    """
    transport.set_write_buffer_limits(high=_UNSENT_BYTES)
    connection = transport.get_extra_info("socket")
    if connection is not None and (option := getattr(socket, "TCP_NOTSENT_LOWAT", None)):
        with contextlib.suppress(OSError):  # a Unix socket
            connection.setsockopt(socket.IPPROTO_TCP, option, _UNSENT_BYTES)


def check_host(host: str) -> None:
    """Refuse an address other than loopback, for a server without TLS; raises `InputError`."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host not in _LOOPBACK_NAMES:
        raise InputError(
            f"--host '{host}' with --insecure: without TLS and keys the server listens on "
            "127.0.0.1 alone; leave out --insecure to serve other machines"
        )


def check_port(host: str, port: int, option: str) -> None:
    """Bind a port once and let it go, before anything is started that would need it.

    Raises:
        InputError: another program has it, this machine has no such address, or the port is
            one of the system's; names the option.
    """
    where = f"{option} {port}: cannot listen on {host}:{port}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):  # UnicodeError: a label of no or too many characters
        raise InputError(f"--host '{host}': no address of this machine has that name") from None
    failed: list[OSError] = []
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                # As the gateway does: old connections in TIME_WAIT are no matter.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(
                    f"{where}: another program does already; end it, or give another {option}"
                ) from None
            failed.append(error)
    if len(failed) == len(found):
        raise InputError(f"{where}: {failed[0].strerror}")


def serve(
    host: str,
    port: int,
    gateway: Gateway,
    *,
    pair: tuple[Path, Path] | None,
    metrics_port: int | None = None,
) -> None:
    """Serve on the public address until a signal ends the process.

    Args:
        host: address to listen on; without TLS a loopback one.
        port: and its port.
        gateway: what answers.
        pair: certificate and private key; None without TLS.
        metrics_port: of 127.0.0.1, for Prometheus; None for no metrics.
    """
    if pair is None:
        check_host(host)
    _raise_open_files(gateway.limits.connections)
    Connection.limits = gateway.limits
    config = uvicorn.Config(
        gateway,
        host=host,
        port=port,
        ssl_certfile=None if pair is None else str(pair[0]),
        ssl_keyfile=None if pair is None else str(pair[1]),
        http=Connection,
        h11_max_incomplete_event_size=gateway.limits.header_bytes,
        log_level=gateway_level(),
        timeout_keep_alive=_KEEP_ALIVE_S,
        access_log=False,
        server_header=False,
        ws="none",
    )
    asyncio.run(_run(uvicorn.Server(config), gateway, metrics_port))


async def _run(server: uvicorn.Server, gateway: Gateway, metrics_port: int | None) -> None:
    if metrics_port is None:
        await server.serve()
        return
    async with await serve_metrics(gateway.metrics, metrics_port):
        await server.serve()


def _raise_open_files(connections: int) -> None:
    """Allow as many open files as the connections and their counterparts need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + 256
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
