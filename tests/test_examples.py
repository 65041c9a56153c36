"""Every file in examples/ does what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airtune.planning import plan, problem_from_json
from airtune.planning.inputs import plan_of_round, problem_of_scenario
from airtune.scenario import load_scenario

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def test_every_example_is_tested_here() -> None:
    assert {path.suffix for path in EXAMPLES.iterdir()} <= {".json", ".toml", ".py"}
    assert [path.name for path in EXAMPLES.glob("*.py")] == ["quickstart.py"]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_planning_problems_are_solved_to_the_tolerance(path: Path) -> None:
    made = plan(problem_from_json(json.loads(path.read_text())))
    assert made.gap is not None
    assert made.gap <= 1e-6


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_scenarios_can_be_planned(path: Path) -> None:
    scenario = load_scenario(path)
    made = plan_of_round(scenario, problem_of_scenario(scenario), 1)
    assert made.round_latency_s > 0
    assert made.bandwidth_hz.sum() <= scenario.cell.uplink_bandwidth_hz


def test_the_quickstart_runs(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / "quickstart.py"), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "test loss" in ended.stdout
    assert "proven optimum" in ended.stdout
