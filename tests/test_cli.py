"""The command line: what it prints, what it refuses, and with which status."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest

import airtune as at
from airtune.cli import main

COMMANDS = ("run", "plan", "compare", "report", "profile", "methods", "scenarios", "deploy")


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def airtune(*arguments: str, cwd: Path | None = None) -> Ended:
    """Run a command in this process: starting torch anew for each would take minutes."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(cwd or Path.cwd()),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", ["airtune", *arguments])
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user's shell does."""
    command = [sys.executable, "-c", "from airtune.cli import main; main()", *arguments]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def refused(*arguments: str, cwd: Path | None = None) -> str:
    """Return the one line on stderr of a command that ends with status 2."""
    ended = airtune(*arguments, cwd=cwd)
    assert ended.returncode == 2, ended.stderr
    line = ended.stderr.strip().splitlines()[-1]
    assert line.startswith("airtune: ")
    return line


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the built-in scenario `tiny`, as a user makes it."""
    path = tmp_path_factory.mktemp("cli") / "first"
    ended = process("run", "tiny", "--out", str(path), "--set", "rounds=2")
    assert ended.returncode == 0, ended.stderr
    assert "round 2/2" in ended.stderr
    assert "before training: test loss" in ended.stderr
    assert str(path / "report.html") in ended.stdout
    assert str(path / "adapter") in ended.stdout
    return path


def test_a_run_leaves_record_adapter_and_report(folder: Path) -> None:
    assert {"run.json", "rounds.jsonl", "adapter", "checkpoint", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert len(at.read_record(folder).rounds) == 2


def test_a_folder_with_a_run_is_not_overwritten(folder: Path) -> None:
    before = (folder / "rounds.jsonl").read_bytes()
    line = refused("run", "tiny", "--out", str(folder))
    assert "--resume" in line
    assert "--replace" in line
    assert (folder / "rounds.jsonl").read_bytes() == before


def test_resuming_another_run_names_the_difference(folder: Path) -> None:
    line = refused("run", "tiny", "--out", str(folder), "--resume", "--set", "rounds=1")
    assert "rounds = 2, and rounds is now 1" in line


def test_resuming_a_finished_run_changes_nothing(folder: Path) -> None:
    before = (folder / "rounds.jsonl").read_bytes()
    ended = airtune("run", "tiny", "--out", str(folder), "--resume", "--set", "rounds=2")
    assert ended.returncode == 0, ended.stderr
    assert (folder / "rounds.jsonl").read_bytes() == before


def test_the_report_can_be_made_again(folder: Path) -> None:
    (folder / "report.html").unlink()
    ended = airtune("report", str(folder))
    assert ended.returncode == 0, ended.stderr
    assert (folder / "report.html").stat().st_size > 10_000


def test_json_prints_one_object_a_round_and_nothing_else(tmp_path: Path) -> None:
    ended = airtune("run", "tiny", "--out", str(tmp_path / "run"), "--set", "rounds=1", "--json")
    assert ended.returncode == 0, ended.stderr
    (line,) = ended.stdout.splitlines()
    assert json.loads(line)["round"] == 1
    assert ended.stderr == ""


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    ended = process("run", "tiny", "--out", str(tmp_path / "run"), "--set", "rounds=1", "--quiet")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_compare_runs_every_method_on_the_same_draws(tmp_path: Path) -> None:
    ended = airtune(
        "compare", "tiny", "--methods", "exact,none", "--out", str(tmp_path / "both"),
        "--set", "rounds=1", "--json",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "both" / "report.html").is_file()
    rows = json.loads(ended.stdout)["runs"]
    assert {row["method"] for row in rows} == {"exact", "none"}
    exact, none = (at.read_record(tmp_path / "both" / name) for name in ("exact", "none"))
    assert exact.rounds[0].none_latency_s == pytest.approx(none.rounds[0].round_latency_s)


def test_options_that_a_study_has_not_are_refused_with_seeds() -> None:
    for option in ("--json", "--resume", "--replace"):
        said = refused("compare", "tiny", "--methods", "exact,none", "--seeds", "0-1", option)
        assert f"{option} cannot go with --seeds" in said


def test_scenarios_are_listed_and_shown() -> None:
    listed = airtune("scenarios")
    assert listed.returncode == 0
    assert "demo" in listed.stdout
    assert "tiny" in listed.stdout
    shown = airtune("scenarios", "show", "demo")
    assert tomllib.loads(shown.stdout)["name"] == "demo"
    assert "demo, tiny" in refused("scenarios", "show", "absent")


def test_methods_and_devices_are_listed() -> None:
    listed = airtune("methods").stdout
    for name in ("bcd", "flora", "flexlora", "partial-fednova", "in-turn", "FedMP"):
        assert name in listed
    assert "raspberry-pi-5" in airtune("methods", "--devices").stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    ended = airtune(command, "--help")
    assert ended.returncode == 0
    assert f"airtune {command}" in ended.stdout.split("Usage", 1)[1].split("\n", 1)[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "absent.toml"], "absent.toml"),
        (["run", "tiny", "--set", "cell.radius=3"], "unknown key 'cell.radius'"),
        (["run", "tiny", "--set", "rounds=0"], "rounds = 0"),
        (["run", "tiny", "--method", "magic"], "planning.method = 'magic'"),
        (["run", "tiny", "--engine", "slurm"], "local, ray"),
        (["compare", "tiny", "--methods", "exact,magic"], "magic"),
        (["compare", "tiny", "--methods", "exact"], "two or more"),
        (["report", "absent-folder"], "absent-folder"),
        (["plan", "absent.json"], "absent.json"),
    ],
)
def test_what_the_user_can_mend_ends_with_status_2(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    assert said in refused(*arguments, cwd=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_model_that_cannot_be_had_offline_is_named(tmp_path: Path) -> None:
    line = refused("run", "tiny", "--set", "model.id=nobody/nothing", cwd=tmp_path)
    assert "nobody/nothing" in line


def test_planning_a_scenario_never_loads_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.argv = ['airtune', 'plan', 'demo', '--json']\n"
        "from airtune.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stderr.strip() == "False"
    plan = json.loads(ended.stdout)
    assert len(plan["clients"]) == 8
    assert plan["gap"] <= 1e-6
