"""Runs are found again after the scenario's schema has grown, and only those that are the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.planning.costs import shipped_costs
from airtune.study import Study, study_from
from airtune.study.jobs import Job, jobs_of, placed
from airtune.study.loading import load_study
from airtune.study.running import FINISHED, carry_out, state_of

OLD = "made-before"


@pytest.fixture
def study() -> Study:
    return study_from("tiny", ["fedit"], "0")


def kept(
    folder: Path,
    job: Job,
    name: str = OLD,
    change: Callable[[dict[str, Any]], object] = lambda values: None,
    status: str = FINISHED,
    format: int = 1,
) -> Path:
    """Write a run directory as a version with another schema would have left it."""
    values = copy.deepcopy(job.values)
    change(values)
    run = folder / "runs" / name
    run.mkdir(parents=True)
    info = {"format": format, "status": status, "method": "none", "seed": 0, "scenario": values,
            "versions": {}, "started_at": ""}  # fmt: skip
    (run / "run.json").write_text(json.dumps(info))
    return run


def without(*keys: str) -> Callable[[dict[str, Any]], object]:
    """Leave dotted keys out: what a schema writes that does not have them."""

    def change(values: dict[str, Any]) -> None:
        for key in keys:
            *path, last = key.split(".")
            table: Any = values
            for part in path:
                table = table[int(part) if part.isdecimal() else part]
            del table[last]

    return change


@pytest.mark.parametrize(
    "new",
    [
        ("time_budget_s",),
        ("training.weight_decay",),
        ("participation",),
        ("devices.0.lora_rank", "planning.knobs", "evaluation.metrics_every_round"),
    ],
)
def test_a_run_is_found_after_the_scenario_got_further_keys(
    study: Study, tmp_path: Path, new: tuple[str, ...]
) -> None:
    (job,) = jobs_of(study)
    kept(tmp_path, job, change=without(*new))
    (found,) = placed([job], tmp_path)
    assert found == replace(job, key=OLD)
    assert state_of(tmp_path, found) == (FINISHED, None)


def test_a_run_is_another_where_the_further_key_is_not_at_its_default(tmp_path: Path) -> None:
    study = study_from("tiny", ["fedit"], "0", ["training.weight_decay=0.1"])
    (job,) = jobs_of(study)
    kept(tmp_path, job, change=without("training.weight_decay"))
    assert placed([job], tmp_path) == [job]


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["training"].update(weight_decay=0.1),
        lambda values: values["devices"][0].update(count=values["devices"][0]["count"] + 1),
        lambda values: values["training"].update(momentum=0.9),
        lambda values: values.update(devices=3),
    ],
    ids=["default since changed", "of a device", "key that is gone", "no scenario"],
)
def test_a_run_with_other_values_is_another(
    study: Study, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    (job,) = jobs_of(study)
    kept(tmp_path, job, change=change)
    assert placed([job], tmp_path) == [job]


def test_a_key_that_came_with_another_default_is_listed(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = jobs_of(study)
    kept(tmp_path, job, change=without("training.weight_decay"))
    # Before the key there was a decay of 0.1; the default is 0.
    monkeypatch.setattr("airtune.study.keys.BEFORE", {"training.weight_decay": 0.1})
    assert placed([job], tmp_path) == [job]
    (decayed,) = jobs_of(study_from("tiny", ["fedit"], "0", ["training.weight_decay=0.1"]))
    assert placed([decayed], tmp_path)[0].key == OLD


def test_runs_from_before_steps_were_normalised_are_found_only_where_that_changed_nothing(
    tmp_path: Path,
) -> None:
    def job_of(*settings: str) -> Job:
        (job,) = jobs_of(study_from("tiny", ["exact"], "0", list(settings)))
        return job

    knobs = "planning.knobs=all"
    planned, plain = job_of(knobs), job_of('planning.knobs=["bits"]')
    by_hand = job_of(knobs, "aggregation.normalize_steps=false")
    nova = job_of("participation.rule=partial-fednova")
    assert planned.key != by_hand.key
    assert planned.key == job_of(knobs, "aggregation.normalize_steps=true").key
    for old in (planned, plain, nova):
        kept(tmp_path, old, f"{OLD}-{old.key}", change=without("aggregation.normalize_steps"))
    assert placed([planned], tmp_path) == [planned]
    assert placed([by_hand], tmp_path)[0].key == f"{OLD}-{planned.key}"
    for same in (plain, nova):
        assert placed([same], tmp_path)[0].key == f"{OLD}-{same.key}"


def test_plugin_code_still_counts(study: Study, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("# one")
    (job,) = jobs_of(study, plugins=[str(plugin)])
    run = kept(tmp_path, job, change=without("time_budget_s"))
    assert placed([job], tmp_path) == [job]  # nothing says which code it was
    run.with_name(f"{OLD}.json").write_text(json.dumps({"files": job.files}))
    assert placed([job], tmp_path)[0].key == OLD
    plugin.write_text("# two")
    changed = jobs_of(study, plugins=[str(plugin)])
    assert placed(changed, tmp_path) == changed


def test_what_a_run_read_is_noted_before_it_starts(study: Study, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text("# one")
    (job,) = jobs_of(study, plugins=[str(plugin)])
    beside = tmp_path / "runs" / f"{job.key}.json"

    class Killed:
        def start(self, key: str, task: Any) -> None:
            assert json.loads(beside.read_text()) == {"files": list(job.files)}
            assert task["files"] == list(job.files)

        def ended(self, timeout_s: float) -> dict[str, str | None]:
            return {job.key: "its process ended with status -9"}

        def close(self) -> None: ...

    carry_out([job], tmp_path, Killed(), at_once=1, threads=1)
    assert json.loads(beside.read_text())["files"] == list(job.files)


def test_its_own_directory_comes_first_and_then_a_finished_one(
    study: Study, tmp_path: Path
) -> None:
    (job,) = jobs_of(study)
    kept(tmp_path, job, "a-begun", without("time_budget_s"), status="running")
    assert placed([job], tmp_path)[0].key == "a-begun"
    kept(tmp_path, job, "b-finished", without("time_budget_s"))
    kept(tmp_path, job, "c-begun", without("time_budget_s"), status="running")
    assert placed([job], tmp_path)[0].key == "b-finished"
    kept(tmp_path, job, job.key)
    assert placed([job], tmp_path) == [job]


def test_a_newer_versions_run_is_refused_and_an_older_ones_is_passed_over(
    study: Study, tmp_path: Path
) -> None:
    (job,) = jobs_of(study)
    kept(tmp_path, job, "older", format=0)
    assert placed([job], tmp_path) == [job]
    kept(tmp_path, job, "newer", format=99)
    with pytest.raises(InputError, match=r"newer.* is of format 99"):
        placed([job], tmp_path)


def test_costs_count_by_their_content_and_only_where_they_are_read(tmp_path: Path) -> None:
    def key(path: Path, knobs: str) -> str:
        settings = [f"planning.costs={path}", *([f"planning.knobs={knobs}"] if knobs else [])]
        (job,) = jobs_of(study_from("tiny", ["exact"], "0", settings))
        return job.key

    text = shipped_costs().model_dump_json()
    here, there = tmp_path / "here.json", tmp_path / "there.json"
    here.write_text(text)
    there.write_text(text)
    before = key(here, "all")
    assert key(there, "all") == before
    plain = key(here, "")
    here.write_text(text + "\n")
    assert key(here, "all") != before
    assert key(here, "") == plain != before


def test_a_study_finds_its_costs_beside_it(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("{}")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nbase = "tiny"\nseeds = [0]\ninclude = ["fedit"]\n'
        'set.planning.costs = "costs.json"\n'
    )
    study = load_study(tmp_path / "mine.toml")
    assert study.set["planning.costs"] == str((tmp_path / "costs.json").resolve())


def test_files_of_a_method_and_of_a_point_are_those_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "there.csv").write_text("client,from_s,to_s\n1,0,1e9\n")
    (tmp_path / "device.json").write_text(
        '{"name": "shed", "effective_flops": 3e10, "memory_bytes": 1e10}'
    )
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nbase = "tiny"\nseeds = [1]\nset.task.source = "data"\n'
        '[methods.some]\nset.participation.availability = "there.csv"\n'
        '[[methods.listed.set.devices]]\nprofile = "device.json"\n'
        '[axes.device]\nshed = { devices.0.profile = "device.json" }\n'
    )
    study = load_study(tmp_path / "mine.toml", ["task.source=there.csv"])
    there = study.methods["some"].set["participation.availability"]
    assert there == str((tmp_path / "there.csv").resolve())
    point = study.axes["device"].points["shed"]
    assert point["devices.0.profile"] == str((tmp_path / "device.json").resolve())
    (listed,) = study.methods["listed"].set["devices"]
    assert listed["profile"] == str((tmp_path / "device.json").resolve())
    # What a shell says is a path of its own folder.
    assert study.set["task.source"] == "there.csv"


def test_an_availability_file_counts_by_its_content(tmp_path: Path) -> None:
    def key(folder: str, text: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "there.csv").write_text(text)
        file = tmp_path / folder / "there.csv"
        (job,) = jobs_of(study_from("tiny", ["fedit"], "0", [f"participation.availability={file}"]))
        return job.key

    once = key("here", "client,from_s,to_s\n1,0,1e9\n")
    assert once == key("elsewhere", "client,from_s,to_s\n1,0,1e9\n")
    assert once != key("here", "client,from_s,to_s\n2,0,1e9\n")


def test_a_trace_counts_by_its_content_also_with_a_column(tmp_path: Path) -> None:
    trace = tmp_path / "drive.csv"

    def key(rate: int) -> str:
        trace.write_text(f"time_s,a_mbit_s,b_mbit_s\n0,{rate},1\n1,{rate},1\n")
        settings = [f"devices.0.uplink_trace={trace}#a_mbit_s"]
        (job,) = jobs_of(study_from("tiny", ["fedit"], "0", settings))
        return job.key

    assert key(1) == key(1) != key(9)


@pytest.mark.parametrize(
    ("study", "base"),
    [
        ('[tuned.exact]\ntask.source = "C:\\temp"\n', ""),
        ("", '[model]\nid = "folder\\new"\n'),
    ],
)
def test_a_study_and_its_base_are_read_with_a_scenarios_guards(
    tmp_path: Path, study: str, base: str
) -> None:
    (tmp_path / "base.toml").write_text(base, encoding="utf-8")
    file = tmp_path / "study.toml"
    file.write_text(f'base = "base.toml"\ninclude = ["exact"]\nseeds = [0]\n{study}')
    with pytest.raises(InputError, match="in double quotes a backslash begins an escape"):
        load_study(file)


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000])
def test_an_option_that_python_cannot_read_is_refused_in_one_line(value: str) -> None:
    with pytest.raises(InputError, match="too many digits, or brackets are too deep"):
        load_study("tiny", [f"training.lora_rank={value}"])
