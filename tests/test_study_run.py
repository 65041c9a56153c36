"""A study is killed, goes on, meets failures, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from airtune.cli.study import run
from airtune.errors import InputError, RunError
from airtune.record import read_record
from airtune.study import load_study
from airtune.study.comparison import compare
from airtune.study.conduct import Part, conduct, other_runs
from airtune.study.folder import read_study
from airtune.study.jobs import jobs_of, search_jobs
from airtune.study.pools import Task
from airtune.study.results import Result, results_of
from airtune.study.running import carry_out, state_of

HERE = Path(__file__).parent
# The server that a pool's processes are forked from has to find this folder's modules, too.
PATH = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


def toy(folder: Path, jobs: int = 4, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "toy_study.py"), str(folder), str(jobs)]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": PATH, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str]) -> str:
    try:
        _, errors = process.communicate(timeout=1800)
    finally:
        process.kill()  # where it has not ended, nothing of it stays
    assert process.returncode == 0, errors
    return errors


def records(folder: Path) -> dict[str, str]:
    """Each run's rounds as they lie on disk."""
    return {p.parent.name: p.read_text() for p in (folder / "runs").glob("*/rounds.jsonl")}


def test_a_study_killed_at_random_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    done(toy(tmp_path / "whole"))
    chance = random.Random(15)
    kills = 0
    for _ in range(3):
        process = toy(tmp_path / "killed")
        assert process.stdout is not None
        process.stdout.readline()
        try:
            process.wait(timeout=chance.uniform(0.2, 2.5))
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        process.communicate()
    time.sleep(0.5)  # the killed study's processes end with it
    done(toy(tmp_path / "killed"))
    assert kills
    assert len(records(tmp_path / "whole")) == 20
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    tables = [(tmp_path / name / "tables" / "ranking.csv") for name in ("whole", "killed")]
    assert tables[0].read_text() == tables[1].read_text()


def test_a_run_that_fails_or_dies_does_not_take_the_study_along(tmp_path: Path) -> None:
    done(toy(tmp_path, TOY_FAILS="exact", TOY_DIVERGES="bandwidth-only"))
    study = load_study("tiny")
    results = results_of(study, jobs_of(study), tmp_path)
    states = {(one.method, one.status) for one in results}
    assert states == {
        ("exact", "failed"),
        ("fedit", "finished"),
        ("bandwidth-only", "diverged"),
        ("flexlora", "finished"),
    }
    failed = next(one for one in results if one.status == "failed")
    assert failed.error == "round 2: no client's update could be used"
    (comparison,) = compare(results)
    broken = {one.method: one.broken for one in comparison.standings}
    assert broken == {"fedit": 0, "flexlora": 0, "exact": 5, "bandwidth-only": 5}
    # Once the cause is gone the same call does what failed, and only that.
    before = records(tmp_path)
    done(toy(tmp_path))
    assert all(one.usable or one.status == "diverged" for one in
               results_of(study, jobs_of(study), tmp_path))  # fmt: skip
    after = records(tmp_path)
    kept = [one.key for one in results if one.status != "failed"]
    assert all(after[key] == before[key] for key in kept)


def test_a_process_that_ends_without_a_word_is_a_failed_run(tmp_path: Path) -> None:
    done(toy(tmp_path, TOY_DIES="none"))
    study = load_study("tiny")
    states = {job.method: state_of(tmp_path, job) for job in jobs_of(study)}
    assert states["fedit"] == ("failed", "its process ended with status 9")
    assert states["exact"] == ("finished", None)


class Recorder:
    """A pool that does nothing but note what would run at once."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.most = 0
        self.started: list[Task] = []

    def start(self, key: str, task: Task) -> None:
        self.running.append(key)
        self.started.append(task)
        self.most = max(self.most, len(self.running))

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        return {self.running.pop(): "stopped"}

    def close(self) -> None: ...


def test_a_part_of_a_study_is_run_by_itself_and_the_study_stays_whole(tmp_path: Path) -> None:
    study, pool = load_study("tiny"), Recorder()
    part = Part(methods=("exact", "flexlora"), seeds=(1, 3))
    results = conduct(study, tmp_path, lambda: pool, at_once=4, threads=1, part=part)
    begun = [Path(task["folder"]).name for task in pool.started]
    asked = [job for job in jobs_of(study) if part.holds(job)]
    assert begun == [job.key for job in asked]
    assert [(job.method, job.seed) for job in asked] == [
        (method, seed) for seed in (1, 3) for method in ("exact", "flexlora")
    ]
    # The others are there, as missing, and a later call without a part does them.
    assert len(results) == len(jobs_of(study)) == 20
    assert sum(one.status == "missing" for one in results) == 16
    assert read_study(tmp_path)[0] == study
    rest = Recorder()
    conduct(study, tmp_path, lambda: rest, at_once=4, threads=1, part=Part(seeds=(4,)))
    assert {task["values"]["seed"] for task in rest.started} == {4}


def test_runs_of_other_settings_are_counted_but_not_those_of_the_search(tmp_path: Path) -> None:
    file = str(HERE.parent / "experiments" / "smoke.toml")
    found: dict[str, list[Result]] = {}
    for steps in ("3", "2"):
        study = load_study(file, [f"training.local_steps={steps}"])
        jobs = jobs_of(study, {name: {} for name in study.methods})
        found[steps] = results_of(study, jobs, tmp_path)
    own = load_study(file, ["training.local_steps=3"])
    for key in {job.key for job in search_jobs(own)} | {one.key for one in found["3"]}:
        (tmp_path / "runs" / key).mkdir(parents=True)
        (tmp_path / "runs" / key / "run.json").write_text("{}")
    assert other_runs(own, found["3"], tmp_path) == 0
    changed = load_study(file, ["training.local_steps=2"])
    assert other_runs(changed, found["2"], tmp_path) == len(list((tmp_path / "runs").iterdir())) > 2


def test_the_command_does_the_part_that_it_is_given_and_fails_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, asked = load_study("tiny"), []
    missing = results_of(study, jobs_of(study), tmp_path)

    def conducted(*arguments: Any, part: Part, **options: Any) -> list[Result]:
        asked.append(part)
        return [replace(r, status="failed" if r.method == "exact" else r.status) for r in missing]

    monkeypatch.setattr("airtune.study.conduct.conduct", conducted)
    monkeypatch.setattr("airtune.cli.study.write_all", lambda *arguments: None)
    run("tiny", out=tmp_path, methods="fedit, flexlora", seeds="0-1")
    assert asked == [Part(("fedit", "flexlora"), (0, 1))]
    with pytest.raises(RunError, match="5 of 20 runs failed"):
        run("tiny", out=tmp_path)
    with pytest.raises(RunError, match="1 of 1 runs failed"):
        run("tiny", out=tmp_path, methods="exact", seeds="3")


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (Part(methods=("exakt",)), "--methods: the study has no 'exakt'; it has exact, fedit, "),
        (Part(seeds=(0, 7)), "--seeds: the study has no 7; it has 0, 1, 2, 3, 4"),
    ],
)
def test_a_part_that_the_study_does_not_have_is_refused_before_anything_is_written(
    tmp_path: Path, part: Part, said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        conduct(load_study("tiny"), tmp_path, Recorder, at_once=1, threads=1, part=part)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("limit_bytes", "most"), [(1e12, 5), (2.5e9, 3), (1.0, 1)])
def test_as_many_at_once_as_fit_the_memory(tmp_path: Path, limit_bytes: float, most: int) -> None:
    pool, jobs = Recorder(), jobs_of(load_study("tiny"))
    carry_out(jobs, tmp_path, pool, at_once=5, threads=1, limit_bytes=limit_bytes)
    assert pool.most == most
    assert len(pool.started) == 20


def test_a_model_of_unknown_size_runs_alone_until_its_peak_is_known(tmp_path: Path) -> None:
    pool = Recorder()
    jobs = jobs_of(load_study("tiny", ['model.id="somebody/model"']))
    carry_out(jobs, tmp_path, pool, at_once=5, threads=1, limit_bytes=1e12)
    assert pool.most == 1
    told = tmp_path / "runs" / f"{jobs[0].key}.json"
    told.write_text(json.dumps({"peak_bytes": 1e9}))
    again = Recorder()
    carry_out(jobs, tmp_path, again, at_once=5, threads=1, limit_bytes=1e12)
    assert again.most == 5


def test_progress_says_what_ended_and_how_long_the_rest_takes(tmp_path: Path) -> None:
    told = []
    carry_out(jobs_of(load_study("tiny")), tmp_path, Recorder(), at_once=1, threads=1,
              watch=told.append)  # fmt: skip
    assert [one.done for one in told] == list(range(1, 21))
    assert told[0].where == "exact, seed 0"
    assert told[0].error == "stopped"
    assert told[-1].left_s == 0.0


@pytest.mark.slow
def test_the_shipped_study_killed_at_random_and_resumed_is_the_uninterrupted_one(
    tmp_path: Path,
) -> None:
    """20 real runs, several kills: minutes."""
    command = [sys.executable, "-c", "from airtune.cli import main; main()", "study", "run", "tiny"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started(folder: str) -> subprocess.Popen[str]:
        asked = [*command, "--out", str(tmp_path / folder), "--jobs", "2", "-q"]
        return subprocess.Popen(asked, env=environment, stderr=subprocess.PIPE, text=True)

    done(started("whole"))
    chance = random.Random(1)
    for _ in range(4):
        process = started("killed")
        time.sleep(chance.uniform(8.0, 20.0))
        process.kill()
        process.communicate()
    time.sleep(1.0)
    done(started("killed"))
    whole, killed = (records_without_times(tmp_path / name) for name in ("whole", "killed"))
    assert len(whole) == 20
    assert killed == whole


def records_without_times(folder: Path) -> dict[str, list[dict[str, object]]]:
    return {
        key: [{k: v for k, v in json.loads(line).items() if k != "wall_s"}
              for line in text.splitlines()]
        for key, text in records(folder).items()
    }  # fmt: skip


def test_a_real_run_in_a_process_of_its_own_leaves_record_and_page(tmp_path: Path) -> None:
    from airtune.rounds.apart import perform
    from airtune.study.pools import ProcessPool

    study = load_study("tiny")
    one = study.model_copy(
        update={
            "methods": {"fedit": study.methods["fedit"]},
            "seeds": (0,),
            "budget": study.budget.model_copy(update={"rounds": 1}),
        }
    )
    results = conduct(one, tmp_path, lambda: ProcessPool(perform), at_once=1, threads=1)
    assert [result.status for result in results] == ["finished"]
    folder = tmp_path / "runs" / results[0].key
    assert read_record(folder).finished
    assert (folder / "report.html").is_file()
    assert not (folder / "checkpoint").exists()
    assert not (tmp_path / "shared").exists()
    told = json.loads((tmp_path / "runs" / f"{results[0].key}.json").read_text())
    assert told["error"] is None
    assert told["peak_bytes"] > 1e7
