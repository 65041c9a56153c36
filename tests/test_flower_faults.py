"""What a deployment does when its parts fail: one scripted fault each, with Flower's processes."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from airtune.record import read_record
from flower_deployment import CLIENTS, Deployment

VICTIM, OTHER = CLIENTS
# Long enough rounds that a fault can be placed in the middle of training.
LONG = ["rounds=4", "training.local_steps=60"]
QUICK = ("--grace", "8", "--slack", "1", "--devices", "1", "--wait", "90")


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Deployment]:
    """A server and two ready devices, plain: TLS is tried elsewhere."""
    with Deployment(tmp_path, secure=False, overrides=LONG) as deployment:
        deployment.start_server()
        deployment.start_devices()
        yield deployment


def rounds(deployment: Deployment) -> list[dict[str, str]]:
    """Return each recorded round's status by client."""
    path = deployment.folder / "run" / "rounds.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{c["name"]: c["status"] for c in json.loads(line)["clients"]} for line in lines]


def recorded(deployment: Deployment, count: int) -> None:
    """Wait until this many rounds are on the record."""
    deployment.wait_until(lambda: len(rounds(deployment)) >= count, f"{count} rounds", 180, "run")


@pytest.mark.slow
def test_device_killed_before_training(running: Deployment) -> None:
    running.start_run(*QUICK)
    recorded(running, 1)
    running.kill(VICTIM)
    assert running.finish() == 0, running.said("run")
    last = rounds(running)[-1]
    assert last[OTHER] == "ok"
    assert last[VICTIM] != "ok"


@pytest.mark.slow
def test_device_killed_during_training_and_back(running: Deployment) -> None:
    running.start_run("--set=rounds=8", *QUICK)
    recorded(running, 1)
    time.sleep(1.0)
    running.kill(VICTIM)
    running.start_device(VICTIM, name="again")
    assert running.finish() == 0, running.said("run")
    found = [status[VICTIM] for status in rounds(running)]
    assert any(status.startswith("failed") for status in found)
    assert {status[OTHER] for status in rounds(running)} == {"ok"}


@pytest.mark.slow
def test_device_killed_after_its_update(running: Deployment) -> None:
    running.start_run("--set=rounds=2", "--devices", "2", "--grace", "120")
    recorded(running, 1)
    running.stop(OTHER)  # so that the round is still open when the victim is done
    timings = running.folder / "run.timings.jsonl"

    def arrived() -> bool:
        lines = map(json.loads, timings.read_text().splitlines())
        return any((line["round"], line["client"]) == (2, VICTIM) for line in lines)

    running.wait_until(arrived, "the update of round 2", 120, "run")
    running.kill(VICTIM)
    running.go_on(OTHER)
    assert running.finish() == 0, running.said("run")
    assert rounds(running)[1] == {VICTIM: "ok", OTHER: "ok"}


@pytest.mark.slow
def test_the_short_lived_process_killed(running: Deployment) -> None:
    running.start_run("--set=rounds=3", "--grace", "90", "--devices", "2")
    recorded(running, 1)

    def carriers() -> list[int]:
        found = []
        for pid in running.tree(running.pid(VICTIM)):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if b"flwr-clientapp" in line:
                found.append(pid)
        return found

    running.wait_until(lambda: bool(carriers()), "a carrier", 60)
    for pid in carriers():
        os.kill(pid, signal.SIGKILL)
    assert running.finish() == 0, running.said("run")
    # Flower either starts another, after half a minute, and the resident worker answers it from
    # memory, or reports the death after a minute.
    found = [status[VICTIM] for status in rounds(running)]
    assert found[-1] == "ok"
    record = read_record(running.folder / "run")
    waited = [c.engine_s or 0 for r in record.rounds for c in r.clients if c.name == VICTIM]
    assert any("app process was killed" in status for status in found) or max(waited) > 15


@pytest.mark.slow
def test_a_late_device(running: Deployment) -> None:
    running.start_run("--set=rounds=3", *QUICK)
    recorded(running, 1)
    running.stop(VICTIM)
    recorded(running, 2)
    running.go_on(VICTIM)
    assert running.finish() == 0, running.said("run")
    assert "late: no answer within" in rounds(running)[1][VICTIM]


@pytest.mark.slow
def test_server_killed_and_restarted(running: Deployment) -> None:
    running.start_run("--devices", "2")
    recorded(running, 2)
    before = (running.folder / "run" / "rounds.jsonl").read_bytes()
    running.kill("server")
    assert running.finish() != 0
    kept = (running.folder / "run" / "rounds.jsonl").read_bytes()
    assert kept.startswith(before)
    running.start_server()
    running.start_run("--devices", "2", "--resume")
    assert running.finish() == 0, running.said("run")
    record = read_record(running.folder / "run")
    assert [round.round for round in record.rounds] == [1, 2, 3, 4]
    after = (running.folder / "run" / "rounds.jsonl").read_bytes()
    assert after.startswith(b"".join(before.splitlines(keepends=True)[:2]))


@pytest.mark.slow
def test_flowers_server_killed_under_a_run(running: Deployment) -> None:
    running.start_run("--devices", "2", "--grace", "90")
    recorded(running, 1)
    superlink = [
        pid
        for pid in running.tree(running.pid("server"))
        if b"deploy.guarded\0superlink" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(superlink[0], signal.SIGKILL)
    assert running.finish() == 0, running.said("run")
    assert "starting it again" in running.said("server")
    assert len(rounds(running)) == 4


@pytest.mark.slow
def test_two_devices_with_one_key(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=["rounds=1"]) as deployment:
        deployment.start_server()
        deployment.start_devices()
        deployment.start_device(VICTIM, "--dir", "double", name="double")
        assert deployment.finish("double") == 1
        assert "another device with the same key" in deployment.said("double")
        deployment.start_run("--devices", "2")
        assert deployment.finish() == 0, deployment.said("run")
        assert rounds(deployment) == [{VICTIM: "ok", OTHER: "ok"}]


@pytest.mark.slow
def test_bad_input_is_one_line(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=["rounds=1"]) as deployment:
        nobody = deployment.airtune(
            "deploy", "register", "keys/x.pub", "--client", VICTIM, check=False
        )
        assert nobody.returncode == 2
        assert nobody.stderr.count("\n") == 1
        deployment.airtune("deploy", "keys", "device", VICTIM)
        deployment.start_device(VICTIM)
        assert deployment.finish(VICTIM) == 2
        assert "cannot be reached" in deployment.said(VICTIM)
        deployment.start_server()
        deployment.airtune("deploy", "keys", "server", "--address", "127.0.0.1", "--dir", "other")
        deployment.start_device(VICTIM, "--ca", "other/ca.crt")
        assert deployment.finish(VICTIM) == 2
        assert "certificate is not accepted" in deployment.said(VICTIM)
        deployment.start_run("--devices", "2", "--wait", "3")
        assert deployment.finish() == 1
        said = deployment.said("run").splitlines()[-1]
        assert said.startswith("airtune: 0 of 2 devices ready within 3 s; missing: ")
