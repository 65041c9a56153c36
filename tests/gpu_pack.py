"""What the tests of the GPU pack share: a small study, its runs, and what they have recorded."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airtune.study import load_study
from airtune.study.jobs import Job, jobs_of
from airtune.study.running import folder_of

ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "experiments" / "gpu"
SMOKE = ROOT / "experiments" / "scenarios" / "smoke.toml"
STUDY = f"""
name = "try"
base = "{SMOKE}"
seeds = [0]
include = ["fedit", "exact"]
set.task.eval_examples = 4
set.evaluation.generate = true
set.evaluation.generate_examples = 2
[budget]
rounds = 4
"""


MODULES = ("archives", "machine", "parts", "run")


def imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Yield the pack's modules, which are forgotten afterwards: their names are everybody's."""
    monkeypatch.syspath_prepend(str(PACK))
    yield SimpleNamespace(**{name: import_module(name) for name in MODULES})
    for name in MODULES:
        sys.modules.pop(name)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [{**json.loads(line), "wall_s": None} for line in lines]


def jobs(tmp_path: Path) -> list[Job]:
    file = tmp_path / "try.toml"
    file.write_text(STUDY)
    return jobs_of(load_study(file))


def task_of(job: Job, study_folder: Path, until: float | None) -> dict[str, Any]:
    folder = str(folder_of(study_folder, job.key))
    return {"folder": folder, "values": job.values, "threads": 1, "keep_adapter": False,
            "until": until}  # fmt: skip
