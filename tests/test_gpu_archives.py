"""What the GPU pack carries: models in parts; finished and begun runs as archives."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airtune.errors import InputError
from airtune.rounds.apart import perform
from airtune.study import load_study
from airtune.study.conduct import conduct, known_jobs
from airtune.study.folder import read_study
from airtune.study.jobs import jobs_of
from airtune.study.running import BEGUN, FINISHED, folder_of, state_of
from gpu_pack import PACK, STUDY, imported, jobs, rounds_of, task_of


@pytest.fixture
def pack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    yield from imported(monkeypatch)


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
    made = pack.archives.pack(there / "study", out, "try", part_bytes)
    assert len(made) == len(list(out.iterdir())) == archives  # of study, two files, a run
    # Here a file of that name says something else by now: the runs are those of the copy.
    costs = there / "costs-clinc150.json"
    costs.write_text(costs.read_text().replace('"cost": 0.173', '"cost": 0.2'))
    (changed,) = known_jobs(read_study(there / "study")[0], there / "study") or []
    assert changed.key == job.key
    shutil.rmtree(there)
    assert pack.archives.unpack(out, "try", here) == (1, 0)
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
    (archive,) = pack.archives.pack_begun(there, out, "try", 2**24)
    assert archive.name == "try.begun.1.tar.xz"
    assert pack.archives.unpack(out, "try", here) == (0, 1)
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
    pack.archives.pack(here, out, "try", 2**24)
    assert pack.archives.pack_begun(here, tmp_path / "none", "try", 2**24) == []
    assert pack.archives.unpack(out, "try", tmp_path / "third") == (1, 0)
    third = folder_of(tmp_path / "third", job.key)
    assert rounds_of(third) == one
    assert not (third / "checkpoint").exists()


def test_a_run_counts_as_there_once_all_of_it_is(
    pack: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "there" / "runs" / "0123"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"status": "finished"}')
    (run / "rounds.jsonl").write_text("{}\n")
    pack.archives.pack(tmp_path / "there", tmp_path / "out", "try", 2**20)
    extract, done = tarfile.TarFile.extract, []

    def killed(self: Any, member: Any, *arguments: Any, **options: Any) -> None:
        extract(self, member, *arguments, **options)
        done.append(member.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "extract", killed)
    with pytest.raises(KeyboardInterrupt):
        pack.archives.unpack(tmp_path / "out", "try", tmp_path / "here")
    monkeypatch.undo()
    assert done == ["runs/0123/rounds.jsonl"]
    assert pack.archives.unpack(tmp_path / "out", "try", tmp_path / "here") == (1, 0)


def test_a_begun_run_goes_on_where_its_files_lie_elsewhere(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other")]
    for folder in folders:
        folder.mkdir()
        shutil.copy(PACK.parent / "costs-clinc150.json", folder)
        text = STUDY.replace('"exact"', '"heard-unpruned"')
        settings = 'set.planning.costs = "costs-clinc150.json"\nset.task.eval_examples'
        (folder / "try.toml").write_text(text.replace("set.task.eval_examples", settings))
    before, after = (jobs_of(load_study(folder / "try.toml"))[1] for folder in folders)
    assert (before.method, before.key) == ("heard-unpruned", after.key)
    perform(task_of(before, tmp_path, until=1.0))
    shutil.rmtree(folders[0])
    assert perform(task_of(after, tmp_path, until=1.0)) is None
    run = folder_of(tmp_path, after.key)
    assert len(rounds_of(run)) == 2  # not from the start
    told = json.loads((run / "run.json").read_text())["scenario"]["planning"]["costs"]
    assert told == str(folders[1] / "costs-clinc150.json")
    # What counts by its value is another run, which begins anew.
    other = {**after.values, "description": "other"}
    assert perform({**task_of(after, tmp_path, until=1.0), "values": other}) is None
    assert len(rounds_of(run)) == 1
