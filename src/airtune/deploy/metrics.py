"""What the gateway counts, for Prometheus: on loopback alone, in its text format 0.0.4."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airtune.deploy.gateway import Transfer

_MOST_REASONS = 64
_PATIENCE_S = 5.0
_HEAD_BYTES = 8192


class Metrics:
    """Counters since the gateway was started."""

    def __init__(self, accepted_keys: Callable[[], int]) -> None:
        self._accepted_keys = accepted_keys
        self._requests: Counter[tuple[str, int]] = Counter()
        self._bytes: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._seen_s: dict[str, float] = {}
        self._begin_s = time.time()

    def passed(self, transfer: Transfer) -> None:
        """Count a request that Flower's server has answered."""
        self._requests[transfer.call, transfer.status] += 1
        self._bytes["up"] += transfer.up_bytes
        self._bytes["down"] += transfer.down_bytes
        if transfer.key is not None and transfer.status == 200:
            self._seen_s[transfer.key] = time.time()

    def refused(self, reason: str) -> None:
        """Count a request that was not let through."""
        known = reason in self._refused or len(self._refused) < _MOST_REASONS
        self._refused[reason if known else "other"] += 1

    def text(self) -> str:
        """Return all of it in Prometheus' text format."""
        lines = _family("airtune_gateway_start_time_seconds", "gauge", "When it was started.")
        lines.append(f"airtune_gateway_start_time_seconds {self._begin_s:.3f}")
        lines += _family("airtune_gateway_accepted_keys", "gauge", "Keys of registered devices.")
        lines.append(f"airtune_gateway_accepted_keys {self._accepted_keys()}")
        lines += _family("airtune_gateway_requests_total", "counter", "Answered requests.")
        for (call, status), count in sorted(self._requests.items()):
            labels = f'call="{call}",status="{status}"'
            lines.append(f"airtune_gateway_requests_total{{{labels}}} {count}")
        lines += _family("airtune_gateway_bytes_total", "counter", "Bytes of HTTP bodies.")
        for way in ("up", "down"):
            lines.append(f'airtune_gateway_bytes_total{{direction="{way}"}} {self._bytes[way]}')
        lines += _family("airtune_gateway_refused_total", "counter", "Refused requests.")
        for reason, count in sorted(self._refused.items()):
            lines.append(f'airtune_gateway_refused_total{{reason="{_escaped(reason)}"}} {count}')
        lines += _family("airtune_device_last_seen_seconds", "gauge", "Last answered request.")
        for key, seen_s in sorted(self._seen_s.items()):
            lines.append(f'airtune_device_last_seen_seconds{{device="{key}"}} {seen_s:.3f}')
        return "\n".join(lines) + "\n"


async def serve_metrics(metrics: Metrics, port: int) -> asyncio.Server:
    """Answer `GET /metrics` on 127.0.0.1."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError,
            TimeoutError,
            ValueError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,  # a head longer than `_HEAD_BYTES`
        ):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE_S)
            asked = head.split(b"\r\n", 1)[0].split(b" ")[:2]
            status, body = b"404 Not Found", b""
            if asked == [b"GET", b"/metrics"]:
                status, body = b"200 OK", metrics.text().encode()
            writer.write(
                b"HTTP/1.1 " + status + b"\r\nContent-Type: text/plain; version=0.0.4\r\n"
                b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
            )
            await asyncio.wait_for(writer.drain(), _PATIENCE_S)
        writer.close()

    return await asyncio.start_server(answer, "127.0.0.1", port, limit=_HEAD_BYTES)


def _family(name: str, kind: str, help: str) -> list[str]:
    return [f"# HELP {name} {help}", f"# TYPE {name} {kind}"]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
