"""The GPU pack: what is missing is said, files travel in parts, runs stop in time and go on."""

from __future__ import annotations

import math
import os
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
from airtune.study.conduct import Part
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
from gpu_pack import PACK, STUDY, imported, jobs, rounds_of, task_of


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    yield from imported(monkeypatch)


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


def test_a_run_whose_last_round_takes_all_the_time_is_finished(tmp_path: Path) -> None:
    job = jobs(tmp_path)[1]
    for _ in range(job.values["rounds"]):
        assert perform(task_of(job, tmp_path / "a", until=1.0)) is None
    assert state_of(tmp_path / "a", job) == (FINISHED, None)


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

    # One that ends for lack of time leaves none for those that wait.
    waits = _Inline(lambda task: None)
    until = 1e12
    carry_out(listed, tmp_path, waits, at_once=1, threads=1, until=until, limit_bytes=1e12)
    assert waits.begun == [listed[0].key]

    monkeypatch.setattr("airtune.study.running.time.time", clock)
    carry_out(listed, tmp_path, pool, at_once=2, threads=1, until=120.0, limit_bytes=1e12)
    assert sorted(pool.begun) == sorted(job.key for job in listed)
    assert pool.closed
    assert state_of(tmp_path, listed[0])[0] == MISSING


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
        newest = run / "checkpoint" / "round-00003"
        newest.mkdir(parents=True, exist_ok=True)
        for file in (run / "run.json", newest.parent / "rounds.jsonl", newest / "state.json"):
            file.write_text('{"status": "running"}')
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
    assert "exact, seed 0: 0 of 4 rounds, 0 in this call; its state is not" in said[0]
    assert "no run got further in this call" not in said[0]
    assert "fedit, seed 0: 3 of 4 rounds, 0 in this call\n" in said[1]
    assert "no run got further in this call: " in said[1]
    assert "no run got further" not in said[2]  # one failed, and its line says why


class _Inline:
    """Does each run at once, in this process, and says that it has ended."""

    def __init__(self, perform: Any, preload: Any = ()) -> None:
        self.over: dict[str, str | None] = {}
        self.begun: list[str] = []
        self.perform = perform

    def start(self, key: str, task: Any) -> None:
        self.begun.append(key)
        self.over[key] = self.perform(task)

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
    pack_runs = pack.archives.pack

    def counted(*arguments: Any) -> Any:
        made = pack_runs(*arguments)
        packed.append(len(list((tmp_path / "work/studies/try/packed").glob("*"))))
        return made

    monkeypatch.setattr(pack.archives, "pack", counted)
    limits: list[float] = []

    def carried(*arguments: Any, limit_bytes: float, **named: Any) -> None:
        limits.append(limit_bytes)
        carry_out(*arguments, limit_bytes=limit_bytes, **named)

    monkeypatch.setattr("airtune.study.conduct.carry_out", carried)
    given = SimpleNamespace(out=out, part_mib=15.0, minutes=9.0)
    part = Part(methods=("fedit",))
    until = time.time() + 1e6
    assert pack.run._go({"try": study}, {"try": 1}, part, given, tmp_path / "work", until) == 0
    assert packed == [1, 2, 2]  # after each, and at the end
    assert limits == [math.inf]  # the GPU's memory decides, in at_once
    said = capsys.readouterr().out
    assert "try: 2 of 2 runs have ended\n" in said
    assert "the same call goes on" not in said
    assert pack.archives.unpack(out, "try", tmp_path / "back") == (2, 0)
    (whole,) = out.iterdir()
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match="it is cut off or damaged: carry it again"):
        pack.archives.unpack(out, "try", tmp_path / "again")


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
