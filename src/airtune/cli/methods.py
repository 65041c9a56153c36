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
    """List planning methods, merging rules, participation, schedules, channels, tasks; or devices.

    **Examples**

      airtune methods

      airtune methods --devices

      airtune methods --plugin mine.py
    """
    from airtune.cli.output import console
    from airtune.report.tables import Column, Fitted

    screen = console()
    if devices:
        from airtune.models.devices import PROFILES

        profiles = PROFILES.values()
        columns = [
            Column("profile", list(PROFILES), kind="word"),
            Column("peak\nTFLOP/s", [f"{each.peak_flops / 1e12:.3g}" for each in profiles]),
            Column("util-\nisation", [f"{each.utilisation:.2f}" for each in profiles], rank=2),
            Column("memory\nGB", [f"{each.memory_bytes / 1e9:.0f}" for each in profiles], rank=1),
            Column("source", [each.source for each in profiles], kind="text", rank=3),
        ]
        marks = "[V] read at the maker's or in a benchmark, [D] derived from that, [R] unchecked"
        screen.print(Fitted(columns, caption=marks, all_in="a wider window"))
        return

    from airtune.channel import CHANNEL_MODELS
    from airtune.merging.rules import MERGING
    from airtune.planning import METHODS
    from airtune.planning.participation import PARTICIPATION
    from airtune.planning.scheduling import SCHEDULES
    from airtune.plugins import load_entry_points, load_plugins
    from airtune.scenario import TASKS

    load_plugins(plugins or [])
    load_entry_points()
    for key, entries in (
        ("planning.method", METHODS),
        ("aggregation.rule", MERGING),
        ("participation.rule", PARTICIPATION),
        ("schedule.kind", SCHEDULES),
        ("cell.channel", CHANNEL_MODELS),
        ("task.name", TASKS),
    ):
        parts = entries.values()
        columns = [
            Column(key, list(entries), kind="word"),
            Column("what it does", [entry.description for entry in parts], kind="text"),
            Column("source", [entry.source for entry in parts], kind="text", rank=1),
        ]
        screen.print(Fitted(columns, all_in="a wider window"))
