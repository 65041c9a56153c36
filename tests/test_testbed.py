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
from typing import Any

import pytest

from airtune.channel.trace import Trace, read_trace
from airtune.errors import InputError
from airtune.scenario import load_scenario

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "testbed"))

import links  # noqa: E402
import quota  # noqa: E402
import run as testbed  # noqa: E402
from compare import LEAD_S, comparison, table  # noqa: E402
from replay import LEAST, Replay, shown  # noqa: E402
from shaper import FREE_BPS, Shaper  # noqa: E402

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


def trace_of(tmp_path: Path, rates_mbps: list[float]) -> Trace:
    """A trace with a rate for each second."""
    rows = [f"{second},{rate}" for second, rate in enumerate([*rates_mbps, 0.0])]
    (tmp_path / "trace.csv").write_text("\n".join(["time_s,rate_mbit_s", *rows]) + "\n")
    return read_trace(tmp_path / "trace.csv", "uplink")


def test_a_transfer_takes_as_long_as_the_trace_needs(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, [1.0, 3.0, 0.0, 2.0, 4.0])
    assert trace.mean_bps(0.0, trace.period_ms) == pytest.approx(10e6 / trace.period_ms * 1e3)
    mean = trace.mean_bps(0.0, trace.period_ms) / 1e6
    replay = Replay(trace)
    assert [replay.factor(k + 0.1) for k in (0, 1, 3)] == pytest.approx(
        [1 / mean, 3 / mean, 2 / mean]
    )
    assert replay.factor(2.5) == LEAST
    for begin_s, nominal_s in ((0.0, 0.5 / mean), (0.5, 1.25 / mean), (1.25, 3.0 / mean)):
        # Oracle: small steps over the recorded rates.
        rates = [max(r / mean, LEAST) for r in (1.0, 3.0, 0.0, 2.0, 4.0)]
        carried, passed = 0.0, 0.0
        while carried < nominal_s:
            carried += rates[int(begin_s + passed)] * 1e-4
            passed += 1e-4
        assert replay.transfer_s(begin_s, nominal_s) == pytest.approx(passed, abs=0.11)
    later = Replay(trace, from_s=3.0)
    assert later.factor(0.1) == replay.factor(3.1)
    assert later.transfer_s(0.0, 1.0 / mean) == pytest.approx(0.5, abs=1e-6)
    assert replay.transfer_s(0.0, 0.0) == 0.0
    with pytest.raises(InputError, match=r"a transfer of -1\.0 s"):
        replay.transfer_s(0.0, -1.0)
    assert "1 s without any" in shown(replay, 5.0)


def test_the_links_follow_the_trace_from_the_first_round_on(tmp_path: Path) -> None:
    class Known:
        _devices = ("a", "b")

        def __init__(self) -> None:
            self.shaped: list[tuple[float, str, float]] = []

        def shape(self, device: str, *, uplink_bps: float, downlink_bps: float) -> None:
            self.shaped.append((time.monotonic(), device, uplink_bps))

    known: Any = Known()
    replay = Replay(trace_of(tmp_path, [1.0, 3.0]))
    with Shaper(known, tmp_path / "bands", replay) as shaper:
        begin_s = time.monotonic()
        shaper.grant({"a": {"rate_bps": 1e6, "downlink_rate_bps": 2e6}})
        time.sleep(1.5)
        shaper.grant({"a": {"rate_bps": 4e6, "downlink_rate_bps": 2e6}})
        shaper.grant({})
    first, second = shaper.begins_s
    assert first == 0.0
    assert second == pytest.approx(1.5, abs=0.3)
    rates = [(at - begin_s, rate) for at, device, rate in known.shaped if device == "a"]
    early = [rate for at, rate in rates if at < 0.8]
    late = [rate for at, rate in rates if at > 1.2 and rate < FREE_BPS]
    assert early == pytest.approx([1e6 * replay.factor(0.1)] * len(early))
    assert late[0] == pytest.approx(1e6 * replay.factor(1.1))
    assert late[-1] == pytest.approx(4e6 * replay.factor(1.1))
    assert {rate for _, device, rate in known.shaped if device == "b"} == {FREE_BPS}
    assert rates[-1][1] == FREE_BPS


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
    # The prediction holds what is known of the framework's bytes: 1770.
    predicted_s = 6.0 + 8 * 1770 / 1e6
    assert first["error"] == pytest.approx(6.3 / predicted_s - 1)
    assert first["counts"]
    assert first["engine_s"] == 0.5
    text = table(found).splitlines()
    assert "1.00 / 1.10" in text[1]
    assert "+4.8%" in text[2]
    # Under a trace the upload takes as long as the trace needs from its predicted begin on.
    replay = Replay(trace_of(tmp_path, [1.0, 2.0] * 10))
    (first,) = comparison(tmp_path / "t", tmp_path / "r", replay, [7.0])["rounds"]
    upload_s = replay.transfer_s(10.0 + LEAD_S + 8 * 840 / 1e9, 3.0 + 8 * 1770 / 1e6)
    assert first["predicted_s"] == pytest.approx(3.0 + upload_s, abs=0.01)


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
