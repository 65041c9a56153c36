"""Plugins: how they are loaded, what is refused, and what their parts' answers are checked for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import airtune as at
from airtune import planning
from airtune.channel import CHANNEL_MODELS
from airtune.errors import InputError
from airtune.merging import MERGING
from airtune.planning import METHODS
from airtune.plugins import load_entry_points, load_plugins, provenance
from airtune.scenario import TASKS, load_scenario

ROOT = Path(__file__).resolve().parents[1]
PROBLEM = planning.problem_from_json((ROOT / "examples" / "cell.json").read_text())
METHOD = """
import airtune as at

@at.planning_method("{name}", description="equal bands")
def solve(problem, tolerance, rng):
    return problem.min_pruning, [problem.bandwidth_hz / problem.clients] * problem.clients
"""


TASK = """
import airtune as at

@at.task("mine", description="nothing")
def nothing(section, rng):
    return []
"""
pytestmark = pytest.mark.usefixtures("no_plugins_left")


def written(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


# Registries


@pytest.mark.parametrize(
    ("decorator", "table", "taken"),
    [
        (at.planning_method, METHODS, "exact"),
        (at.merging_rule, MERGING, "fedit"),
        (at.channel_model, CHANNEL_MODELS, "statistical"),
        (at.task, TASKS, "sums"),
    ],
)
def test_a_name_is_given_once(decorator: Any, table: Any, taken: str) -> None:
    before = list(table)
    for name, message in ((taken, "exists already"), ("two words", "letters, digits")):
        with pytest.raises(InputError, match=rf"{table.kind} '{name}'.*{message}"):
            decorator(name, description="mine")(lambda *a: None)
    assert list(table) == before
    decorator("mine", description="mine")(lambda *a: None)
    assert list(table) == [*before, "mine"]
    assert (table["mine"].description, table["mine"].source) == ("mine", "a plugin")
    with pytest.raises(InputError, match=f"{table.key} = 'other': allowed are .*, mine"):
        table.find("other")


# Loading


def test_a_file_is_loaded_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    first = written(tmp_path, "p.py", METHOD.format(name="one"))
    load_plugins([first, first])
    load_plugins([first])
    assert "one" in METHODS
    (recorded,) = provenance([first])
    assert recorded["sha256"] == hashlib.sha256(Path(first).read_bytes()).hexdigest()
    written(tmp_path, "p.py", METHOD.format(name="two"))
    load_plugins([first])
    assert "two" in METHODS
    assert "one" not in METHODS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:\n", r"p\.py'.*line 1: SyntaxError"),
        ("\nx = 1 / 0\n", r"p\.py'.*p\.py, line 2: ZeroDivisionError: division by zero"),
        (METHOD.format(name="none"), r"p\.py': planning method 'none' exists already"),
        (METHOD.format(name="mine") + "import nowhere\n", r"ModuleNotFoundError.*'nowhere'"),
    ],
)
def test_a_plugin_that_cannot_be_loaded_leaves_nothing(
    text: str, message: str, tmp_path: Path
) -> None:
    before = list(METHODS)
    with pytest.raises(InputError, match=message) as raised:
        load_plugins([written(tmp_path, "p.py", text)])
    assert "\n" not in str(raised.value)
    assert list(METHODS) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.py", "'missing.py' cannot be read"),
        ("no_such_module", "ModuleNotFoundError"),
        ("not a module", "allowed are a file that ends in .py"),
    ],
)
def test_a_plugin_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_plugins([name])


def test_a_scenario_loads_its_plugins_before_its_names_are_checked(tmp_path: Path) -> None:
    plugin = written(tmp_path, "tasks.py", TASK)
    builtin = (ROOT / "src/airtune/scenario/builtin/tiny.toml").read_text()
    file = tmp_path / "s.toml"
    file.write_text('plugins = ["tasks.py"]\n' + builtin.replace('"sums"', '"mine"'))
    scenario = load_scenario(file)
    assert scenario.plugins == (plugin,)  # beside the scenario, wherever the command runs
    assert scenario.task.name == "mine"
    again = load_scenario(file, plugins=[os.path.relpath(plugin)])
    assert again.plugins == (plugin,)
    with pytest.raises(InputError, match=r"task.name: 'mien' is unknown; allowed: .*sums, mine"):
        load_scenario(file, ["task.name=mien"])


def test_a_process_that_gets_plain_values_loads_the_plugins(tmp_path: Path) -> None:
    """What a Ray worker does: another process, another folder, the scenario's values alone."""
    scenario = load_scenario("tiny", plugins=[written(tmp_path, "tasks.py", TASK)])
    values = {**scenario.model_dump(mode="json"), "task": {"name": "mine"}}
    code = (
        "from airtune.scenario import scenario_from_dict\n"
        f"scenario_from_dict({values!r})\n"
        "import sys; print('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        check=True,
    )
    assert shown.stdout.strip() == "False"


def test_an_installed_package_is_asked_for_unknown_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "installed_methods.py", METHOD.format(name="installed"))
    about = tmp_path / "installed-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: installed\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[airtune.plugins]\nmine = installed_methods\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert planning.plan(PROBLEM, "exact").gap is not None
    assert "installed_methods" not in sys.modules  # a built-in name asks no package
    assert planning.plan(PROBLEM, "installed").method == "installed"
    (recorded,) = provenance([])
    assert recorded["plugin"] == "mine (installed_methods of installed 1.0)"
    assert len(recorded["sha256"]) == 64
    load_entry_points()
    del sys.modules["installed_methods"]


def test_a_resumed_run_says_that_a_plugin_has_changed(tmp_path: Path) -> None:
    from airtune.record import RunDirectory

    plugin = written(tmp_path, "p.py", METHOD.format(name="mine"))
    out = tmp_path / "run"
    for more in ("", "# other\n"):
        written(tmp_path, "p.py", METHOD.format(name="mine") + more)
        scenario = load_scenario("tiny", ["planning.method=mine"], plugins=[plugin])
        values = scenario.model_dump(mode="json")
        if not more:
            RunDirectory.create(out, scenario_values=values, method="mine").close()
            continue
        directory = RunDirectory.resume(out, scenario_values=values, method="mine")
        directory.close()
        assert f"the plugin {plugin} has changed" in " ".join(directory.notices)
    hashes = [entry["sha256"] for entry in at.read_record(out).plugins]
    assert len(set(hashes)) == 2


# Commands


def shown(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from airtune.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )


def test_the_commands_take_a_plugin(tmp_path: Path) -> None:
    plugin = written(tmp_path, "p.py", METHOD.format(name="mine"))
    made = shown("plan", "examples/cell.json", "--plugin", plugin, "--method", "mine", "--json")
    plan = json.loads(made.stdout)
    assert plan["method"] == "mine"
    assert plan["gap"] > 0
    made = shown("plan", "tiny", "--plugin", plugin, "--method", "mine", "--json")
    assert json.loads(made.stdout)["method"] == "mine"
    assert "equal bands" in shown("methods", "--plugin", plugin).stdout
    refused = shown("methods", "--plugin", "missing.py")
    assert refused.returncode == 2
    assert refused.stderr.startswith("airtune: plugin 'missing.py' cannot be read")
    assert len(refused.stderr.splitlines()) == 1


def test_compare_knows_a_plugins_method_before_it_checks_names(tmp_path: Path) -> None:
    plugin = written(tmp_path, "p.py", METHOD.format(name="mine"))
    refused = shown("compare", "tiny", "--plugin", plugin, "--methods", "mine,other")
    assert refused.returncode == 2
    assert "--methods 'other'" in refused.stderr
    assert "mine" in refused.stderr.partition("names of: ")[2]
