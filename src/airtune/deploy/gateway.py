"""The only door that devices see: forwards the device part of Flower's server, and times it.

Flower 1.41 serves devices, operators and its own app processes on one port, and lets whoever
reaches that port start runs, which is code on the server and on every device. So the server
listens on loopback alone, and this gateway stands on the public address: TLS, the dozen calls of
a device only, bodies up to a limit. Authentication stays Flower's.

Every byte of a round passes here with the sender's key beside it, so here is where transfers
are timed, on one clock: one JSON object a finished request goes into the wire log.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx

PREFIX = "/v1/fleet/"
CALLS = frozenset({
    "register-node", "activate-node", "deactivate-node", "unregister-node",
    "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
})  # fmt: skip
"""What a device has to ask of Flower's server; a list, because a path can climb."""
MAX_BODY_BYTES = 256 * 2**20
_KEY_HEADER = b"flwr-public-key"
_HOP_BY_HOP = {b"host", b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooLarge(Exception):
    """A request's body passes the limit."""


class Gateway:
    """An ASGI application that forwards to Flower's server.

    Args:
        upstream: the server's address on this machine, e.g. `https://127.0.0.1:9093`.
        authority: the certificate file by which the server is known; None without TLS.
        wire_log: where finished requests are written.
        max_body_bytes: what one request may carry.
    """

    def __init__(
        self,
        upstream: str,
        authority: Path | None,
        wire_log: Path,
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._client = httpx.AsyncClient(
            base_url=upstream,
            verify=True if authority is None else _context(authority),
            timeout=httpx.Timeout(120.0, connect=5.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=60.0),
            trust_env=False,
        )
        self._log, self._max_body = wire_log, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] != "http" or scope["method"] != "POST":
            await _refuse(send, 405, "only POST")
        elif (call := scope["path"].removeprefix(PREFIX)) not in CALLS:
            await _refuse(send, 403, "not for devices")
        else:
            await self._forward(call, scope, receive, send)

    async def _forward(self, call: str, scope: Scope, receive: Receive, send: Send) -> None:
        begin = time.time()
        counts = {"up": 0, "down": 0}
        uploaded = begin

        async def body() -> AsyncIterator[bytes]:
            nonlocal uploaded
            more = True
            while more:
                event = await receive()
                if event["type"] == "http.disconnect":
                    raise httpx.ReadError("the device went away")
                chunk, more = event.get("body", b""), event.get("more_body", False)
                counts["up"] += len(chunk)
                if counts["up"] > self._max_body:
                    raise TooLarge
                yield chunk
            uploaded = time.time()

        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP_BY_HOP]
        request = self._client.build_request("POST", PREFIX + call, headers=headers, content=body())
        try:
            response = await self._client.send(request, stream=True)
        except TooLarge:
            await _refuse(send, 413, f"at most {self._max_body} bytes")
            return
        except httpx.TransportError:
            await _refuse(send, 503, "the server does not answer")  # devices try again
            return
        kept = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in _HOP_BY_HOP]
        await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
        try:
            async for chunk in response.aiter_raw():
                counts["down"] += len(chunk)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()
        self._write(scope, call, response.status_code, (begin, uploaded), counts)

    def _write(
        self,
        scope: Scope,
        call: str,
        status: int,
        times_s: tuple[float, float],
        counts: dict[str, int],
    ) -> None:
        keys = [value for name, value in scope["headers"] if name == _KEY_HEADER]
        line = {
            "device": fingerprint(base64.b64decode(keys[0])) if keys else None,
            "address": scope["client"][0] if scope.get("client") else None,
            "call": call,
            "status": status,
            "begin_s": times_s[0],
            "uploaded_s": times_s[1],
            "end_s": time.time(),
            "up_bytes": counts["up"],
            "down_bytes": counts["down"],
        }
        with self._log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.shutdown":
                await self._client.aclose()
                await send({"type": "lifespan.shutdown.complete"})
                return
            await send({"type": "lifespan.startup.complete"})


def fingerprint(public_pem: bytes) -> str:
    """Name a device's public key: the first 16 hex digits of the PEM's SHA-256."""
    return hashlib.sha256(public_pem).hexdigest()[:16]


def serve(
    host: str,
    port: int,
    gateway: Gateway,
    *,
    certificate: Path | None = None,
    private_key: Path | None = None,
) -> None:
    """Serve on the public address until a signal ends the process."""
    import uvicorn

    uvicorn.run(
        gateway,
        host=host,
        port=port,
        ssl_certfile=None if certificate is None else str(certificate),
        ssl_keyfile=None if private_key is None else str(private_key),
        log_level="warning",
        # Longer than local training takes: a new TLS handshake would cost each upload some
        # round trips and about 3 kB.
        timeout_keep_alive=600,
        access_log=False,
        ws="none",
    )


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _context(authority: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(authority))


def main() -> None:
    """Run the gateway: host, port, the server's port, the wire log, the folder of keys or ''."""
    import sys

    host, port, inner, wire_log, keys = sys.argv[1:]
    if keys:
        folder = Path(keys)
        gateway = Gateway(f"https://127.0.0.1:{inner}", folder / "ca.crt", Path(wire_log))
        certificate, private_key = folder / "server.crt", folder / "server.key"
        serve(host, int(port), gateway, certificate=certificate, private_key=private_key)
    else:
        serve(host, int(port), Gateway(f"http://127.0.0.1:{inner}", None, Path(wire_log)))


if __name__ == "__main__":
    main()
