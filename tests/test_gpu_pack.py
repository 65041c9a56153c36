"""The GPU pack: what is missing is said, files travel in parts, runs stop in time and go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.rounds.apart import perform
from airtune.study import load_study
from airtune.study.conduct import Part, conduct, known_jobs
from airtune.study.folder import read_study
from airtune.study.jobs import Job, jobs_of
from airtune.study.running import (
    BEGUN,
    FAILED,
    FINISHED,
    MISSING,
    carry_out,
    folder_of,
    state_of,
)
from airtune.study.schema import Study

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


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    monkeypatch.syspath_prepend(str(PACK))
    import machine
    import parts
    import run

    yield SimpleNamespace(machine=machine, parts=parts, run=run)
    for name in ("machine", "parts", "run"):
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


def test_a_run_out_of_time_ends_with_a_round_and_goes_on_to_the_same_record(
    tmp_path: Path,
) -> None:
    job = jobs(tmp_path)[1]
    for expected in (1, 2):
        assert perform(task_of(job, tmp_path / "a", until=1.0)) is None
        assert state_of(tmp_path / "a", job) == (BEGUN, None)
        assert len(rounds_of(folder_of(tmp_path / "a", job.key))) == expected
    for study in ("a", "b"):
        assert perform(task_of(job, tmp_path / study, until=time.time() + 1e6)) is None
        assert state_of(tmp_path / study, job) == (FINISHED, None)
    one, other = (rounds_of(folder_of(tmp_path / study, job.key)) for study in ("a", "b"))
    assert one == other


class _Pool:
    """Ends each task in the second call; remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.closed = False

    def start(self, key: str, task: Any) -> None:
        self.begun.append(key)

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        return {}

    def close(self) -> None:
        self.closed = True


def test_after_the_time_no_run_begins_and_those_that_run_are_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, pool, now = jobs(tmp_path), _Pool(), [100.0]
    carry_out(listed, tmp_path, pool, at_once=2, threads=1, until=1.0, limit_bytes=1e12)
    assert (pool.begun, pool.closed) == ([], False)

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("airtune.study.running.time.time", clock)
    carry_out(listed, tmp_path, pool, at_once=2, threads=1, until=120.0, limit_bytes=1e12)
    assert sorted(pool.begun) == sorted(job.key for job in listed)
    assert pool.closed
    assert state_of(tmp_path, listed[0])[0] == MISSING


def test_a_model_in_parts_is_put_together_once_all_are_there(
    pack: SimpleNamespace, tmp_path: Path
) -> None:
    whole, sent, store = tmp_path / "m.gguf", tmp_path / "sent", tmp_path / "store"
    whole.write_bytes(os.urandom(2500))
    first, second, third, manifest = pack.parts.split(whole, sent, 1000)
    assert [p.stat().st_size for p in (first, second, third)] == [1000, 1000, 500]
    third.rename(tmp_path / "later")
    pack.parts.take(sent, store)
    assert pack.parts.join(store) == [f"m.gguf: of its 3 parts not here: {third.name}"]
    # The next call brings the rest alone.
    for path in (first, second, manifest):
        path.unlink()
    (tmp_path / "later").rename(third)
    pack.parts.take(sent, store)
    assert pack.parts.join(store) == []
    assert (store / "m.gguf").read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in store.iterdir()) == ["m.gguf", manifest.name]


def test_a_damaged_part_is_refused(pack: SimpleNamespace, tmp_path: Path) -> None:
    whole = tmp_path / "m.gguf"
    whole.write_bytes(os.urandom(1500))
    first, *_ = pack.parts.split(whole, tmp_path / "store", 1000)
    first.write_bytes(bytes(1000))
    with pytest.raises(InputError, match="a part is damaged"):
        pack.parts.join(tmp_path / "store")
    pack.parts.split(whole, tmp_path / "again", 1000)
    pack.parts.take(tmp_path / "again", tmp_path / "store")  # as large as the damaged one
    assert pack.parts.join(tmp_path / "store") == []
    assert (tmp_path / "store" / "m.gguf").read_bytes() == whole.read_bytes()


def test_a_call_says_how_far_the_runs_are_and_when_none_got_further(
    pack: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = jobs(tmp_path)
    gains, then = [3, 0, 0], [BEGUN, BEGUN, FAILED]

    def conducted(study: Study, folder: Path, *_: Any) -> list[Any]:
        run = folder_of(folder, first.key)
        run.mkdir(parents=True, exist_ok=True)
        with (run / "rounds.jsonl").open("a") as file:
            file.write("{}\n" * gains.pop(0))
        statuses = ((first, BEGUN), (second, then.pop(0)))
        return [
            SimpleNamespace(key=job.key, method=job.method, seed=job.seed, status=status)
            for job, status in statuses
        ]

    monkeypatch.setattr(pack.run, "_conducted", conducted)
    given = SimpleNamespace(out=tmp_path / "out", part_mib=15.0, minutes=9.0)
    said = []
    for status in (0, 0, 1):
        studies = {"try": load_study(tmp_path / "try.toml")}
        done = pack.run._go(studies, {"try": 2}, Part(), given, tmp_path / "work", 1.0)
        assert done == status
        said.append(capsys.readouterr().out)
    assert "fedit, seed 0: 3 of 4 rounds, 3 in this call\n" in said[0]
    assert "exact, seed 0: 0 of 4 rounds, 0 in this call\n" in said[0]
    assert "no run got further in this call" not in said[0]
    assert "fedit, seed 0: 3 of 4 rounds, 0 in this call\n" in said[1]
    assert "no run got further in this call: " in said[1]
    assert "no run got further" not in said[2]  # one failed, and its line says why


class _Idle:
    """A pool that begins nothing and says that each run has ended."""

    def __init__(self) -> None:
        self.keys: list[str] = []

    def start(self, key: str, task: Any) -> None:
        self.keys.append(key)

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        return {self.keys.pop(): "not run"} if self.keys else {}

    def close(self) -> None: ...


@pytest.mark.parametrize(("part_bytes", "archives"), [(2**20, 1), (256, 4)])
def test_what_comes_back_can_be_read_where_the_files_of_the_study_are_not(
    pack: SimpleNamespace, tmp_path: Path, part_bytes: int, archives: int
) -> None:
    there, here, out = (tmp_path / name for name in ("there", "here", "out"))
    there.mkdir()
    shutil.copy(PACK.parent / "costs-clinc150.json", there)
    shutil.copy(PACK.parent / "memory-fits.csv", there)
    (there / "try.toml").write_text(
        STUDY.replace('include = ["fedit", "exact"]', 'set.planning.costs = "costs-clinc150.json"')
        + "[methods.heard]\nkind = 'joint'\nset.planning.knobs = ['bandwidth', 'steps']\n"
        "set.participation.availability = 'memory-fits.csv'\n"
    )
    study = load_study(there / "try.toml")
    conduct(study, there / "study", _Idle, at_once=1, threads=1)
    (job,) = known_jobs(study, there / "study") or []
    run = folder_of(there / "study", job.key)
    run.mkdir()
    (run / "run.json").write_text('{"status": "finished"}')
    (run / "rounds.jsonl").write_text("")
    made = pack.parts.pack(there / "study", out, "try", part_bytes)
    assert len(made) == len(list(out.iterdir())) == archives  # of study, two files, a run
    # Here a file of that name says something else by now: the runs are those of the copy.
    costs = there / "costs-clinc150.json"
    costs.write_text(costs.read_text().replace('"cost": 0.173', '"cost": 0.2'))
    (changed,) = known_jobs(read_study(there / "study")[0], there / "study") or []
    assert changed.key == job.key
    shutil.rmtree(there)
    assert pack.parts.unpack(out, "try", here) == (1, 0)
    again, _ = read_study(here)
    (found,) = known_jobs(again, here) or []
    assert (found.key, found.files) == (job.key, job.files)
    assert folder_of(here, found.key).is_dir()


def test_a_begun_run_goes_on_elsewhere_from_its_checkpoint(
    pack: SimpleNamespace, tmp_path: Path
) -> None:
    _, job = jobs(tmp_path)
    there, here, out = tmp_path / "there", tmp_path / "here", tmp_path / "out"
    for study in (there, tmp_path / "whole"):
        (study / "runs").mkdir(parents=True)
        for _ in range(2):
            perform(task_of(job, study, until=1.0))
    (archive,) = pack.parts.pack_begun(there, out, "try", 2**24)
    assert archive.name == "try.begun.1.tar.xz"
    assert pack.parts.unpack(out, "try", here) == (0, 1)
    assert state_of(here, job) == (BEGUN, None)
    perform(task_of(job, here, until=1.0))
    assert len(rounds_of(folder_of(here, job.key))) == 3  # not from the start
    far = time.time() + 1e6
    for study in (here, tmp_path / "whole"):
        perform(task_of(job, study, until=far))
    one, other = (rounds_of(folder_of(s, job.key)) for s in (here, tmp_path / "whole"))
    assert one == other
    assert state_of(here, job) == (FINISHED, None)

    # Ended here, the older archive of the run does not change it, nor a checkpoint come back.
    pack.parts.pack(here, out, "try", 2**24)
    assert pack.parts.pack_begun(here, tmp_path / "none", "try", 2**24) == []
    assert pack.parts.unpack(out, "try", tmp_path / "third") == (1, 0)
    third = folder_of(tmp_path / "third", job.key)
    assert rounds_of(third) == one
    assert not (third / "checkpoint").exists()


class _Inline:
    """Does each run at once, in this process, and says that it has ended."""

    def __init__(self, perform: Any, preload: Any = ()) -> None:
        self.over: dict[str, str | None] = {}

    def start(self, key: str, task: Any) -> None:
        self.over[key] = perform(task)

    def ended(self, timeout_s: float) -> dict[str, str | None]:
        over, self.over = self.over, {}
        return over

    def close(self) -> None: ...


def test_what_a_call_has_done_is_packed_when_a_run_ends_and_only_what_was_asked_for(
    pack: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "try.toml"
    file.write_text(STUDY.replace("seeds = [0]", "seeds = [0, 1]").replace("= 4", "= 2"))
    study, out = load_study(file), tmp_path / "out"
    monkeypatch.setattr("airtune.study.pools.ProcessPool", _Inline)
    packed: list[int] = []
    pack_runs = pack.parts.pack

    def counted(*arguments: Any) -> Any:
        made = pack_runs(*arguments)
        packed.append(len(list((tmp_path / "work/studies/try/packed").iterdir())))
        return made

    monkeypatch.setattr(pack.parts, "pack", counted)
    given = SimpleNamespace(out=out, part_mib=15.0, minutes=9.0)
    part = Part(methods=("fedit",))
    until = time.time() + 1e6
    assert pack.run._go({"try": study}, {"try": 1}, part, given, tmp_path / "work", until) == 0
    assert packed == [1, 2, 2]  # after each run, and at the end
    said = capsys.readouterr().out
    assert "try: 2 of 2 runs have ended\n" in said
    assert "the same call goes on" not in said
    assert pack.parts.unpack(out, "try", tmp_path / "back") == (2, 0)


def script(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(PACK / "run.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **options)


@pytest.mark.slow
def test_killed_and_called_again_it_ends_as_if_never_interrupted(tmp_path: Path) -> None:
    file = tmp_path / "try.toml"
    file.write_text(STUDY)
    work, out = tmp_path / "work", tmp_path / "out"
    asked = ("--cpu", "--studies", str(file), "--jobs", "2", "--minutes", "600",
             "--work", str(work), "--out", str(out))  # fmt: skip
    killed = script(*asked, start_new_session=True)
    runs = work / "studies" / "try" / "runs"
    while killed.poll() is None and not any(
        path.read_text().count("\n") >= 2 for path in runs.glob("*/rounds.jsonl")
    ):
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    again = script(*asked)
    told, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "2 of 2 runs have ended" in told
    (archive,) = out.iterdir()
    assert archive.stat().st_size < 100_000

    whole = script(*asked[:-3], str(tmp_path / "other"), "--out", str(tmp_path / "fresh"))
    whole.communicate()
    for folder in sorted(runs.glob("*/")):
        same = tmp_path / "other" / "studies" / "try" / "runs" / folder.name
        assert rounds_of(folder) == rounds_of(same)

    # On another machine with nothing but what was carried back, no run is done again.
    moved = script(*asked[:-3], str(tmp_path / "bare"), "--out", str(out))
    told, errors = moved.communicate()
    assert "2 runs of earlier calls, and 0 begun ones" in told, errors
    assert ": done" not in told
    folder = tmp_path / "bare" / "studies" / "try" / "runs"
    assert not list(folder.glob("*/checkpoint"))
