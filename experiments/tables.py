"""Tables and figures of README.md beside this file and of the project's, from committed rows.

    python experiments/tables.py        # writes the tables between their marks, and the figures

Statistics are those of `airtune study`: paired over seeds, means with Student's 95 % intervals.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rows import ROWS, read_rows, result_of

from airtune.study import load_study
from airtune.study.comparison import Standing, compare, grouped
from airtune.study.console import DASH, estimate_text, point_text
from airtune.study.jobs import Point
from airtune.study.prints import write_figures
from airtune.study.results import Result
from airtune.study.statistics import Estimate, difference, ratio

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
DOCUMENTS = (HERE / "README.md", HERE.parent / "README.md")
REFERENCE = "fedit"
STUDIES = ("clinc150", "few-texts", "cells", "memory", "gsm8k", "yahoo", "gemma")
SHORT = ("clinc150", "memory")
"""Studies with a short table, marked `short-NAME`."""
DRAWN = ("clinc150", "few-texts", "memory")
"""Studies with a figure, docs/figures/NAME-loss.svg, once they have rows."""
SHORT_METHODS = {
    "fedit": "whole models, equal bands",
    "bcd": "pruning and bands, by descent (JCPBA)",
    "heard-unpruned": "bands, steps, ranks and bits",
    "heard": "**the same and pruning**",
    "unpruned-floor": "bands, steps, ranks, bits and absence",
    "all-floor": "**the same and pruning**",
}

Measure = Literal["time", "uplink", "loss", "worst client"]


@dataclass(frozen=True)
class Aim:
    """What a method should reach against another one, at most `limit`.

    `time` and `uplink`: to the loss at which the other one ends, as a ratio. `loss` and
    `worst client`: at the end, as a difference.
    """

    study: str
    method: str
    against: str
    measure: Measure
    limit: float
    point: Point = ()


AIMS = (
    Aim("clinc150", "heard", "heard-unpruned", "time", 0.6),
    Aim("clinc150", "heard", "heard-unpruned", "loss", 0.0),
    Aim("clinc150", "heard", "heard-unpruned", "worst client", 0.0),
    Aim("clinc150", "all-floor", "unpruned-floor", "time", 0.6),
    Aim("clinc150", "all-floor", "unpruned-floor", "loss", 0.0),
    Aim("clinc150", "all-floor", "unpruned-floor", "worst client", 0.0),
    Aim("clinc150", "heard", "fedit", "time", 0.15),
    Aim("clinc150", "heard", "fedit", "uplink", 0.15),
    Aim("clinc150", "all-floor", "fedit", "time", 0.15),
    Aim("clinc150", "all-floor", "fedit", "uplink", 0.15),
    Aim("clinc150", "bcd", "fedit", "time", 0.6),
    Aim("clinc150", "bcd", "fedit", "uplink", 0.54),
    Aim("memory", "heard", "heard-unpruned", "loss", 0.0),
    Aim("memory", "all-floor", "unpruned-floor", "loss", 0.0),
)


def results_of(study: str) -> list[Result]:
    """Return the committed runs of a study, seed by seed."""
    return [result_of(row) for row in read_rows(ROWS / f"{study}.jsonl")]


def against(results: Sequence[Result], method: str, reference: str) -> Standing | None:
    """Return a method's standing against another one, whose final losses are the targets."""
    two = [
        replace(one, kind="baseline" if one.method == reference else "joint")
        for one in results
        if one.method in (method, reference)
    ]
    if len(grouped(two)) < (1 if method == reference else 2):
        return None
    standings = compare(two, reference)[0].standings
    return next(one for one in standings if one.method == method)


def worst_client(results: Sequence[Result], method: str, reference: str) -> Estimate:
    """Compare the final loss of the client that has the highest, a difference a seed."""
    own, theirs = (grouped(results).get(name, {}) for name in (method, reference))
    pairs = [
        (own[seed].metrics.get("worst_client_loss"), theirs[seed].metrics.get("worst_client_loss"))
        for seed in own.keys() & theirs.keys()
    ]
    return difference([(a, b) for a, b in pairs if a is not None and b is not None])


def totals(results: Sequence[Result], method: str, reference: str, key: str) -> Estimate:
    """Compare what all rounds took, a ratio a seed."""
    own, theirs = (grouped(results).get(name, {}) for name in (method, reference))
    seeds = sorted(own.keys() & theirs.keys())
    return ratio([(getattr(own[s], key)[-1], getattr(theirs[s], key)[-1]) for s in seeds])


def table(results: Sequence[Result]) -> str:
    """Return a point's methods as a Markdown table, each against FedIT on the same seeds.

    Time and uplink are to FedIT's final loss, over what FedIT took to get there.
    """
    heads = ["method", "seeds", "rounds", "test loss", "against FedIT's", "worst client's",
             "accuracy", "time of all rounds", "reached", "time to FedIT's loss",
             "uplink to it"]  # fmt: skip
    lines = _heads(heads)
    for name, own in grouped(results).items():
        standing = against(results, name, REFERENCE)
        cells = [f"`{name}`", str(len(own)), _between([len(o.loss) - 1 for o in own.values()])]
        cells.append(_final_loss(own.values()))
        if standing is None:
            lines.append(_line([*cells, *[DASH] * (len(heads) - len(cells))]))
            continue
        cells += [
            estimate_text(standing.loss),
            estimate_text(worst_client(results, name, REFERENCE)),
            _mean([one.metrics.get("accuracy") for one in own.values()]),
            estimate_text(totals(results, name, REFERENCE, "elapsed_s")),
            f"{standing.reached} of {standing.seeds}",
            estimate_text(standing.time),
            estimate_text(standing.uplink),
        ]
        lines.append(_line(cells))
    return "\n".join(lines)


def short_table(results: Sequence[Result]) -> str:
    """Return the short table: the main methods, and each against FedIT on the same seeds."""
    lines = _heads(["method", "what it plans", "seeds", "test loss", "against FedIT's",
                    "time to FedIT's loss", "uplink to it"])  # fmt: skip
    for name, meaning in SHORT_METHODS.items():
        standing = against(results, name, REFERENCE)
        if standing is None:
            continue
        own = grouped(results)[name].values()
        cells = [f"`{name}`", meaning, str(len(own)), _final_loss(own)]
        cells += [estimate_text(e) for e in (standing.loss, standing.time, standing.uplink)]
        lines.append(_line(cells))
    return "\n".join(lines) if results else "Not run yet."


def _short_table_of(study: str) -> str:
    return short_table(results_of(study))


def aims_table() -> str:
    """Return each aim with what was measured and whether it was reached."""
    lines = _heads(["study", "method", "against", "measure", "aim", "measured", "seeds", "reached"])
    for aim in AIMS:
        results = [one for one in results_of(aim.study) if one.point == aim.point]
        estimate = measured(results, aim)
        cells = [aim.study, f"`{aim.method}`", f"`{aim.against}`", aim.measure, f"≤ {aim.limit:g}"]
        cells += ["not run" if estimate is None else estimate_text(estimate)]
        cells += [str(estimate.seeds if estimate else 0), verdict(estimate, aim.limit)]
        lines.append(_line(cells))
    return "\n".join(lines)


def measured(results: Sequence[Result], aim: Aim) -> Estimate | None:
    """Return what was measured for an aim; None where one of the two was not run."""
    standing = against(results, aim.method, aim.against)
    if standing is None:
        return None
    of: dict[Measure, Callable[[], Estimate]] = {
        "time": lambda: standing.time,
        "uplink": lambda: standing.uplink,
        "loss": lambda: standing.loss,
        "worst client": lambda: worst_client(results, aim.method, aim.against),
    }
    return of[aim.measure]()


def verdict(estimate: Estimate | None, limit: float) -> str:
    """Say whether an aim was reached: by the whole interval, by the mean alone, or not."""
    if estimate is None or not estimate.seeds:
        return DASH
    if estimate.lost:
        return f"not judged: {estimate.lost} of the pairs diverged"
    if math.isinf(estimate.high) and (math.isinf(estimate.low) or estimate.low == 0.0):
        return "too few seeds for an interval" if not estimate.censored else "no: not reached"
    if estimate.seeds > 1 and estimate.high <= limit:
        return "yes"
    if estimate.value <= limit:
        return "in mean, not by the interval"
    return "no" if estimate.low > limit else "not in mean; the interval holds it"


def _heads(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + " --- |" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _final_loss(results: Collection[Result]) -> str:
    ends = [one.final_loss for one in results if one.final_loss is not None]
    return f"{np.mean(ends):.3f}"


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else DASH


def _between(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}–{max(values)}"


def tables_of(study: str) -> str:
    """Return a study's tables, one a point of its axes; says where nothing was run."""
    results = results_of(study)
    points = dict.fromkeys(one.point for one in results)
    if not points:
        return "Not run yet."
    parts = []
    for point in points:
        own = [one for one in results if one.point == point]
        parts += [*([f"{point_text(point)}:\n"] if point else []), table(own) + "\n"]
    return "\n".join(parts).rstrip()


def with_tables(document: str) -> str:
    """Return a document with the tables for which it has marks, `<!-- NAME -->`."""
    made: dict[str, Callable[[], str]] = {
        "aims": aims_table,
        **{f"short-{name}": partial(_short_table_of, name) for name in SHORT},
        **{name: partial(tables_of, name) for name in STUDIES},
    }
    for name, text in made.items():
        before, mark, rest = document.partition(f"<!-- {name} -->\n")
        if mark:
            document = f"{before}{mark}{text()}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    return document


def draw(name: str) -> None:
    """Draw the losses of a study's methods of the short table on the virtual clock."""
    study = load_study(HERE / f"{name}.toml")
    results = [one for one in results_of(name) if one.method in SHORT_METHODS]
    if not results:
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn = write_figures(study, results, compare(results, REFERENCE), Path(folder))
        loss = next(path for path in drawn if path.name == "loss.svg")
        (FIGURES / f"{name}-loss.svg").write_bytes(loss.read_bytes())


if __name__ == "__main__":
    for name in DRAWN:
        draw(name)
    for path in DOCUMENTS:
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
