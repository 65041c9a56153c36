"""`airtune trace`: what a recorded trace is read as."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def trace(
    file: Annotated[
        str, typer.Argument(help="A trace: mahimahi's, or a table; a column may follow after '#'.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Draw it: a name in .svg or .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show what a trace is read as: its duration, mean, outages and gaps, and a picture of it.

    **Examples**

      airtune trace drive.csv

      airtune trace drive.csv#upload_mbit_s --out drive.svg

      airtune trace 12Mbps.up --json
    """
    import json

    from airtune.channel.trace import read_traces
    from airtune.channel.trace_picture import draw, summary_of
    from airtune.pictures import check_picture

    if out is not None:
        check_picture(out)
    traces = read_traces(file)
    found = {name: summary_of(one) for name, one in traces.items()}
    if out is not None:
        draw(traces, out)
    if as_json:
        rows = [{"column": name or None, **values} for name, values in found.items()]
        typer.echo(json.dumps({"file": file, "traces": rows}, indent=1))
        return
    for values in found.values():
        typer.echo(f"read as    {values['read_as']}")
        typer.echo(f"duration   {values['duration_s']:,.6g} s, then it starts over")
        typer.echo(
            f"rate       {values['mean_bps'] / 1e6:.4g} Mbit/s mean, "
            f"{values['busiest_window_bps'] / 1e6:.4g} in the best {values['window_s']:g} s"
        )
        share = values["outages_s"] / values["duration_s"]
        typer.echo(
            f"outages    {values['outages']}, {values['outages_s']:,.6g} s together "
            f"({100 * share:.2g} %), longest {values['longest_outage_s']:,.6g} s"
        )
        if values["gaps"]:
            typer.echo(
                f"left out   {values['gaps']} gaps, {values['gaps_s']:,.6g} s in which nothing "
                "was recorded"
            )
    if out is not None:
        typer.echo(f"drawn in {out}")
