"""A study from its search to its results, whatever pool does the runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.errors import InputError
from airtune.record.files import lock_folder
from airtune.study.folder import read_search, save_search, save_study
from airtune.study.jobs import Job, jobs_of, placed, search_jobs
from airtune.study.keys import RUNS, files_by_content
from airtune.study.pools import Pool
from airtune.study.results import Result, best_candidate, results_of
from airtune.study.running import SHARED, UNENDED, Progress, carry_out, state_of
from airtune.study.schema import Study


@dataclass(frozen=True)
class Part:
    """Some of a study's runs, by method and seed; None stands for all."""

    methods: Collection[str] | None = None
    seeds: Collection[int] | None = None

    def holds(self, run: Job | Result) -> bool:
        """Return whether a run is one of them."""
        return (self.methods is None or run.method in self.methods) and (
            self.seeds is None or run.seed in self.seeds
        )

    def check(self, study: Study) -> None:
        """Refuse what the study does not have; raises `InputError`."""
        known: tuple[tuple[str, Collection[Any] | None, Collection[Any]], ...] = (
            ("--methods", self.methods, tuple(study.methods)),
            ("--seeds", self.seeds, study.seeds),
        )
        for option, given, has in known:
            for one in given or ():
                if one not in has:
                    allowed = ", ".join(map(str, has))
                    raise InputError(f"{option}: the study has no {one!r}; it has {allowed}")


def conduct(
    study: Study,
    folder: Path,
    make_pool: Callable[[], Pool],
    *,
    at_once: int,
    threads: int,
    plugins: Sequence[str] = (),
    keep_adapter: bool = False,
    trackers: Sequence[str] = (),
    until: float | None = None,
    limit_bytes: float | None = None,
    part: Part = Part(),
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[Result]:
    """Do what a part of a study still lacks and return all of the study's results, in its order.

    Every scenario is checked before anything is written or run. After a kill at any moment the
    same call goes on: finished runs are kept, begun ones resumed. So it does after `until`, the
    moment (as `time.time()`) at which it stops; where the search had not ended, it has no results.
    `limit_bytes` is the memory that the runs at once may take; by default what is free.

    Raises:
        InputError: a method or point makes no valid scenario; the part has a method or seed that
            the study has not; the folder holds another study, or runs that a newer version made;
            another process works on it; no candidate of the search finished.
    """
    part.check(study)
    candidates = search_jobs(study, plugins)
    every = [*candidates, *jobs_of(study, _placeholder(study), plugins)]
    save_study(folder, study, plugins, [f for job in every for f in files_by_content(job.values)])
    lock = lock_folder(folder)
    try:
        candidates = placed(candidates, folder)
        pool = make_pool()
        try:
            common: dict[str, Any] = {
                "at_once": at_once, "threads": threads, "watch": watch,
                "keep_adapter": keep_adapter, "trackers": trackers,
                "shared_bytes": study.shared_bytes, "until": until, "limit_bytes": limit_bytes,
            }  # fmt: skip
            tuned = None
            if candidates:
                carry_out(candidates, folder, pool, **common)
                if any(state_of(folder, job)[0] in UNENDED for job in candidates):
                    return []
                tuned = choose(study, candidates, folder)
            jobs = placed(jobs_of(study, tuned, plugins), folder)
            carry_out([job for job in jobs if part.holds(job)], folder, pool, **common)
            if not any(state_of(folder, job)[0] in UNENDED for job in jobs):
                shutil.rmtree(folder / SHARED, ignore_errors=True)
        finally:
            pool.close()
    finally:
        lock.release()
    return results_of(study, jobs, folder)


def known_jobs(study: Study, folder: Path, plugins: Sequence[str] = ()) -> list[Job] | None:
    """Return a study's runs as its folder knows them; None while its search has not ended."""
    if study.search is None:
        return placed(jobs_of(study, None, plugins), folder)
    tuned = read_search(folder)
    return None if tuned is None else placed(jobs_of(study, tuned, plugins), folder)


def other_runs(
    study: Study, results: Sequence[Result], folder: Path, plugins: Sequence[str] = ()
) -> int:
    """Count the runs in a study's folder that it does not ask for: made with other settings.

    Args:
        study: as it is asked for now.
        results: all of its runs, done or not.
        folder: the study's.
        plugins: files with the user's own methods.
    """
    searched = placed(search_jobs(study, plugins), folder)
    asked = {one.key for one in results} | {job.key for job in searched}
    return sum(file.parent.name not in asked for file in (folder / RUNS).glob("*/run.json"))


def choose(study: Study, candidates: Sequence[Job], folder: Path) -> dict[str, dict[str, Any]]:
    """Return each searched method's best values, and write them to search.json.

    Raises:
        InputError: no candidate of a method finished.
    """
    results = results_of(study, candidates, folder)
    chosen: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(job.method for job in candidates):
        own = [i for i, job in enumerate(candidates) if job.method == name]
        best = own[best_candidate([results[i] for i in own])]
        chosen[name] = {
            "values": dict(candidates[best].candidate),
            "held_out_loss": results[best].final_loss,
            "candidates": len(own),
            "rounds": candidates[best].values["rounds"],
        }
    save_search(folder, chosen)
    return {name: one["values"] for name, one in chosen.items()}


def _placeholder(study: Study) -> dict[str, dict[str, Any]]:
    """Some values for each searched key, so that every scenario can be checked beforehand."""
    if study.search is None:
        return study.tuned
    some = {key: values[0] for key, values in study.search.keys.items()}
    names = {*study.methods, *(m.tuned_as for m in study.methods.values() if m.tuned_as)}
    return dict.fromkeys(names, some)
