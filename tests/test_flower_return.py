"""Devices come back: restarts, stalls and cuts at random moments, with Flower's real processes.

`AIRTUNE_FAULTS` says how many of each kind, as `8` or `restart=3,stall=6,cut=8` (1 by default);
`AIRTUNE_FAULTS_TABLE` names a file for the table that `docs/deploy.md` shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from airtune.deploy.gateway import fingerprint
from airtune.deploy.keys import public_pem
from airtune.deploy.processes import free_port
from flower_deployment import CLIENTS, Deployment

BACK_S = 60.0
"""What is promised: every device is back so soon after the fault is over."""


class Network:
    """A TCP forwarder that can be cut: nothing passes and nothing is said, as with a dead radio."""

    def __init__(self, target: int) -> None:
        self.port, self._target = free_port(), target
        self._open = threading.Event()
        self._open.set()
        self._epoch = 0
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Stop forwarding."""
        self._open.clear()

    def restore(self, *, forget: bool) -> None:
        """Forward again; with `forget`, connections from before stay dead, as behind a new NAT."""
        self._epoch += forget
        self._open.set()

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._join, args=(near, self._epoch), daemon=True).start()

    def _join(self, near: socket.socket, epoch: int) -> None:
        self._open.wait()
        try:
            far = socket.create_connection(("127.0.0.1", self._target), timeout=10)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(source, sink, epoch), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, epoch: int) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(65536):
                self._open.wait()
                if epoch != self._epoch:
                    time.sleep(90)  # silent, not closed
                    break
                sink.sendall(chunk)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Trial:
    """A deployment with a run that goes on while faults happen to it."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self.d, self.random = deployment, random.Random(seed)
        self.networks = {client: Network(deployment.port) for client in CLIENTS}
        self.resumed = 0
        self.rows: list[dict[str, Any]] = []
        deployment.start_server()
        for client in CLIENTS:
            deployment.admit(client)
            port = self.networks[client].port
            deployment.start_device(client, "--server", f"127.0.0.1:{port}")
        for client in CLIENTS:
            deployment.wait_for(client, "is ready", 240)
        self.keys = {
            client: fingerprint(public_pem(deployment.folder / "keys" / f"{client}.pub"))
            for client in CLIENTS
        }
        self.start_run()

    def start_run(self, *extra: str) -> None:
        """Begin or go on with the run."""
        self.d.start_run("--grace", "20", "--slack", "2", "--devices", "1", "--wait", "120", *extra)

    def rounds(self) -> list[dict[str, Any]]:
        path = self.d.folder / "run" / "rounds.jsonl"
        if not path.exists():
            return []
        text = path.read_text()
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def fault(self, kind: str, act: Callable[[], str]) -> None:
        """Let one fault happen at a random moment, and note when all is well again."""
        time.sleep(self.random.uniform(0, 8))
        before = (self.d.folder / "run" / "rounds.jsonl").read_bytes()
        what = act()
        over_s = time.time()
        seen: dict[str, float] = {}
        took_part_s = None
        start = len(self.rounds())
        while time.time() < over_s + 300:
            for client in CLIENTS:
                assert self.d.running(client), f"{client} ended: {self.d.said(client)}"
            self.keep_running()
            seen = self.seen_since(over_s)
            new = self.rounds()[start:]
            whole = [r for r in new if all(c["status"] == "ok" for c in r["clients"])]
            if len(seen) == len(CLIENTS) and whole:
                took_part_s = time.time() - over_s
                break
            time.sleep(0.5)
        row = {
            "kind": kind,
            "what": what,
            "back_s": max(seen.values()) - over_s if len(seen) == len(CLIENTS) else None,
            "round_s": took_part_s,
        }
        print(json.dumps(row), flush=True)
        self.rows.append(row)
        after = (self.d.folder / "run" / "rounds.jsonl").read_bytes()
        kept = before[: before.rfind(b"\n") + 1]
        assert after.startswith(kept), "a recorded round was lost"

    def keep_running(self) -> None:
        """Go on with a run that a fault has ended, from the last round on the record."""
        if not self.d.running("run"):
            self.resumed += 1
            self.start_run("--resume")

    def seen_since(self, since_s: float) -> dict[str, float]:
        """Return when the server first counted each device as present, by the gateway's log."""
        found: dict[str, float] = {}
        log = (self.d.folder / "deployment" / "wire.jsonl").read_text()
        for text in log[: log.rfind("\n") + 1].splitlines():
            line = json.loads(text)
            if (
                line["call"] in ("send-node-heartbeat", "activate-node")
                and line["status"] == 200
                and line["end_s"] > since_s
            ):
                found.setdefault(line["device"], line["end_s"])
        return {client: found[key] for client, key in self.keys.items() if key in found}

    def restart(self) -> str:
        """Kill one part of the server, or all of it, and start it again."""
        part = self.random.choice(["server", "gateway", "superlink"])
        if part == "server":
            self.d.kill("server")
            time.sleep(self.random.uniform(0, 20))
            self.d.start_server()
            return "whole server"
        mark = {"gateway": b"airtune.deploy.gateway", "superlink": b"flower-superlink"}[part]
        for pid in self.d.tree(self.d.pid("server")):
            with contextlib.suppress(OSError):
                if mark in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        return part

    def stall(self) -> str:
        """Freeze a device or the server for 5 to 120 s."""
        who = self.random.choice([*CLIENTS, "server"])
        length_s = self.random.uniform(5, 120)
        self.d.stop(who)
        time.sleep(length_s)
        self.d.go_on(who)
        return f"{who} {length_s:.0f} s"

    def cut(self) -> str:
        """Cut a device's network for 5 to 90 s."""
        who = self.random.choice(CLIENTS)
        length_s = self.random.uniform(5, 90)
        forget = self.random.random() < 0.5
        self.networks[who].cut()
        time.sleep(length_s)
        self.networks[who].restore(forget=forget)
        return f"{who} {length_s:.0f} s{', connections forgotten' if forget else ''}"


def table(rows: list[dict[str, Any]], resumed: int) -> str:
    """Return the faults by kind, as `docs/deploy.md` shows them."""
    lines = ["| fault | how many | back, s (median, most) | next whole round, s | lost |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        back = sorted(r["back_s"] for r in own if r["back_s"] is not None)
        again = sorted(r["round_s"] for r in own if r["round_s"] is not None)
        lost = sum(r["back_s"] is None or r["back_s"] > BACK_S for r in own)
        cells = [f"{s[len(s) // 2]:.0f}, {s[-1]:.0f}" if s else "–" for s in (back, again)]
        lines.append(f"| {kind} | {len(own)} | {cells[0]} | {cells[1]} | {lost} |")
    return "\n".join([*lines, "", f"run commands started again with --resume: {resumed}"])


def asked(text: str) -> dict[str, int]:
    """Return how many faults of each kind are asked for."""
    kinds = ("restart", "stall", "cut")
    if "=" not in text:
        return dict.fromkeys(kinds, int(text))
    given = dict(part.split("=") for part in text.split(","))
    return {kind: int(given.get(kind, "0")) for kind in kinds}


@pytest.fixture
def trial(tmp_path: Path) -> Iterator[Trial]:
    with Deployment(tmp_path, overrides=["rounds=100000"]) as deployment:
        found = Trial(deployment, int(os.environ.get("AIRTUNE_FAULTS_SEED", "1")))
        yield found
        for network in found.networks.values():
            network.close()


@pytest.mark.slow
@pytest.mark.timeout(6 * 3600)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_device_is_back_within_a_minute(trial: Trial) -> None:
    trial.d.wait_until(lambda: len(trial.rounds()) >= 1, "a round", 300, "run")
    kinds = [("restart", trial.restart), ("stall", trial.stall), ("cut", trial.cut)]
    counts = asked(os.environ.get("AIRTUNE_FAULTS", "1"))
    faults = [kind for kind in kinds for _ in range(counts[kind[0]])]
    trial.random.shuffle(faults)
    shown = os.environ.get("AIRTUNE_FAULTS_TABLE")
    for kind, act in faults:
        trial.fault(kind, act)
        if shown:
            Path(shown).write_text(table(trial.rows, trial.resumed) + "\n")
    numbers = [round["round"] for round in trial.rounds()]
    assert numbers == list(range(1, len(numbers) + 1))
    late = [r for r in trial.rows if r["back_s"] is None or r["back_s"] > BACK_S]
    assert not late, late
