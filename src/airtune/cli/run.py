"""`airtune run`: fine-tune over a simulated cell, leaving a record, an adapter and a report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def run(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a built-in scenario.")
    ] = "demo",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the run is recorded. Default: runs/NAME-METHOD."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="Planning method; the same as --set planning.method=…"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key, e.g. cell.radius_m=400."),
    ] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="A file or module of parts of your own; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Throw away the run that --out holds.")
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="local (this process) or ray (many, any Ray cluster).")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option("--workers", help="Ray: processes. Default: one a core.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray: a running cluster. Default: start one.")
    ] = None,
    gpus_per_worker: Annotated[
        float, typer.Option("--gpus-per-worker", help="Ray: share of a GPU for each worker.")
    ] = 0.0,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="CPU threads of each process. Default: all cores shared."),
    ] = None,
    trackers: Annotated[
        list[str] | None,
        typer.Option("--tracker", help="tensorboard, wandb, mlflow or trackio; may be repeated."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a round, and nothing else.")
    ] = False,
) -> None:
    """Fine-tune a language model over a simulated cell, end to end.

    Leaves in the output folder: run.json and rounds.jsonl (the record), adapter/ (loads with
    plain PEFT), report.html (opens offline).

    **Examples**

      airtune run                                  # the built-in scenario demo

      airtune run tiny --out runs/first --set rounds=6

      airtune run mine.toml --method bcd --resume

      airtune run mine.toml --resume --set rounds=12      # make a finished run longer

      airtune run mine.toml --engine ray --workers 4 --gpus-per-worker 0.25
    """
    from airtune.cli.output import console
    from airtune.errors import InputError
    from airtune.scenario import load_scenario
    from airtune.scenario.overrides import key_of

    if resume and replace:
        raise InputError("--resume goes on with a run and --replace throws it away: give one")
    if quiet and as_json:
        raise InputError("--quiet prints nothing and --json prints each round: give one")
    settings = list(overrides or [])
    if method is not None and any(key_of(text) == "planning.method" for text in settings):
        raise InputError(f"--method {method} and --set planning.method: give one of them")
    if method is not None:
        settings.append(f'planning.method="{method}"')
    loaded = load_scenario(scenario, settings, plugins=plugins or [])
    folder = out or Path("runs") / f"{loaded.name}-{loaded.planning.method}"

    # Only now what loads torch: a refusal should not wait for it.
    from airtune.cli.progress import observer, told_when_interrupted
    from airtune.engines.choice import engine_maker
    from airtune.report import loss_of_a_guess, summary_table, write_report
    from airtune.report.console import adapter_lines
    from airtune.rounds import run as run_federation
    from airtune.rounds.trackers import tracked

    make_engine = engine_maker(
        engine,
        workers=workers,
        address=address,
        gpus_per_worker=gpus_per_worker,
        threads=threads,
    )
    with (
        told_when_interrupted(folder),
        observer(loaded, quiet=quiet, as_json=as_json) as shown,
        tracked(trackers or [], loaded, folder, shown) as watch,
    ):
        record = run_federation(
            loaded, out=folder, engine=make_engine, resume=resume, replace=replace, observer=watch
        )
    page = write_report(folder)
    if not quiet and not as_json:
        screen = console()
        screen.print(summary_table(record))
        screen.print(
            f"{adapter_lines(folder / 'adapter')}\nreport:  {page}", markup=False, soft_wrap=True
        )
    elif as_json and (remark := loss_of_a_guess(record)) is not None:
        typer.echo(f"airtune: {remark}", err=True)
