"""The cell seen from above: base station, distance rings, devices by kind and share of band."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from airtune.record import ClientSite, Record
from airtune.report import numbers, svg
from airtune.report.figures import ROW_HEIGHT, TOTAL_WIDTH, Figure, label_width
from airtune.report.summary import client_summaries

HALF = 210.0
"""Half the side of the drawing, in its own units."""


def cell_map(record: Record) -> Figure | None:
    """Draw the cell, or return None where the run recorded no positions."""
    if record.description is None or not record.description.clients:
        return None
    sites = record.description.clients
    farthest = max(site.distance_m for site in sites)
    radius = max(float(record.scenario.get("cell", {}).get("radius_m", 0)), farthest) or 1.0
    scale = (HALF - 16) / radius
    kinds = list(dict.fromkeys(site.profile for site in sites))
    shares = _shares(record, len(sites))
    body = _rings(radius, scale) + _base_station()
    sizes = [4.2 + 11 * math.sqrt(share) for share in shares]
    places = [(site.x_m * scale, -site.y_m * scale) for site in sites]
    labels = _label_places(places, sizes)
    # Large markers first, so that small ones stay visible on top of them.
    for k in sorted(range(len(sites)), key=lambda k: -sizes[k]):
        kind = kinds.index(sites[k].profile)
        body += _device(k, sites[k], kind, places[k], sizes[k], shares[k], labels[k])
    drawing = Markup(
        '<svg role="img" aria-label="{}" class="map" viewBox="{} {} {} {}">{}</svg>'
    ).format(
        f"Map of the cell: {numbers.counted(len(sites), 'device')} within {radius:.0f} m",
        -HALF, -HALF, 2 * HALF, 2 * HALF, body,
    )  # fmt: skip
    return Figure(
        "cell",
        "The cell from above",
        "Numbers are those of the table of clients. The area of a marker is its mean share of "
        "the uplink band; hollow markers have no line of sight to the base station.",
        drawing + _legend(sites, kinds),
    )


def _shares(record: Record, count: int) -> list[float]:
    """Each client's mean share of the band that was handed out."""
    means = [client.bandwidth_hz for client in client_summaries(record)]
    total = sum(means)
    if len(means) != count or total <= 0:
        return [1 / count] * count
    return [mean / total for mean in means]


def _rings(radius: float, scale: float) -> Markup:
    rings = Markup(f'<circle class="edge" r="{radius * scale:.2f}"/>')
    steps = [v for v in svg.axis(0, radius, "", wanted=4).marks if 0 < v[0] < 0.97 * radius]
    for value, text in [*steps, (radius, f"{radius:,.0f}")]:
        r = value * scale
        if value < radius:
            rings += Markup(f'<circle class="ring" r="{r:.2f}"/>')
        rings += Markup(
            f'<text class="ring-label" x="0" y="{-r:.2f}" dy="-3" text-anchor="middle">{text} m'
            "</text>"
        )
    return rings


def _base_station() -> Markup:
    return Markup(
        '<g class="station"><title>base station</title>'
        '<path d="M0 -7L6 9L-6 9Z"/><circle cy="-8" r="2.6"/>'
        '<path class="wave" d="M-6 -13A8 8 0 0 0 -6 -3M6 -13A8 8 0 0 1 6 -3"/></g>'
    )


def _device(
    k: int,
    site: ClientSite,
    kind: int,
    place: tuple[float, float],
    size: float,
    share: float,
    label: tuple[float, float],
) -> Markup:
    sight = "" if site.is_los is None else (", line of sight" if site.is_los else ", no sight")
    title = (
        f"{k + 1}. {site.name}: {site.distance_m:.0f} m{sight}, {numbers.percent(share)} of the "
        f"band, {numbers.counted(site.examples, 'example')}"
    )
    hollow = " hollow" if site.is_los is False else ""
    return Markup(
        '<g class="device s{}{}"><title>{}</title><path transform="translate({} {})" d="{}"/>'
        '<text x="{}" y="{}" text-anchor="middle">{}</text></g>'
    ).format(
        kind % 8 + 1, hollow, title, f"{place[0]:.2f}", f"{place[1]:.2f}",
        svg.shape(svg.SHAPES[kind % 8], size),
        f"{label[0]:.2f}", f"{label[1]:.2f}", k + 1,
    )  # fmt: skip


def _label_places(
    places: Sequence[tuple[float, float]], sizes: Sequence[float]
) -> list[tuple[float, float]]:
    """Put each number beside its marker, where it covers least of what is there already."""
    taken: list[tuple[float, float, float]] = [
        (x, y, size) for (x, y), size in zip(places, sizes, strict=True)
    ]
    taken.append((0.0, 0.0, 12.0))
    chosen = []
    for (x, y), size in zip(places, sizes, strict=True):
        reach = size + 8
        candidates = [
            (x + reach * math.cos(angle), y + reach * math.sin(angle))
            for angle in (math.pi * i / 4 for i in range(8))
        ]

        def crowding(at: tuple[float, float]) -> float:
            outside = max(0.0, max(abs(at[0]), abs(at[1])) - HALF + 8)
            return outside + sum(
                max(0.0, r + 7 - math.hypot(at[0] - ox, at[1] - oy)) for ox, oy, r in taken
            )

        best = min(candidates, key=crowding)
        taken.append((*best, 5.0))
        chosen.append((best[0], best[1] + 4))
    return chosen


def data_shares(record: Record) -> Figure | None:
    """Draw how many training examples each client holds, by label where labels differ."""
    if record.description is None or not record.description.clients:
        return None
    sites = record.description.clients
    x = svg.axis(0, 1.02 * max(1, *(site.examples for site in sites)), "training examples")
    labels = sorted({label for site in sites for label in site.labels}, key=_label_order)
    rows = Markup("").join(_data_row(k, site, labels, x) for k, site in enumerate(sites))
    body = svg.frame(
        "Training examples of every client",
        rows,
        height=ROW_HEIGHT * len(sites) + 4,
        x=x,
        left=label_width([site.name for site in sites]),
        right=TOTAL_WIDTH,
    )
    by_label = len(labels) > 1
    if by_label:
        body = svg.legend([(f"bar label{i % 10}", name) for i, name in enumerate(labels)]) + body
    return Figure(
        "data",
        "Who holds which data",
        "Examples in each client's training set"
        + (", by label: the more the bands differ, the less alike the data." if by_label else "."),
        body,
    )


def _data_row(k: int, site: ClientSite, labels: Sequence[str], x: svg.PlotAxis) -> Markup:
    y, height = k * ROW_HEIGHT + 3, ROW_HEIGHT - 6
    counts = [(i, site.labels.get(label, 0)) for i, label in enumerate(labels)]
    # Labels may also count the examples that are held back: then the bands are shares.
    unit = site.examples / (sum(count for _, count in counts) or 1)
    if not labels:
        counts, unit = [(0, 1)], site.examples
    start, bars = 0.0, Markup("")
    for i, count in counts:
        if count:
            bars += Markup(
                f'<rect class="label{i % 10}" x="{x.at(start):.3f}%" y="{y}" height="{height}" '
                f'width="{x.at(count * unit):.3f}%"/>'
            )
            start += count * unit
    text = ", ".join(f"{count} of label {label}" for label, count in site.labels.items())
    return Markup(
        '<g><title>{}</title><text class="name" x="-8" y="{}" dy="11.5" text-anchor="end">{}</text>'
        '{}<text class="total" x="{}%" y="{}" dx="6" dy="11.5">{}</text></g>'
    ).format(f"{site.name}: {text}", y, site.name, bars, f"{x.at(start):.3f}", y, site.examples)


def _legend(sites: Sequence[ClientSite], kinds: Sequence[str]) -> Markup:
    items = Markup("")
    for i, kind in enumerate(kinds):
        count = sum(site.profile == kind for site in sites)
        items += Markup(
            '<li><svg class="key device s{}" viewBox="-9 -9 18 18"><path d="{}"/></svg>{} × {}</li>'
        ).format(i % 8 + 1, svg.shape(svg.SHAPES[i % 8], 6), count, kind)
    if any(site.is_los is not None for site in sites):
        key = '<li><svg class="key device{}" viewBox="-9 -9 18 18"><path d="{}"/></svg>{}</li>'
        for hollow, text in (("", "line of sight"), (" hollow", "no line of sight")):
            items += Markup(key).format(hollow, svg.shape("circle", 6), text)
    return Markup('<ul class="legend">{}</ul>').format(items)


def _label_order(label: str) -> tuple[bool, int, str]:
    """Numbers by value, then names by the alphabet."""
    number = label.isdigit()
    return not number, int(label) if number else 0, label
