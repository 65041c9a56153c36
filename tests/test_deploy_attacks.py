"""Attacks on a real deployment: devices that lie, strangers at the door, other users, spoofers."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from flower_deployment import Deployment
from gateway_server import Signer

HONEST = "intel-n100-1"
LIARS = {
    "jetson-orin-nano-1": "noise",
    "jetson-orin-nano-2": "silent",
    "raspberry-pi-5-1": "far",
}
KINDS = (
    "devices=[{profile='jetson-orin-nano', count=2, utilisation=1e-6}, "
    "{profile='raspberry-pi-5', utilisation=2e-4}, {profile='intel-n100', utilisation=2e-4}]"
)
ROGUE = textwrap.dedent(
    """
    import sys, time
    import numpy as np
    from airtune.deploy import device
    from airtune.deploy.protocol import Introduction, Privacy, Update, kind_of, pack, unpack

    how, honest = sys.argv.pop(1), device.Device.handle

    def lie(self, body):
        if how == "silent" and kind_of(body) == "hello":
            time.sleep(3600)
        answer = honest(self, body)
        kind = kind_of(answer)
        if how == "noise" and kind == "introduction":
            own, _ = unpack(answer, Introduction)
            loud = Privacy(clip=1e6, noise_multiplier=1e6)
            values = {"privacy": loud, "labels": {}, "next_steps": [], "examples": own.examples}
            return pack(own.model_copy(update=values))
        if how == "far" and kind == "update":
            fields, arrays = unpack(answer, Update)
            arrays["values"] = np.full_like(arrays["values"], 65504.0)
            return pack(fields.model_copy(update={"compute_s": 1e-9}), arrays)
        return answer

    device.Device.handle = lie
    from airtune.cli import main
    main()
    """
)


def rogue(deployment: Deployment, client: str, how: str) -> None:
    """Start a registered device that lies."""
    command = [sys.executable, "-c", ROGUE, how, "deploy", "device"]
    command += ["--server", f"127.0.0.1:{deployment.port}", "--client", client]
    command += ["--scenario", "tiny", *deployment._settings, "--poll", "0.2"]
    with (deployment.folder / f"{client}.log").open("wb") as log:
        deployment._running[client] = subprocess.Popen(
            command, cwd=deployment.folder, env=deployment._environment(),
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.mark.slow
def test_devices_that_lie_spoil_nothing(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=[KINDS, "rounds=3"]) as deployment:
        deployment.start_server()
        for client in (*LIARS, HONEST):
            deployment.admit(client)
        deployment.start_device(HONEST)
        for client, how in LIARS.items():
            rogue(deployment, client, how)
        for client in (HONEST, "raspberry-pi-5-1"):
            deployment.wait_for(client, "is ready", 400)
        deployment.start_run("--devices", "2", "--wait", "60", "--grace", "30", "--slack", "1")
        assert deployment.finish(timeout_s=400) == 0, deployment.said("run")
        said = deployment.said("run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        status = {client["name"]: client["status"] for client in line["clients"]}
        assert status[HONEST] == "ok"
        assert "rejected" in status["raspberry-pi-5-1"]
        assert status["jetson-orin-nano-1"] == "failed: not connected"
        assert status["jetson-orin-nano-2"] == "failed: not connected"
        assert line["eval_loss"] < 20
    assert "jetson-orin-nano-1 refused: it adds noise" in said
    assert said.isascii() or "\x1b" not in said


class Registered(Signer):
    """A registered device's own key, in other hands."""

    def __init__(self, file: Path) -> None:
        key = serialization.load_ssh_private_key(file.read_bytes(), password=None)
        super().__init__(key)


def client_of(deployment: Deployment) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(deployment.folder / "keys" / "ca.crt"))
    base = f"https://127.0.0.1:{deployment.port}/v1/fleet/"
    return httpx.Client(base_url=base, verify=context, timeout=60)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def process_of(deployment: Deployment, words: str) -> int:
    for pid in deployment.tree(deployment.pid("server")):
        if words in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "):
            return pid
    raise AssertionError(f"no process with '{words}'")


@pytest.mark.slow
def test_strangers_and_spoofers_at_the_door(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=["rounds=1"]) as deployment:
        deployment.start_server()
        deployment.admit("raspberry-pi-5-1")
        signer = Registered(tmp_path / "keys" / "raspberry-pi-5-1")
        with client_of(deployment) as client:
            bodies_are_not_read(deployment, client)
            messages_have_one_sender(client, signer)
        if os.getuid() == 0:
            other_users_are_kept_out(deployment)
        logs = "".join(p.read_text(errors="replace") for p in tmp_path.glob("**/*.log"))
    assert "Traceback" not in logs
    assert "\x1b[2J" not in logs


def bodies_are_not_read(deployment: Deployment, client: httpx.Client) -> None:
    """Four bodies of 250 MB without a registered key do not reach Flower's server."""
    pids = [process_of(deployment, words) for words in ("guarded superlink", "deploy.gateway")]
    before = [resident_bytes(pid) for pid in pids]
    refused: list[int] = []

    def flood(headers: dict[str, str]) -> None:
        block, size = b"x" * 2**20, 250
        chunks = (block for _ in range(size))
        length = {"content-length": str(size * 2**20)} if "flwr-signature" in headers else {}
        try:
            with client_of(deployment) as own:
                answer = own.post("push-object", headers={**headers, **length}, content=chunks)
                refused.append(answer.status_code)
        except httpx.TransportError:
            refused.append(0)  # the gateway closed the connection in the middle

    cases = [{}, {"flwr-public-key": "\x1b[2J"}, Signer().headers(), {"flwr-public-key": "QQ=="}]
    threads = [threading.Thread(target=flood, args=(case,)) for case in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(refused) <= {0, 401, 503}
    grown = [resident_bytes(pid) - old for pid, old in zip(pids, before, strict=True)]
    assert max(grown) < 100 * 2**20, grown
    assert client.post("get-run", headers={"flwr-public-key": "%"}).status_code == 401


def messages_have_one_sender(client: httpx.Client, signer: Signer) -> None:
    """A registered key activates itself; it can neither answer for another nor instruct one."""
    from flwr.proto.fleet_pb2 import (
        ActivateNodeRequest,
        ActivateNodeResponse,
        PushMessagesRequest,
    )
    from flwr.proto.message_pb2 import Message, Metadata, ObjectTree
    from flwr.proto.node_pb2 import Node

    def ask(call: str, request: object) -> httpx.Response:
        headers = signer.headers(content_type="application/protobuf")
        content = request.SerializeToString()  # type: ignore[attr-defined]
        return client.post(call, headers=headers, content=content)

    activate = ActivateNodeRequest(public_key=signer.pem, heartbeat_interval=30)
    answer = ask("activate-node", activate)
    assert answer.status_code == 200, answer.text
    node = ActivateNodeResponse.FromString(answer.content).node_id
    for source, target, reply_to in ((node + 1, 1, "m"), (node, node + 1, ""), (node, 1, "")):
        metadata = Metadata(
            src_node_id=source, dst_node_id=target, reply_to_message_id=reply_to, ttl=60
        )
        forged = PushMessagesRequest(
            node=Node(node_id=node),
            messages_list=[Message(metadata=metadata)],
            message_object_trees=[ObjectTree(object_id="0" * 64)],
        )
        assert ask("push-messages", forged).status_code == 403
    # As another node altogether: the key does not belong to it, says Flower's server.
    metadata = Metadata(src_node_id=node + 1, dst_node_id=1, reply_to_message_id="m", ttl=60)
    forged = PushMessagesRequest(
        node=Node(node_id=node + 1),
        messages_list=[Message(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id="0" * 64)],
    )
    assert ask("push-messages", forged).status_code == 401


def other_users_are_kept_out(deployment: Deployment) -> None:
    """As user 65534: no state folder, no control API, no token in the list of processes."""
    state = deployment.folder / "deployment"
    port = json.loads((state / "server.json").read_text())["port"]

    def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        return subprocess.run([*drop, *command], capture_output=True, text=True, check=False)

    deployment.folder.chmod(0o755)
    for parent in deployment.folder.parents:
        if parent.stat().st_uid == os.getuid() and parent.name.startswith("pytest"):
            parent.chmod(0o755)
    assert as_nobody("ls", str(deployment.folder)).returncode == 0
    assert as_nobody("ls", str(state)).returncode != 0
    listed = subprocess.run(["find", str(state), "-perm", "/077"], capture_output=True, text=True,
                            check=True)  # fmt: skip
    assert listed.stdout == ""
    ask = (
        f"import http.client, ssl; c = http.client.HTTPSConnection('127.0.0.1', {port}, "
        "context=ssl._create_unverified_context()); c.request('POST', '/v1/control/list-runs', "
        "headers={'content-type': 'application/protobuf'}); print(c.getresponse().status)"
    )
    python = "/usr/bin/python3"
    if Path(python).exists():
        assert as_nobody(python, "-c", ask).stdout.strip() == "403"
    own = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
    assert own.stdout.strip() == "200", own.stderr


@pytest.mark.slow
def test_no_token_is_in_the_list_of_processes(tmp_path: Path) -> None:
    with Deployment(tmp_path, secure=False, overrides=["rounds=2"]) as deployment:
        deployment.start_server()
        deployment.start_devices()
        deployment.start_run()
        seen: set[str] = set()
        while deployment._running["run"].poll() is None:
            for name in ("server", *list(deployment._running)):
                for pid in deployment.tree(deployment.pid(name)):
                    try:
                        line = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    except OSError:
                        continue
                    seen |= {word for word in line if word.startswith("--token")}
        assert deployment.finish() == 0, deployment.said("run")
    assert seen <= {"--token-file"}
    assert "--token-file" in seen


def test_without_tls_the_server_is_for_this_machine(tmp_path: Path) -> None:
    with Deployment(tmp_path, secure=False) as deployment:
        done = deployment.airtune(
            "deploy", "server", "--insecure", "--host", "0.0.0.0", check=False
        )
    assert done.returncode == 2
    assert "listens on 127.0.0.1 alone" in done.stderr
    assert done.stderr.count("\n") == 1
