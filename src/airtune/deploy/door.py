"""What a request has to pass before its body is read: limits, and the signature of its key.

Flower's devices sign the current time with their own key in every request. The gateway checks
that signature itself, before a byte of the body goes on to Flower's server, which would keep the
whole body in memory first. Whether the key is registered, only Flower's server knows: a key that
it has not accepted yet may send small bodies alone.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER = (
    b"flwr-public-key",
    b"flwr-timestamp",
    b"flwr-signature",
)
EARLY_S, LATE_S = 5.0, 305.0
"""How far a device's clock may be ahead of and behind the server's; Flower's own limits."""
_MOST_HEADER_VALUE = 2048

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Limits:
    """What one request, one key and all together may take."""

    headers: int = 64
    header_bytes: int = 16 * 2**10
    """All names and values of a request."""
    header_s: float = 30.0
    """From the connection, or the first byte, to the end of the headers."""
    body_bytes: int = 256 * 2**20
    """Of one part of a message."""
    call_bytes: int = 4 * 2**20
    """Of every other call."""
    stranger_bytes: int = 64 * 2**10
    """Of a key that Flower's server has not accepted yet."""
    stall_s: float = 60.0
    """Between two pieces of a body, or of an answer that the device takes."""
    body_s: float = 3600.0
    stranger_s: float = 30.0
    """The same for a key that has not been accepted yet."""
    requests_per_key: int = 16
    """Under way at once."""
    bytes_per_key: int = 256 * 2**20
    """In bodies under way at once."""
    bytes_at_once: int = 512 * 2**20
    """In all bodies under way."""
    connections: int = 1024
    connections_per_address: int = 256


class Refused(Exception):
    """A request that is not let through: an HTTP status and a reason in one line.

    Attributes:
        kind: the reason without numbers, to count by.
    """

    def __init__(self, status: int, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.status, self.reason, self.kind = status, reason, kind or reason


def check_headers(headers: Headers, limits: Limits) -> None:
    """Refuse too many or too large headers, and two ways to say how long the body is."""
    size = sum(len(name) + len(value) for name, value in headers)
    if len(headers) > limits.headers or size > limits.header_bytes:
        raise Refused(
            431, f"at most {limits.headers} headers of {limits.header_bytes} bytes", "headers"
        )
    names = [name for name, _ in headers]
    if b"content-length" in names and b"transfer-encoding" in names:
        raise Refused(400, "content-length and transfer-encoding exclude each other")


def signer_of(headers: Headers, now: datetime.datetime) -> str:
    """Return the fingerprint of the key that signed a request.

    Raises:
        Refused: the key, the time or the signature is missing, malformed or does not fit.
    """
    values = {}
    for wanted in (KEY_HEADER, TIME_HEADER, SIGNATURE_HEADER):
        found = [value for name, value in headers if name == wanted]
        if len(found) != 1 or len(found[0]) > _MOST_HEADER_VALUE:
            raise Refused(401, f"one header {wanted.decode()} is needed")
        values[wanted] = found[0]
    try:
        pem = base64.b64decode(values[KEY_HEADER], validate=True)
        signature = base64.b64decode(values[SIGNATURE_HEADER], validate=True)
        signed_at = datetime.datetime.fromisoformat(values[TIME_HEADER].decode("ascii"))
        behind_s = (now - signed_at).total_seconds()
        key = _public_key(pem)
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm, binascii.Error):
        raise Refused(401, "the key, the time or the signature cannot be read") from None
    try:
        key.verify(signature, values[TIME_HEADER], ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError):
        raise Refused(401, "the signature does not fit the key") from None
    if not -EARLY_S < behind_s < LATE_S:
        off = f"{abs(behind_s):.0f} s {'behind' if behind_s > 0 else 'ahead of'} the server's"
        raise Refused(401, f"the clock of this device is {off}: set it", kind="clock")
    return fingerprint(pem)


def named_key(headers: Headers) -> str | None:
    """Return the fingerprint of the key that a request names, unchecked; None where it names none.

    Only for the log of a server without keys: SuperNode then makes one of its own at each start.
    """
    found = [value for name, value in headers if name == KEY_HEADER]
    if len(found) != 1 or len(found[0]) > _MOST_HEADER_VALUE:
        return None
    try:
        return fingerprint(base64.b64decode(found[0], validate=True))
    except ValueError:
        return None


def fingerprint(public_pem: bytes) -> str:
    """Name a device's public key: the first 16 hex digits of the PEM's SHA-256."""
    return hashlib.sha256(public_pem).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    key = serialization.load_pem_public_key(pem)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("not an elliptic-curve key")
    return key


def declared_bytes(headers: Headers) -> int | None:
    """Return the length that a body is declared with; None where it comes in chunks."""
    found = [value for name, value in headers if name == b"content-length"]
    try:
        return int(found[0]) if found else None
    except ValueError:
        raise Refused(400, "content-length is not a number") from None


@dataclass
class Held:
    """What requests under way hold, by key."""

    limits: Limits
    requests: Counter[str] = field(default_factory=Counter)
    body_bytes: Counter[str] = field(default_factory=Counter)

    def enter(self, holder: str) -> None:
        """Count a request in; each holder has a limit of requests at once."""
        if self.requests[holder] >= self.limits.requests_per_key:
            raise Refused(503, "too many requests of this key at once")
        self.requests[holder] += 1

    def take(self, holder: str, size: int) -> None:
        """Count bytes of a body in, before they are kept."""
        limits = self.limits
        if self.body_bytes[holder] + size > limits.bytes_per_key:
            raise Refused(503, "too much of this key at once")
        if self.body_bytes.total() + size > limits.bytes_at_once:
            raise Refused(503, "too much at once")
        self.body_bytes[holder] += size

    def leave(self, holder: str, size: int) -> None:
        """Count a request and its bytes out."""
        for counts, amount in ((self.requests, 1), (self.body_bytes, size)):
            counts[holder] -= amount
            if counts[holder] <= 0:
                del counts[holder]


class Accepted:
    """The keys that Flower's server has answered as a registered device's."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = set(keys)

    def __contains__(self, key: str) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def answered(self, key: str, status: int) -> None:
        """Learn from an answer of Flower's server to a signed request."""
        if status == 200:
            self._keys.add(key)
        elif status == 401:  # unregistered since, or revoked
            self._keys.discard(key)
