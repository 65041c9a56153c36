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
        typer.Option(
            "--methods",
            help="Planning methods, separated by commas; or a study's: published, rivals, joint.",
        ),
    ] = "exact,bcd,none",
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", help="Over these seeds, e.g. 0-4, with intervals: as a study."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where the runs go. Default: runs/compare-NAME."),
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

      airtune compare tiny --methods published --seeds 0-4   # the short form of a study
    """
    from airtune.cli.output import console
    from airtune.errors import InputError
    from airtune.planning.scheduling import check_parts
    from airtune.record import RunDirectory
    from airtune.scenario import load_scenario
    from airtune.scenario.overrides import key_of

    if resume and replace:
        raise InputError("--resume goes on with runs and --replace throws them away: give one")
    if quiet and as_json:
        raise InputError("--quiet prints nothing and --json prints the comparison: give one")
    if any(key_of(text) == "planning.method" for text in overrides or []):
        raise InputError("--set planning.method has no effect here: give the methods to --methods")
    if seeds is not None:
        for option, given in (("--json", as_json), ("--resume", resume), ("--replace", replace)):
            if given:
                raise InputError(
                    f"{option} cannot go with --seeds, which makes a study: the same command goes "
                    "on with it; its tables are in the folder of --out"
                )
    base = load_scenario(scenario, overrides or [], plugins=plugins or [])
    if seeds is not None:
        chosen = [name.strip() for name in methods.split(",") if name.strip()]
        _study(scenario, chosen, seeds, out, overrides or [], plugins or [], quiet)
        return
    names = _methods(methods)
    folder = out or Path("runs") / f"compare-{base.name}"
    _check_folder(folder)
    planned = {
        name: base.model_copy(
            update={"planning": base.planning.model_copy(update={"method": name})}
        )
        for name in names
    }
    # All of them before the first: what is refused after hours of work should be refused now.
    for name, each in planned.items():
        check_parts(each)
        values = each.model_dump(mode="json")
        goes_on = resume and (folder / name / "run.json").exists()
        RunDirectory.check(
            folder / name, scenario_values=values, method=name, resume=goes_on, replace=replace
        )

    # Only now what loads torch: a refusal should not wait for it.
    from airtune.cli.progress import observer, told_when_interrupted
    from airtune.engines.local import LocalEngine
    from airtune.report import comparison_table, write_comparison, write_report
    from airtune.rounds import run as run_federation

    engine = LocalEngine(base)
    records = {}
    for name, each in planned.items():
        with (
            told_when_interrupted(folder / name),
            observer(each, quiet=quiet or as_json, as_json=False) as watch,
        ):
            records[name] = run_federation(
                each,
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

        rows = comparison_rows(records)
        document = {"target_loss": rows[0]["target_loss"], "report": str(page), "runs": rows}
        typer.echo(json.dumps(document, indent=2))
    elif not quiet:
        screen = console()
        screen.print(comparison_table(records))
        screen.print(f"report: {page}", markup=False, soft_wrap=True)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds what no comparison made: a run, a study, somebody's files."""
    from airtune.errors import InputError
    from airtune.record.folder import visible

    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out '{folder}' is a file: give a folder")
    found = visible(folder)
    runs = [name for name in found if (folder / name / "run.json").exists()]
    ours = [*runs, *(["report.html"] if runs else [])]
    others = [name for name in found if name not in ours]
    if others:
        raise InputError(
            f"'{folder}' holds '{others[0]}', which is not of a comparison: give a new folder "
            "with --out"
        )


def _study(
    scenario: str,
    names: list[str],
    seeds: str,
    out: Path | None,
    overrides: list[str],
    plugins: list[str],
    quiet: bool,
) -> None:
    from airtune.cli.study import carry_on
    from airtune.study import study_from

    study = study_from(scenario, names, seeds, overrides)
    carry_on(study, out or Path("runs") / f"study-{study.name}", plugins, quiet=quiet)


def _methods(text: str) -> list[str]:
    from airtune.errors import InputError
    from airtune.planning import METHODS

    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if not METHODS.has(name)]
    if unknown or len(names) < 2 or len(set(names)) != len(names):
        wrong = unknown[0] if unknown else text
        raise InputError(
            f"--methods '{wrong}': give two or more different names of: "
            f"{', '.join(sorted(METHODS))}; a study's methods, e.g. published, need --seeds"
        )
    return names
