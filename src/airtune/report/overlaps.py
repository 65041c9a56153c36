"""The figure of rounds that are not synchronous: every client's turns on the virtual clock."""

from __future__ import annotations

from markupsafe import Markup

from airtune.record import Record, RoundRecord
from airtune.report import numbers, svg
from airtune.report.figures import ROW_HEIGHT, TOTAL_WIDTH, Figure, label_width
from airtune.report.summary import OK

MOST_TURNS = 240
"""Turns that the figure shows at most: those of the last merges."""
PHASES = (
    ("download", "started_s", "received_s"),
    ("compute", "received_s", "computed_s"),
    ("upload", "computed_s", "ended_s"),
)


def overlaps(record: Record) -> Figure | None:
    """Draw the merged turns of all clients over the virtual clock; None where no round has any."""
    shown = _last_rounds(record.rounds)
    turns = [turn for r in shown for turn in r.turns]
    if not turns:
        return None
    names = [client.name for client in record.rounds[-1].clients]
    row_of = {name: k for k, name in enumerate(names)}
    x = _axis(min(turn.started_s for turn in turns), max(r.elapsed_s for r in shown))
    height = ROW_HEIGHT * len(names) + 4
    body = Markup("")
    for r in shown:
        at = f"{x.at(r.elapsed_s):.3f}%"
        body += Markup(
            '<line class="predicted" x1="{0}" x2="{0}" y1="0" y2="{1}"><title>{2}</title></line>'
        ).format(at, height, f"round {r.round} merged at {numbers.seconds(r.elapsed_s)}")
    for k, name in enumerate(names):
        body += Markup(
            '<text class="name" x="-8" y="{}" dy="11.5" text-anchor="end">{}</text>'
        ).format(k * ROW_HEIGHT + 3, name)
    for r in shown:
        for turn in r.turns:
            title = (
                f"{turn.name}, turn {turn.turn}: from round {turn.start_round}, merged in round "
                f"{r.round} ({turn.staleness} merges later), {turn.status}"
            )
            bars = Markup("")
            for phase, begins, ends in PHASES:
                left, right = x.at(getattr(turn, begins)), x.at(getattr(turn, ends))
                bars += Markup(
                    f'<rect class="{phase}" x="{left:.3f}%" width="{right - left:.3f}%" '
                    f'y="{row_of[turn.name] * ROW_HEIGHT + 3}" height="{ROW_HEIGHT - 6}"/>'
                )
            kind = "row" if turn.status == OK else "row out"
            body += Markup('<g class="{}"><title>{}</title>{}</g>').format(kind, title, bars)
    chart = svg.frame(
        f"Turns of every client, rounds {shown[0].round} to {shown[-1].round}",
        body,
        height=height,
        x=x,
        left=label_width(names),
        right=TOTAL_WIDTH,
    )
    entries = [(f"bar {phase}", phase) for phase, *_ in PHASES] + [("tick", "a merge")]
    note = "" if len(shown) == len(record.rounds) else f" The last {len(shown)} rounds are shown."
    return Figure(
        "overlaps",
        "Who worked when",
        "Each bar is a client's turn: it receives the adapter of that moment, fine-tunes, and "
        "sends over its share of the band. A line is a merge; a turn that crosses lines was "
        "merged into a newer adapter than the one that it began with." + note,
        svg.legend(entries) + chart,
        wide=True,
    )


def _last_rounds(rounds: tuple[RoundRecord, ...]) -> list[RoundRecord]:
    """Return the last rounds that together have no more turns than the figure has room for."""
    shown: list[RoundRecord] = []
    count = 0
    for r in reversed(rounds):
        count += len(r.turns)
        if shown and count > MOST_TURNS:
            break
        shown.append(r)
    return shown[::-1]


def _axis(first_s: float, last_s: float) -> svg.PlotAxis:
    """Return the axis of the virtual clock from the first turn shown to the last merge."""
    whole = svg.time_axis(last_s, "virtual time")
    if first_s < 0.1 * last_s:
        return whole
    divisor = 1.0 if "(s)" in whole.title else 60.0 if "(min)" in whole.title else 3600.0
    inner = svg.axis(first_s / divisor, last_s / divisor, "")
    marks = tuple((value * divisor, label) for value, label in inner.marks)
    return svg.PlotAxis(inner.low * divisor, inner.high * divisor, whole.title, marks)
