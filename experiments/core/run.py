"""The core experiment, one command: search, runs, results.json, figures.

    python experiments/core/run.py --gsm8k DIR --yahoo DIR

One process a run; what is finished is kept, so that the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import itertools
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from gathering import best_candidate, collect, summary_of, table, write_results
from methods import METHODS, rank_settings

from airtune.errors import InputError, RunError
from airtune.randomness import generator
from airtune.record.files import write_durably
from airtune.scenario import Scenario, load_scenario

HERE = Path(__file__).parent
SEARCH_SEED = 1000
HELD_OUT = 512
"""Training examples that the search holds out: its runs are judged on the first of them, as many
as the scenario evaluates on, and do not train on any."""


@dataclass(frozen=True)
class Search:
    """A small search, stated: every learning rate at every multiple of the scenario's rank.

    `rounds` are for a method that has the scenario's; one that has more is searched with more.
    """

    learning_rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    rank_factors: tuple[float, ...] = (0.5,)
    rounds: int = 4


@dataclass(frozen=True)
class Job:
    """One run: a method on a scenario file, with its settings, in its folder."""

    task: str
    method: str
    file: Path
    settings: tuple[str, ...]
    folder: Path
    threads: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then write results and figures; return the exit status."""
    options = _options(arguments)
    try:
        names = _known(options.methods)
        search = Search((1e-2,), (0.5, 1.0), 1) if options.smoke else Search()
        seeds = seeds_of(options.seeds)
        if options.jobs < 1 or options.threads < 1:
            raise InputError("--jobs and --threads: at least 1")
        rows = []
        for task, source in _tasks(options).items():
            rows += _task(task, source, names, seeds, search, options)
        collected = collect(rows)
        write_results(collected, options.out / "results.json")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except RunError as error:
        print(error, file=sys.stderr)
        return 1
    from figures import draw

    draw(collected, options.out / "figures")
    for task in dict.fromkeys(row["task"] for row in collected):
        print(f"{task}\n\n{table(collected, task)}\n")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gsm8k", type=Path, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--yahoo", type=Path, help="folder with train.csv and test.csv")
    parser.add_argument("--smoke", action="store_true", help="the tiny model instead, in seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/core"))
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--threads", type=int, default=1, help="of each run")
    parser.add_argument("--no-search", action="store_true", help="the scenarios' rate and rank")
    parser.add_argument("--tuned", action="store_true", help="the rates and ranks of search/*.json")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    return parser.parse_args(arguments)


def seeds_of(text: str) -> list[int]:
    """Return the seeds of `0,1,2`."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--seeds '{text}': give whole numbers, separated by commas") from None


def _known(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if not names:
        raise InputError(f"--methods: name at least one of {', '.join(METHODS)}")
    for name in names:
        if name not in METHODS:
            raise InputError(f"--methods '{name}': allowed are {', '.join(METHODS)}")
    return names


def _tasks(options: argparse.Namespace) -> dict[str, Path | None]:
    if options.smoke:
        return {"smoke": None}
    given = {"gsm8k": options.gsm8k, "yahoo": options.yahoo}
    tasks = {task: path for task, path in given.items() if path is not None}
    if not tasks:
        raise InputError("give --gsm8k FOLDER, --yahoo FOLDER or both, or --smoke")
    for task, path in tasks.items():
        end = _suffix(task)
        if not all((path / f"{part}{end}").is_file() for part in ("train", "test")):
            raise InputError(f"--{task} '{path}': no folder with train{end} and test{end}")
    return dict(tasks)


def _suffix(task: str) -> str:
    return ".jsonl" if task == "gsm8k" else ".csv"


def _task(
    task: str,
    source: Path | None,
    names: list[str],
    seeds: Sequence[int],
    search: Search,
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    chosen: dict[str, list[str]] = {}
    if options.tuned:
        chosen = _tuned(task, names, options)
    elif not options.no_search:
        searched = dict.fromkeys(METHODS[name].tuned_as or name for name in names)
        held = None if source is None else _search_data(task, source, options.out / "data" / task)
        chosen = _searched(task, held, list(searched), search, options)
    jobs = []
    for seed in seeds:
        for name in names:
            tuned = chosen.get(METHODS[name].tuned_as or name, [])
            folder = options.out / task / name / f"seed-{seed}"
            jobs.append(_job(task, name, source, [f"seed={seed}", *tuned], folder, options))
    return _results(jobs, options.jobs)


def _job(
    task: str,
    name: str,
    source: Path | None,
    settings: Iterable[str],
    folder: Path,
    options: argparse.Namespace,
) -> Job:
    file = HERE / f"{task}.toml"
    method = METHODS[name]
    given = [*options.set, *method.settings]
    if method.rounds_factor != 1.0:
        given.append(f"rounds={_rounds(name, load_scenario(file, options.set).rounds)}")
    given += settings
    if method.unequal_ranks:
        scenario = load_scenario(file, given)
        given += rank_settings(scenario, scenario.training.lora_rank)
    if source is not None:
        given.append(f"task.source={json.dumps(str(source.resolve()))}")
    load_scenario(file, given)  # refused here, not in the run's own process
    return Job(task, name, file, tuple(given), folder, options.threads)


def _rounds(name: str, rounds: int) -> int:
    return max(1, round(rounds * METHODS[name].rounds_factor))


def _searched(
    task: str, source: Path | None, names: list[str], search: Search, options: argparse.Namespace
) -> dict[str, list[str]]:
    """Choose each method's learning rate and rank on held-out training data."""
    base = load_scenario(HERE / f"{task}.toml", options.set)
    ranks = [max(1, round(base.training.lora_rank * factor)) for factor in search.rank_factors]
    pairs = list(itertools.product(search.learning_rates, ranks))
    root = options.out / "search" / task
    candidates = [(name, pair) for name in names for pair in pairs]
    jobs = [
        _job(
            task,
            name,
            source,
            [
                f"seed={SEARCH_SEED}",
                f"rounds={_rounds(name, search.rounds)}",
                "evaluation.generate=false",
                *_tuning(base, *pair),
            ],
            root / name / f"rate-{pair[0]!r}-rank-{pair[1]}",
            options,
        )
        for name, pair in candidates
    ]
    found: dict[str, dict[Any, dict[str, Any]]] = {name: {} for name in names}
    for (name, pair), row in zip(candidates, _results(jobs, options.jobs), strict=True):
        found[name][pair] = row
    best = {name: best_candidate(found[name]) for name in names}
    write_durably(root.parent / f"{task}.json", (json.dumps(best, indent=1) + "\n").encode())
    return {name: _tuning(base, *pair) for name, pair in best.items()}


def _tuned(task: str, names: list[str], options: argparse.Namespace) -> dict[str, list[str]]:
    """Take the choices that an earlier search left beside this file."""
    path = HERE / "search" / f"{task}.json"
    if not path.is_file():
        raise InputError(f"--tuned: {path} is not there: leave --tuned out to search")
    best = json.loads(path.read_text())
    missing = sorted({METHODS[name].tuned_as or name for name in names} - set(best))
    if missing:
        raise InputError(f"--tuned: {path} has no choice for {', '.join(missing)}")
    base = load_scenario(HERE / f"{task}.toml", options.set)
    return {name: _tuning(base, *pair) for name, pair in best.items()}


def _tuning(base: Scenario, rate: float, rank: int) -> list[str]:
    alpha = float(base.training.lora_alpha / base.training.lora_rank * rank)
    lora = [f"training.lora_rank={rank}", f"training.lora_alpha={alpha!r}"]
    return [f"training.learning_rate={rate!r}", *lora]


def _search_data(task: str, source: Path, folder: Path) -> Path:
    """Split the training file once: the search's own training and test part."""
    end = _suffix(task)
    if (folder / f"test{end}").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    header, rows = _rows(source / f"train{end}")
    order = generator(SEARCH_SEED, "core search split").permutation(len(rows))
    for part, kept in (("train", order[HELD_OUT:]), ("test", order[:HELD_OUT])):
        with (folder / f"{part}{end}").open("w", encoding="utf-8", newline="") as file:
            if end == ".csv":
                csv.writer(file).writerows([*header, *(rows[i] for i in kept)])
            else:
                file.writelines(rows[i] for i in kept)
    return folder


def _rows(path: Path) -> tuple[list[Any], list[Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix != ".csv":
            return [], [line for line in file if line.strip()]
        rows = list(csv.reader(file))
    named = bool({"text", "topic"} & set(rows[0]))
    return rows[:named], rows[named:]


def _results(jobs: Sequence[Job], at_once: int) -> list[dict[str, Any]]:
    """Do the jobs that have no result yet, each in a process of its own; return all results.

    Raises:
        RunError: one failed; the others were finished first.
    """
    # Each run is forked from a process that has PyTorch loaded and has never used it.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["airtune.rounds.running"])
    waiting = [job for job in jobs if not _has_result(job)]
    total, running, failed = len(waiting), dict[BaseProcess, Job](), []
    while waiting or running:
        while waiting and len(running) < at_once:
            job = waiting.pop(0)
            process = context.Process(target=perform, args=(job,))
            process.start()
            running[process] = job
        for process in [process for process in running if not process.is_alive()]:
            job = running.pop(process)
            if process.exitcode:
                failed.append(job.folder)
            done = total - len(waiting) - len(running)
            state = "failed" if process.exitcode else "done"
            print(f"{done}/{total} {job.folder}: {state}", file=sys.stderr, flush=True)
        time.sleep(0.02)
    if failed:
        raise RunError(
            f"{len(failed)} of {total} runs failed; first: {failed[0]}: see its error.txt, or above"
        )
    return [json.loads((job.folder / "result.json").read_text()) for job in jobs]


def _has_result(job: Job) -> bool:
    path = job.folder / "result.json"
    if not path.is_file():
        return False
    found = json.loads(path.read_text())
    if (found["settings"], found.get("scenario")) != (list(job.settings), scenario_hash(job)):
        raise InputError(f"{path} was made with other settings: give another --out, or remove it")
    return True


def scenario_hash(job: Job) -> str:
    """Name all that a job's file and settings say: the file may have changed since a result.

    What is left to its default is not part of it, so that a new key makes no result another's;
    a default that changes is the commit's, as any code is.
    """
    scenario = load_scenario(job.file, job.settings)
    values = scenario.model_dump(mode="json", exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def perform(job: Job) -> None:
    """Do one run, from its last checkpoint where it has one, and write its result."""
    import torch

    from airtune.rounds.running import run

    torch.set_num_threads(job.threads)
    folder = job.folder / "run"
    try:
        scenario = load_scenario(job.file, job.settings)
        run(scenario, out=folder, resume=(folder / "run.json").is_file())
        row = summary_of(folder, job.task, job.method, job.settings)
        row["scenario"] = scenario_hash(job)
        write_durably(job.folder / "result.json", (json.dumps(row) + "\n").encode())
    except Exception as error:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / "error.txt").write_text(f"{error}\n")
        if isinstance(error, (InputError, RunError)):
            raise SystemExit(1) from None
        raise  # a fault of ours: its traceback is wanted
    # The record is the evidence; what only a resumption needs may be gigabytes.
    for part in ("checkpoint", "adapter"):
        shutil.rmtree(folder / part, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
