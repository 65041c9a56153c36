"""Operating a deployment with Flower's real processes: runs, status, attach, stop, revoke, try."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from flower_deployment import CLIENTS, ROOT, Deployment

FIRST, SECOND = CLIENTS


@pytest.mark.slow
def test_a_run_outlives_its_command_and_a_key_is_revoked(tmp_path: Path) -> None:
    with Deployment(tmp_path, overrides=["rounds=1000"]) as deployment:
        deployment.start_server()
        deployment.start_devices()
        deployment.start_run("--devices", "1", "--grace", "60")
        rounds = tmp_path / "run" / "rounds.jsonl"
        deployment.wait_until(lambda: rounds.exists() and bool(rounds.read_text()), "a round", 180)
        deployment.kill("run")

        again = deployment.airtune("deploy", "run", "tiny", "--out", "other", check=False)
        assert again.returncode == 2
        assert "is going on" in again.stderr
        assert not (tmp_path / "other").exists()

        found = json.loads(deployment.airtune("deploy", "status", "--json").stdout)
        assert found["run"]["state"] == "going on"
        assert {device["client"] for device in found["devices"]} == set(CLIENTS)
        assert all(device["last_seen_s"] is not None for device in found["devices"])
        shown = deployment.airtune("deploy", "status").stdout
        assert FIRST in shown

        # A clean restart is admitted at once: the device has taken leave of the server.
        deployment.end(SECOND)
        deployment.start_device(SECOND, name="again")
        deployment.wait_for("again", "is ready")
        assert "does not admit" not in deployment.said("again")

        # Back in the run, before the other's key is taken: a round needs somebody.
        def everyone() -> bool:
            line = rounds.read_text().splitlines()[-1]
            return {client["status"] for client in json.loads(line)["clients"]} == {"ok"}

        deployment.wait_until(everyone, "a round with both devices", 180)

        deployment.attach()
        deployment.wait_for("attached", "round 1:")
        said = deployment.airtune("deploy", "revoke", FIRST).stdout
        assert "revoked key" in said
        assert deployment.finish(FIRST, 120) == 1
        assert "was revoked" in deployment.said(FIRST)
        anew = deployment.airtune(
            "deploy", "register", f"keys/{FIRST}.pub", "--client", FIRST, check=False
        )
        assert anew.returncode == 1  # for good
        assert anew.stderr.count("\n") == 1
        deployment.airtune("deploy", "stop")
        assert deployment.finish("attached") == 1
        assert "go on with --resume" in deployment.said("attached")


@pytest.mark.slow
def test_everything_in_one_command(tmp_path: Path) -> None:
    settings = ["--set=devices=[{profile='raspberry-pi-5', count=2}]", "--set=rounds=1"]
    small = ["--set=task.train_examples=96", "--set=training.local_steps=2"]
    with Deployment(tmp_path, secure=False) as deployment:
        tried = deployment.airtune("deploy", "try", "tiny", *settings, *small, "--out", "run")
    assert "round 1: loss" in tried.stdout
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.timings.jsonl"]
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert "airtune-try-" not in listed.stdout


@pytest.mark.slow
def test_the_wheel_has_the_app(tmp_path: Path) -> None:
    import sys
    import zipfile

    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("airtune-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("pyproject.toml", "airtune_flower/client_app.py", "airtune_flower/server_app.py"):
        assert f"airtune/deploy/flower_app/{name}" in names
