"""The studies with five times the rounds on one GPU, in short calls that go on with one another.

    python experiments/gpu/run.py --models FOLDER --data FOLDER --work FOLDER --out FOLDER

README.md beside this file has the exact calls.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airtune.study.conduct import Part

HERE = Path(__file__).resolve().parent
STUDIES = ("clinc150", "cells", "memory", "gsm8k", "yahoo", "gemma", "large")
SOURCES = {"clinc150": "clinc150", "cells": "clinc150", "memory": "clinc150", "gsm8k": "gsm8k",
           "yahoo": "yahoo", "gemma": "clinc150", "large": "clinc150"}  # fmt: skip
"""The folder below --data that each study reads."""
MARGIN_S = 20.0
"""Kept of the call's time to end processes and write the archives."""
AT_ONCE = 4
"""Runs that share the GPU unless --jobs says otherwise: with more, each takes longer, and those
that have begun are lost with a machine that is lent for half an hour."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the options ask; return the exit status."""
    begin = time.time()
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.jobs is not None and given.jobs < 1:
        parser.error(f"--jobs {given.jobs}: at least 1")
    sys.path[:0] = [str(HERE), str(HERE.parents[1] / "src")]
    from airtune.errors import InputError

    try:
        if given.split is not None:
            return _split(given)
        _take(given)
        lacking = _bare_packages()
        if lacking:
            return _refused(lacking)
        return _chunk(given, begin + 60 * given.minutes - MARGIN_S)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--models", type=Path, help="what has arrived of models; may be parts")
    parser.add_argument("--data", type=Path, help="folders clinc150, gsm8k, yahoo: docs/data.md")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="stays on the machine")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="to be carried back")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call (default 9)")
    parser.add_argument("--studies", default="clinc150,gsm8k", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--methods", help="only runs of these, e.g. fedit,heard")
    parser.add_argument("--seeds", help="only runs of these, e.g. 21-22")
    parser.add_argument("--large-model", type=Path, help="its folder, for the study large")
    parser.add_argument("--jobs", type=int, help="runs at once (default: 4, or as many as fit)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    parser.add_argument("--part-mib", type=float, default=15.0, help="largest file of --out")
    parser.add_argument("--check", action="store_true", help="say what is missing, and end")
    parser.add_argument("--cpu", action="store_true", help="without a GPU, for a try")
    parser.add_argument("--split", type=Path, metavar="FILE", help="cut FILE into --out, and end")
    return parser


def _split(given: argparse.Namespace) -> int:
    """Cut a file; a model's is looked at first, since parts of a wrong one are of no use."""
    from machine import check_gguf
    from parts import split

    check_gguf(given.split)
    for path in split(given.split, given.out, int(given.part_mib * 2**20)):
        print(path)
    return 0


def _take(given: argparse.Namespace) -> None:
    """Copy what has arrived into the folder that stays, whatever else is missing."""
    from parts import take

    for source, name in ((given.models, "models"), (given.data, "data")):
        if source is not None:
            take(source, given.work / name)


def _bare_packages() -> list[str]:
    """Look for packages before anything is imported that needs one."""
    # Processes that are started for the runs look there too.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [sys.path[1], *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    import machine

    return machine.wheels()


def _refused(lacking: Sequence[str]) -> int:
    for line in lacking:
        print(f"missing: {line}", file=sys.stderr)
    return 2


def _chunk(given: argparse.Namespace, until: float) -> int:
    import machine
    import parts

    work: Path = given.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("AIRTUNE_CACHE", str(work / "cache"))
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Code that asks for a GPU before a run's process is forked must not open CUDA.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if given.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    lacking = parts.join(work / "models")
    studies = {name: _study(name, given, work) for name in given.studies.split(",")}
    part = _part(given)
    for study in studies.values():
        part.check(study)
    first = {name: _first_run(study) for name, study in studies.items()}
    told = machine.look(first, work, use_gpu=not given.cpu)
    lacking += told["lacking"]
    found: machine.Gpu | None = None
    if not given.cpu and not told["lacking"]:
        found, ways = machine.gpu(told)
        lacking += ways
    lacking += machine.disk(work, 0 if given.cpu else machine.LEAST_DISK_BYTES)
    for name, values in first.items():
        missing = [*machine.model(values["model"]["id"], work), *told["data"].get(name, [])]
        lacking += [f"{name}: {line}" for line in missing]
    if lacking:
        return _refused(lacking)
    at_once = {name: _at_once(values, found, given) for name, values in first.items()}
    for name, count in at_once.items():
        print(f"{name}: {count} runs at once on {found.name if found else 'the CPU'}", flush=True)
    if 0 in at_once.values():
        return _refused(["room in the GPU's memory for one run: lower evaluation.batch_size"])
    if given.check:
        return 0
    return _go(studies, at_once, part, given, work, until)


def _study(name: str, given: argparse.Namespace, work: Path) -> Any:
    from airtune.errors import InputError
    from airtune.study import load_study

    file = Path(name)
    if file.suffix == ".toml":
        return load_study(file, given.sets)
    if name not in STUDIES:
        raise InputError(f"--studies '{name}': allowed are {', '.join(STUDIES)}, or a study's file")
    sets = [f"task.source={work / 'data' / SOURCES[name]}", *given.sets]
    if name == "large":
        if given.large_model is None:
            raise InputError("--studies large needs --large-model FOLDER")
        sets = [f"model.id={given.large_model.resolve()}", *sets]
    return load_study(HERE / f"{name}.toml", sets)


def _part(given: argparse.Namespace) -> Part:
    from airtune.study.conduct import Part
    from airtune.study.loading import seeds_of

    return Part(
        None if given.methods is None else tuple(map(str.strip, given.methods.split(","))),
        None if given.seeds is None else seeds_of(given.seeds, "--seeds"),
    )


def _first_run(study: Any) -> dict[str, Any]:
    """Return the scenario of a study's first run: model, data and texts are those of all."""
    from airtune.study.jobs import jobs_of

    return dict(jobs_of(study)[0].values)


def _at_once(values: dict[str, Any], found: Any, given: argparse.Namespace) -> int:
    import machine

    from airtune.study.pools import free_cores

    if given.jobs is not None or found is None:
        return given.jobs or max(1, free_cores() - 1)
    parameters, vocab = machine.size(values["model"]["id"])
    each = machine.run_bytes(values, parameters, vocab)
    return min(AT_ONCE, machine.runs_at_once(found.free_bytes, each, free_cores()))


def _go(
    studies: dict[str, Any],
    at_once: dict[str, int],
    part: Part,
    given: argparse.Namespace,
    work: Path,
    until: float,
) -> int:
    """Convert models, then do one study after the other until the time is over."""
    import archives

    from airtune.study.running import UNENDED

    failed, gained, out_of_time = 0, 0, False
    part_bytes = int(given.part_mib * 2**20)
    for name, study in studies.items():
        _convert(_first_run(study)["model"]["id"], work)
        folder = work / "studies" / study.name
        came, begun = archives.unpack(given.out, study.name, folder)
        if came or begun:
            print(f"{name}: {came} runs of earlier calls, and {begun} begun ones", flush=True)
        before = _rounds(folder)
        where = (folder, given.out, study.name, part_bytes)
        keep = partial(archives.pack, *where)
        if came:
            keep()  # now, while there is time: at the end there may be little
        results = _conducted(study, folder, at_once[name], until, part, keep)
        gains = {key: count - before.get(key, 0) for key, count in _rounds(folder).items()}
        gained += sum(gain > 0 for gain in gains.values())
        begun_too = archives.pack_begun(*where)
        packed = (*keep(), *begun_too)
        _tell_begun(study, folder, results, gains)
        for path in packed:
            print(f"{path}  {path.stat().st_size / 2**20:.2f} MiB", flush=True)
        asked = [one for one in results if part.holds(one)]
        left = sum(one.status in UNENDED for one in asked)
        failed += sum(one.status == "failed" for one in asked)
        print(f"{name}: {len(asked) - left} of {len(asked)} runs have ended", flush=True)
        out_of_time = bool(left) or not results or time.time() >= until
        if out_of_time:
            break
    if out_of_time and not gained and not failed:
        print(
            "no run got further in this call: start, loading the model and a round take longer "
            f"than {given.minutes:g} minutes: give more --minutes or fewer --jobs"
        )
    elif out_of_time:
        print("out of time: the same call goes on")
    return 1 if failed else 0


def _rounds(folder: Path) -> dict[str, int]:
    """Return how many rounds each run of a study's folder has on record, by the run's key."""
    files = (folder / "runs").glob("*/rounds.jsonl")
    return {file.parent.name: file.read_bytes().count(b"\n") for file in files}


def _tell_begun(study: Any, folder: Path, results: Sequence[Any], gains: dict[str, int]) -> None:
    """Say how far the runs are that will go on, so that --jobs can be chosen."""
    import archives

    from airtune.study.conduct import known_jobs
    from airtune.study.running import BEGUN

    jobs = {job.key: job for job in known_jobs(study, folder) or ()}
    rounds = _rounds(folder)
    for key in (one.key for one in results if one.status == BEGUN):
        told = f"{rounds.get(key, 0)} of {jobs[key].values['rounds']} rounds"
        stays = "" if archives.can_travel(folder, key) else "; its state is not carried back"
        print(f"{jobs[key].where}: {told}, {gains.get(key, 0)} in this call{stays}")


def _convert(model: str, work: Path) -> None:
    """Unpack a GGUF file once, for all runs."""
    from machine import GGUF_FILES

    from airtune.models.builtin import packed_folder

    if model in GGUF_FILES:
        file = work / "models" / GGUF_FILES[model][0]
        packed_folder(model, file if file.is_file() else None)


def _conducted(
    study: Any, folder: Path, at_once: int, until: float, part: Part, keep: Callable[[], Any]
) -> list[Any]:
    """Do runs of a study until the time is over, and `keep` what each has come to."""
    from machine import PRELOAD

    from airtune.rounds.apart import perform
    from airtune.study.conduct import conduct
    from airtune.study.pools import ProcessPool

    def tell(progress: Any) -> None:
        state = progress.error or "done"
        print(f"{progress.done}/{progress.total}  {progress.where}: {state}", flush=True)
        keep()  # a call that is cut off has nothing else to carry back

    def pool() -> ProcessPool:
        return ProcessPool(perform, preload=PRELOAD)

    folder.mkdir(parents=True, exist_ok=True)
    return conduct(
        study,
        folder,
        pool,
        at_once=at_once,  # by the GPU's memory or --jobs, not by the machine's
        limit_bytes=math.inf,
        threads=1,
        until=until,
        part=part,
        watch=tell,
    )


if __name__ == "__main__":
    sys.exit(main())
