"""A record on the terminal: what a run came to, and several runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from airtune.record import Record
from airtune.report import numbers
from airtune.report.summary import (
    client_summaries,
    comparison_rows,
    headline,
    loss_of_a_guess,
    totals,
)
from airtune.report.tables import Column, Fitted

_PAGE = "report.html"


def summary_table(record: Record) -> Fitted:
    """Return a table of the clients' means over the run, with the headline above it."""
    total = totals(record)
    bound = ""
    if total.worst_gap is not None:
        bound = f"plan {numbers.gap(total.worst_gap)} from a proven bound; "
    energy = ""
    if total.energy_j is not None:
        energy = f"energy {numbers.scaled(total.energy_j, 'J')}, "
    if total.engine_s is None:
        real = f"simulated in {numbers.seconds(total.wall_s)}"
    else:
        real = f"the engine added {numbers.seconds(total.engine_s)} a round"
    caption = (
        f"uplink {numbers.scaled(total.uplink_bits, 'bit')}, "
        f"downlink {numbers.scaled(total.downlink_bits, 'bit')}, "
        f"compute {numbers.scaled(total.flops, 'FLOP')}, "
        f"{energy}"
        f"{bound}"
        f"{real}"
    )
    for remark in (record.loss, loss_of_a_guess(record)):
        if remark is not None:
            caption += f"\n{remark}"
    clients = client_summaries(record)
    factor, unit = numbers.common_unit((client.bandwidth_hz for client in clients), "Hz")
    # Headings of two lines, so that the table fits 80 columns.
    return Fitted(
        columns=(
            Column("client", [client.name for client in clients], kind="name"),
            Column("data", [str(client.examples) for client in clients], rank=5),
            Column("pruned\n%", [_pruned(client.pruning) for client in clients]),
            Column(
                f"band\n{unit}",
                [numbers.digits(client.bandwidth_hz / factor) for client in clients],
            ),
            Column("down\ns", [numbers.duration(c.downlink_s) for c in clients], rank=4),
            Column("compute\ns", [numbers.duration(c.compute_s) for c in clients], rank=1),
            Column("up\ns", [numbers.duration(c.upload_s) for c in clients], rank=1),
            Column("times\nlast", [str(client.times_last) for client in clients], rank=2),
            Column("left\nout", [str(client.left_out) for client in clients], rank=3),
        ),
        title=headline(record) + ".",
        caption=caption,
        rows="clients",
        all_in=_PAGE,
    )


def adapter_lines(adapter: Path) -> str:
    """Return where a run's adapter is, and which base model its files name."""
    try:
        text = (adapter / "adapter_config.json").read_text(encoding="utf-8")
        base = json.loads(text)["base_model_name_or_path"]
    except (OSError, ValueError, LookupError):
        return f"adapter: {adapter}"
    where = "a folder of this machine" if Path(base).is_absolute() else "on the hub"
    return f"adapter: {adapter}\nbase:    {base} ({where}; see {adapter / 'README.md'})"


def _pruned(rate: float | None) -> str:
    return numbers.NOTHING if rate is None else f"{100 * rate:.1f}"


def comparison_table(records: Mapping[str, Record]) -> Fitted:
    """Return a table with one run a row: loss, time, and both up to a common target loss."""
    rows = comparison_rows(records)
    target = rows[0]["target_loss"] if rows else None

    def column(heading: str, cells: list[str], rank: int) -> Column:
        return Column(heading, cells, rank=rank)

    return Fitted(
        columns=(
            Column("run", [row["name"] for row in rows], kind="name"),
            column("final\nloss", [numbers.loss(row["final_loss"]) for row in rows], 0),
            column("virtual\ntime", [numbers.seconds(row["virtual_time_s"]) for row in rows], 1),
            column(
                "rounds to\ntarget",
                [
                    numbers.NOTHING
                    if row["rounds_to_target"] is None
                    else str(row["rounds_to_target"])
                    for row in rows
                ],
                2,
            ),
            column("time to\ntarget", [numbers.seconds(r["time_to_target_s"]) for r in rows], 0),
            column(
                "uplink to\ntarget",
                [numbers.scaled(row["uplink_bits_to_target"], "bit") for row in rows],
                3,
            ),
            column("mean\ngap", [numbers.gap(row["mean_gap"]) for row in rows], 4),
        ),
        title=f"To a test loss of {numbers.loss(target)}, which every run reaches",
        caption="\n".join(record.loss for record in records.values() if record.loss),
        rows="runs",
        all_in="--json",
    )
