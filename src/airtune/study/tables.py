"""A study's tables for other programs and for papers: CSV, Parquet, LaTeX."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airtune.record.files import write_durably
from airtune.study.comparison import Comparison, taken
from airtune.study.console import estimate_text, number, point_text
from airtune.study.results import PHASES, Result
from airtune.study.statistics import Estimate

Row = dict[str, Any]
SPECIAL = {c: "\\" + c for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
                                              "\\": r"\textbackslash{}"}  # fmt: skip


def write_tables(
    results: Sequence[Result], comparisons: Sequence[Comparison], folder: Path
) -> list[Path]:
    """Write `runs` (one row a run) and `ranking` (one a method and point); return the files.

    Both as CSV and Parquet; `ranking.tex` holds a booktabs table for each point.

    Raises:
        RunError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rows in (
        ("runs", run_rows(results, comparisons)),
        ("ranking", rank_rows(comparisons)),
    ):
        for end, data in (("csv", _csv(rows)), ("parquet", _parquet(rows))):
            paths.append(folder / f"{name}.{end}")
            write_durably(paths[-1], data)
    paths.append(folder / "ranking.tex")
    write_durably(paths[-1], latex(comparisons).encode())
    return paths


def run_rows(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[Row]:
    """Return one row a run: what it came to, and what reaching the target took.

    `censored` is true where a run finished without reaching the target: what it took is then
    more than all that it was followed for.
    """
    targets: Mapping[Any, Mapping[int, float]] = {c.point: c.targets for c in comparisons}
    measures = sorted({name for one in results for name in one.metrics})
    rows = []
    for one in results:
        target = targets[one.point].get(one.seed)
        reached = one.usable and target is not None and one.reached(target) is not None
        row: Row = {
            "method": one.method,
            "kind": one.kind,
            "point": point_text(one.point) if one.point else "",
            "seed": one.seed,
            "status": one.status,
            "rounds": max(0, len(one.loss) - 1),
            "final_loss": one.final_loss,
            "target_loss": target,
            "censored": one.usable and target is not None and not reached,
            "time_to_target_s": taken(one, "elapsed_s", target),
            "uplink_bits_to_target": taken(one, "uplink_bits", target),
            "downlink_bits_to_target": taken(one, "downlink_bits", target),
            "flops_to_target": taken(one, "flops", target),
            "energy_j_to_target": taken(one, "energy_j", target),
        }
        for key in ("elapsed_s", "uplink_bits", "downlink_bits", "flops", "energy_j"):
            series = getattr(one, key)
            row[key] = float(series[-1]) if series else None
        row |= {f"round_{phase}": one.budget_s.get(phase) for phase in (*PHASES, "waiting_s")}
        row |= {name: one.metrics.get(name) for name in measures}
        row |= {"wall_s": one.wall_s, "run": one.key, "error": one.error}
        rows.append(row)
    return rows


def rank_rows(comparisons: Sequence[Comparison]) -> list[Row]:
    """Return one row a method and point: means and 95 % intervals against the reference."""
    rows = []
    for comparison in comparisons:
        for one in comparison.standings:
            row: Row = {
                "point": point_text(comparison.point) if comparison.point else "",
                "method": one.method,
                "kind": one.kind,
                "reference": comparison.reference,
                "seeds": one.seeds,
                "failed_or_diverged": one.broken,
                "final_loss": _finite(one.final_loss),
                "target_reached": one.reached,
            }
            named: dict[str, Estimate | None] = {
                "loss_difference": one.loss, "time_ratio": one.time, "uplink_ratio": one.uplink,
                "energy_ratio": one.energy,
            }  # fmt: skip
            for name, estimate in named.items():
                row |= _estimate_columns(name, estimate)
            rows.append(row)
    return rows


def _estimate_columns(name: str, estimate: Estimate | None) -> Row:
    given = estimate is not None and estimate.seeds > 0
    return {
        name: _finite(estimate.value) if estimate and given else None,
        f"{name}_low": _finite(estimate.low) if estimate and given else None,
        f"{name}_high": _finite(estimate.high) if estimate and given else None,
        f"{name}_censored": estimate.censored if estimate and given else None,
        f"{name}_verdict": estimate.verdict if estimate and given else None,
        f"{name}_more_seeds": estimate.more_seeds if estimate and given else None,
    }


def latex(comparisons: Sequence[Comparison]) -> str:
    """Return a booktabs table for each point, with its caption."""
    parts = ["% needs \\usepackage{booktabs}"]
    for comparison in comparisons:
        energy = any(one.energy is not None for one in comparison.standings)
        heads = ["Method", "Seeds", "Final loss", "Loss difference", "Time ratio", "Uplink ratio"]
        heads += ["Energy ratio"] * energy + ["Target reached"]
        reference = escaped(comparison.reference or "no method")
        parts += [
            "\\begin{table}",
            f"\\caption{{{escaped(point_text(comparison.point))}: against {reference} on the same "
            "seeds; mean and 95\\,\\% interval. Time, uplink and energy are those to the target; "
            "where a seed is censored, the median.}",
            f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
            "\\toprule",
            " & ".join(heads) + " \\\\",
            "\\midrule",
        ]
        for one in comparison.standings:
            cells = [escaped(one.method), str(one.seeds), number(one.final_loss)]
            estimates = [one.loss, one.time, one.uplink, *([one.energy] * energy)]
            cells += [estimate_text(e) if e is not None else "–" for e in estimates]
            cells.append(f"{one.reached} of {one.seeds}")
            parts.append(" & ".join(cells).replace("–", "--").replace("…", "\\ldots") + " \\\\")
        parts += ["\\bottomrule", "\\end{tabular}", "\\end{table}", ""]
    return "\n".join(parts)


def escaped(text: str) -> str:
    """Return the text with LaTeX's special characters escaped."""
    return "".join(SPECIAL.get(character, character) for character in text)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _csv(rows: Sequence[Row]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()
