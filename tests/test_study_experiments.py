"""The experiments' study files mean the runs that the committed results came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airtune.scenario import load_scenario
from airtune.study import load_study
from airtune.study.jobs import jobs_of, search_jobs

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


@pytest.mark.parametrize("task", ["gsm8k", "yahoo"])
def test_a_study_file_resolves_to_the_scenarios_of_the_committed_results(task: str) -> None:
    rows = json.loads((EXPERIMENTS / "core" / "results.json").read_text())
    committed = {(row["method"], row["seed"]): row for row in rows if row["task"] == task}
    jobs = jobs_of(load_study(EXPERIMENTS / f"{task}.toml"))
    # Methods that were added to the sets since then have no row.
    known = {(job.method, job.seed): job for job in jobs if (job.method, job.seed) in committed}
    assert set(known) == set(committed)
    for place, job in known.items():
        settings = committed[place]["settings"]
        scenario = load_scenario(EXPERIMENTS / "core" / f"{task}.toml", settings)
        assert job.values == scenario.model_dump(mode="json"), job.where


def test_other_cells_and_the_search_are_valid_scenarios() -> None:
    jobs = jobs_of(load_study(EXPERIMENTS / "cells.toml"))
    assert len(jobs) == 5 * (1 + 5)
    clients: dict[Any, int] = {
        job.point: sum(device["count"] for device in job.values["devices"]) for job in jobs
    }
    assert sorted(clients.values()) == [8, 8, 8, 8, 8, 16]
    sweeps = jobs_of(load_study(EXPERIMENTS / "sweeps.toml"))
    assert len(sweeps) == 6 * 3 * (1 + 4 + 2)
    at = {job.point: sum(d["count"] for d in job.values["devices"]) for job in sweeps}
    assert sorted(at.values()) == [8, 8, 8, 8, 8, 16, 32]
    assert len(search_jobs(load_study(EXPERIMENTS / "smoke.toml"))) == 2 * 2
