"""Several runs as one HTML page: who learns fastest on the virtual clock, and at what cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from airtune.errors import InputError
from airtune.record import Record, read_record
from airtune.record.files import write_durably
from airtune.report import numbers, svg
from airtune.report.figures import LOSS, ROW_HEIGHT, TOTAL_WIDTH, Figure, label_width, loss_points
from airtune.report.page import present, render
from airtune.report.summary import comparison_rows, differences, time_split

COLORS = 8
"""Series colours, and patterns of lines, that the page has."""
NAMED = 7
"""Most lines that bear their names; more are told apart by a legend."""
HEIGHT = 300
"""Height of the plots in px."""
PHASES = ("download", "compute", "upload")
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
    headings, rows_of_differences = _difference_table(records)
    return render(
        "comparison.html.j2",
        title=" · ".join(records),
        headline=_headline(records),
        remarks=[record.loss for record in records.values() if record.loss],
        rows=rows,
        target=rows[0]["target_loss"],
        drawn=present(
            _losses(records, over_time=True),
            _losses(records, over_time=False),
            _round_lengths(records),
            _time_splits(records),
        ),
        differences=rows_of_differences,
        difference_headings=headings,
    )


def _headline(records: Mapping[str, Record]) -> str:
    rows = [row for row in comparison_rows(records) if row["time_to_target_s"]]
    if len(rows) < 2:
        return f"{len(records)} runs side by side"
    first = min(rows, key=lambda row: row["time_to_target_s"])
    last = max(rows, key=lambda row: row["time_to_target_s"])
    times = numbers.digits(last["time_to_target_s"] / first["time_to_target_s"], 2)
    return (
        f"To a test loss of {numbers.loss(first['target_loss'])}, by whole rounds, "
        f"{first['name']} needs {numbers.seconds(first['time_to_target_s'])} of virtual time and "
        f"{last['name']} {numbers.seconds(last['time_to_target_s'])}, {times} times as long; "
        f"they end at {numbers.loss(first['final_loss'])} and {numbers.loss(last['final_loss'])}"
    )


def _series(name: str, index: int, points: list[tuple[float, float]], unit: str) -> svg.Series:
    """Return a run's line; after eight runs the colours come again with other patterns."""
    color = index % COLORS + 1
    dash = (index + index // COLORS) % COLORS + 1
    return svg.Series(name, tuple(points), color, unit=unit, dash=dash)


def _lines(label: str, series: list[svg.Series], x: svg.PlotAxis, y: svg.PlotAxis) -> Markup:
    """Draw lines under their legend, which wide screens leave out where lines bear names."""
    body, right = svg.lines(series, x, y), 14
    if len(series) <= NAMED:
        body += svg.end_names(series, x, y, HEIGHT)
        right = 18 + label_width([one.label for one in series])
    entries = [(one.style, one.label) for one in series]
    return svg.legend(entries) + svg.frame(label, body, height=HEIGHT, x=x, y=y, right=right)


def _losses(records: Mapping[str, Record], *, over_time: bool) -> Figure | None:
    series = [
        _series(name, index, loss_points(record, over_time=over_time), "nats")
        for index, (name, record) in enumerate(records.items())
    ]
    points = [point for one in series for point in one.points]
    if not points:
        return None
    furthest = max(x for x, _ in points)
    if over_time:
        x = svg.time_axis(furthest, "virtual time")
    else:
        x = svg.round_axis(int(furthest), first=0)
    y = svg.padded_axis([loss for _, loss in points], LOSS)
    what = "virtual time" if over_time else "rounds"
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
        _lines(f"Test loss of {len(series)} runs against {what}", series, x, y),
        wide=over_time,
        named=len(series) <= NAMED,
    )


def _round_lengths(records: Mapping[str, Record]) -> Figure | None:
    series = [
        _series(name, index, [(float(r.round), r.round_latency_s) for r in record.rounds], "s")
        for index, (name, record) in enumerate(records.items())
    ]
    count = max(len(record.rounds) for record in records.values())
    if not count:
        return None
    longest = max(s for one in series for _, s in one.points)
    x, y = svg.round_axis(count), svg.axis(0, 1.06 * longest, "length of the round (s)")
    return Figure(
        "round-lengths",
        "How long each round took",
        "Every run has the same channels in the same round: what differs is the plan."
        if not any(key.startswith(AIR) for key in differences(records))
        else "The runs differ in their cell, devices or seed: rounds cannot be matched one to one.",
        _lines(f"Length of each round of {len(series)} runs", series, x, y),
        named=len(series) <= NAMED,
    )


def _time_splits(records: Mapping[str, Record]) -> Figure | None:
    splits = {name: time_split(record) for name, record in records.items() if record.rounds}
    if not splits:
        return None
    x = svg.time_axis(max(map(sum, splits.values())), "mean length of a round")
    rows = Markup("").join(
        _split_row(k, name, split, x) for k, (name, split) in enumerate(splits.items())
    )
    drawn = svg.frame(
        f"Mean length of a round of {len(splits)} runs: download, compute and upload",
        rows,
        height=ROW_HEIGHT * len(splits) + 4,
        x=x,
        left=label_width(list(splits)),
        right=TOTAL_WIDTH,
    )
    entries = [(f"bar {phase}", phase) for phase in PHASES]
    return Figure(
        "time-splits",
        "What the rounds waited for",
        "A round is as long as its slowest client needs. The bars are that client's download, "
        "compute and upload, as means over the rounds.",
        svg.legend(entries) + drawn,
        wide=True,
    )


def _split_row(k: int, name: str, split: tuple[float, float, float], x: svg.PlotAxis) -> Markup:
    y = k * ROW_HEIGHT + 3
    start, bars = 0.0, Markup("")
    for phase, length in zip(PHASES, split, strict=True):
        bars += Markup(
            f'<rect class="{phase}" x="{x.at(start):.3f}%" width="{x.at(length):.3f}%" '
            f'y="{y}" height="{ROW_HEIGHT - 6}"/>'
        )
        start += length
    text = ", ".join(
        f"{phase} {numbers.seconds(s)}" for phase, s in zip(PHASES, split, strict=True)
    )
    return Markup(
        '<g class="row"><title>{}</title><text class="name" x="-8" y="{}" dy="11.5" '
        'text-anchor="end">{}</text>{}<text class="total" x="{}%" y="{}" dx="6" dy="11.5">{}'
        "</text></g>"
    ).format(f"{name}: {text}", y, name, bars, f"{x.at(start):.3f}", y, numbers.seconds(start))


def _difference_table(records: Mapping[str, Record]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of what the scenarios differ in; the longer way runs down."""
    keys = differences(records)
    if not keys:
        return [], []
    values = {name: _values(record, keys) for name, record in records.items()}
    if len(keys) < len(records):
        return ["run", *keys], [[name, *(own[key] for key in keys)] for name, own in values.items()]
    return ["key", *values], [[key, *(own[key] for own in values.values())] for key in keys]


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
