"""Everything of Flower that is used and is not part of its public interface, in one place.

Flower promises `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and its commands. What a
deployment needs besides (shorter waits, patience, a sign of life) is reached by the names below.
`USED` says of each what it is for and what to do when a new version of Flower has it no longer;
`tests/test_flower_names.py` checks every one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

HEARTBEAT_S = 15
"""Between two signs of life of a device; Flower's own 30 s forget a dead device after 60 s, these
after 30 s. Flower refuses less than 10 s."""
MOST_BACKOFF_S = 5.0
"""Longest pause before a failed request is tried again; Flower's own is 20 s."""
IDLE_POLL_S = 5.0
"""Longest pause between two looks for work while nothing runs."""
RUN_SHARE, IDLE_SHARE = 0.02, 0.1
"""A look comes no later than this share of the time since this device last had or sent anything:
the first while a message is to be expected, so that waiting costs a round next to nothing, and the
second while none is, because each look costs the server some milliseconds."""
FIRST_GAP_S, LATE_S = 300.0, 60.0
"""A message is to be expected until twice the longest recent time between two, and `LATE_S`, have
passed. That time is `FIRST_GAP_S` at first, since a rehearsal follows the first message; what is
remembered of it halves with each message."""
ANSWER_S, UPLOAD_S = 30.0, 3600.0
"""How long SuperNode waits for an answer, and for that to an upload. With Flower's own 30 s for
both, an update whose upload takes longer is sent again and again; the relay ends a connection on
which nothing passes."""
PART_POLL_S = 0.1
"""Between two looks for a part of a message that is still on its way."""
TURNED_AWAY = 412
"""HTTP status with which Flower's server refuses to activate a key: unknown, or in use."""
UNAUTHORISED = 401
"""HTTP status for a signature that does not hold: another key, or a clock that is off."""


@dataclass(frozen=True)
class Name:
    """One private name of Flower.

    Attributes:
        module: where it is.
        name: what is used there.
        purpose: what for.
        instead: what to do when it is gone.
    """

    module: str
    name: str
    purpose: str
    instead: str


_CONNECTION = "flwr.supernode.fleet_http_connection"
_LOOP = "flwr.supernode.start_client_internal"
_WAITS = "without it waits are Flower's own (up to 4.5 s a round): leave the replacement out"
USED = (
    Name(_LOOP, "time", "caps SuperNode's waits", _WAITS),
    Name(_LOOP, "pull_objects", "asks sooner for a part that is still being stored", _WAITS),
    Name(
        _CONNECTION,
        "make_simple_http_retry_invoker",
        "has a broken TLS handshake tried again in place of giving up for good",
        "find where SuperNode decides to give up on a failed request, and keep transport errors "
        "out of it; `tests/test_flower_return.py` shows whether devices come back",
    ),
    Name(
        _CONNECTION,
        "FleetHttpClient",
        "tells that the server has answered, which is how a lost connection is seen",
        "report contact from another place that every answer passes; without it `watch.py` "
        "starts a device's SuperNode again every half minute",
    ),
    Name(
        _CONNECTION,
        "HEARTBEAT_DEFAULT_INTERVAL",
        "has a dead device forgotten after 30 s",
        "without it 60 s: raise `FORGOTTEN_S` in `watch.py` to 75",
    ),
    Name(
        "flwr.supercore.heartbeat",
        "HEARTBEAT_DEFAULT_INTERVAL",
        "sends signs of life as often as was announced",
        "must follow the interval that SuperNode announces, or devices are taken for dead",
    ),
    Name(
        "flwr.supercore.heartbeat",
        "exponential",
        "sends a sign of life at most 5 s after the network is back",
        "without it up to 20 s: nothing else to do",
    ),
    Name("flwr.superlink.grid.http_grid", "pull_objects", "as in SuperNode, at the server", _WAITS),
    Name(
        "flwr.superlink.grid.http_grid",
        "HttpGrid",
        "its `_retry_invoker` is made patient, so that a run survives a restart of Flower's server",
        "without it a TLS handshake that breaks ends the run: find the grid's retries",
    ),
    Name(
        "flwr.supercore.control",
        "ControlHttpClient",
        "lists, admits and revokes many devices in one process",
        "call `flwr supernode register|unregister` once a device: 2 s each, and no list of names",
    ),
    Name(
        "flwr.supercore.interceptors",
        "RuntimeVersionHttpInterceptor",
        "goes with ControlHttpClient: Flower's server wants to know the version that asks",
        "as for ControlHttpClient",
    ),
    Name(
        "flwr.superlink.cli.flower_superlink",
        "uvicorn",
        "serves Flower's server to this account alone",
        "find where `flower-superlink` starts its application, and put `guarded.SameUser` before "
        "it; without that every user of the machine can start runs",
    ),
    Name(
        "flwr.supercore.superexec.executor.subprocess_executor",
        "subprocess",
        "keeps tokens out of the arguments of app processes",
        "find where SuperExec starts an app process; every user can list its arguments",
    ),
    Name("flwr.superlink.cli", "flower_superlink", "Flower's server itself", "see its `uvicorn`"),
    Name("flwr.supercore.cli", "flower_superexec", "the starter", "see its `subprocess`"),
    Name(
        "flwr.supernode.cli",
        "flower_supernode",
        "SuperNode itself, run in a process where the names above are replaced",
        "start the command `flower-supernode`: it works, without any of this",
    ),
    Name(
        "flwr.supernode.cli.flwr_clientapp",
        "flwr_clientapp",
        "the client process, forked from a warm parent",
        "leave `forkserver.py` out of `node.py`: 1 to 4 s more a message",
    ),
    Name(
        "flwr.supernode.runtime.run_clientapp",
        "pull_and_inflate_object_from_tree",
        "the client process begins while SuperNode still receives the message, and looks for it "
        "every 0.1 s; Flower's own looks come after 1, 3 and 7 s",
        _WAITS,
    ),
)


class Idle:
    """How long a device may wait before its next look for work.

    Args:
        cap_s: the longest wait while a run is going on.
        clock: tests replace it.
    """

    def __init__(self, cap_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._cap_s, self._clock = cap_s, clock
        self._moved_s = clock()
        self._received_s: float | None = None
        self._gap_s = FIRST_GAP_S

    def received(self) -> None:
        """Note that a message came."""
        now_s = self._clock()
        if self._received_s is not None:
            # A pause between two runs is forgotten within some rounds.
            self._gap_s = max(now_s - self._received_s, self._gap_s / 2)
        self._received_s = self._moved_s = now_s

    def sent(self) -> None:
        """Note that a part of a message was sent."""
        self._moved_s = self._clock()

    def wait_s(self, wanted_s: float) -> float:
        """Return how long to wait where Flower wants to wait `wanted_s`."""
        if wanted_s < 1.0:  # within a message
            return min(wanted_s, self._cap_s)
        now_s, last_s = self._clock(), self._received_s
        expected = last_s is not None and now_s < last_s + 2 * self._gap_s + LATE_S
        share = RUN_SHARE if expected else IDLE_SHARE
        silent_s = now_s - self._moved_s
        return min(max(self._cap_s, share * silent_s), max(self._cap_s, IDLE_POLL_S))


def patient(invoker: Any, refused: Callable[[int], None] = lambda status: None) -> Any:
    """Have a retry invoker of Flower try again after every error of the transport.

    Flower gives up for good on an error whose text has "ssl" in it, which is what a server or a
    network that goes away within a TLS handshake leaves. A certificate that is not accepted is
    found out elsewhere (`processes.check_server`), where it ends the device with a reason.

    Args:
        invoker: changed in place.
        refused: called with HTTP statuses 401 and 412, before they are treated.
    """
    import httpx

    decide = invoker.should_giveup

    def giveup(error: Exception) -> bool:
        if isinstance(error, httpx.TransportError):
            return False
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            if status in (UNAUTHORISED, TURNED_AWAY):
                refused(status)
            if status == TURNED_AWAY:
                return False  # the server may still count this device's last connection
        return bool(decide(error))

    waits = invoker.wait_gen_factory
    invoker.should_giveup = giveup
    invoker.wait_gen_factory = lambda: (min(wait_s, MOST_BACKOFF_S) for wait_s in waits())
    return invoker


def _looking_often(pull: Callable[..., Any], cap_s: float) -> Callable[..., Any]:
    """Have Flower look for a part that is on its way at least every `cap_s`.

    Flower gives up after 500 looks, which would then be over before a slow link has carried the
    part; the time for it stays Flower's: two hours.
    """
    first_s = min(cap_s, PART_POLL_S)
    return partial(pull, initial_backoff=first_s, backoff_cap=cap_s, max_tries_per_object=None)


def prepare_supernode(
    cap_s: float,
    contact: Callable[[str], None],
    refused: Callable[[int], None],
    forgotten: Callable[[], None],
) -> Callable[[], None]:
    """Replace what SuperNode waits with; return SuperNode's own entry.

    Args:
        cap_s: the longest wait between two looks for work while a run is going on.
        contact: called with the path of every request that the server has answered.
        refused: called with HTTP statuses 401 and 412.
        forgotten: called when the server answers a sign of life with "unknown".
    """
    import httpx
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli import flower_supernode

    idle = Idle(cap_s)

    class Watched(fleet_http_connection.FleetHttpClient):
        def _unary_unary(self, **request: Any) -> Any:
            path = str(request["path"])
            if path.endswith("push-object"):
                request["timeout"] = httpx.Timeout(ANSWER_S, read=UPLOAD_S, write=UPLOAD_S)
            answer = super()._unary_unary(**request)
            if getattr(answer, "messages_list", None):
                idle.received()
            elif path.endswith("push-object"):
                idle.sent()
            contact(path)
            return answer

        def SendNodeHeartbeat(self, request: Any) -> Any:
            # An error that is not the transport's would end Flower's thread without a word, and
            # the server would take a working device for dead.
            try:
                answer = super().SendNodeHeartbeat(request)
            except httpx.HTTPStatusError as error:
                if error.response.status_code == UNAUTHORISED:
                    raise
                raise httpx.ReadError(str(error)) from error
            if not answer.success:
                forgotten()
            return answer

    make = fleet_http_connection.make_simple_http_retry_invoker
    vars(fleet_http_connection).update(
        make_simple_http_retry_invoker=lambda: patient(make(), refused),
        FleetHttpClient=Watched,
        HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT_S,
    )
    backoff = heartbeat.exponential
    vars(heartbeat).update(
        HEARTBEAT_DEFAULT_INTERVAL=HEARTBEAT_S,
        exponential=lambda max_delay: backoff(max_delay=int(MOST_BACKOFF_S)),
    )
    vars(start_client_internal).update(
        time=SimpleNamespace(sleep=lambda wanted_s: time.sleep(idle.wait_s(wanted_s))),
        pull_objects=_looking_often(start_client_internal.pull_objects, cap_s),
    )
    return flower_supernode


def prepare_grid(grid: Any, poll_s: float) -> None:
    """Have the server's app look often for the parts of a reply, and survive broken handshakes."""
    from flwr.superlink.grid import http_grid

    # Unchanged, a second and more between two looks for a part that is still on its way.
    vars(http_grid)["pull_objects"] = _looking_often(http_grid.pull_objects, poll_s)
    invoker = getattr(grid, "_retry_invoker", None)
    if invoker is not None:
        patient(invoker)


def operator_client(address: str, authority: bytes | None) -> Any:
    """Return a client of Flower's operator interface; close it after use.

    Args:
        address: host and port of Flower's server on this machine.
        authority: the certificate by which it is known, PEM; None without TLS.
    """
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    return ControlHttpClient.from_server_address(
        server_address=address,
        insecure=authority is None,
        root_certificates=authority,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
    )


def superlink_served_by(run: Callable[..., None]) -> Callable[[], None]:
    """Return the entry of Flower's server, which is served by `run` in place of uvicorn's."""
    from flwr.superlink.cli import flower_superlink

    vars(sys.modules[flower_superlink.__module__])["uvicorn"] = SimpleNamespace(run=run)
    return flower_superlink


def superexec_started_by(start: Callable[..., Any]) -> Callable[[], None]:
    """Return the entry of Flower's starter, whose app processes are started by `start`."""
    from flwr.supercore.cli import flower_superexec
    from flwr.supercore.superexec.executor import subprocess_executor

    vars(subprocess_executor)["subprocess"] = SimpleNamespace(
        Popen=start, DEVNULL=subprocess.DEVNULL
    )
    return flower_superexec


def client_process() -> Callable[[], None]:
    """Return the entry of Flower's client process, with its imports done and its waits short."""
    from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    vars(run_clientapp)["pull_and_inflate_object_from_tree"] = _looking_often(
        run_clientapp.pull_and_inflate_object_from_tree, PART_POLL_S
    )

    return flwr_clientapp
