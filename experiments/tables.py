"""Tables and figures of README.md beside this file and of the project's, from committed rows.

    python experiments/tables.py        # writes the tables between their marks, and the figures

Statistics are those of `airtune study`: paired over seeds, means with Student's 95 % intervals.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from rows import ROWS, read_rows, result_of

from airtune.study import load_study
from airtune.study.comparison import compare, grouped, taken
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
SHORT = {"clinc150": True, "memory": False}
"""Studies with a short table, marked `short-NAME`; whether worst client, time and uplink are in it.

Not where memory binds: there the worst client is one of four or one of eight, by the method.
"""
DRAWN = ("clinc150", "few-texts", "memory")
"""Studies with a figure, docs/figures/NAME-loss.svg, once they have rows."""
SHORT_METHODS = {
    "fedit": "whole models, equal bands",
    "bcd": "pruning and bands, by descent (JCPBA)",
    "bcd-longer": "the same, twice as many rounds",
    "heard-unpruned": "bands, steps, ranks and bits",
    "heard": "**the same and pruning**",
    "heard-refit": "the same, and text is read again",
    "unpruned-floor": "bands, steps, ranks, bits and absence",
    "all-floor": "**the same and pruning**",
}

Measure = Literal["time", "uplink", "loss", "loss against the lowest", "worst client"]


@dataclass(frozen=True)
class Aim:
    """What a method should reach against another one, at most `limit`.

    `time` and `uplink`: to the loss at which the other one ends, as a ratio. `loss` and
    `worst client`: at the end, as a difference. `loss against the lowest`: the loss at the end less
    the lowest one that the other had at any time.
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
    Aim("clinc150", "bcd-longer", "fedit", "time", 0.6),
    Aim("clinc150", "bcd-longer", "fedit", "uplink", 0.54),
    Aim("memory", "heard", "fedit", "loss against the lowest", 0.0),
    Aim("memory", "heard", "heard-unpruned", "loss against the lowest", 0.0),
    Aim("memory", "heard", "unpruned-floor", "loss against the lowest", 0.0),
    Aim("memory", "all-floor", "unpruned-floor", "loss against the lowest", 0.0),
)


def results_of(study: str) -> list[Result]:
    """Return the committed runs of a study, seed by seed."""
    return [result_of(row) for row in read_rows(ROWS / f"{study}.jsonl")]


@dataclass(frozen=True)
class Pairs:
    """Two methods on the seeds that both have.

    Attributes:
        usable: own run and the other one's, seed by seed, where both ended with a finite loss.
        lost: pairs that are missing because one of the two diverged.
    """

    usable: tuple[tuple[Result, Result], ...]
    lost: int


@dataclass(frozen=True)
class Measured:
    """A comparison over seeds and, where it is of ratios to a target, what it is made of.

    Attributes:
        estimate: mean or median, with its interval.
        seeds: those of its pairs.
        values: ratios on the seeds on which the target was reached.
        bounds: on the others, the ratio up to which the run was followed: its own is larger.
    """

    estimate: Estimate
    seeds: tuple[int, ...]
    values: tuple[float, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def text(self) -> str:
        """Value and interval; on how many seeds the target was reached, where not on all."""
        count = self.estimate.seeds
        if not self.bounds:
            return estimate_text(self.estimate)
        if count == 1:
            return "not reached"
        reached = f"reached on {len(self.values)} of {count}"
        if math.isinf(self.estimate.value):
            return reached
        return f"{reached}; {estimate_text(self.estimate)}"


def pairs_of(results: Sequence[Result], method: str, reference: str) -> Pairs:
    """Return a method's runs beside another one's on the same seeds."""
    own, theirs = (grouped(results).get(name, {}) for name in (method, reference))
    pairs = [(own[seed], theirs[seed]) for seed in sorted(own.keys() & theirs.keys())]
    usable = tuple(pair for pair in pairs if all(one.usable for one in pair))
    return Pairs(usable, len(pairs) - len(usable))


def final_loss(pairs: Pairs) -> Measured:
    """Compare the final losses, a difference a seed."""
    return _differences(pairs, lambda one: one.final_loss)


def below_lowest(pairs: Pairs) -> Measured:
    """Compare the final loss with the lowest one that the other had at any time."""
    return _differences(pairs, lambda one: one.final_loss, _lowest_loss)


def worst_client(pairs: Pairs) -> Measured:
    """Compare the final loss of the client that has the highest, a difference a seed."""
    return _differences(pairs, lambda one: one.metrics.get("worst_client_loss"))


def _lowest_loss(one: Result) -> float:
    return min(loss for loss in one.loss[1:] if loss is not None)


def _differences(
    pairs: Pairs,
    value: Callable[[Result], float | None],
    others: Callable[[Result], float | None] | None = None,
) -> Measured:
    others = others or value
    found = [(own.seed, value(own), others(other)) for own, other in pairs.usable]
    known = {seed: (a, b) for seed, a, b in found if a is not None and b is not None}
    return Measured(difference(list(known.values()), pairs.lost), tuple(known))


def totals(pairs: Pairs, key: str) -> Measured:
    """Compare what all rounds took, a ratio a seed."""
    ends = [(getattr(own, key)[-1], getattr(other, key)[-1]) for own, other in pairs.usable]
    return Measured(ratio(ends, lost=pairs.lost), tuple(own.seed for own, _ in pairs.usable))


def to_target(pairs: Pairs, key: str) -> Measured:
    """Compare what the other one's final loss took, a ratio a seed; runs may end above it."""
    values, bounds = [], []
    for own, other in pairs.usable:
        theirs = taken(other, key, other.final_loss)
        assert theirs is not None  # its own final loss
        mine = taken(own, key, other.final_loss)
        if mine is None:
            bounds.append(getattr(own, key)[-1] / theirs)
        else:
            values.append(mine / theirs)
    estimate = ratio([(value, 1.0) for value in values], bounds, pairs.lost)
    seeds = tuple(own.seed for own, _ in pairs.usable)
    return Measured(estimate, seeds, tuple(values), tuple(bounds))


def table(results: Sequence[Result]) -> str:
    """Return a point's methods as a Markdown table, each against FedIT on the same seeds.

    Time and uplink are to FedIT's final loss, over what FedIT took to get there.
    """
    heads = ["method", "seeds", "rounds", "test loss", "against FedIT's", "worst client's",
             "accuracy", "time of all rounds", "time to FedIT's loss", "uplink to it"]  # fmt: skip
    lines = _heads(heads)
    for name, own in grouped(results).items():
        pairs = pairs_of(results, name, REFERENCE)
        cells = [f"`{name}`", _seeds(own), _between([len(o.loss) - 1 for o in own.values()])]
        cells += [_mean([one.final_loss for one in own.values()], 3)]
        cells += [final_loss(pairs).text, worst_client(pairs).text]
        cells += [_accuracy(own)]
        cells += [totals(pairs, "elapsed_s").text]
        cells += [to_target(pairs, key).text for key in ("elapsed_s", "uplink_bits")]
        lines.append(_line(cells))
    return "\n".join(lines)


def short_table(results: Sequence[Result], more: bool = True) -> str:
    """Return the main methods, each against FedIT on the same seeds.

    Args:
        results: of one point.
        more: whether the worst client, time and uplink are in it.
    """
    heads = ["method", "what it plans", "seeds", "test loss", "against FedIT's"]
    others = ["worst client's", "time to FedIT's loss", "uplink to it"] if more else ["accuracy"]
    lines = _heads([*heads, *others])
    for name, meaning in SHORT_METHODS.items():
        own = grouped(results).get(name)
        if own is None:
            continue
        pairs = pairs_of(results, name, REFERENCE)
        cells = [f"`{name}`", meaning, _seeds(own)]
        cells += [_mean([one.final_loss for one in own.values()], 3)]
        cells += [final_loss(pairs).text]
        if more:
            cells += [worst_client(pairs).text]
            cells += [to_target(pairs, key).text for key in ("elapsed_s", "uplink_bits")]
        else:
            cells += [_accuracy(own)]
        lines.append(_line(cells))
    return "\n".join(lines) if results else "Not run yet."


def _short_table_of(study: str) -> str:
    return short_table(results_of(study), SHORT[study])


def aims_table() -> str:
    """Return each aim with what was measured and whether it was reached."""
    lines = _heads(["study", "method", "against", "measure", "aim", "measured", "seeds",
                    "aim reached"])  # fmt: skip
    for aim in AIMS:
        results = [one for one in results_of(aim.study) if one.point == aim.point]
        found = measured(results, aim)
        cells = [aim.study, f"`{aim.method}`", f"`{aim.against}`", aim.measure, f"≤ {aim.limit:g}"]
        cells += ["not run" if found is None else found.text]
        cells += [_ranges(found.seeds) if found else DASH, verdict(found, aim.limit)]
        lines.append(_line(cells))
    return "\n".join(lines)


def measured(results: Sequence[Result], aim: Aim) -> Measured | None:
    """Return what was measured for an aim; None where no seed has both methods."""
    pairs = pairs_of(results, aim.method, aim.against)
    if not pairs.usable and not pairs.lost:
        return None
    of: dict[Measure, Callable[[], Measured]] = {
        "time": lambda: to_target(pairs, "elapsed_s"),
        "uplink": lambda: to_target(pairs, "uplink_bits"),
        "loss": lambda: final_loss(pairs),
        "loss against the lowest": lambda: below_lowest(pairs),
        "worst client": lambda: worst_client(pairs),
    }
    return of[aim.measure]()


def verdict(found: Measured | None, limit: float) -> str:
    """Say whether an aim was reached.

    Yes and no are said by the whole interval alone. The interval of a mean needs two seeds. Where a
    run ended above the target it is that of a median, which needs six.
    """
    if found is None:
        return DASH
    estimate, bounds = found.estimate, found.bounds
    if estimate.lost:
        return f"not judged: {estimate.lost} of the pairs diverged"
    if not estimate.seeds:
        return DASH
    if estimate.seeds == 1:
        reached = not bounds and estimate.value <= limit
        followed = not bounds or min(bounds) >= limit
        return f"one seed: {'within it' if reached else 'missed' if followed else 'open'}"
    if estimate.high <= limit:
        return "yes"
    if estimate.low > limit:
        return "no"
    if bounds and min(bounds) < limit:
        return "not followed far enough"
    if bounds and estimate.low == 0.0:
        within = sum(value <= limit for value in found.values)
        return f"within the aim on {within} of {estimate.seeds}, no interval"
    middle = "median" if bounds else "mean"
    if estimate.value <= limit:
        return f"in {middle}, not by the interval"
    return f"not in {middle}; the interval holds it"


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
    usable = _ranges([seed for seed, one in own.items() if one.usable])
    diverged = _ranges([seed for seed, one in own.items() if not one.usable])
    return usable if diverged == DASH else f"{usable} (diverged: {diverged})"


def _ranges(seeds: Sequence[int]) -> str:
    """Return numbers as ranges, e.g. 12–14, 16."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(_between([run[0], run[-1]]) for run in runs) or DASH


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
