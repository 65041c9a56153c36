"""A study as one offline page: ranking, charts that can be hovered and zoomed, every run's link.

The charts are Vega-Altair's, with their library inside the page (0.9 MB). Without Altair
(`airtune[study]`) the page holds Matplotlib's figures in their place.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from airtune.record.files import write_durably
from airtune.study.charts import charts_of
from airtune.study.comparison import RULE, Comparison, taken
from airtune.study.console import DASH, claims, estimate_text, number, point_text
from airtune.study.keys import RUNS
from airtune.study.results import Result
from airtune.study.schema import Study

PAGE = "report.html"


def write_page(
    study: Study, results: Sequence[Result], comparisons: Sequence[Comparison], folder: Path
) -> Path:
    """Write the study's page into its folder and return its path; raises `RunError`."""
    path = folder / PAGE
    write_durably(path, render(study, results, comparisons, folder).encode())
    return path


def render(
    study: Study, results: Sequence[Result], comparisons: Sequence[Comparison], folder: Path
) -> str:
    """Return the study's page."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("airtune.study"), autoescape=True, trim_blocks=True
    )
    charts, bundle = charts_of(study, results, comparisons), _bundle()
    if bundle is None:
        charts = [{**chart, "svg": _figure(folder, chart["figure"])} for chart in charts]
        charts = [chart for chart in charts if chart["svg"]]
    specs = {chart["id"]: chart["spec"] for chart in charts if not chart.get("svg")}
    states = Counter(one.status for one in results)
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    return environment.get_template("study.html.j2").render(
        study=study,
        counts=f"{len(results)} runs: {counts}.",
        rule=RULE,
        rankings=[_ranking(comparison) for comparison in comparisons],
        charts=charts,
        runs=[_run(one, comparisons, folder) for one in results],
        bundle=None if bundle is None else Markup(bundle),
        specs=Markup(json.dumps(specs, allow_nan=False).replace("<", "\\u003c")),
    )


def _bundle() -> str | None:
    """Return Vega, Vega-Lite and Vega-Embed as one script; None where they are not installed."""
    try:
        import altair  # noqa: F401
        import vl_convert
    except ImportError:
        return None
    bundle = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return bundle.replace("</script", "<\\/script")


def _figure(folder: Path, name: str) -> Markup | None:
    path = folder / "figures" / f"{name}.svg"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    return Markup(text[text.index("<svg") :])


def _ranking(comparison: Comparison) -> dict[str, Any]:
    energy = any(one.energy is not None for one in comparison.standings)
    rows = []
    for one in comparison.standings:
        estimates = [one.loss, one.time, one.uplink, *([one.energy] * energy)]
        rows.append(
            {
                "method": one.method,
                "kind": one.kind,
                "seeds": f"{one.seeds}" + (f" (−{one.broken})" if one.broken else ""),
                "loss": number(one.final_loss),
                "cells": [
                    {"text": DASH, "verdict": ""}
                    if estimate is None or one.method == comparison.reference
                    else {"text": estimate_text(estimate), "verdict": estimate.verdict}
                    for estimate in estimates
                ],
                "reached": f"{one.reached} of {one.seeds}",
            }
        )
    return {
        "title": f"Ranking: {point_text(comparison.point)}",
        "reference": comparison.reference or DASH,
        "energy": energy,
        "rows": rows,
        "claims": claims(comparison),
    }


def _run(one: Result, comparisons: Sequence[Comparison], folder: Path) -> dict[str, Any]:
    target = next((c.targets.get(one.seed) for c in comparisons if c.point == one.point), None)
    page = Path(RUNS) / one.key / PAGE
    ended = bool(one.elapsed_s)
    return {
        "method": one.method,
        "seed": one.seed,
        "point": point_text(one.point) if one.point else "",
        "status": one.status,
        "error": one.error or "",
        "rounds": max(0, len(one.loss) - 1),
        "loss": DASH if one.final_loss is None else number(one.final_loss),
        "time": f"{one.elapsed_s[-1]:,.1f}" if ended else DASH,
        "bits": f"{one.uplink_bits[-1] / 1e6:,.3f}" if ended else DASH,
        "reached": _to_target(one, "elapsed_s", target),
        "energy": _to_target(one, "energy_j", target),
        "key": one.key,
        "link": page.as_posix() if (folder / page).is_file() else None,
    }  # fmt: skip


def _to_target(one: Result, key: str, target: float | None) -> str:
    """Return what reaching the target took; where it was not reached, that it takes more."""
    series, at = getattr(one, key), taken(one, key, target)
    if at is not None:
        return f"{at:,.1f}"
    followed = one.usable and series and target is not None
    return f"> {series[-1]:,.1f}" if followed else DASH
