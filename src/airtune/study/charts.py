"""The page's charts as Vega-Lite, put together by Altair: hover, zoom, hide a line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airtune.study import curves
from airtune.study.comparison import Comparison
from airtune.study.results import Result
from airtune.study.schema import Study

Chart = dict[str, Any]
TOLD = {"better": curves.PALETTE[2], "worse": curves.PALETTE[1], "no difference shown": "#8a8f98"}
LOSS_NOTE = (
    "Mean over seeds; the band reaches from the lowest to the highest seed. Dashed: some of the "
    "method's runs have ended and keep their last loss."
)
LOSS_KEYS = (
    "Click a name below to see that method alone (shift-click: several); with shift, scroll to "
    "zoom and drag to move."
)
NO_ALTAIR = "With Altair (pip install 'airtune[study]') the charts are interactive."


def charts_of(
    study: Study, results: Sequence[Result], comparisons: Sequence[Comparison]
) -> list[Chart]:
    """Return the charts: `id`, `title`, `note`, `figure` (its name in print) and `spec`.

    `spec` is None where Altair is not installed.
    """
    if not comparisons or not any(one.usable for one in results):
        return []
    first = comparisons[0]
    base = [one for one in results if one.point == first.point]
    return [
        *_loss(base, first),
        *_ranking(first),
        *_budget(base, first),
        *_resources(base, first),
        *_axes(results, comparisons),
    ]


def _altair() -> Any:
    try:
        import altair
    except ImportError:
        return None
    return altair


def _chart(id: str, figure: str, title: str, note: str, drawn: Any, height: int) -> Chart:
    spec = None
    if drawn is not None:
        sized = drawn.properties(width="container", height=height)
        spec = sized.configure_view(stroke=None).configure_axis(labelLimit=130).to_dict()
    return {"id": id, "figure": figure, "title": title, "note": note, "spec": spec}


def _loss(results: Sequence[Result], comparison: Comparison) -> list[Chart]:
    alt = _altair()
    rows, unit = curves.loss_rows(results, comparison.reference)
    names = list(dict.fromkeys(row["method"] for row in rows))
    known = comparison.reference if comparison.reference in names else None
    charts, far_apart = [], curves.spans_orders(rows)
    for number, panel in enumerate(curves.panels(names, known) if rows else []):
        drawn = None
        if alt is not None:
            own = [row for row in rows if row["method"] in panel]
            chosen = alt.selection_point(fields=["method"], bind="legend")
            colour = alt.Color(
                "method:N",
                scale=alt.Scale(domain=panel, range=list(curves.PALETTE[: len(panel)])),
                legend=alt.Legend(orient="bottom", columns=2, title=None, symbolOpacity=1),
            )
            wide = alt.Scale(type="log") if curves.times_far_apart(rows) else alt.Scale()
            chart = alt.Chart(alt.Data(values=own)).encode(
                x=alt.X("time:Q", title=f"virtual time, {unit}", scale=wide), color=colour
            )
            seen = alt.condition(chosen, alt.value(1.0), alt.value(0.05))
            faint = alt.condition(chosen, alt.value(0.12), alt.value(0.0))
            scale = alt.Scale(type="log") if far_apart else alt.Scale(zero=False)
            band = chart.mark_area().encode(
                y=alt.Y("low:Q", title="test loss", scale=scale), y2="high:Q",
                opacity=faint, detail="part:N",
            )  # fmt: skip
            dash = alt.Scale(domain=[0, 1], range=[[1, 0], [5, 3]])
            line = chart.mark_line().encode(
                y=alt.Y("loss:Q", title="test loss", scale=scale),
                opacity=seen,
                strokeDash=alt.StrokeDash("part:N", scale=dash, legend=None),
                tooltip=["method:N", "running:Q", *(alt.Tooltip(f"{key}:Q", format=".3f")
                                                    for key in ("time", "loss", "low", "high"))],
            )  # fmt: skip
            # With shift alone: a page that is scrolled past must not zoom its charts.
            zoom = alt.selection_interval(
                bind="scales",
                zoom="wheel![event.shiftKey]",
                translate="[pointerdown[event.shiftKey], window:pointerup] > window:pointermove!",
            )
            drawn = alt.layer(band, line.add_params(chosen, zoom))
        charts.append(
            _chart(
                f"loss-{number}", "loss", "Loss against virtual time",
                f"{LOSS_NOTE} {LOSS_KEYS}" if alt is not None else f"{LOSS_NOTE} {NO_ALTAIR}",
                drawn, 340,
            )
        )  # fmt: skip
    # Matplotlib's figure holds all panels: without Altair it is shown once.
    return charts if alt is not None else charts[:1]


def _ranking(comparison: Comparison) -> list[Chart]:
    alt, rows = _altair(), curves.ranking_rows(comparison)
    rows = [row for row in rows if row["method"] != comparison.reference]
    charts = []
    for number, measure in enumerate(dict.fromkeys(row["measure"] for row in rows)):
        own, drawn = [row for row in rows if row["measure"] == measure], None
        if alt is not None:
            order = list(dict.fromkeys(row["method"] for row in own))
            colour = alt.Color(
                "verdict:N",
                scale=alt.Scale(domain=list(TOLD), range=list(TOLD.values())),
                legend=alt.Legend(orient="bottom", title=None),
            )
            chart = alt.Chart(alt.Data(values=own)).encode(
                y=alt.Y("method:N", sort=order, title=None), color=colour,
                tooltip=["method:N", "verdict:N", "seeds:Q", *(
                    alt.Tooltip(f"{key}:Q", format=".4f") for key in ("value", "low", "high"))],
            )  # fmt: skip
            axis = alt.Scale(zero=False)
            rule = chart.mark_rule(strokeWidth=2).encode(
                x=alt.X("low:Q", title=measure, scale=axis), x2="high:Q"
            )
            point = chart.mark_point(filled=True, size=70, opacity=1).encode(
                x=alt.X("value:Q", title=measure, scale=axis)
            )
            line = alt.Chart(alt.Data(values=[{"at": own[0]["neutral"]}])).mark_rule(
                color="#b8bec6", strokeDash=[4, 3]
            )
            drawn = alt.layer(line.encode(x="at:Q"), rule, point)
        charts.append(
            _chart(
                f"ranking-chart-{number}", "ranking", f"{measure[0].upper()}{measure[1:]}",
                f"Against {comparison.reference}, on the same seeds: mean (where seeds are "
                "censored: median) and 95 % interval; the dashed line is no difference.",
                drawn, 40 + 22 * len(own),
            )
        )  # fmt: skip
    return charts if alt is not None else charts[:1]


def _budget(results: Sequence[Result], comparison: Comparison) -> list[Chart]:
    alt = _altair()
    rows, unit = curves.budget_rows(results, comparison.reference)
    drawn = None
    if alt is not None and rows:
        phases = list(dict.fromkeys(row["phase"] for row in rows))
        colours = [*curves.PALETTE[:3], "#c9ced6"]
        drawn = (
            alt.Chart(alt.Data(values=rows))
            .mark_bar()
            .encode(
                x=alt.X("time:Q", title=unit),
                y=alt.Y("method:N", sort=None, title=None),
                order="order:Q",
                color=alt.Color(
                    "phase:N",
                    scale=alt.Scale(domain=phases, range=colours[: len(phases)]),
                    legend=alt.Legend(orient="bottom", columns=4, title=None),
                ),
                tooltip=["method:N", "phase:N", alt.Tooltip("time:Q", format=".3f")],
            )
        )
    count = len({row["method"] for row in rows})
    note = "What a round's mean client does with its time, and how long it waits for the slowest."
    title = "Who waits for whom"
    return [_chart("budget", "budget", title, note, drawn, 40 + 22 * count)] if rows else []


def _resources(results: Sequence[Result], comparison: Comparison) -> list[Chart]:
    alt, rows = _altair(), curves.resource_rows(results, comparison.reference)
    drawn = None
    if alt is not None and rows:
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        drawn = (
            alt.Chart(alt.Data(values=rows))
            .mark_point(filled=True, size=70, opacity=1)
            .encode(
                x=alt.X("share:Q", title=f"all rounds, {comparison.reference}'s = 1"),
                y=alt.Y("method:N", sort=None, title=None),
                shape=alt.Shape("measure:N", legend=None),
                color=alt.Color(
                    "measure:N",
                    scale=alt.Scale(domain=measures, range=list(curves.PALETTE[: len(measures)])),
                    legend=alt.Legend(orient="bottom", columns=3, title=None),
                ),
                tooltip=["method:N", "measure:N", alt.Tooltip("share:Q", format=".3f")],
            )
        )
    count = len({row["method"] for row in rows})
    note = "What all rounds took, mean over seeds, as a share of the reference's on the same seed."
    energy = any(row["measure"] == "energy" for row in rows)
    title = "Time, bits, computation" + (" and energy" if energy else "")
    return [_chart("resources", "resources", title, note, drawn, 40 + 26 * count)] if rows else []


def _axes(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[Chart]:
    alt, rows = _altair(), curves.axis_rows(results, comparisons)
    names = list(dict.fromkeys(row["method"] for row in rows))
    charts: list[Chart] = []
    titles = {"loss": "final test loss", "elapsed": "virtual time of all rounds, s"}
    for axis in dict.fromkeys(row["axis"] for row in rows):
        for key, what in titles.items():
            for panel in curves.panels(names, None):
                own = [r for r in rows if r["axis"] == axis and r["method"] in panel]
                drawn = None
                if alt is not None:
                    chosen = alt.selection_point(fields=["method"], bind="legend")
                    drawn = (
                        alt.Chart(alt.Data(values=own))
                        .mark_line(point=True)
                        .encode(
                            x=alt.X("label:O", sort=None, title=axis),
                            y=alt.Y(f"{key}:Q", title=what, scale=alt.Scale(zero=False)),
                            color=alt.Color(
                                "method:N",
                                scale=alt.Scale(
                                    domain=panel, range=list(curves.PALETTE[: len(panel)])
                                ),
                                legend=alt.Legend(
                                    orient="bottom", columns=2, title=None, symbolOpacity=1
                                ),
                            ),
                            opacity=alt.condition(chosen, alt.value(1.0), alt.value(0.05)),
                            tooltip=["method:N", "label:N", alt.Tooltip(f"{key}:Q", format=".3f")],
                        )
                        .add_params(chosen)
                    )
                charts.append(
                    _chart(
                        f"axis-{len(charts)}", "axes", f"{what[0].upper()}{what[1:]}: {axis}",
                        "Mean over seeds at each point; each point is another cell.", drawn, 280,
                    )
                )  # fmt: skip
    return charts if alt is not None else charts[:1]
