"""The only door that devices see: forwards the device part of Flower's server, and times it.

Flower 1.41 serves devices, operators and its own app processes on one port, and lets whoever
reaches that port start runs, which is code on the server and on every device. So the server
listens on loopback alone, and this gateway stands on the public address: TLS, the dozen calls of
a device only, the limits and the signature of `door`, the sender check of `envelope`. Which keys
are registered stays Flower's to know.

Every byte of a round passes here with the sender's key beside it, so here is where transfers
are timed, on one clock: one JSON object a finished request goes into the wire log.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import httpx

from airtune.deploy.door import (
    Accepted,
    Held,
    Limits,
    Refused,
    check_headers,
    declared_bytes,
    fingerprint,
    named_key,
    signer_of,
)
from airtune.deploy.envelope import fault_of_push
from airtune.deploy.meter import earlier_log, recent_devices
from airtune.deploy.metrics import Metrics

__all__ = ["CALLS", "Gateway", "fingerprint"]

PREFIX = "/v1/fleet/"
CALLS = frozenset({
    "register-node", "activate-node", "deactivate-node", "unregister-node",
    "send-node-heartbeat", "pull-messages", "push-messages", "get-run", "get-fab",
    "push-object", "pull-object", "confirm-message-received",
})  # fmt: skip
"""What a device has to ask of Flower's server; a list, because a path can climb."""
SELF_REGISTRATION = frozenset({"register-node", "unregister-node"})
"""Only where there are no keys."""
MOST_LOG_BYTES = 32 * 2**20
"""Then the wire log begins a new file; the one before is kept, the one before that is not."""
_EMPTY_BYTES = 8
"""An answer that says `no work`; looks for work that found none are not written down."""
_FORWARDED = frozenset({b"content-type", b"content-length", b"accept", b"user-agent"})
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"})

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Transfer:
    """One request under way: whose it is, and what has passed."""

    def __init__(self, call: str, key: str | None, holder: str, address: str | None) -> None:
        self.call, self.key, self.holder, self.address = call, key, holder, address
        self.device = key
        """For the log: the key that signed, or one that was only named."""
        self.begin_s = self.uploaded_s = self.answered_s = time.time()
        self.up_bytes = self.down_bytes = 0
        self.status = 0
        self.answering = False


class Gateway:
    """An ASGI application that forwards to Flower's server.

    Args:
        upstream: the server's address on this machine, e.g. `https://127.0.0.1:9093`.
        authority: the certificate file by which the server is known; None without TLS.
        wire_log: where finished requests are written.
        limits: what a request, a key and all together may take.
        signed: refuse requests that no key has signed; False where there are no keys.
    """

    def __init__(
        self,
        upstream: str,
        authority: Path | None,
        wire_log: Path,
        limits: Limits | None = None,
        *,
        signed: bool = True,
    ) -> None:
        self._client = httpx.AsyncClient(
            base_url=upstream,
            verify=True if authority is None else _context(authority),
            timeout=httpx.Timeout(120.0, connect=5.0),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=60.0),
            trust_env=False,
        )
        self.limits, self._signed = limits or Limits(), signed
        self._calls = CALLS - SELF_REGISTRATION if signed else CALLS
        self._log, self._held = wire_log, Held(self.limits)
        # After a restart, a device goes on where it was: it need not be small first.
        self._accepted = Accepted(recent_devices(wire_log))
        self.metrics = Metrics(accepted_keys=lambda: len(self._accepted))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        transfer = None
        try:
            transfer = self._entered(scope)
            await self._forward(transfer, scope, receive, send)
        except Refused as error:
            self.metrics.refused(error.kind)
            if transfer is None or not transfer.answering:
                await _refuse(send, error.status, error.reason)
        except httpx.TransportError:
            if transfer is None or not transfer.answering:
                await _refuse(send, 503, "the server does not answer")  # devices try again
        except Exception as error:  # one line, whatever it is
            print(f"a request failed: {type(error).__name__}", file=sys.stderr, flush=True)
            if transfer is None or not transfer.answering:
                await _refuse(send, 502, "the request cannot be forwarded")
        finally:
            if transfer is not None:
                self._held.leave(transfer.holder, transfer.up_bytes)

    def _entered(self, scope: Scope) -> Transfer:
        """Check all that can be checked before the body, and count the request in."""
        if scope["type"] != "http" or scope["method"] != "POST":
            raise Refused(405, "only POST")
        call, headers = scope["path"].removeprefix(PREFIX), scope["headers"]
        if call not in self._calls or not scope["path"].startswith(PREFIX):
            raise Refused(403, "not for devices")
        check_headers(headers, self.limits)
        address = scope["client"][0] if scope.get("client") else None
        key = signer_of(headers, datetime.datetime.now(datetime.UTC)) if self._signed else None
        transfer = Transfer(call, key, key or f"address {address}", address)
        if not self._signed:
            transfer.device = named_key(headers)
        declared = declared_bytes(headers)
        if declared is not None and declared > self._most_bytes(transfer):
            raise self._too_large(transfer)
        self._held.enter(transfer.holder)
        return transfer

    def _most_bytes(self, transfer: Transfer) -> int:
        limits = self.limits
        most = limits.body_bytes if transfer.call == "push-object" else limits.call_bytes
        return most if self._trusts(transfer) else min(most, limits.stranger_bytes)

    def _trusts(self, transfer: Transfer) -> bool:
        return transfer.key is None or transfer.key in self._accepted

    def _too_large(self, transfer: Transfer) -> Refused:
        if self._trusts(transfer):
            return Refused(413, f"at most {self._most_bytes(transfer)} bytes", "too large")
        # A registered device sends a heartbeat, is accepted, and tries this again.
        return Refused(503, "the server has not accepted this key yet")

    async def _body(self, transfer: Transfer, receive: Receive) -> AsyncIterator[bytes]:
        limits, trusted = self.limits, self._trusts(transfer)
        deadline_s = time.monotonic() + (limits.body_s if trusted else limits.stranger_s)
        more = True
        while more:
            patience_s = min(limits.stall_s, deadline_s - time.monotonic())
            try:
                event = await asyncio.wait_for(receive(), max(patience_s, 0.0))
            except TimeoutError:
                raise Refused(503, "the body came too slowly") from None
            if event["type"] == "http.disconnect":
                raise httpx.ReadError("the device went away")
            chunk, more = event.get("body", b""), event.get("more_body", False)
            if transfer.up_bytes + len(chunk) > self._most_bytes(transfer):
                raise self._too_large(transfer)
            self._held.take(transfer.holder, len(chunk))
            transfer.up_bytes += len(chunk)
            yield chunk
        transfer.uploaded_s = time.time()

    async def _forward(
        self, transfer: Transfer, scope: Scope, receive: Receive, send: Send
    ) -> None:
        content: AsyncIterator[bytes] | bytes = self._body(transfer, receive)
        if transfer.call != "push-object":
            content = b"".join([chunk async for chunk in self._body(transfer, receive)])
            fault = fault_of_push(content) if transfer.call == "push-messages" else None
            if fault is not None:
                raise Refused(403, fault)
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name in _FORWARDED or name.startswith(b"flwr-")
        ]
        request = self._client.build_request(
            "POST", PREFIX + transfer.call, headers=headers, content=content
        )
        response = await self._client.send(request, stream=True)
        transfer.status = response.status_code
        if transfer.key is not None:
            self._accepted.answered(transfer.key, transfer.status)
        try:
            await self._answer(transfer, response, send)
        finally:
            await response.aclose()
        self._write(transfer)

    async def _answer(self, transfer: Transfer, response: httpx.Response, send: Send) -> None:
        kept = [(k.lower(), v) for k, v in response.headers.raw if k.lower() not in _HOP_BY_HOP]
        start = {"type": "http.response.start", "status": transfer.status, "headers": kept}
        transfer.answering, transfer.answered_s = True, time.time()
        await send(start)
        stall_s = self.limits.stall_s
        async for chunk in response.aiter_raw():
            transfer.down_bytes += len(chunk)
            part = {"type": "http.response.body", "body": chunk, "more_body": True}
            await asyncio.wait_for(send(part), stall_s)
        await send({"type": "http.response.body", "body": b""})

    def _write(self, transfer: Transfer) -> None:
        self.metrics.passed(transfer)
        if transfer.call == "pull-messages" and transfer.down_bytes <= _EMPTY_BYTES:
            return
        line = {
            "device": transfer.device,
            "signed": transfer.key is not None,
            "address": transfer.address,
            "call": transfer.call,
            "status": transfer.status,
            "begin_s": transfer.begin_s,
            "uploaded_s": transfer.uploaded_s,
            "answered_s": transfer.answered_s,
            "end_s": time.time(),
            "up_bytes": transfer.up_bytes,
            "down_bytes": transfer.down_bytes,
        }
        if self._log.exists() and self._log.stat().st_size > MOST_LOG_BYTES:
            self._log.replace(earlier_log(self._log))
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


async def _refuse(send: Send, status: int, reason: str) -> None:
    headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})


def _context(authority: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(authority))


def main() -> None:
    """Run the gateway: host, port, the server's port, wire log, folder of keys or '', metrics."""
    from airtune.deploy.listener import serve

    host, port, inner, wire_log, keys, *metrics = sys.argv[1:]
    metrics_port = int(metrics[0]) if metrics else None
    if keys:
        folder = Path(keys)
        gateway = Gateway(f"https://127.0.0.1:{inner}", folder / "ca.crt", Path(wire_log))
        certificate, private_key = folder / "server.crt", folder / "server.key"
        pair = (certificate, private_key)
        serve(host, int(port), gateway, pair=pair, metrics_port=metrics_port)
    else:
        plain = Gateway(f"http://127.0.0.1:{inner}", None, Path(wire_log), signed=False)
        serve(host, int(port), plain, pair=None, metrics_port=metrics_port)


if __name__ == "__main__":
    main()
