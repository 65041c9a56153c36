"""`airtune methods`: what can be asked for by name, each with its source."""

from __future__ import annotations

from typing import Annotated

import typer


def methods(
    devices: Annotated[
        bool, typer.Option("--devices", help="List the device profiles instead.")
    ] = False,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", metavar="FILE.py", help="A file or module of parts of your own; repeatable."
        ),
    ] = None,
) -> None:
    """List planning methods, merging and participation rules, channel models, tasks; or devices.

    **Examples**

      airtune methods

      airtune methods --devices

      airtune methods --plugin mine.py
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

    from airtune.channel import CHANNEL_MODELS
    from airtune.merging.rules import MERGING
    from airtune.planning import METHODS
    from airtune.planning.participation import PARTICIPATION
    from airtune.plugins import load_entry_points, load_plugins
    from airtune.scenario import TASKS

    load_plugins(plugins or [])
    load_entry_points()
    for key, entries in (
        ("planning.method", METHODS),
        ("aggregation.rule", MERGING),
        ("participation.rule", PARTICIPATION),
        ("cell.channel", CHANNEL_MODELS),
        ("task.name", TASKS),
    ):
        table = Table(box=box.SIMPLE_HEAD)
        for heading in (key, "what it does", "source"):
            table.add_column(heading)
        for name, entry in entries.items():
            table.add_row(name, entry.description, entry.source)
        console.print(table)
