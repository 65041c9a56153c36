"""A study on the terminal: who is done, the ranking, and what may be claimed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from airtune.report.tables import Column, Fitted
from airtune.study.comparison import RULE, Comparison, Standing
from airtune.study.jobs import Job, Point
from airtune.study.results import Result
from airtune.study.running import BEGUN, FAILED, FINISHED, MISSING
from airtune.study.schema import Study
from airtune.study.statistics import BETTER, OPEN, WORSE, Estimate

if TYPE_CHECKING:
    from rich.table import Table

DASH = "–"


def status_table(
    study: Study, jobs: Sequence[Job], states: Sequence[tuple[str, str | None]]
) -> Table:
    """Return how many runs of each method are finished, begun, failed, missing."""
    from rich.table import Table

    table = Table(title=f"{study.name}: {len(jobs)} runs", title_justify="left")
    table.add_column("method")
    for name in (FINISHED, BEGUN, FAILED, MISSING):
        table.add_column(name, justify="right")
    table.add_column("first error", overflow="fold")
    for method in study.methods:
        own = [s for job, s in zip(jobs, states, strict=True) if job.method == method]
        counts = Counter(state for state, _ in own)
        error = next((text for _, text in own if text), "")
        cells = [str(counts[name]) for name in (FINISHED, BEGUN, FAILED, MISSING)]
        table.add_row(method, *cells, error)
    return table


def ranking_table(comparison: Comparison) -> Fitted:
    """Return the methods at one point, the lowest mean loss first."""
    standings = comparison.standings
    columns = [
        Column("method", [one.method for one in standings], "name"),
        Column("seeds", [f"{o.seeds}" + (f" (−{o.broken})" if o.broken else "") for o in standings],
               rank=2),
        Column("final\nloss", [number(one.final_loss) for one in standings]),
        Column("loss\ndifference", [estimate_text(one.loss) for one in standings]),
        Column("time\nratio", [estimate_text(one.time) for one in standings], rank=1),
        Column("uplink\nratio", [estimate_text(one.uplink) for one in standings], rank=4),
    ]  # fmt: skip
    if any(one.energy is not None for one in standings):
        energy = [DASH if one.energy is None else estimate_text(one.energy) for one in standings]
        columns.append(Column("energy\nratio", energy, rank=5))
    reached = [f"{one.reached} of {one.seeds}" for one in standings]
    columns.append(Column("target\nreached", reached, rank=3))
    title = f"{point_text(comparison.point)}, against {comparison.reference or DASH}"
    return Fitted(columns, title=title, rows="methods", all_in="the page")


def sentences(
    study: Study, results: Sequence[Result], comparisons: Sequence[Comparison]
) -> list[str]:
    """Say what the study shows, what it does not, and what would be needed."""
    lines = [RULE]
    for comparison in comparisons:
        lines += claims(comparison)
    broken = [one for one in results if one.error]
    for one in broken[:5]:
        lines.append(f"{one.method}, seed {one.seed}: {one.status}: {one.error}")
    if len(broken) > 5:
        lines.append(f"… and {len(broken) - 5} further runs that failed or diverged")
    versions = sorted({one.version for one in results if one.version})
    if len(versions) > 1:
        lines.append(f"made by different versions of airtune: {', '.join(versions)}")
    return lines


def claims(comparison: Comparison) -> list[str]:
    """Say of each method what its intervals carry, and how many more seeds a claim would need."""
    texts = [
        _claim(o, comparison) for o in comparison.standings if o.method != comparison.reference
    ]
    return [text for text in texts if text]


def _claim(one: Standing, comparison: Comparison) -> str:
    where = f" ({point_text(comparison.point)})" if comparison.point else ""
    said = []
    for what, estimate in (("final loss", one.loss), ("time to the target", one.time),
                           ("uplink to the target", one.uplink),
                           ("energy to the target", one.energy)):  # fmt: skip
        if estimate is None or not estimate.seeds:
            continue
        text = f"{what} {claim_text(estimate)}"
        if (more := estimate.more_seeds) and estimate.verdict == OPEN:
            text += f", a claim would need about {more} more seed{'s' * (more > 1)}"
        said.append(text)
    return f"{one.method}{where}: {'; '.join(said)}" if said else ""


def claim_text(estimate: Estimate) -> str:
    """Say better or worse only where the 95 % interval says so."""
    if estimate.seeds < 2:
        return "on one seed: nothing can be said"
    if estimate.lost:
        return (
            f"is not compared: in {estimate.lost} of the pairs a run failed or diverged, or the "
            "reference did not reach the target"
        )
    if estimate.verdict in (BETTER, WORSE):
        lower = "lower" if estimate.verdict == BETTER else "higher"
        return f"{lower}, {estimate_text(estimate)}"
    reached = f" (not reached on {estimate.censored} seeds)" if estimate.censored else ""
    return f"no difference shown{reached}"


def estimate_text(estimate: Estimate) -> str:
    """Return value and interval, e.g. `0.62 [0.55, 0.70]`; the value alone where there is none.

    Where seeds are censored, the value is the median, not the mean. It takes these seeds as
    infinite, so it is written as `median at most 1.41`, and as `not reached` where they are half
    or more. An open upper end is `…`.
    """
    if not estimate.seeds or math.isnan(estimate.value):
        return DASH
    signed = estimate.neutral == 0.0
    value = "not reached" if math.isinf(estimate.value) else number(estimate.value, signed)
    if estimate.censored and math.isfinite(estimate.value):
        value = f"median at most {value}"
    if math.isinf(estimate.low) or (math.isinf(estimate.high) and not estimate.censored):
        return value
    if estimate.censored and estimate.low == 0.0:
        return value
    high = "…" if math.isinf(estimate.high) else number(estimate.high, signed)
    return f"{value} [{number(estimate.low, signed)}, {high}]"


def number(value: float, signed: bool = False) -> str:
    """Return three digits, with a sign where asked; a dash where there is no number."""
    if math.isnan(value) or math.isinf(value):
        return DASH
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def point_text(point: Point) -> str:
    """Return a point of the axes in words."""
    return ", ".join(f"{axis} = {label}" for axis, label in point) or "the base scenario"
