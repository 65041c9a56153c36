"""For tests of the gateway: a stand-in for Flower's server, and requests as a device signs them."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import uvicorn
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from airtune.deploy.processes import free_port


class Upstream:
    """Answers with the path, a header and the body's length, then the body; counts calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.received_bytes = 0
        self.status = 200

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.calls.append(scope["path"])
        body = b""
        while True:
            event = await receive()
            body += event.get("body", b"")
            self.received_bytes += len(event.get("body", b""))
            if not event.get("more_body"):
                break
        names = dict(scope["headers"])
        own = names.get(b"flwr-own", b"").decode()
        said = json.dumps([scope["path"], own, b"x-own" in names, len(body)]).encode() + b"\n"
        headers = [(b"x-up", b"1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in (said, body):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


@contextmanager
def served(app: Any, **config: Any) -> Iterator[str]:
    """Serve an ASGI app in a thread on a free port; yields its URL."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host="127.0.0.1",
            port=port,
            log_level="error",
            ws="none",
            **{"lifespan": "off" if isinstance(app, Upstream) else "auto", **config},
        )
    )

    def work() -> None:
        with asyncio.Runner() as runner:
            runner.run(server.serve())

    thread = threading.Thread(target=work)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Signer:
    """A device's key, and the headers that it puts on a request."""

    def __init__(self, key: Any = None) -> None:
        self.key = key or ec.generate_private_key(ec.SECP384R1())
        self.pem = self.pem_of(self.key.public_key())

    @staticmethod
    def pem_of(public_key: Any) -> bytes:
        """Return a public key as requests carry it."""
        return bytes(
            public_key.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def headers(self, ago_s: float = 0.0, **changes: str) -> dict[str, str]:
        """Return the headers of a request signed so long ago."""
        now = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=ago_s)
        stamp = now.isoformat()
        signature = self.key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))
        return {
            "flwr-public-key": base64.b64encode(self.pem).decode(),
            "flwr-timestamp": stamp,
            "flwr-signature": base64.b64encode(signature).decode(),
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
