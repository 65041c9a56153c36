"""A whole run through Flower's real processes, with TLS and registered keys."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path

from safetensors.numpy import load_file

from airtune.record import read_record
from flower_deployment import CLIENTS, Deployment


def leftovers(folder: Path) -> str:
    """Return the processes that mention the deployment's folder."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    return "\n".join(line for line in listed.stdout.splitlines() if str(folder) in line)


def test_a_secure_run_from_keys_to_adapter(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=["rounds=2"]) as deployment:
        deployment.start_server()
        deployment.start_devices()
        deployment.start_run()
        assert deployment.finish() == 0, deployment.said("run")
        said = deployment.said("run")
        # Plain HTTP does not get through, nor does an unregistered key.
        with socket.create_connection(("127.0.0.1", deployment.port), timeout=10) as plain:
            plain.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"HTTP/1.1 2" not in plain.recv(1000)
        deployment.airtune("deploy", "keys", "device", "stranger")
        deployment.start_device(CLIENTS[0], "--key", "keys/stranger", "--dir", "s", name="stranger")
        assert deployment.finish("stranger") == 1
        turned_away = deployment.said("stranger").splitlines()[-1]
    assert "its key is not registered" in turned_away
    assert all(f"{client} is ready" in said for client in CLIENTS)
    record = read_record(tmp_path / "run")
    assert [round.round for round in record.rounds] == [1, 2]
    for round in record.rounds:
        assert {client.status for client in round.clients} == {"ok"}
        for client in round.clients:
            assert client.engine_s is not None
            assert client.downlink_s > 0
            assert client.upload_s > 0
    last = record.rounds[-1].eval_loss
    assert last is not None
    initial = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "finished" in json.dumps(initial)
    assert load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    lines = (tmp_path / "run.timings.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(CLIENTS)
    assert leftovers(tmp_path) == ""
