"""The figures of a run: each takes recorded rounds and returns inline SVG in its frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from airtune.record import ClientRecord, Record
from airtune.report import numbers, svg
from airtune.report.population import NOT_DRAWN
from airtune.report.summary import OK, SAT_OUT, is_left_out, last_client

COLUMNS = 120
"""Most columns of a heat map; longer runs show evenly spaced rounds."""
TOTAL_WIDTH, ROW_HEIGHT = 62, 21
LOSS = "test loss (nats per answer token)"


@dataclass(frozen=True)
class Figure:
    """A drawn figure with what the page says about it."""

    id: str
    title: str
    caption: str
    body: Markup
    wide: bool = False
    named: bool = False
    """The lines bear their names; the legend is for narrow screens, which have no room for them."""

    @property
    def kind(self) -> str:
        """The CSS classes of the frame."""
        return " ".join(name for name in ("wide", "named") if getattr(self, name))


def loss_over_time(record: Record) -> Figure:
    """Draw the test loss over the virtual clock."""
    points = loss_points(record, over_time=True)
    x = svg.time_axis(max([p[0] for p in points], default=1.0), "virtual time")
    return Figure(
        "loss-over-time",
        "Loss against virtual time",
        "Each point is the global model after a round, placed where that round ended on the "
        "virtual clock. Steeper is faster learning per second.",
        _loss_chart(points, [], x, "Test loss against virtual time"),
    )


def loss_over_rounds(record: Record) -> Figure:
    """Draw the test loss over the rounds, with the clients' training loss behind it."""
    points = loss_points(record, over_time=False)
    training = [(float(r.round), r.train_loss) for r in record.rounds if r.train_loss is not None]
    first = 0 if points and points[0][0] == 0 else 1
    x = svg.round_axis(len(record.rounds), first=first)
    return Figure(
        "loss-over-rounds",
        "Loss against rounds",
        "The same losses, one step a round. The thin line is the clients' own training loss "
        "on their submodels.",
        _loss_chart(points, training, x, "Test loss against rounds"),
    )


def loss_points(record: Record, *, over_time: bool) -> list[tuple[float, float]]:
    """Return (time in s or round, test loss), with the loss before training at 0."""
    points = []
    if record.description and record.description.initial_eval_loss is not None:
        points.append((0.0, record.description.initial_eval_loss))
    for r in record.rounds:
        if r.eval_loss is not None:
            points.append((r.elapsed_s if over_time else float(r.round), r.eval_loss))
    return points


def _loss_chart(
    points: list[tuple[float, float]],
    training: list[tuple[float, float]],
    x: svg.PlotAxis,
    label: str,
) -> Markup:
    y = svg.padded_axis([p[1] for p in points + training] or [0.0], LOSS)
    series = [svg.Series("test loss", tuple(points), 1)]
    if training:
        series.append(svg.Series("training loss", tuple(training), 2, quiet=True))
    chart = svg.frame(
        f"{label}: {_ends(points)}", svg.lines(series, x, y, label_ends=True), height=250, x=x, y=y
    )
    return svg.legend([(one.style, one.label) for one in series]) + chart


def _ends(points: Sequence[tuple[float, float]]) -> str:
    if not points:
        return "nothing measured yet"
    return f"from {points[0][1]:.3f} to {points[-1][1]:.3f}"


def metrics_over_rounds(record: Record) -> Figure | None:
    """Draw the other measures of the test set over the rounds, where there are any."""
    names = dict.fromkeys(name for r in record.rounds for name in r.metrics)
    initial = record.description.initial_metrics if record.description else {}
    series = []
    for color, name in enumerate(list(names)[:8], start=1):
        points = [(0.0, initial.get(name))] if name in initial else []
        points += [(float(r.round), r.metrics.get(name)) for r in record.rounds]
        known = tuple((px, py) for px, py in points if py is not None)
        if known:
            series.append(svg.Series(name.replace("_", " "), known, color))
    if not series:
        return None
    x = svg.round_axis(len(record.rounds), first=0 if series[0].points[0][0] == 0 else 1)
    y = svg.padded_axis([p[1] for one in series for p in one.points], "value")
    chart = svg.frame(
        "Other measures against rounds", svg.lines(series, x, y), height=250, x=x, y=y
    )
    entries = [(one.style, one.label) for one in series]
    return Figure(
        "metrics",
        "Other measures of the test set",
        "After each round that was evaluated; round 0 is before training.",
        svg.legend(entries) + chart,
    )


def latency(record: Record) -> Figure:
    """Draw each round's length: realised, as planned, and under `none`."""
    rounds = record.rounds
    longest = max(
        max(r.round_latency_s, r.none_latency_s or 0, r.predicted_latency_s or 0) for r in rounds
    )
    time = svg.time_axis(longest, "length of the round", wanted=4)
    y = svg.PlotAxis(time.low, time.high, time.title, time.marks)
    step = 100 / len(rounds)
    bars = Markup("")
    for i, r in enumerate(rounds):
        title = (
            f"round {r.round}: {numbers.seconds(r.round_latency_s)} realised, "
            f"{numbers.seconds(r.predicted_latency_s)} predicted, "
            f"{numbers.seconds(r.none_latency_s)} under none"
        )
        bars += Markup("<g><title>{}</title>").format(title)
        if r.none_latency_s is not None and record.method != "none":
            bars += _bar("none", i * step + 0.1 * step, 0.8 * step, y.at(r.none_latency_s))
        bars += _bar("realised", i * step + 0.24 * step, 0.52 * step, y.at(r.round_latency_s))
        if r.predicted_latency_s is not None:
            at = 100 - y.at(r.predicted_latency_s)
            bars += Markup(
                f'<line class="predicted" x1="{(i + 0.16) * step:.3f}%" '
                f'x2="{(i + 0.84) * step:.3f}%" y1="{at:.3f}%" y2="{at:.3f}%"/>'
            )
        bars += Markup("</g>")
    entries = [("bar realised", "realised"), ("tick", "predicted"), ("bar none", "under none")]
    marks = svg.round_axis(len(rounds)).marks
    x = svg.PlotAxis(
        0.5, len(rounds) + 0.5, "round", tuple(m for m in marks if m[0] <= len(rounds))
    )
    return Figure(
        "latency",
        "How long each round took",
        "The dark bar is the round as it happened on the virtual clock; the tick is what the "
        "plan predicted from its cost model; the pale bar is the same round and channel "
        "without pruning and with equal bandwidth.",
        svg.legend(entries if record.method != "none" else entries[:2])
        + svg.frame("Length of each round", bars, height=230, x=x, y=y),
        wide=True,
    )


def _bar(kind: str, x: float, width: float, height: float) -> Markup:
    return Markup(
        f'<rect class="{kind}" x="{x:.3f}%" width="{width:.3f}%" y="{100 - height:.3f}%" '
        f'height="{height:.3f}%"/>'
    )


def timeline(record: Record) -> Figure:
    """Draw what each client did in the last round; the page's script shows the others."""
    final = record.rounds[-1]
    # As many rows as the largest cohort has; the script fills those that this round has not.
    most = max(record.rounds, key=lambda r: len(r.clients)).clients
    spare = most[len(final.clients) :]
    x = svg.time_axis(max(client.total_s for client in final.clients), "time in the round")
    slowest = last_client(final.clients)
    rows = Markup("").join(
        _timeline_row(k, client, x, is_last=k == slowest) for k, client in enumerate(final.clients)
    )
    for k, client in enumerate(spare, start=len(final.clients)):
        row = _timeline_row(k, client, x, is_last=False)
        rows += Markup('<g display="none">{}</g>').format(row)
    body = svg.frame(
        f"Timeline of round {final.round}: download, compute and upload of every client",
        rows,
        height=ROW_HEIGHT * len(most) + 4,
        x=x,
        left=label_width([client.name for client in final.clients]),
        right=TOTAL_WIDTH,
    )
    entries = [
        ("bar download", "download"),
        ("bar compute", "compute"),
        ("bar upload", "upload"),
        ("bar out", " or ".join(_absences(record))),
    ]
    return Figure(
        "timeline",
        "Inside a round, client by client",
        "Every client receives the adapter, fine-tunes its submodel and sends its update. "
        "The round ends with the client in bold. A good plan lets slow links and slow "
        "processors end together.",
        svg.legend(entries if _absences(record) else entries[:3]) + body,
        wide=True,
    )


def _absences(record: Record) -> list[str]:
    """Say in which ways clients were missing from a merge of this run."""
    clients = [client for r in record.rounds for client in r.clients]
    left = ["left out"] if any(map(is_left_out, clients)) else []
    return left + (["sat out"] if any(client.status == SAT_OUT for client in clients) else [])


def _timeline_row(k: int, client: ClientRecord, x: svg.PlotAxis, *, is_last: bool) -> Markup:
    y = k * ROW_HEIGHT + 3
    height = ROW_HEIGHT - 6
    start, bars = 0.0, Markup("")
    for phase in ("download", "compute", "upload"):
        end = start + getattr(client, f"{'downlink' if phase == 'download' else phase}_s")
        bars += Markup(
            f'<rect class="{phase}" x="{x.at(start):.3f}%" width="{x.at(end) - x.at(start):.3f}%" '
            f'y="{y}" height="{height}"/>'
        )
        start = end
    kind = "row" + (" last" if is_last else "") + ("" if client.status == OK else " out")
    title = f"{client.name}: {numbers.seconds(client.total_s)}, {client.status}"
    return Markup(
        '<g class="{}"><title>{}</title><text class="name" x="-8" y="{}" dy="11.5" '
        'text-anchor="end">{}</text>{}<text class="total" x="{}%" y="{}" dx="6" dy="11.5">{}'
        "</text></g>"
    ).format(
        kind, title, y, client.name, bars, f"{x.at(start):.3f}", y, numbers.seconds(client.total_s)
    )


def timeline_data(record: Record) -> list[list[list[object]]]:
    """Return for each round and client: download, compute, upload in s, and why it is missing."""
    return [
        [
            [
                float(f"{c.downlink_s:.4g}"),
                float(f"{c.compute_s:.4g}"),
                float(f"{c.upload_s:.4g}"),
                "" if c.status == OK else "left out" if is_left_out(c) else SAT_OUT,
            ]
            for c in r.clients
        ]
        for r in record.rounds
    ]


def label_width(names: Sequence[str]) -> int:
    """Return the room in px that the longest of the names takes before a row."""
    return 14 + round(6.8 * max(map(len, names), default=0))


def pruning_map(record: Record) -> Figure:
    """Draw the realised pruning rate of every client in every round."""
    return _heat_map(
        record,
        "pruning",
        "Pruning per client",
        "Share of the decoder blocks' parameters that the client left out, in %. Darker is a "
        "smaller submodel: the plan cuts where compute or the link is slow.",
        [
            [None if c.pruning is None else 100 * c.pruning for c in r.clients]
            for r in record.rounds
        ],
        "%",
    )


def bandwidth_map(record: Record) -> Figure:
    """Draw the uplink band of every client in every round."""
    every = (c.bandwidth_hz for r in record.rounds for c in r.clients)
    factor, unit = numbers.common_unit(every, "Hz")
    return _heat_map(
        record,
        "bandwidth",
        "Bandwidth per client",
        f"Uplink band that the client was given, in {unit}. Darker is more spectrum: a plan gives "
        "it where the round would wait otherwise.",
        [
            [None if c.status == NOT_DRAWN else c.bandwidth_hz / factor for c in r.clients]
            for r in record.rounds
        ],
        unit,
    )


def _heat_map(
    record: Record,
    id: str,
    title: str,
    caption: str,
    values: Sequence[Sequence[float | None]],
    unit: str,
) -> Figure:
    stride = -(-len(values) // COLUMNS)
    shown = range(0, len(values), stride)
    names = [client.name for client in record.rounds[-1].clients]
    high = max((v or 0.0 for column in values for v in column), default=0.0)
    cells = Markup("")
    width = 100 / len(shown)
    for column, i in enumerate(shown):
        for k, value in enumerate(values[i]):
            if value is None:  # nothing to show: the client did not take part
                continue
            strength = value / high if high > 0 else 0.0
            text = numbers.digits(value, 2) if len(shown) <= 8 else ""
            cells += _cell(
                column * width, k, width, strength,
                f"{names[k]}, round {i + 1}: {numbers.digits(value)} {unit}", text,
            )  # fmt: skip
    labels = Markup("").join(
        Markup('<text class="name" x="-8" y="{}" dy="14" text-anchor="end">{}</text>').format(
            k * ROW_HEIGHT, name
        )
        for k, name in enumerate(names)
    )
    marks = [m for m in svg.round_axis(len(values)).marks if m[0] <= len(values)]
    x = svg.PlotAxis(
        1 - 0.5 * stride, len(shown) * stride + 1 - 0.5 * stride, "round", tuple(marks)
    )
    ramp = Markup('<div class="ramp"><span>0 {}</span><i></i><span>{} {}</span></div>').format(
        unit, numbers.digits(high, 2), unit
    )
    body = svg.frame(
        f"{title}, {unit}", cells + labels, height=ROW_HEIGHT * len(names), x=x,
        left=label_width(names), right=4,
    )  # fmt: skip
    note = f" Every {stride}th round is shown." if stride > 1 else ""
    return Figure(id, title, caption + note, ramp + body)


def _cell(x: float, k: int, width: float, strength: float, title: str, text: str) -> Markup:
    y = k * ROW_HEIGHT
    inner = ""
    if text:
        kind = "strong" if strength > 0.55 else "weak"
        inner = (
            f'<text class="cell {kind}" x="{x + width / 2:.3f}%" y="{y}" dy="14" '
            f'text-anchor="middle">{text}</text>'
        )
    return Markup(
        f'<g><title>{svg.text(title)}</title><rect class="heat" x="{x:.3f}%" '
        f'width="{width:.3f}%" y="{y}" height="{ROW_HEIGHT}" '
        f'fill-opacity="{0.04 + 0.96 * strength:.3f}"/>{inner}</g>'
    )


def gap_over_rounds(record: Record) -> Figure | None:
    """Draw how far each plan is above its lower bound, where that is visible at all."""
    gaps = [(float(r.round), 100 * r.gap) for r in record.rounds if r.gap is not None]
    if not gaps or max(value for _, value in gaps) < 0.01:
        return None
    x = svg.round_axis(len(record.rounds))
    y = svg.axis(0, 1.08 * max(value for _, value in gaps), "gap (%)")
    series = [svg.Series("gap", tuple(gaps), 1, unit="%")]
    return Figure(
        "gap",
        "How far from the best plan",
        "Objective of the plan above its certified lower bound. No plan for the round could "
        "have been better by more than this.",
        svg.frame("Gap of each round's plan", svg.lines(series, x, y), height=210, x=x, y=y),
        wide=True,
    )
