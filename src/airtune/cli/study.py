"""`airtune study`: methods × seeds × points, run, compared and written down."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.ending import Command, Commands
from airtune.cli.output import console
from airtune.errors import InputError, RunError

if TYPE_CHECKING:
    from airtune.study import Study
    from airtune.study.conduct import Part
    from airtune.study.results import Result
    from airtune.study.running import Progress

app = typer.Typer(
    name="study",
    cls=Commands,
    help="Compare methods over seeds: run, look at, report and extend a study.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
Folder = Annotated[Path, typer.Argument(help="The study's folder, as `study run` printed it.")]
Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE", help="A Python file with methods of your own."),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", help="Runs at once. Default: as many as fit cores and memory."),
]
Threads = Annotated[int, typer.Option("--threads", help="CPU threads of each run.")]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--tracker", help="tensorboard, wandb, mlflow or trackio; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.command("run", cls=Command)
def run(
    source: Annotated[
        str, typer.Argument(metavar="FILE|NAME", help="A study file, or a shipped study: tiny.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The study's folder. Default: runs/study-NAME.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key for every method."),
    ] = None,
    methods: Annotated[
        str | None, typer.Option("--methods", help="Only runs of these, e.g. fedit,exact.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option("--seeds", help="Only runs of these, e.g. 0-2 or 0,4.")
    ] = None,
    plugins: Plugins = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    engine: Annotated[
        str, typer.Option("--engine", help="local (processes here) or ray (a task a run).")
    ] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: a running cluster. Default: start one.")
    ] = None,
    gpus_per_run: Annotated[
        float, typer.Option("--gpus-per-run", help="Ray: share of a GPU for each run.")
    ] = 0.0,
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapters", help="Keep every run's adapter.")
    ] = False,
    trackers: Trackers = None,
    minutes: Annotated[
        float | None,
        typer.Option("--minutes", help="Stop after so many minutes; the same command goes on."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Do every run that the study still lacks, then write its page, tables and figures.

    The same command goes on after a kill at any moment. A run is found by the hash of its resolved
    scenario, of the plugin files and of the record's format: nothing is computed twice. With
    --methods or --seeds the other runs are left for later calls; a search is done for all methods.

    **Examples**

      airtune study run tiny

      airtune study run mine.toml --plugin my_method.py --jobs 4

      airtune study run mine.toml --methods fedit,exact --seeds 0

      airtune study run mine.toml --engine ray --address ray://head:10001
    """
    from airtune.plugins import load_plugins
    from airtune.study import load_study
    from airtune.study.conduct import Part
    from airtune.study.loading import seeds_of

    load_plugins(plugins or [])  # the base scenario may name what they add
    study = load_study(source, overrides or [])
    part = Part(
        None if methods is None else tuple(name.strip() for name in methods.split(",")),
        None if seeds is None else seeds_of(seeds, "--seeds"),
    )
    folder = out or Path("runs") / f"study-{study.name}"
    carry_on(
        study,
        folder,
        plugins or [],
        jobs=jobs,
        threads=threads,
        keep_adapter=keep_adapter,
        quiet=quiet,
        engine=engine,
        address=address,
        gpus=gpus_per_run,
        trackers=trackers or [],
        minutes=minutes,
        part=part,
    )


@app.command("status", cls=Command)
def status(folder: Folder) -> None:
    """Say which runs are finished, begun, failed or missing.

    **Example**

      airtune study status runs/study-tiny
    """
    from airtune.study.conduct import known_jobs
    from airtune.study.console import status_table
    from airtune.study.folder import read_study
    from airtune.study.running import state_of

    study, plugins = read_study(folder)
    jobs = known_jobs(study, folder, plugins)
    if jobs is None:
        typer.echo(f"{study.name}: the search has not ended; go on with `airtune study run`")
        return
    console().print(status_table(study, jobs, [state_of(folder, job) for job in jobs]))


@app.command("report", cls=Command)
def report(folder: Folder, quiet: Quiet = False) -> None:
    """Write page, tables and figures again from the runs that are there; nothing is computed anew.

    **Example**

      airtune study report runs/study-tiny
    """
    from airtune.study.conduct import known_jobs
    from airtune.study.folder import read_study
    from airtune.study.results import results_of

    study, plugins = read_study(folder)
    jobs = known_jobs(study, folder, plugins)
    if jobs is None:
        raise InputError(f"'{folder}': the search has not ended; go on with `airtune study run`")
    write_all(study, results_of(study, jobs, folder), folder, plugins, quiet)


@app.command("add-seeds", cls=Command)
def add_seeds(
    folder: Folder,
    seeds: Annotated[str, typer.Argument(help="Further seeds, e.g. 5-9 or 5,7.")],
    plugins: Plugins = None,
    jobs: Jobs = None,
    threads: Threads = 1,
    quiet: Quiet = False,
) -> None:
    """Run every method of a study on further seeds too, and write its results again.

    **Example**

      airtune study add-seeds runs/study-tiny 5-9
    """
    from airtune.study.folder import read_study
    from airtune.study.loading import seeds_of, study_of

    study, known = read_study(folder)
    added = seeds_of(seeds, "SEEDS")
    twice = [seed for seed in added if seed in study.seeds]
    if twice:
        raise InputError(f"SEEDS '{seeds}': {twice[0]} is already in the study")
    values = {**study.model_dump(mode="json"), "seeds": [*study.seeds, *added]}
    larger = study_of(values, where=str(folder))
    carry_on(larger, folder, plugins or known, jobs=jobs, threads=threads, quiet=quiet)


def carry_on(
    study: Study,
    folder: Path,
    plugins: list[str],
    *,
    jobs: int | None = None,
    threads: int = 1,
    keep_adapter: bool = False,
    quiet: bool = False,
    engine: str = "local",
    address: str | None = None,
    gpus: float = 0.0,
    trackers: Sequence[str] = (),
    minutes: float | None = None,
    part: Part | None = None,
) -> None:
    """Conduct a study with progress on the terminal and write what it shows.

    Raises:
        InputError: as `conduct`, or an option that is not allowed.
        RunError: some runs failed; the others are finished and reported.
    """
    from airtune.study.conduct import Part, conduct
    from airtune.study.pools import Pool, ProcessPool, RayPool, free_cores
    from airtune.study.running import UNENDED

    if threads < 1 or (jobs is not None and jobs < 1):
        raise InputError("--jobs and --threads: at least 1")
    if minutes is not None and not 0 < minutes < float("inf"):
        raise InputError(f"--minutes {minutes:g}: a number above 0")
    if engine not in ("local", "ray"):
        raise InputError(f"--engine '{engine}': allowed are local, ray")
    if address is not None and engine == "local":
        raise InputError(f"--address {address}: only with --engine ray")

    check_search(study)
    part = part or Part()
    if trackers:
        from airtune.rounds.trackers import check_trackers

        check_trackers(trackers)

    def make_pool() -> Pool:
        from airtune.rounds.apart import perform

        if engine == "ray":
            return RayPool(perform, address=address, threads=threads, gpus=gpus)
        return ProcessPool(perform, preload=["airtune.rounds.running"])

    # Ray decides itself how many of its tasks run at once.
    most = 10_000 if engine == "ray" else max(1, free_cores() // threads)
    results = conduct(
        study,
        folder,
        make_pool,
        at_once=jobs or most,
        threads=threads,
        plugins=plugins,
        keep_adapter=keep_adapter,
        trackers=trackers,
        until=None if minutes is None else time.time() + 60 * minutes,
        part=part,
        watch=(lambda progress: None) if quiet else _tell,
    )
    waiting = [one for one in results if part.holds(one) and one.status in UNENDED]
    if minutes is not None and (not results or waiting):
        left = len(waiting) or "the search and all"
        print(f"out of time: {left} runs to go; the same command goes on", file=sys.stderr)
        return
    write_all(study, results, folder, plugins, quiet)
    asked = [one for one in results if part.holds(one)]
    failed = [one for one in asked if one.status == "failed"]
    if failed:
        one = failed[0]
        raise RunError(
            f"{len(failed)} of {len(asked)} runs failed; first: {one.method}, seed {one.seed}: "
            f"{one.error}"
        )


def write_all(
    study: Study, results: list[Result], folder: Path, plugins: Sequence[str], quiet: bool
) -> None:
    """Write page, tables and figures; print the ranking."""
    from airtune.study.comparison import compare
    from airtune.study.conduct import other_runs
    from airtune.study.console import ranking_table, sentences
    from airtune.study.page import write_page
    from airtune.study.prints import write_figures
    from airtune.study.tables import write_tables

    comparisons = compare(results, study.reference)
    write_tables(results, comparisons, folder / "tables")
    write_figures(study, results, comparisons, folder / "figures")
    page = write_page(study, results, comparisons, folder)
    if not quiet:
        screen = console()
        for comparison in comparisons:
            screen.print(ranking_table(comparison))
        for line in sentences(study, results, comparisons):
            screen.print(line, soft_wrap=True, highlight=False)
        if others := other_runs(study, results, folder, plugins):
            print(
                f"{others} further runs in '{folder}' are of other settings: kept, but not on the "
                "page",
                file=sys.stderr,
            )
        screen.print(f"report: {page}\ntables: {folder / 'tables'}", soft_wrap=True)


def _tell(progress: Progress) -> None:
    left: Any = progress.left_s
    when = "" if left is None or progress.done == progress.total else f"  about {_time(left)} left"
    state = "done" if progress.error is None else f"failed: {progress.error}"
    line = f"{progress.done}/{progress.total}  {progress.where}: {state}{when}"
    print(line, file=sys.stderr, flush=True)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


def check_search(study: Study) -> None:
    """Refuse a search where held-out examples and test examples would come from the same part.

    A generated task draws other problems on the search's seed; of a hub's data set it is not
    known here whether it has a test part.

    Raises:
        InputError: the source is a file, or a folder without a test part.
    """
    if study.search is None:
        return
    source = {**study.base_values.get("task", {}), **{
        key.removeprefix("task."): value for key, value in study.set.items()
    }}.get("source")  # fmt: skip
    path = Path(source) if isinstance(source, str) else None
    if path is None or not path.exists():
        return
    from airtune.data.sources import open_source

    if open_source(str(path)).test is None:
        raise InputError(
            f"search: '{source}' has no test part of its own, so that a search on held-out "
            "training examples would see test examples: give a folder with a train and a test part"
        )
