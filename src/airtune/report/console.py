"""A record on the terminal: what a run came to, and several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from airtune.record import Record
from airtune.report import numbers
from airtune.report.summary import client_summaries, comparison_rows, headline, totals

if TYPE_CHECKING:
    from rich.table import Table


_HEADINGS = (
    "data",
    "pruned\n%",
    "band\n{band}",
    "down\ns",
    "compute\ns",
    "up\ns",
    "times\nlast",
    "left\nout",
)  # two lines each, so that the table fits 80 columns


def summary_table(record: Record) -> Table:
    """Return a table of the clients' means over the run, with the headline above it."""
    from rich import box
    from rich.table import Table

    total = totals(record)
    bound = ""
    if total.worst_gap is not None:
        bound = f"plan {numbers.gap(total.worst_gap)} from a proven bound; "
    if total.engine_s is None:
        real = f"simulated in {numbers.seconds(total.wall_s)}"
    else:
        real = f"the engine added {numbers.seconds(total.engine_s)} a round"
    table = Table(
        title=headline(record) + ".",
        title_justify="left",
        title_style="bold",
        caption=(
            f"uplink {numbers.scaled(total.uplink_bits, 'bit')}, "
            f"downlink {numbers.scaled(total.downlink_bits, 'bit')}, "
            f"compute {numbers.scaled(total.flops, 'FLOP')}, "
            f"{bound}"
            f"{real}"
        ),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("client", no_wrap=True)
    clients = client_summaries(record)
    factor, unit = numbers.common_unit((client.bandwidth_hz for client in clients), "Hz")
    for heading in _HEADINGS:
        table.add_column(heading.format(band=unit), justify="right", no_wrap=True)
    for client in clients:
        table.add_row(
            client.name,
            str(client.examples),
            "–" if client.pruning is None else f"{100 * client.pruning:.1f}",
            numbers.digits(client.bandwidth_hz / factor),
            numbers.duration(client.downlink_s),
            numbers.duration(client.compute_s),
            numbers.duration(client.upload_s),
            str(client.times_last),
            str(client.left_out),
        )
    return table


def adapter_lines(adapter: Path) -> str:
    """Return where a run's adapter is, and which base model its files name."""
    try:
        text = (adapter / "adapter_config.json").read_text(encoding="utf-8")
        base = json.loads(text)["base_model_name_or_path"]
    except (OSError, ValueError, LookupError):
        return f"adapter: {adapter}"
    where = "a folder of this machine" if Path(base).is_absolute() else "on the hub"
    return f"adapter: {adapter}\nbase:    {base} ({where}; see {adapter / 'README.md'})"


def comparison_table(records: Mapping[str, Record]) -> Table:
    """Return a table with one run a row: loss, time, and both up to a common target loss."""
    from rich import box
    from rich.table import Table

    rows = comparison_rows(records)
    target = rows[0]["target_loss"] if rows else None
    table = Table(
        title=f"To a test loss of {numbers.loss(target)}, which every run reaches",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("run")
    for heading in (
        "final loss",
        "virtual time",
        "rounds to target",
        "time to target",
        "uplink to target",
        "mean gap",
    ):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            numbers.loss(row["final_loss"]),
            numbers.seconds(row["virtual_time_s"]),
            "–" if row["rounds_to_target"] is None else str(row["rounds_to_target"]),
            numbers.seconds(row["time_to_target_s"]),
            numbers.scaled(row["uplink_bits_to_target"], "bit"),
            numbers.gap(row["mean_gap"]),
        )
    return table
