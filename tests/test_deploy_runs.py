"""Runs on a server: one at a time, each in a folder of its own; who is admitted; status."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

import fake_record
from airtune.cli import deploy, deploy_runs
from airtune.cli.ending import Interrupted
from airtune.deploy import admission, control, runs, server, status, tryout
from airtune.deploy.admission import Admitted
from airtune.deploy.keys import make_device_key
from airtune.deploy.runs import APP, chosen, listed, submit
from airtune.deploy.server import leave
from airtune.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[1]
SETTINGS: dict[str, str | int | float | bool] = {
    "scenario": "tiny",
    "out": "/nowhere/run",
    "resume": False,
    "wait-s": 60.0,
}


class Flower:
    """Stands for Flower's commands."""

    def __init__(self) -> None:
        self.status: dict[int, str] = {}

    def flwr(self, state: server.ServerFolder, *arguments: str) -> dict[str, Any]:
        assert arguments[0] == "run"
        number = len(self.status) + 1
        self.status[number] = "running"
        return {"success": True, "run-id": str(number)}

    def stop(self, state: server.ServerFolder, run: int) -> None:
        self.status[run] = "finished:stopped"

    def said(self, state: server.ServerFolder, run: int) -> str:
        return self.status.get(run, "finished:unknown")


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Flower:
    found = Flower()
    monkeypatch.setattr(runs, "flwr", found.flwr)
    monkeypatch.setattr(runs, "run_status", found.said)
    monkeypatch.setattr(runs, "stop_run", found.stop)
    return found


@pytest.fixture
def state(tmp_path: Path) -> server.ServerFolder:
    return server.ServerFolder(tmp_path)


def test_one_run_at_a_time(state: server.ServerFolder, flower: Flower) -> None:
    first = submit(state, SETTINGS)
    with pytest.raises(InputError, match=f"run {first.id} is going on \\(tiny\\)"):
        submit(state, SETTINGS)
    leave(first.folder / "outcome.json", {"ok": True})
    second = submit(state, SETTINGS)
    assert [run.id for run in listed(state)] == sorted([first.id, second.id])


def test_two_runs_never_share_an_outcome(state: server.ServerFolder, flower: Flower) -> None:
    first = submit(state, SETTINGS)
    leave(first.folder / "outcome.json", {"ok": True})
    second = submit(state, SETTINGS)
    told = tomllib.loads((second.folder / "run.toml").read_text())
    assert Path(told["outcome"]).parent == Path(told["progress"]).parent == second.folder
    assert told["wait-s"] == 60.0
    assert first.outcome() == {"ok": True}
    assert second.outcome() is None


def test_names_in_any_script_reach_the_app(state: server.ServerFolder, flower: Flower) -> None:
    out = '/nowhere/\U0001f600 é \x7f "\\'
    run = submit(state, {**SETTINGS, "out": out})
    assert tomllib.loads((run.folder / "run.toml").read_text(encoding="utf-8"))["out"] == out
    run.stop()
    with pytest.raises(InputError, match=r"out '.*': not Unicode text"):
        submit(state, {**SETTINGS, "out": "/nowhere/\udcff"})
    assert [one.id for one in listed(state)] == [run.id]


def test_a_run_whose_app_was_killed_has_ended(state: server.ServerFolder, flower: Flower) -> None:
    first = submit(state, SETTINGS)
    assert first.outcome() is None
    flower.status[1] = "finished:failed"
    submit(state, SETTINGS)  # the next may begin
    found = first.outcome()
    assert found is not None
    assert "finished:failed" in found["error"]


def test_a_run_that_flower_no_longer_knows_has_ended(
    state: server.ServerFolder, flower: Flower
) -> None:
    submit(state, SETTINGS)
    flower.status.clear()
    submit(state, SETTINGS)


def test_a_run_whose_server_was_killed_has_ended(
    state: server.ServerFolder, flower: Flower, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(state, SETTINGS)

    def silent(state: server.ServerFolder, number: int) -> str:
        raise RunError("the server does not answer")

    monkeypatch.setattr(runs, "run_status", silent)
    with server._alone(state):  # Flower's server may be starting again
        assert server.is_running(state)
        assert run.outcome(ask_now=True) is None
    assert not server.is_running(state)
    found = run.outcome(ask_now=True)
    assert found is not None
    assert found["exit"] == 1
    assert "the server ended under it" in found["error"]
    assert listed(state)[-1].outcome() == found


def test_a_new_server_says_that_the_last_ones_run_has_ended(
    state: server.ServerFolder, flower: Flower
) -> None:
    done = submit(state, SETTINGS)
    leave(done.folder / "outcome.json", {"ok": True})
    cut = submit(state, SETTINGS)
    server._end_runs(state)
    assert done.outcome() == {"ok": True}
    found = cut.outcome()
    assert found is not None
    assert "--resume" in found["error"]


def test_stop_says_how_to_go_on(state: server.ServerFolder, flower: Flower) -> None:
    run = submit(state, SETTINGS)
    run.stop()
    found = run.outcome()
    assert found is not None
    assert "--resume" in found["error"]
    assert flower.status[1] == "finished:stopped"


@pytest.mark.parametrize("rounds", [0, 2])
def test_ctrl_c_ends_the_run_and_says_what_was_kept(
    state: server.ServerFolder, flower: Flower, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    out = state.folder / "run"
    if rounds:
        fake_record.started(out, rounds)
    run = submit(state, {**SETTINGS, "out": str(out)})

    def pressed(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("airtune.cli.deploy_runs.time.sleep", pressed)
    with pytest.raises(Interrupted, match=f"run {run.id} goes on; `airtune deploy attach`"):
        deploy_runs.attach(state=state.folder)
    assert flower.status == {1: "running"}
    with pytest.raises(Interrupted) as end:
        deploy_runs._follow(run)
    assert flower.status == {1: "finished:stopped"}
    if rounds:
        assert f"interrupted: 2 of 4 rounds are kept in '{out}'" in str(end.value)
        assert "go on with the same command and --resume" in str(end.value)
    else:
        assert str(end.value) == "interrupted before anything was recorded"


def test_what_flower_refuses_leaves_nothing(
    state: server.ServerFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> dict[str, Any]:
        raise RunError("flwr run: no")

    monkeypatch.setattr(runs, "flwr", refuse)
    with pytest.raises(RunError, match="no"):
        submit(state, SETTINGS)
    assert listed(state) == []
    assert list(state.runs.iterdir()) == []


def test_a_run_is_chosen_by_its_id(state: server.ServerFolder, flower: Flower) -> None:
    with pytest.raises(InputError, match="no run was ever begun"):
        chosen(state, None)
    first = submit(state, SETTINGS)
    assert chosen(state, None).id == chosen(state, first.id).id == first.id
    with pytest.raises(InputError, match=f"no run 'x'; there are: {first.id}"):
        chosen(state, "x")


def test_the_app_ships_with_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = ROOT / "src" / "airtune"
    data = patterns["tool"]["setuptools"]["package-data"]["airtune"]
    shipped = {path for pattern in data for path in package.glob(pattern)}
    files = {path for path in APP.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.name for path in files} >= {"pyproject.toml", "client_app.py", "server_app.py"}
    assert files <= shipped
    named = tomllib.loads((APP / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    for place in named["components"].values():
        assert (APP / Path(*place.split(":")[0].split("."))).with_suffix(".py").is_file()


class Control:
    """Stands for Flower's operator interface."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []

    def ListNodes(self, request: Any) -> Any:
        from flwr.proto.control_pb2 import ListNodesResponse

        return ListNodesResponse(nodes_info=self.nodes)

    def RegisterNode(self, request: Any) -> None:
        from flwr.proto.node_pb2 import NodeInfo

        node = NodeInfo(
            node_id=len(self.nodes) + 1,
            name=request.name,
            public_key=request.public_key,
            status="registered",
        )
        self.nodes.append(node)

    def UnregisterNode(self, request: Any) -> None:
        for node in self.nodes:
            if node.node_id == request.node_id:
                node.status = "unregistered"

    def close(self) -> None: ...


def test_many_keys_are_admitted_rotated_and_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, state = Control(), server.ServerFolder(tmp_path)
    state.about.write_text(json.dumps({"port": 1, "keys": None}))
    monkeypatch.setattr(control, "operator_client", lambda *arguments: operator)
    keys = {make_device_key(tmp_path, name).public_key: name for name in ("a", "b")}
    admission.register(state, keys)
    assert [device.client for device in admission.admitted(state)] == ["a", "b"]
    assert all("already" in line for line in admission.register(state, keys))
    new = make_device_key(tmp_path, "a", renew=True).public_key
    assert (tmp_path / "a.old").exists()
    assert "--replace" in admission.register(state, {new: "a"})[1]
    done = admission.register(state, {new: "a"}, replace=True)
    assert done[1].startswith("revoked key")
    assert len(admission.admitted(state)) == 2
    assert admission.revoke(state, "b")[0].endswith("of b")
    assert [device.client for device in admission.admitted(state)] == ["a"]
    with pytest.raises(InputError, match="no key is registered for client 'b'; there are: a"):
        admission.revoke(state, "b")


def test_a_client_that_the_server_does_not_expect_is_refused(
    state: server.ServerFolder, flower: Flower, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operator = Control()
    monkeypatch.setattr(control, "operator_client", lambda *arguments: operator)
    key = make_device_key(tmp_path, "x").public_key

    def register(**options: Any) -> None:
        deploy.register([key], **options, state=tmp_path)

    about = {"port": 1, "keys": None, "clients": ["a", "b"]}
    leave(state.about, about)
    with pytest.raises(InputError, match="client 'x' is not in the server's scenario: a, b"):
        register()
    leave(state.about, {**about, "clients": []})
    started = submit(state, {**SETTINGS, "overrides": runs.as_json(["rounds=2"])})
    with pytest.raises(InputError, match=f"client 'x' is not in 'tiny', of run {started.id} "):
        register()
    with pytest.raises(InputError, match="client 'x' is not in 'demo': "):
        register(scenario="demo")
    assert operator.nodes == []
    register(client="raspberry-pi-5-1")
    started.stop()
    register()  # no run goes on: any name
    assert [node.name for node in operator.nodes] == ["raspberry-pi-5-1", "x"]


@pytest.mark.parametrize("command", [deploy_runs.run, deploy_runs.try_here])
def test_an_out_that_is_taken_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any
) -> None:
    monkeypatch.setattr(runs, "submit", lambda *asked: pytest.fail("a run was begun"))
    monkeypatch.setattr(tryout, "run_here", lambda *asked, **more: pytest.fail("it was started"))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    for name, said in (("file", "is a file: give a folder"), ("full", "is not empty")):
        with pytest.raises(InputError, match=said):
            command(scenario="tiny", out=tmp_path / name)


def test_a_bad_key_among_many_admits_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, state = Control(), server.ServerFolder(tmp_path)
    state.about.write_text(json.dumps({"port": 1, "keys": None}))
    monkeypatch.setattr(control, "operator_client", lambda *arguments: operator)
    good = make_device_key(tmp_path, "a").public_key
    bad = tmp_path / "bad.pub"
    bad.write_text("nothing")
    with pytest.raises(InputError, match=r"bad\.pub"):
        admission.register(state, {good: "a", bad: "b"})
    assert operator.nodes == []


def test_without_a_server_there_is_nothing_to_ask(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no server is started"):
        admission.admitted(server.ServerFolder(tmp_path))


def test_status_names_run_and_devices(
    state: server.ServerFolder, flower: Flower, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state.about.write_text(json.dumps({"port": 1, "keys": None}))
    devices = [Admitted(1, "a", "k1", "online"), Admitted(2, "b", "k2", "offline")]
    monkeypatch.setattr(status, "admitted", lambda state: devices)
    assert status.status(state)["run"] is None
    out = tmp_path / "run"
    out.mkdir()
    client = {"name": "a", "status": "ok", "flops": 2e9, "compute_s": 4.0}
    (out / "rounds.jsonl").write_text(json.dumps({"round": 3, "clients": [client]}) + "\n{")
    run = submit(state, {**SETTINGS, "out": str(out)})
    begun_s = status._begun_s(run)
    line = {"device": "k1", "begin_s": begun_s + 1, "end_s": begun_s + 2, "up_bytes": 5}
    before = {**line, "begin_s": begun_s - 9, "up_bytes": 100}
    lines = [json.dumps({**entry, "down_bytes": 7}) for entry in (before, line)]
    killed = '{"device": "k1", "begin'  # what a killed gateway left half written
    state.wire_log.write_text("\n".join([lines[0], killed, *lines[1:]]) + "\n")
    found = status.status(state)
    assert (found["run"]["id"], found["run"]["state"], found["run"]["round"]) == (
        run.id,
        "going on",
        3,
    )
    first, second = found["devices"]
    assert (first["round"], first["effective_flops"]) == (3, 5e8)
    assert (first["up_bytes"], first["down_bytes"]) == (5, 7)
    assert first["last_seen_s"] is not None
    assert (second["round"], second["last_seen_s"]) == (None, None)
    shown = status.text(found)
    assert run.id in shown
    assert "never" in shown
    json.dumps(found)
