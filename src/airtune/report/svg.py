"""Charts as inline SVG that needs no script, no font and no image.

A chart's SVG covers exactly the plot area, with positions in percent of it: it takes the
width that the page has while text and markers keep their size. Axis labels hang over its
edge into the padding of the frame around it. Colours are the page's CSS variables, so that
light, dark and print each have theirs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from airtune.report.numbers import tick_labels, ticks

SHAPES = ("circle", "square", "diamond", "up", "down", "pentagon", "star", "hexagon")


@dataclass(frozen=True)
class PlotAxis:
    """A linear axis: its range, its title with the unit, and where its ticks are."""

    low: float
    high: float
    title: str
    marks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Return the position of a value in percent of the axis."""
        return 100 * (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Series:
    """A line through points, in one of the page's series colours (1 to 8)."""

    label: str
    points: tuple[tuple[float, float], ...]
    color: int = 1
    quiet: bool = False
    """Thinner and without markers: there for context."""
    unit: str = ""
    dash: int | None = None
    """Pattern of the line (1 to 8, 1 is solid); that of its colour where none is given."""

    @property
    def style(self) -> str:
        """CSS classes of the line, for the drawing and for its legend."""
        return f"line s{self.color} " + ("quiet" if self.quiet else f"d{self.dash or self.color}")


def axis(low: float, high: float, title: str, *, wanted: int = 5) -> PlotAxis:
    """Return an axis from low to high with round ticks; an empty range is widened."""
    if not high - low > 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - (abs(low) or 1) * 0.5, high + (abs(high) or 1) * 0.5
    values = ticks(low, high, wanted)
    return PlotAxis(low, high, title, tuple(zip(values, tick_labels(values), strict=True)))


def padded_axis(values: Sequence[float], title: str) -> PlotAxis:
    """Return an axis around the values with a margin, for figures whose zero means nothing."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 1.0
    return axis(low - margin, high + margin, title)


def round_axis(count: int, *, first: int = 1) -> PlotAxis:
    """Return the axis of rounds `first` to `count`; ticks are whole rounds."""
    high = max(count, first + 1)
    values = [v for v in ticks(first, high, 7) if v == int(v)] or [first, high]
    if first == 1 and values[0] != 1:
        values = [1, *values]
    return PlotAxis(first, high, "round", tuple((v, f"{v:,.0f}") for v in values))


def time_axis(longest_s: float, title: str, *, wanted: int = 5) -> PlotAxis:
    """Return an axis of seconds from 0; the ticks count minutes or hours where those fit."""
    divisor, unit = next(
        (d, u) for d, u, limit in ((1, "s", 9e3), (60, "min", 3e4), (3600, "h", float("inf")))
        if longest_s <= limit
    )  # fmt: skip
    inner = axis(0, (longest_s or 1) * 1.04 / divisor, "", wanted=wanted)
    marks = tuple((value * divisor, label) for value, label in inner.marks)
    return PlotAxis(0, inner.high * divisor, f"{title} ({unit})", marks)


def frame(
    label: str,
    body: Markup,
    *,
    height: int,
    x: PlotAxis | None = None,
    y: PlotAxis | None = None,
    left: int = 46,
    right: int = 14,
) -> Markup:
    """Put a body into its frame of axes; `label` is read out by screen readers."""
    grid = Markup("")
    if y is not None:
        for value, text in y.marks:
            at = 100 - y.at(value)
            grid += Markup(
                f'<line class="grid" x1="0" x2="100%" y1="{at:.3f}%" y2="{at:.3f}%"/>'
                f'<text class="tick" x="-8" y="{at:.3f}%" dy="4" text-anchor="end">{text}</text>'
            )
    if x is not None:
        grid += x_ticks(x)
    x_title = Markup('<div class="x-title">{}</div>').format(x.title) if x else ""
    y_title = Markup('<div class="y-title">{}</div>').format(y.title) if y and y.title else ""
    return Markup(
        '<div class="plot" style="--left:{}px;--right:{}px">{}'
        '<svg role="img" aria-label="{}" width="100%" height="{}">{}{}</svg>{}</div>'
    ).format(left, right, y_title, label, height, grid, body, x_title)


def x_ticks(x: PlotAxis) -> Markup:
    """Return the marks under the plot area."""
    marks = "".join(
        f'<text class="tick" x="{x.at(v):.3f}%" y="100%" dy="18" text-anchor="middle">{text}</text>'
        for v, text in x.marks
    )
    axis = '<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>'
    return Markup(f'<g class="x-ticks">{axis}{marks}</g>')


def lines(
    series: Sequence[Series], x: PlotAxis, y: PlotAxis, *, label_ends: bool = False
) -> Markup:
    """Draw lines with a marker at each point; hovering over one tells its figures."""
    paths, points = Markup(""), Markup("")
    for one in series:
        at = [(x.at(px), 100 - y.at(py)) for px, py in one.points]
        if len(at) > 1:
            d = "M" + "L".join(f"{px:.3f} {py:.3f}" for px, py in at)
            paths += Markup(f'<path class="{one.style}" d="{d}"/>')
        if not one.quiet or len(at) == 1:
            for (px, py), (vx, vy) in zip(at, one.points, strict=True):
                points += _point(one, px, py, vx, vy, x, y, small=len(at) > 40)
    if label_ends and series and series[0].points:
        points += _end_labels(series[0], x, y)
    return Markup(
        '<svg class="stretch" viewBox="0 0 100 100" preserveAspectRatio="none" width="100%" '
        'height="100%">{}</svg>{}'
    ).format(paths, points)


def _point(
    one: Series,
    px: float,
    py: float,
    vx: float,
    vy: float,
    x: PlotAxis,
    y: PlotAxis,
    *,
    small: bool,
) -> Markup:
    where = f"{x.title.split(' (')[0]} {vx:,.6g}"
    return Markup(
        '<g class="point s{}"><title>{}: {} {} at {}</title>'
        '<circle class="hit" cx="{}%" cy="{}%" r="9"/>'
        '<circle class="dot" cx="{}%" cy="{}%" r="{}"/></g>'
    ).format(
        one.color, one.label, f"{vy:.4g}", one.unit, where,
        f"{px:.3f}", f"{py:.3f}", f"{px:.3f}", f"{py:.3f}", 2 if small else 3.6,
    )  # fmt: skip


def _end_labels(one: Series, x: PlotAxis, y: PlotAxis) -> Markup:
    """Write the first value beside its point and the last on the side the line leaves free."""
    ends = [(one.points[0], 9, 4, "start")]
    if len(one.points) > 1:
        falling = one.points[-1][1] <= one.points[-2][1]
        ends.append((one.points[-1], 2, 19 if falling else -11, "end"))
    return Markup("").join(
        Markup(
            '<text class="value" x="{}%" y="{}%" dx="{}" dy="{}" text-anchor="{}">{}</text>'
        ).format(f"{x.at(px):.3f}", f"{100 - y.at(py):.3f}", dx, dy, anchor, f"{py:.3f}")
        for (px, py), dx, dy, anchor in ends
    )


def end_names(series: Sequence[Series], x: PlotAxis, y: PlotAxis, height: int) -> Markup:
    """Write each line's name beside its end, moved up or down where names would collide.

    Args:
        series: the lines.
        x: the horizontal axis.
        y: the vertical axis.
        height: of the plot area in px.
    """
    drawn = [one for one in series if one.points]
    ends = [
        (x.at(one.points[-1][0]), height * (1 - y.at(one.points[-1][1]) / 100)) for one in drawn
    ]
    return Markup("").join(
        Markup(
            '<text class="end-name" x="{}%" y="{}" dx="9" dy="4">'
            '<tspan class="bullet s{}">●</tspan> {}</text>'
        ).format(f"{at:.3f}", f"{place:.1f}", one.color, one.label)
        for one, (at, _), place in zip(drawn, ends, spread(ends, height), strict=True)
    )


def spread(ends: Sequence[tuple[float, float]], height: float, step: float = 14) -> list[float]:
    """Return heights near those of the ends (x in %, y in px), `step` apart where they are close.

    Ends with less than a third of the width between them count as close.
    """
    places = [y for _, y in ends]
    groups: list[list[int]] = []
    for i in sorted(range(len(ends)), key=lambda i: ends[i][0]):
        if groups and ends[i][0] - ends[groups[-1][-1]][0] < 100 / 3:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        group.sort(key=lambda i: ends[i][1])
        for above, i in itertools.pairwise(group):
            places[i] = max(places[i], places[above] + step)
        places[group[-1]] = min(places[group[-1]], height)
        for i, below in reversed(list(itertools.pairwise(group))):
            places[i] = min(places[i], places[below] - step)
    return places


def legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Return a legend: pairs of a swatch's CSS classes and its text."""
    bar = Markup('<li><span class="swatch {}"></span>{}</li>')
    line = Markup(
        '<li><svg class="stroke" viewBox="0 0 28 4"><path class="{}" d="M1 2H27"/></svg>{}</li>'
    )
    items = Markup("").join(
        (line if kind.startswith("line ") else bar).format(kind, text) for kind, text in entries
    )
    return Markup('<ul class="legend">{}</ul>').format(items)


def shape(kind: str, size: float) -> str:
    """Return the path of a marker around the origin whose area is that of a circle's radius."""
    s = size
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "up": [(0, -1.4), (1.25, 0.85), (-1.25, 0.85)],
        "down": [(0, 1.4), (1.25, -0.85), (-1.25, -0.85)],
        "pentagon": [(0, -1.15), (1.1, -0.36), (0.68, 0.93), (-0.68, 0.93), (-1.1, -0.36)],
        "hexagon": [
            (-1.1, 0), (-0.55, -0.95), (0.55, -0.95), (1.1, 0), (0.55, 0.95), (-0.55, 0.95),
        ],
        "star": [
            (0, -1.4), (0.45, -0.45), (1.4, 0), (0.45, 0.45),
            (0, 1.4), (-0.45, 0.45), (-1.4, 0), (-0.45, -0.45),
        ],
    }  # fmt: skip
    if kind == "circle":
        return f"M{-s:.2f} 0A{s:.2f} {s:.2f} 0 1 0 {s:.2f} 0A{s:.2f} {s:.2f} 0 1 0 {-s:.2f} 0Z"
    return "M" + "L".join(f"{px * s:.2f} {py * s:.2f}" for px, py in corners[kind]) + "Z"


def text(value: object) -> str:
    """Return the value escaped for markup that is put together by hand."""
    return str(escape(str(value)))
