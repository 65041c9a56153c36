"""Who may connect: devices are admitted, listed and revoked at a started server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.deploy import server
from airtune.deploy.control import control
from airtune.deploy.gateway import fingerprint
from airtune.deploy.keys import public_pem
from airtune.errors import InputError


@dataclass(frozen=True)
class Admitted:
    """One registered device.

    Attributes:
        node: Flower's number of it.
        client: the scenario's client that it plays.
        key: fingerprint of its public key.
        status: `registered` (never connected), `online` or `offline`.
    """

    node: int
    client: str
    key: str
    status: str


def admitted(state: server.ServerFolder) -> list[Admitted]:
    """Return the registered devices, by client.

    Raises:
        InputError: no server is started.
        RunError: it does not answer.
    """
    with control(state) as client:
        return _admitted(client)


def register(
    state: server.ServerFolder, keys: Mapping[Path, str], *, replace: bool = False
) -> list[str]:
    """Admit devices: public key file to the client of the scenario that it plays.

    Args:
        state: of the started server.
        keys: `.pub` files and clients.
        replace: revoke every other key of those clients.

    Returns:
        What was done, a line each.

    Raises:
        InputError: a file is no key, or no server is started.
        RunError: the server refuses a key.
    """
    from flwr.proto.control_pb2 import RegisterNodeRequest

    # Flower's own refusal is a screenful; and one bad file should admit no device.
    pems = {path: public_pem(path) for path in keys}
    done = []
    with control(state) as client:
        before = _admitted(client)
        for path, name in keys.items():
            own = fingerprint(pems[path])
            if any(device.key == own and device.client == name for device in before):
                done.append(f"{path} is registered as {name} already")
            else:
                client.RegisterNode(RegisterNodeRequest(public_key=pems[path], name=name))
                done.append(f"registered {path} as {name}")
            old = [device for device in before if device.client == name and device.key != own]
            if replace:
                done += [_revoke(client, device) for device in old]
            elif old:
                done.append(f"{name} has {len(old)} other key: `--replace` would revoke it")
    return done


def revoke(state: server.ServerFolder, name: str) -> list[str]:
    """Take a client's keys off the server; its device is turned away at its next request.

    Raises:
        InputError: no key is registered for that client, or no server is started.
    """
    with control(state) as client:
        devices = _admitted(client)
        own = [device for device in devices if device.client == name]
        if not own:
            names = ", ".join(sorted({device.client for device in devices})) or "none"
            raise InputError(f"no key is registered for client '{name}'; there are: {names}")
        return [_revoke(client, device) for device in own]


def _revoke(client: Any, device: Admitted) -> str:
    from flwr.proto.control_pb2 import UnregisterNodeRequest

    client.UnregisterNode(UnregisterNodeRequest(node_id=device.node))
    return f"revoked key {device.key} of {device.client}"


def _admitted(client: Any) -> list[Admitted]:
    from flwr.proto.control_pb2 import ListNodesRequest

    nodes = client.ListNodes(ListNodesRequest()).nodes_info
    found = [
        Admitted(node.node_id, node.name, fingerprint(node.public_key), node.status)
        for node in nodes
        if node.status != "unregistered"
    ]
    return sorted(found, key=lambda device: (device.client, device.node))
