"""What commands refuse before they begin: folders, sweeps, budgets, names."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import airtune as at
from airtune.cli import app
from airtune.cli.compare import _check_folder
from airtune.deploy.keys import make_device_key
from airtune.errors import InputError
from airtune.planning.files import problem_from_json
from airtune.scenario import load_scenario
from airtune.study import load_study

CELL = Path(__file__).resolve().parents[1] / "examples" / "cell.json"


def cell(**of_the_first: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(CELL.read_text())
    document["clients"][0].update(of_the_first)
    return document


def test_a_comparison_takes_no_folder_that_holds_something_else(tmp_path: Path) -> None:
    for name, holds in (("run", "run.json"), ("notes", "notes.txt"), ("page", "report.html")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / holds).write_text("{}")
        with pytest.raises(InputError, match=f"holds '{holds}', which is not of a comparison"):
            _check_folder(folder)
        assert (folder / holds).read_text() == "{}"
    with pytest.raises(InputError, match="is a file: give a folder"):
        _check_folder(tmp_path / "page" / "report.html")
    before = tmp_path / "before"
    (before / "exact").mkdir(parents=True)
    (before / "exact" / "run.json").write_text("{}")
    (before / "report.html").write_text("")
    (before / ".DS_Store").write_text("")
    _check_folder(before)  # one of a comparison goes on
    _check_folder(tmp_path / "new")


def test_the_command_looks_at_the_folder_first(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    made = CliRunner().invoke(app, ["compare", "tiny", "--out", str(tmp_path), "--replace"])
    assert isinstance(made.exception, InputError)
    assert "holds 'run.json'" in str(made.exception)


def test_a_budget_of_energy_needs_a_power() -> None:
    with pytest.raises(InputError, match=r"energy_budget_j needs compute_power_w or transmit"):
        problem_from_json(cell(energy_budget_j=5))
    limited = problem_from_json(cell(energy_budget_j=5, transmit_power_w=0.2))
    assert limited.energy_budget_j is not None
    assert limited.energy_budget_j[0] == 5
    for no_power in (None, 0.0 * limited.snr_hz):  # the same from Python
        with pytest.raises(InputError, match="'jetson-agx': energy_budget_j needs"):
            replace(limited, transmit_power_w=no_power)
    mode = {
        "name": "whole", "cost": 0, "compute_fixed_s": 1, "compute_full_s": 3,
        "payload_fixed_bits": 1e5, "payload_full_bits": 7e7, "compute_power_w": 4,
    }  # fmt: skip
    by_mode = problem_from_json(cell(energy_budget_j=50, modes=[mode]))
    assert by_mode.energy_budgets[0] == 50  # a mode's power does


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "kappa=0:0.5:2", "--sweep", "kappa=0:0.6:2"], "kappa was given twice"),
        (["--set", "clients.c0.snr_hz=1e9"], "NAME one of jetson-agx, jetson-nano-1"),
    ],
)
def test_what_plan_refuses(arguments: list[str], said: str) -> None:
    made = CliRunner().invoke(app, ["plan", str(CELL), *arguments])
    assert isinstance(made.exception, InputError)
    assert said in str(made.exception)


def test_methods_of_a_study_need_seeds() -> None:
    made = CliRunner().invoke(app, ["compare", "tiny", "--methods", "published"])
    assert "need --seeds" in str(made.exception)


def test_what_a_scenario_says_of_single_brackets_and_of_a_text() -> None:
    with pytest.raises(InputError, match=r"write \[\[devices\]\], with two brackets"):
        at.load_scenario("tiny", ['devices={profile="laptop-cpu"}'])
    with pytest.raises(InputError, match=r"give a list, e\.g\. \['rounds=2'\]"):
        at.load_scenario("tiny", "rounds=2")
    empty = at.load_scenario("tiny", ["task.name=gsm8k", 'task.source=""'])
    with pytest.raises(InputError, match=r"task\.source is missing"):
        at.open_cell(empty)


def test_a_costs_file_names_the_command_that_makes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, Any] = {}

    def noted(scenario: Any, **asked: Any) -> None:
        said.update(asked)
        raise InputError("enough")

    monkeypatch.setattr("airtune.rounds.pilot.run_pilot", noted)
    made = CliRunner().invoke(
        app,
        ["costs", "tiny", "--set", "seed=3", "--set", 'description="a b"', "--rounds", "1",
         "--seeds", "0", "--out", str(tmp_path / "c.json")],
    )  # fmt: skip
    assert str(made.exception) == "enough"
    assert said["command"] == (
        "airtune costs tiny --rounds 1 --seeds 0 --set seed=3 --set 'description=\"a b\"'"
    )


def test_a_budget_of_rounds_not_round(tmp_path: Path) -> None:
    study = tmp_path / "mine.toml"
    study.write_text(
        'base = "tiny"\nname = "mine"\nseeds = "0-1"\ninclude = ["fedit"]\n[budget]\nround = 3\n'
    )
    with pytest.raises(
        InputError, match=r"'budget.round': did you mean 'rounds'\? known here: rou"
    ):
        load_study(study)


@pytest.mark.parametrize(
    ("seeds", "said"), [("0-", "--seeds '0-': give whole numbers"), ("1,1", "1 is given twice")]
)
def test_a_pilots_seeds_are_written_as_a_studys(seeds: str, said: str) -> None:
    made = CliRunner().invoke(app, ["costs", "tiny", "--seeds", seeds])
    assert isinstance(made.exception, InputError)
    assert said in str(made.exception)


@pytest.mark.parametrize("command", ["try", "run"])
def test_what_devices_cannot_do_is_refused_before_any_is_started(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["deploy", command, "tiny", "--set", "aggregation.rule=flora"])
    assert isinstance(made.exception, InputError)
    assert "'flora' runs in simulation only" in str(made.exception)
    assert "starting" not in made.output
    assert list(tmp_path.iterdir()) == []


def test_a_devices_key_and_profile_are_looked_at_before_its_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = load_scenario("tiny").client_names[0]
    make_device_key(Path("keys"), name)
    common = ["deploy", "device", "--server", "127.0.0.1:1", "--client", name]
    common += ["--scenario", "tiny"]
    for more, said in (
        (["--key", "none"], "--key '.*none': no such file"),
        (["--key", f"keys/{name}.pub"], "is no private key of a device"),
        (["--emulate", "abacus"], "'abacus'"),
        ([], "127.0.0.1:1"),
    ):
        made = CliRunner().invoke(app, [*common, *more])
        assert isinstance(made.exception, InputError)
        assert re.search(said, str(made.exception)), made.exception
