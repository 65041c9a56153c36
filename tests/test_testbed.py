"""The wire testbed: its arithmetic anywhere, its links where namespaces are allowed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from airtune.channel.trace import PACKET_BITS, PacketTrace
from airtune.errors import InputError
from airtune.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "testbed"))

import links  # noqa: E402
import quota  # noqa: E402
import run as testbed  # noqa: E402
from compare import comparison, table  # noqa: E402
from shaper import capacity_bps  # noqa: E402

SMALL = [
    "rounds=2",
    "devices=[{profile='jetson-orin-nano'}, {profile='raspberry-pi-5'}]",
    "task.train_examples=96",
    "task.eval_examples=16",
    "training.local_steps=2",
    "training.lora_rank=64",
    "cell.uplink_bandwidth_hz=2e5",
    "cell.downlink_bandwidth_hz=2e5",
    'planning.method="bandwidth-only"',
]


@pytest.fixture
def allowed() -> None:
    lack = links.missing()
    if lack is not None:
        pytest.skip(lack)


def spaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    return {line.split()[0] for line in listed.stdout.splitlines() if line.startswith("airtune")}


def test_what_the_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "needs" in str(links.missing())
    with pytest.raises(InputError, match="the testbed needs"):
        links.Links(["a"])


def test_a_trace_is_replayed_at_its_recorded_capacity() -> None:
    times = np.array([0, 3, 3, 50, 99, 100], dtype=np.int64)
    trace = PacketTrace("t", times)
    for begin, length in ((0, 100), (0, 3), (2, 10), (60, 100), (95, 10), (100, 100), (230, 60)):
        # Oracle: count the opportunities of three repetitions in (begin, begin + length].
        start = begin % 100
        repeated = np.concatenate([times + 100 * loop for loop in range(3)])
        count = int(((repeated > start) & (repeated <= start + length)).sum())
        expected = count * PACKET_BITS * 1000 / length
        found = capacity_bps(trace, begin, length)
        assert found == pytest.approx(expected, abs=PACKET_BITS * 1000 / length)
    assert capacity_bps(trace, 0, 100) > 0


def test_predicted_and_measured_stand_side_by_side(tmp_path: Path) -> None:
    planned = {"rate_bps": 1e6, "downlink_s": 1.0, "compute_s": 2.0, "upload_s": 3.0, "round_s": 6}
    measured = {"downlink_s": 1.1, "compute_s": 2.0, "upload_s": 3.2, "engine_s": 0.5, "total_s": 7}
    line = {"round": 1, "client": "c", "planned": planned, "measured": measured,
            "uplink_bytes": 10, "downlink_bytes": 9, "epsilon": None}  # fmt: skip
    record = {"round": 1, "predicted_latency_s": 6.0, "wall_s": 7.5,
              "clients": [{"name": "c", "uplink_bits": 80.0}]}  # fmt: skip
    (tmp_path / "t").write_text(json.dumps(line) + "\n")
    (tmp_path / "r").write_text(json.dumps(record) + "\n")
    found = comparison(tmp_path / "t", tmp_path / "r")
    (first,) = found["rounds"]
    assert first["measured_s"] == pytest.approx(6.3)
    # The prediction holds what is known of the framework's bytes: 1710.
    predicted_s = 6.0 + 8 * 1710 / 1e6
    assert first["error"] == pytest.approx(6.3 / predicted_s - 1)
    assert first["counts"]
    assert first["engine_s"] == 0.5
    shown = table(found).splitlines()
    assert "1.00 / 1.10" in shown[1]
    assert "+4.8%" in shown[2]


def test_a_device_that_could_not_keep_its_profiles_time_does_not_count(tmp_path: Path) -> None:
    planned = {"rate_bps": 1e6, "downlink_s": 1.0, "compute_s": 2.0, "upload_s": 3.0, "round_s": 6}
    measured = {"downlink_s": 1.0, "compute_s": 9.0, "upload_s": 3.0, "engine_s": 0.5, "total_s": 7}
    lines = [
        {"round": 1, "client": name, "planned": planned, "measured": measured, "counts": counts,
         "uplink_bytes": 10}
        for name, counts in (("c", False), ("d", True))
    ]  # fmt: skip
    clients = [{"name": name, "uplink_bits": 80.0} for name in "cd"]
    record = {"round": 1, "predicted_latency_s": 6.0, "wall_s": 7.5, "clients": clients}
    (tmp_path / "t").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "r").write_text(json.dumps(record) + "\n")
    found = comparison(tmp_path / "t", tmp_path / "r")
    (first,) = found["rounds"]
    assert [client["counts"] for client in first["clients"]] == [False, True]
    assert not first["counts"]
    assert table(found).count("overrun") == 2


def test_what_a_killed_testbed_left_is_named_by_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "ROOT", tmp_path)
    gone, here = tmp_path / "airtune-999999999-a", tmp_path / f"airtune-{os.getpid()}-a"
    gone.mkdir()
    here.mkdir()
    # Its process ended, and the number now belongs to this one.
    again = tmp_path / f"airtune-{os.getpid()}-b"
    again.mkdir()
    os.utime(again, (1e9, 1e9))
    assert set(quota.sweep_quotas()) == {f"control group {one.name}" for one in (gone, again)}
    assert here.exists()


def test_the_namespaces_of_a_killed_testbed_are_removed(allowed: None) -> None:
    before, own = spaces(), f"airtune{os.getpid()}s"
    for space in ("airtune999999999d0", own):
        subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        inside = ["ip", "netns", "exec", "airtune999999999d0", "sleep", "600"]
        left = subprocess.Popen(inside)
        while not links._pids("airtune999999999d0"):
            time.sleep(0.05)
        assert "namespace airtune999999999d0" in links.sweep_links()
        assert left.wait(10) == -signal.SIGKILL
        assert spaces() - before == {own}
    finally:
        subprocess.run(["ip", "netns", "delete", own], check=True)


def test_links_carry_what_they_are_shaped_to(allowed: None) -> None:
    receiver = (
        "import socket\n"
        "with socket.create_server(('0.0.0.0', 5001)) as s:\n"
        "    print('up', flush=True); c = s.accept()[0]; n = 0\n"
        "    while d := c.recv(65536): n += len(d)\n"
        "    c.sendall(b'k'); print(n)\n"
    )
    sender = (
        "import socket, sys, time\n"
        "c = socket.create_connection((sys.argv[1], 5001)); t = time.monotonic()\n"
        "c.sendall(bytes(250_000)); c.shutdown(1); c.recv(1); print(time.monotonic() - t)\n"
    )
    before = spaces()
    with links.Links(["a", "b"]) as star:
        assert len(spaces() - before) == 3
        star.shape("b", uplink_bps=2e6, downlink_bps=1e6)
        server = subprocess.Popen(
            star.inside(star.server, [sys.executable, "-c", receiver]),
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert server.stdout is not None
        assert server.stdout.readline() == "up\n"
        command = [sys.executable, "-c", sender, star.server_address("b")]
        took = subprocess.run(
            star.inside(star.namespace("b"), command), capture_output=True, text=True, check=True
        )
        assert server.communicate()[0].strip() == "250000"
        # Faster than the filter lets through is impossible; the queue and the burst may hide
        # their own length.
        assert float(took.stdout) >= 250_000 * 8 / 2e6 * 0.9
    assert spaces() == before


def test_a_short_run_over_the_wire(allowed: None, tmp_path: Path) -> None:
    before = spaces()
    scenario = load_scenario("tiny", SMALL)
    found = testbed.run(scenario, "tiny", SMALL, tmp_path / "out")
    assert spaces() == before
    rounds = found["rounds"]
    assert isinstance(rounds, list)
    assert [round["round"] for round in rounds] == [1, 2]
    for round in rounds:
        assert {client["client"] for client in round["clients"]} == set(scenario.client_names)
        for client in round["clients"]:
            least_s = client["payload_bytes"] * 8 / client["rate_bps"]
            assert client["wire_bytes"] >= client["payload_bytes"]
            assert client["measured"]["upload_s"] >= 0.8 * least_s


def test_an_interrupted_testbed_leaves_nothing(allowed: None, tmp_path: Path) -> None:
    before = spaces()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "testbed" / "run.py"), "tiny", "--out", str(tmp_path / "out")],
        stderr=subprocess.PIPE, text=True,
        # What a shell starts in the background inherits that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "server.log").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "namespaces and processes are removed" in said
    assert spaces() == before


@pytest.mark.slow
def test_a_network_that_is_cut_and_restored(allowed: None, tmp_path: Path) -> None:
    values = [*SMALL, "rounds=4"]
    victim = f"airtune{os.getpid()}d0"
    rounds = tmp_path / "out" / "run" / "rounds.jsonl"

    def cut() -> None:
        deadline = time.monotonic() + 200
        while not (rounds.exists() and rounds.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        for state, pause_s in (("down", 8.0), ("up", 0.0)):
            subprocess.run(["ip", "-n", victim, "link", "set", links.UPLINK, state], check=True)
            time.sleep(pause_s)

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        testbed.run(load_scenario("tiny", values), "tiny", values, tmp_path / "out")
    finally:
        thread.join()
    recorded = [json.loads(line) for line in rounds.read_text().splitlines()]
    assert [round["round"] for round in recorded] == [1, 2, 3, 4]
    statuses = [client["status"] for round in recorded for client in round["clients"]]
    assert statuses.count("ok") >= 6
    assert {client["status"] for client in recorded[-1]["clients"]} == {"ok"}


@pytest.mark.parametrize("version", [1, 2])
def test_a_device_has_its_share_of_the_cores(
    version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "ROOT", tmp_path)
    parent = tmp_path / "cpu" if version == 1 else tmp_path
    parent.mkdir(exist_ok=True)
    if version == 1:
        (parent / "cpu.cfs_quota_us").write_text("-1")
    with quota.Quotas(["a", "b"], cores=0.4) as quotas:
        assert quotas.missing == ""
        group = parent / f"airtune-{os.getpid()}-b"
        if version == 1:
            period, share = (group / f"cpu.cfs_{n}_us" for n in ("period", "quota"))
            assert int(share.read_text()) / int(period.read_text()) == pytest.approx(0.4)
        else:
            share_us, period_us = map(int, (group / "cpu.max").read_text().split())
            assert share_us / period_us == pytest.approx(0.4)
        said = subprocess.check_output(quotas.within("b", ["echo", "a b"]), text=True)
        assert said == "a b\n"
        assert (group / "cgroup.procs").read_text().strip().isdigit()
        assert quotas.within("unknown", ["echo"]) == ["echo"]
        for made in parent.glob("airtune-*"):  # a real control group needs no emptying
            for file in made.iterdir():
                file.unlink()
    assert not list(parent.glob("airtune-*"))


def test_without_control_groups_the_reason_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "ROOT", tmp_path / "absent")
    with quota.Quotas(["a"], cores=0.4) as quotas:
        assert "absent" in quotas.missing
        assert quotas.within("a", ["echo"]) == ["echo"]
