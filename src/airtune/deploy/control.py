"""Flower's operator interface at a started server, in this process: no command is started."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from airtune.deploy.flower_names import operator_client
from airtune.deploy.server import ServerFolder, about
from airtune.errors import RunError

_UNKNOWN = 404


@contextlib.contextmanager
def control(state: ServerFolder) -> Iterator[Any]:
    """Yield a client of the started server.

    Raises:
        InputError: no server is started.
        RunError: it does not answer, or refuses what was asked.
    """
    import httpx

    known = about(state)
    keys = known.get("keys")
    authority = None if keys is None else (Path(keys) / "ca.crt").read_bytes()
    client = operator_client(f"127.0.0.1:{known['port']}", authority)
    try:
        with contextlib.closing(client):
            yield client
    except httpx.HTTPStatusError as error:
        reason = " ".join(error.response.text.split())[:200]
        raise RunError(f"the server refuses: {reason}; a revoked key stays refused") from None
    except httpx.TransportError as error:
        raise RunError(f"the server does not answer: {error}") from None


def run_status(state: ServerFolder, run: int) -> str:
    """Return how a run stands: pending, starting, running, or finished:… ; unknown is finished.

    Raises:
        InputError, RunError: as `control`.
    """
    import httpx
    from flwr.proto.control_pb2 import ListRunsRequest

    with control(state) as client:
        try:
            found = client.ListRuns(ListRunsRequest(run_id=run)).run_dict
        except httpx.HTTPStatusError as error:
            if error.response.status_code != _UNKNOWN:
                raise
            found = {}
    if not found:
        return "finished:unknown"
    (entry,) = found.values()
    return f"{entry.status.status}:{entry.status.sub_status}".rstrip(":")


def stop_run(state: ServerFolder, run: int) -> None:
    """End a run.

    Raises:
        InputError, RunError: as `control`.
    """
    from flwr.proto.control_pb2 import StopRunRequest

    with control(state) as client:
        client.StopRun(StopRunRequest(run_id=run))
