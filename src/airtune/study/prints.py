"""A study's figures for print, by Matplotlib: SVG and PDF, at most eight lines a panel."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from airtune.record.files import write_durably
from airtune.study import curves
from airtune.study.comparison import Comparison
from airtune.study.results import Result
from airtune.study.schema import Study

WIDTH = 7.0
"""Inches: a page's text."""


def write_figures(
    study: Study, results: Sequence[Result], comparisons: Sequence[Comparison], folder: Path
) -> list[Path]:
    """Draw loss, ranking, budget, resources and axes; return the files.

    What has nothing to show (no run finished, no axis) is left out.

    Raises:
        RunError: a file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    first = comparisons[0] if comparisons else None
    if first is None or not any(one.usable for one in results):
        return []
    base = [one for one in results if one.point == first.point]
    colours = colour_of(study)
    draw: dict[str, Callable[[Any], bool]] = {
        "loss": lambda figure: _loss(figure, base, first, colours),
        "ranking": lambda figure: _ranking(figure, first),
        "budget": lambda figure: _budget(figure, base, first),
        "resources": lambda figure: _resources(figure, base, first),
        "axes": lambda figure: _axes(figure, results, comparisons, colours),
    }
    paths = []
    # Fonts that can be edited and no date: the same records give the same bytes.
    style: Any = {"svg.hashsalt": study.name, "pdf.fonttype": 42, "font.size": 8}
    with matplotlib.rc_context(style):
        for name, drawn in draw.items():
            figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
            if not drawn(figure):
                continue
            for end, date in (("svg", "Date"), ("pdf", "CreationDate")):
                data = io.BytesIO()
                figure.savefig(data, format=end, metadata={date: None})
                paths.append(folder / f"{name}.{end}")
                write_durably(paths[-1], data.getvalue())
    return paths


def colour_of(study: Study) -> dict[str, str]:
    """Return each method's colour; with more than eight methods they come again."""
    return {
        name: curves.PALETTE[number % len(curves.PALETTE)]
        for number, name in enumerate(study.methods)
    }


def _grid(figure: Any, count: int, most: int = 2) -> list[Any]:
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure.set_size_inches(WIDTH, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for empty in axes[count:]:
        empty.remove()
    return list(axes[:count])


def _panel_colours(panel: Sequence[str], colours: dict[str, str]) -> dict[str, str]:
    """Return colours that differ within a panel: a method's own, or else one that is free."""
    found: dict[str, str] = {}
    for name in panel:
        free = [colour for colour in curves.PALETTE if colour not in found.values()]
        found[name] = colours[name] if colours.get(name) in free else free[0]
    return found


def _loss(
    figure: Any, results: Sequence[Result], comparison: Comparison, colours: dict[str, str]
) -> bool:
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    rows, unit = curves.loss_rows(results, comparison.reference)
    names = list(dict.fromkeys(row["method"] for row in rows))
    known = comparison.reference if comparison.reference in names else None
    groups, far_apart = curves.panels(names, known), curves.spans_orders(rows)
    for axes, panel in zip(_grid(figure, len(groups)), groups, strict=True):
        for name, colour in _panel_colours(panel, colours).items():
            for part, style in enumerate(("-", "--")):
                own = [row for row in rows if (row["method"], row["part"]) == (name, part)]
                times, losses = [row["time"] for row in own], [row["loss"] for row in own]
                label = None if part else name
                axes.plot(times, losses, style, color=colour, label=label, linewidth=1.4)
                low, high = [row["low"] for row in own], [row["high"] for row in own]
                axes.fill_between(times, low, high, color=colour, alpha=0.12, linewidth=0)
        if curves.times_far_apart(rows):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.set_xlabel(f"virtual time, {unit}")
        axes.set_ylabel("test loss per answer token")
        if far_apart:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=6, loc="upper right", framealpha=0.8)
    return bool(rows)


def _ranking(figure: Any, comparison: Comparison) -> bool:
    rows = curves.ranking_rows(comparison)
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    names = [one.method for one in comparison.standings]
    if not rows:
        return False
    figure.set_size_inches(WIDTH, 1.0 + 0.2 * len(names))
    for axes, measure in zip(
        figure.subplots(1, len(measures), sharey=True, squeeze=False)[0], measures, strict=True
    ):
        for row in rows:
            if row["measure"] != measure:
                continue
            at = names.index(row["method"])
            differs = row["verdict"] != "no difference shown"
            colour = curves.PALETTE[0] if differs else "0.55"
            axes.plot([row["low"], row["high"]], [at, at], color=colour, linewidth=1.5)
            axes.plot([row["value"]], [at], "o", color=colour, markersize=4)
        axes.axvline(rows[0]["neutral"] if measure == rows[0]["measure"] else 1.0, color="0.7",
                     linewidth=0.8, zorder=0)  # fmt: skip
        axes.set_xlabel(measure)
        axes.set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    return True


def _budget(figure: Any, results: Sequence[Result], comparison: Comparison) -> bool:
    rows, unit = curves.budget_rows(results, comparison.reference)
    names = list(dict.fromkeys(row["method"] for row in rows))
    if not rows:
        return False
    figure.set_size_inches(WIDTH, 1.2 + 0.2 * len(names))
    axes, left = figure.subplots(), dict.fromkeys(names, 0.0)
    for number, phase in enumerate(dict.fromkeys(row["phase"] for row in rows)):
        colour = "0.8" if phase == "waiting" else curves.PALETTE[number]
        times = {row["method"]: row["time"] for row in rows if row["phase"] == phase}
        axes.barh(names, [times[n] for n in names], left=[left[n] for n in names],
                  label=phase, color=colour)  # fmt: skip
        left = {name: left[name] + times[name] for name in names}
    axes.invert_yaxis()
    axes.set_xlabel(f"mean client's time, {unit}")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return True


def _resources(figure: Any, results: Sequence[Result], comparison: Comparison) -> bool:
    rows = curves.resource_rows(results, comparison.reference)
    measures = list(dict.fromkeys(row["measure"] for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows))
    if not rows:
        return False
    figure.set_size_inches(WIDTH, 1.0 + 0.2 * len(names))
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for axes, measure in zip(panels, measures, strict=True):
        own = {row["method"]: row["share"] for row in rows if row["measure"] == measure}
        axes.barh(names, [own.get(name, math.nan) for name in names], color=curves.PALETTE[0])
        axes.axvline(1.0, color="0.7", linewidth=0.8)
        axes.set_xlabel(measure)
    figure.axes[0].invert_yaxis()
    figure.supxlabel(f"all rounds, {comparison.reference}'s = 1", fontsize=8)
    return True


def _axes(
    figure: Any,
    results: Sequence[Result],
    comparisons: Sequence[Comparison],
    colours: dict[str, str],
) -> bool:
    rows = curves.axis_rows(results, comparisons)
    names = list(dict.fromkeys(row["method"] for row in rows))
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    if not rows:
        return False
    groups = [(axis, panel) for axis in axes_names for panel in curves.panels(names, None)]
    pairs = [(axis, panel, key) for axis, panel in groups for key in ("loss", "elapsed")]
    for axes, (axis, panel, key) in zip(_grid(figure, len(pairs)), pairs, strict=True):
        own = [row for row in rows if row["axis"] == axis]
        labels = list(dict.fromkeys(row["label"] for row in own))
        for name, colour in _panel_colours(panel, colours).items():
            points = [(labels.index(r["label"]), r[key]) for r in own if r["method"] == name]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=3)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel(axis)
        axes.set_ylabel("final test loss" if key == "loss" else "virtual time of all rounds, s")
        axes.legend(fontsize=6)
    return True
