"""A study whose base scenario names what a plugin adds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TASK = """
import airtune as at


@at.task("larger", description="which of two numbers is larger", choices=("first", "second"))
def larger(section, rng):
    while True:
        a, b = (int(number) for number in rng.integers(0, 10_000, size=2))
        answer = "first" if a >= b else "second"
        yield f"{a} or {b}?", answer, answer
"""
STUDY = """
name = "mine"
base = "base.toml"
seeds = [0]
include = ["fedit"]
"""
BASE = """
name = "base"
rounds = 1
model.id = "tiny"
task = { name = "larger", train_examples = 64, eval_examples = 8, max_tokens = 96 }
cell.uplink_bandwidth_hz = 1e5
devices = [{ profile = "raspberry-pi-5", count = 2, utilisation = 2e-4 }]
training = { local_steps = 1, batch_size = 4, lora_rank = 2 }
"""


def airtune(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which has not loaded the plugin before."""
    command = [sys.executable, "-c", "from airtune.cli import main; main()", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("named_in", ["the command", "the base"])
def test_a_task_of_a_plugin_can_be_studied_and_looked_at(tmp_path: Path, named_in: str) -> None:
    (tmp_path / "task.py").write_text(TASK)
    (tmp_path / "mine.toml").write_text(STUDY)
    in_base = named_in == "the base"
    (tmp_path / "base.toml").write_text(('plugins = ["task.py"]\n' if in_base else "") + BASE)
    option = [] if in_base else ["--plugin", "task.py"]
    ran = airtune(tmp_path, "study", "run", "mine.toml", *option, "--out", "out", "--quiet")
    assert (ran.returncode, ran.stderr) == (0, "")
    seen = airtune(tmp_path, "study", "status", "out")
    assert seen.returncode == 0
    assert "finished" in seen.stdout or "done" in seen.stdout
