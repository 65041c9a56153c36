"""Do a study's runs: what is missing, as many at once as fit, and go on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.record.files import write_durably
from airtune.record.reading import RUN, read_info
from airtune.study.jobs import Job
from airtune.study.keys import RUNS, folder_of, sidecar, sidecar_path
from airtune.study.pools import Pool, free_bytes, needed_bytes

SHARED = "shared"
"""The folder of work that several runs need; it is removed once all runs have ended."""
FINISHED, FAILED, BEGUN, MISSING = "finished", "failed", "begun", "missing"
UNENDED = (BEGUN, MISSING)
"""What is left of runs where there was no time for more."""


@dataclass(frozen=True)
class Progress:
    """How far a study is.

    Attributes:
        done: runs that have ended here, failed ones among them.
        total: runs that there were to do.
        where: the run that has just ended.
        error: why it failed; None where it finished.
        left_s: real time left, from the runs that have ended; None before the first.
    """

    done: int
    total: int
    where: str
    error: str | None
    left_s: float | None


def state_of(study_folder: Path, job: Job) -> tuple[str, str | None]:
    """Return a run's state (finished, failed, begun, missing) and, where it failed, why.

    Raises:
        InputError: the run was made by a newer version of airtune.
    """
    folder = folder_of(study_folder, job.key)
    if not (folder / RUN).is_file():
        error = sidecar(folder).get("error")
        return (FAILED, str(error)) if error else (MISSING, None)
    info = read_info(folder)
    if info["status"] == FINISHED:
        return FINISHED, None
    error = sidecar(folder).get("error") or info.get("error")
    return (FAILED, str(error)) if error else (BEGUN, None)


def carry_out(
    jobs: Sequence[Job],
    study_folder: Path,
    pool: Pool,
    *,
    at_once: int,
    threads: int,
    keep_adapter: bool = False,
    trackers: Sequence[str] = (),
    shared_bytes: float = 0.0,
    limit_bytes: float | None = None,
    until: float | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> None:
    """Do every run that is not finished, once, each with `threads` threads.

    At most `at_once` at a time, and only as many as fit the memory (`limit_bytes`, by default
    what is free): a run's need is known from its model, or from the peak of one that has ended;
    where neither is known, the first of that model runs alone. A run that fails is written down
    and the others go on. The folder's runs can be resumed after a kill at any moment.
    With `shared_bytes` above 0, work that several runs have in common is done once and kept on
    that much disk until all have ended. With `until` (as `time.time()`) none is begun after it,
    nor once a run has ended for lack of time; those that run end with a round before it, or are
    ended at it.
    """
    jobs = list({job.key: job for job in jobs}.values())
    waiting = [job for job in jobs if state_of(study_folder, job)[0] != FINISHED]
    total, begin, running = len(waiting), time.monotonic(), dict[str, Job]()
    limit = free_bytes() if limit_bytes is None else limit_bytes
    peaks = _known_peaks(jobs, study_folder)
    (study_folder / RUNS).mkdir(parents=True, exist_ok=True)
    late = False
    while (waiting and not late and not _over(until)) or running:
        if running and _over(until):
            pool.close()
            return
        while waiting and len(running) < at_once and not late and not _over(until):
            if running and not _fits([*running.values(), waiting[0]], peaks, limit):
                break
            job = waiting.pop(0)
            folder = folder_of(study_folder, job.key)
            _note(folder, {"files": job.files})
            task = {
                "folder": str(folder.resolve()),
                "values": job.values,
                "files": list(job.files),
                "threads": threads,
                "keep_adapter": keep_adapter,
                "trackers": list(trackers),
                "shared": _shared(study_folder, shared_bytes),
                "until": until,
            }
            running[job.key] = job
            pool.start(job.key, task)
        for key, error in pool.ended(0.5).items():
            job = running.pop(key)
            folder = folder_of(study_folder, key)
            if error:  # it died without a word of its own
                _note(folder, {"files": job.files, "error": error})
            beside = sidecar(folder)
            if beside.get("peak_bytes"):
                model = _model_of(job)
                peaks[model] = max(peaks.get(model, 0.0), float(beside["peak_bytes"]))
            if error is None and state_of(study_folder, job)[0] != FINISHED:
                total, late = total - 1, True  # out of time: it goes on with the next call
                continue
            done = total - len(waiting) - len(running)
            left_s = (time.monotonic() - begin) / done * (total - done)
            failed = beside.get("error") if error is not None else None
            watch(Progress(done, total, job.where, failed or error, left_s))


def _shared(study_folder: Path, limit_bytes: float) -> dict[str, Any] | None:
    """Say where the runs keep work that others need too; None: nowhere."""
    if not limit_bytes:
        return None
    return {"folder": str((study_folder / SHARED).resolve()), "limit_bytes": limit_bytes}


def _note(folder: Path, values: Mapping[str, Any]) -> None:
    write_durably(sidecar_path(folder), (json.dumps(values) + "\n").encode())


def _over(until: float | None) -> bool:
    return until is not None and time.time() >= until


def _fits(jobs: Sequence[Job], peaks: Mapping[str, float], limit: float) -> bool:
    needs = [peaks.get(_model_of(job), needed_bytes(job.values)) for job in jobs]
    known = [need for need in needs if need is not None]
    return len(known) == len(needs) and sum(known) <= limit


def _model_of(job: Job) -> str:
    return json.dumps(job.values["model"], sort_keys=True)


def _known_peaks(jobs: Iterable[Job], study_folder: Path) -> dict[str, float]:
    peaks: dict[str, float] = {}
    for job in jobs:
        peak = sidecar(folder_of(study_folder, job.key)).get("peak_bytes")
        if peak:
            peaks[_model_of(job)] = max(peaks.get(_model_of(job), 0.0), float(peak))
    return peaks
