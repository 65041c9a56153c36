"""`airtune methods`: what can be asked for by name, each with its source."""

from __future__ import annotations

from typing import Annotated

import typer


def methods(
    devices: Annotated[
        bool, typer.Option("--devices", help="List the device profiles instead.")
    ] = False,
) -> None:
    """List planning methods, merging rules and participation rules, or the device profiles.

    **Examples**

      airtune methods

      airtune methods --devices
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if devices:
        from airtune.models.devices import PROFILES

        table = Table(box=box.SIMPLE_HEAD)
        for heading in ("profile", "peak TFLOP/s", "utilisation", "memory GB", "source"):
            table.add_column(heading)
        for name, profile in PROFILES.items():
            table.add_row(
                name,
                f"{profile.peak_flops / 1e12:.3g}",
                f"{profile.utilisation:.2f}",
                f"{profile.memory_bytes / 1e9:.0f}",
                profile.source,
            )
        console.print(table)
        return

    from airtune.merging.rules import MERGING
    from airtune.planning import METHODS
    from airtune.planning.participation import PARTICIPATION

    for key, entries in (
        ("planning.method", METHODS),
        ("aggregation.rule", MERGING),
        ("participation.rule", PARTICIPATION),
    ):
        table = Table(box=box.SIMPLE_HEAD)
        for heading in (key, "what it does", "source"):
            table.add_column(heading)
        for name, entry in entries.items():
            table.add_row(name, entry.description, entry.source)
        console.print(table)
