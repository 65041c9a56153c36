"""Tables and figures of README.md beside this file and of the project's, from committed rows.

    python experiments/tables.py        # writes the tables between their marks, and the figures

Statistics are those of `airtune study`: paired over seeds, means with Student's 95 % intervals.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from aims import AIMS, measured, verdict
from pairs import (
    Pairs,
    final_loss,
    pairs_of,
    ranges,
    results_of,
    to_target,
    totals,
    worst_client,
)

from airtune.study import load_study
from airtune.study.comparison import compare, grouped
from airtune.study.console import DASH, point_text
from airtune.study.prints import write_figures
from airtune.study.results import Result

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs" / "figures"
DOCUMENTS = (HERE / "README.md", HERE.parent / "README.md")
REFERENCE = "fedit"
STUDIES = ("clinc150", "few-texts", "cells", "memory", "gsm8k", "yahoo", "gemma")
FRONT = {"memory": "memory binds", "clinc150": "links bind"}
"""What the project's README shows of these studies, in one table, marked `front`."""
DRAWN = ("clinc150", "few-texts", "memory")
"""Studies with a figure, docs/figures/NAME-loss.svg, once they have rows."""
SHORT_METHODS = {
    "fedit": "whole models, equal bands",
    "heterofl": "pruning, equal bands (HeteroFL)",
    "bcd": "pruning and bands, by descent (JCPBA)",
    "bcd-longer": "the same, twice as many rounds",
    "heard-unpruned": "bands, steps, ranks and bits",
    "heard": "**the same and pruning**",
    "heard-refit": "the same, and text is read again",
    "unpruned-floor": "bands, steps, ranks, bits and absence",
    "all-floor": "**the same and pruning**",
}
SHORT_HEADS = ("method", "what it plans", "seeds", "test loss", "against FedIT's")


def table(results: Sequence[Result]) -> str:
    """Return a point's methods as a Markdown table, each against FedIT on the same seeds.

    Time and uplink are to FedIT's final loss, over what FedIT took to get there.
    """
    heads = ["method", "seeds", "rounds", "test loss", "against FedIT's", "worst client's",
             "accuracy", "time of all rounds", "time to FedIT's loss", "uplink to it"]  # fmt: skip
    lines = _heads(heads)
    runs = grouped(results)
    for name in sorted(runs, key=lambda name: name != REFERENCE):  # it first, the rest as they are
        own, pairs = runs[name], pairs_of(results, name, REFERENCE)
        cells = [f"`{name}`", _seeds(own), _between([len(o.loss) - 1 for o in own.values()])]
        cells += [_mean([one.final_loss for one in own.values()], 3)]
        cells += [final_loss(pairs).text, worst_client(pairs).text]
        cells += [_accuracy(own)]
        cells += [totals(pairs, "elapsed_s").text]
        cells += [to_target(pairs, key).text for key in ("elapsed_s", "uplink_bits")]
        lines.append(_line(cells))
    return "\n".join(lines)


def short_table(results: Sequence[Result]) -> str:
    """Return the main methods of one cell, each against FedIT on the same seeds."""
    lines = _heads([*SHORT_HEADS, "worst client's", "time to FedIT's loss", "uplink to it"])
    for cells, _, pairs in _main_methods(results):
        cells += [worst_client(pairs).text]
        cells += [to_target(pairs, key).text for key in ("elapsed_s", "uplink_bits")]
        lines.append(_line(cells))
    return "\n".join(lines)


def front_table(of: Mapping[str, Sequence[Result]]) -> str:
    """Return the main methods of several cells, each against FedIT on the same seeds.

    The time to FedIT's loss is left out where memory binds: that loss has risen by its end.
    """
    lines = _heads(["cell", *SHORT_HEADS, "accuracy", "time to FedIT's loss"])
    for study, results in of.items():
        for cells, own, pairs in _main_methods(results):
            time = DASH if study == "memory" else to_target(pairs, "elapsed_s").text
            lines.append(_line([FRONT[study], *cells, _accuracy(own), time]))
    return "\n".join(lines)


def _main_methods(
    results: Sequence[Result],
) -> Iterator[tuple[list[str], Mapping[int, Result], Pairs]]:
    """Yield each one's cells under `SHORT_HEADS`, its runs, and they beside FedIT's."""
    runs = grouped(results)
    for name in SHORT_METHODS:
        if own := runs.get(name):
            pairs = pairs_of(results, name, REFERENCE)
            loss = _mean([one.final_loss for one in own.values()], 3)
            cells = [f"`{name}`", SHORT_METHODS[name], _seeds(own), loss, final_loss(pairs).text]
            yield cells, own, pairs


def aims_table() -> str:
    """Return each aim with what was measured and whether it was reached."""
    lines = _heads(["study", "method", "against", "measure", "aim", "measured", "seeds",
                    "aim reached"])  # fmt: skip
    for aim in AIMS:
        results = [one for one in results_of(aim.study) if one.point == aim.point]
        found = measured(results, aim)
        cells = [aim.study, f"`{aim.method}`", f"`{aim.against}`", aim.measure, f"≤ {aim.limit:g}"]
        cells += ["not run" if found is None else found.text]
        cells += [ranges(found.seeds) if found else DASH, verdict(found, aim.limit)]
        lines.append(_line(cells))
    return "\n".join(lines)


def _heads(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + " --- |" * len(names)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.{digits}f}" if known else DASH


def _accuracy(own: Mapping[int, Result]) -> str:
    return _mean([one.metrics.get("accuracy") for one in own.values() if one.usable], 2)


def _between(values: Sequence[int]) -> str:
    return str(values[0]) if len(set(values)) == 1 else f"{min(values)}–{max(values)}"


def _seeds(own: Mapping[int, Result]) -> str:
    """Return the seeds of the runs that count, and those that diverged."""
    usable = ranges([seed for seed, one in own.items() if one.usable])
    diverged = ranges([seed for seed, one in own.items() if not one.usable])
    return usable if diverged == DASH else f"{usable} (diverged: {diverged})"


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
        "front": lambda: front_table({study: results_of(study) for study in FRONT}),
        "short-clinc150": lambda: short_table(results_of("clinc150")),
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
