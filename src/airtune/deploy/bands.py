"""Telling the network who may use how much of the band: the interface an operator fills in."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from airtune.assignment import Assignment
from airtune.errors import RunError


class Bands(Protocol):
    """Enforces a round's plan in the network, before the round begins.

    An operator's quality-of-service interface (3GPP's Npcf_PolicyAuthorization, CAMARA's Quality
    on Demand) is one more class with these two methods.
    """

    def grant(self, assignments: Mapping[str, Assignment]) -> None:
        """Hold each client to its planned rates from now on."""

    def lift(self) -> None:
        """Remove all limits."""


class SocketBands:
    """Hands the grants to a process behind a Unix socket, one JSON object a request.

    The testbed's shaper listens there and turns them into `tc` commands; it answers
    `{"ok": true}` when the links have changed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def grant(self, assignments: Mapping[str, Assignment]) -> None:
        """Hold each client to its planned rates."""
        self._ask({"grant": {name: asdict(one) for name, one in assignments.items()}})

    def lift(self) -> None:
        """Remove all limits."""
        self._ask({"grant": {}})

    def _ask(self, request: object) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.settimeout(10)
                link.connect(str(self._path))
                link.sendall(json.dumps(request).encode() + b"\n")
                answer = link.makefile("rb").readline()
        except OSError as error:
            raise RunError(
                f"the network's shaper at '{self._path}' is not there: {error}"
            ) from None
        if not answer or not json.loads(answer).get("ok"):
            raise RunError(f"the network's shaper refused the plan: {answer.decode()[:200]}")
