"""`airtune compare`: several methods on the same draws, in one figure and one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    scenario: Annotated[
        str, typer.Argument(help="A scenario file, or the name of a built-in scenario.")
    ],
    methods: Annotated[
        str,
        typer.Option("--methods", help="Planning methods, separated by commas."),
    ] = "exact,bcd,none",
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the runs go. Default: runs/compare-NAME."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one key for every method."),
    ] = None,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="A file or module of parts of your own; repeatable."
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep finished runs and go on with the others.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Throw away the runs that --out holds.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the comparison as one JSON object.")
    ] = False,
) -> None:
    """Run several planning methods on the same channels, data and seeds, and compare them.

    **Example**

      airtune compare tiny --methods exact,bcd,bandwidth-only,none
    """
    from airtune.cli.progress import observer
    from airtune.errors import InputError
    from airtune.planning import METHODS
    from airtune.scenario import load_scenario

    base = load_scenario(scenario, overrides or [], plugins=plugins or [])
    names = [name.strip() for name in methods.split(",") if name.strip()]
    unknown = [name for name in names if not METHODS.has(name)]
    if unknown or len(names) < 2 or len(set(names)) != len(names):
        wrong = unknown[0] if unknown else methods
        raise InputError(
            f"--methods '{wrong}': give two or more different names of: "
            f"{', '.join(sorted(METHODS))}"
        )
    folder = out or Path("runs") / f"compare-{base.name}"

    from airtune.engines.local import LocalEngine
    from airtune.report import comparison_table, write_comparison, write_report
    from airtune.rounds import run as run_federation

    engine = LocalEngine(base)
    records = {}
    for name in names:
        planned = base.model_copy(
            update={"planning": base.planning.model_copy(update={"method": name})}
        )
        with observer(planned, quiet=quiet or as_json, as_json=False) as watch:
            records[name] = run_federation(
                planned,
                out=folder / name,
                engine=engine,
                resume=resume and (folder / name / "run.json").exists(),
                replace=replace,
                observer=watch,
            )
        write_report(folder / name)
    page = write_comparison({name: folder / name for name in names}, folder / "report.html")
    if as_json:
        import json

        from airtune.report import comparison_rows

        typer.echo(json.dumps(comparison_rows(records), indent=2))
    elif not quiet:
        from rich.console import Console

        console = Console()
        console.print(comparison_table(records))
        console.print(f"report: {page}", soft_wrap=True)
