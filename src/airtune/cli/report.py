"""`airtune report`: make a run's page again, or compare runs that were made apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="A run directory; several: compared.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="With several: the page. Default: comparison.html."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as a JSON list, an object a run.")
    ] = False,
) -> None:
    """Write report.html from a record; it never computes anything anew.

    **Examples**

      airtune report runs/demo

      airtune report runs/demo-exact runs/demo-none --out both.html
    """
    from airtune.cli.output import console
    from airtune.errors import InputError
    from airtune.record import read_record
    from airtune.report import (
        comparison_rows,
        comparison_table,
        summary_table,
        write_comparison,
        write_report,
    )

    records = {str(folder): read_record(folder) for folder in folders}
    if len(records) != len(folders):
        raise InputError("the same folder is given twice; give each run once")
    if out is not None and len(folders) == 1:
        raise InputError(f"--out {out}: a single run's page goes into its own folder")
    for record in records.values():
        if record.loss is not None:
            typer.echo(f"airtune: {record.loss}", err=True)
    if len(folders) > 1:
        pages = [
            write_comparison(
                dict(zip(records, folders, strict=True)), out or Path("comparison.html")
            )
        ]
        table = comparison_table(records)
    else:
        pages = [write_report(folders[0])]
        table = summary_table(records[str(folders[0])])
    if as_json:
        import json

        typer.echo(json.dumps(comparison_rows(records), indent=2))
        return
    screen = console()
    screen.print(table)
    for page in pages:
        screen.print(f"report: {page}", markup=False, soft_wrap=True)
