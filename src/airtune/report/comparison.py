"""Several runs as one HTML page: who learns fastest on the virtual clock, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from airtune.errors import InputError
from airtune.record import Record, read_record
from airtune.record.files import write_durably
from airtune.report import numbers, svg
from airtune.report.figures import LOSS, Figure, loss_points
from airtune.report.page import render
from airtune.report.summary import comparison_rows, differences

COLORS = 8
"""Series colours that the page has; further runs begin again with the first."""
AIR = ("seed", "cell.", "devices")
"""Keys of the scenario that decide what channels a run has."""


def write_comparison(folders: Mapping[str, str | Path], out: str | Path) -> Path:
    """Write one page that compares runs and return its path.

    Args:
        folders: run directories by the name that the page gives them.
        out: the page.

    Raises:
        InputError: fewer than two runs, or there is no run in a folder.
        RunError: the page cannot be written.
    """
    if len(folders) < 2:
        raise InputError(f"{len(folders)} run cannot be compared: give two or more")
    records = {name: read_record(folder) for name, folder in folders.items()}
    target = Path(out)
    write_durably(target, render_comparison(records).encode())
    return target


def render_comparison(records: Mapping[str, Record]) -> str:
    """Return the page that compares runs."""
    rows = comparison_rows(records)
    changed = differences(records)
    return render(
        "comparison.html.j2",
        title=" · ".join(records),
        headline=_headline(records),
        rows=rows,
        target=rows[0]["target_loss"],
        learning=[_losses(records, over_time=True), _losses(records, over_time=False)],
        rounds=_round_lengths(records),
        differences=changed,
        values={name: _values(record, changed) for name, record in records.items()},
    )


def _headline(records: Mapping[str, Record]) -> str:
    rows = [row for row in comparison_rows(records) if row["time_to_target_s"]]
    if len(rows) < 2:
        return f"{len(records)} runs side by side"
    first = min(rows, key=lambda row: row["time_to_target_s"])
    last = max(rows, key=lambda row: row["time_to_target_s"])
    times = numbers.digits(last["time_to_target_s"] / first["time_to_target_s"], 2)
    return (
        f"To a test loss of {numbers.loss(first['target_loss'])}, {first['name']} needs "
        f"{numbers.seconds(first['time_to_target_s'])} of virtual time and {last['name']} "
        f"{numbers.seconds(last['time_to_target_s'])}, {times} times as long"
    )


def _color(index: int) -> int:
    return index % COLORS + 1


def _losses(records: Mapping[str, Record], *, over_time: bool) -> Figure:
    series = [
        svg.Series(name, tuple(loss_points(record, over_time=over_time)), _color(index))
        for index, (name, record) in enumerate(records.items())
    ]
    points = [point for one in series for point in one.points]
    furthest = max((x for x, _ in points), default=1.0)
    if over_time:
        x = svg.time_axis(furthest, "virtual time")
    else:
        x = svg.round_axis(int(furthest), first=0)
    y = svg.padded_axis([loss for _, loss in points] or [0.0], LOSS)
    what = "virtual time" if over_time else "rounds"
    drawn = svg.frame(
        f"Test loss of {len(series)} runs against {what}",
        svg.lines(series, x, y),
        height=300,
        x=x,
        y=y,
    )
    caption = (
        "Each point is a run's global model after a round. Lower and further left is better: "
        "the same loss, sooner."
        if over_time
        else "The same losses by round: what a method gives up in learning for its shorter rounds."
    )
    return Figure(
        "losses-over-time" if over_time else "losses-over-rounds",
        f"Loss against {what}",
        caption,
        svg.legend([(f"s{_color(i)}", name) for i, name in enumerate(records)]) + drawn,
        wide=over_time,
    )


def _round_lengths(records: Mapping[str, Record]) -> Figure:
    series = [
        svg.Series(
            name,
            tuple((float(r.round), r.round_latency_s) for r in record.rounds),
            _color(index),
            unit="s",
        )
        for index, (name, record) in enumerate(records.items())
    ]
    longest = max((s for one in series for _, s in one.points), default=1.0)
    count = max((len(record.rounds) for record in records.values()), default=1)
    x, y = svg.round_axis(count), svg.axis(0, 1.06 * longest, "length of the round (s)")
    drawn = svg.frame(
        f"Length of each round of {len(series)} runs",
        svg.lines(series, x, y),
        height=300,
        x=x,
        y=y,
    )
    return Figure(
        "round-lengths",
        "How long each round took",
        "Every run has the same channels in the same round: what differs is the plan."
        if not any(key.startswith(AIR) for key in differences(records))
        else "The runs differ in their cell, devices or seed: rounds cannot be matched one to one.",
        svg.legend([(f"s{_color(i)}", name) for i, name in enumerate(records)]) + drawn,
    )


def _values(record: Record, keys: list[str]) -> dict[str, str]:
    """Return what a run has under each of the dotted keys in which the runs differ."""
    found = {}
    for key in keys:
        value: object = record.scenario
        for part in key.split("."):
            if isinstance(value, Mapping):
                value = value.get(part)
            elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = None
        found[key] = "–" if value is None else str(value)
    return found
