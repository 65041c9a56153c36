"""What is typed at `airtune deploy` and cannot be used, or means something elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from airtune.cli import app
from airtune.deploy import node, runs, server
from airtune.errors import InputError, RunError
from airtune.scenario import load_scenario


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Settings of the runs that would have been submitted."""
    found: list[dict[str, Any]] = []

    def submitted(where: object, settings: dict[str, Any], app: object) -> Any:
        found.append(settings)
        raise RunError("this is as far as it goes")

    monkeypatch.setattr(runs, "submit", submitted)
    return found


@pytest.mark.parametrize("option", ["--wait", "--slack", "--grace", "--longest"])
def test_a_limit_that_no_time_reaches_is_refused(
    option: str, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    command = ["deploy", "run", "tiny", "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, [*command, option, "nan"]).exception
    assert isinstance(said, InputError)
    assert str(said).startswith(f"{option} nan: allowed is a number from ")
    said = CliRunner().invoke(app, [*command, option, "inf"]).exception
    if option in ("--wait", "--longest"):  # for ever is what it says
        assert isinstance(said, RunError)
        assert asked[0][f"{option.removeprefix('--')}-s"] == float("inf")
    else:
        assert isinstance(said, InputError)
        assert asked == []


def test_resume_and_replace_are_refused_together(tmp_path: Path) -> None:
    command = ["deploy", "run", "tiny", "--out", str(tmp_path / "run"), "--resume", "--replace"]
    said = CliRunner().invoke(app, command).exception
    assert isinstance(said, InputError)
    assert str(said) == "--resume goes on with a run and --replace throws it away: give one"


def test_the_server_gets_paths_that_hold_in_its_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").touch()
    changes = ["task.source=mine.jsonl", "rounds=2"]
    command = ["deploy", "run", "tiny", "--out", "run", *(f"--set={text}" for text in changes)]
    CliRunner().invoke(app, command)
    told = json.loads(asked[0]["overrides"])
    assert told == [f'task.source="{tmp_path / "mine.jsonl"}"', "rounds=2"]


def test_a_device_does_not_wait_nan_seconds() -> None:
    command = ["deploy", "device", "--server", "127.0.0.1:1", "--client", "a", "--poll", "nan"]
    said = CliRunner().invoke(app, [*command, "--insecure"]).exception
    assert str(said) == "--poll nan: allowed is a number from 0.05 to 60"


def test_a_file_where_a_folder_belongs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.os, "umask", lambda mask: 0)
    monkeypatch.setattr(node, "_check", lambda place: None)
    file = tmp_path / "afile"
    file.touch()
    with pytest.raises(InputError, match=r"^--state '.*afile' is a file: give a folder"):
        server.serve(server.ServerFolder(file), "127.0.0.1", 1, None, lambda: None)
    with pytest.raises(InputError, match=r"^--state '.*afile' is a file: give a folder"):
        runs.submit(server.ServerFolder(file), {})
    scenario = load_scenario("tiny")
    place = node.Place(("127.0.0.1", 1), None, None)
    with pytest.raises(InputError, match=r"^--dir '.*afile' is a file: give a folder"):
        node.run_device(scenario, scenario.client_names[0], place, file)
