"""What is drawn, as plain rows: the same for the page and for print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from airtune.study.comparison import Comparison, grouped, taken
from airtune.study.results import Result, loss_curve

PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00",
)  # fmt: skip
"""Told apart under all common kinds of colour blindness: Okabe and Ito (2008), their yellow
darkened so that a line in it can be seen on white."""
MOST_LINES = 8
"""In one panel."""
STEPS = 60
FAR_APART = 10.0
"""Largest over smallest value from which on an axis is logarithmic."""

Row = dict[str, Any]


def panels(methods: Sequence[str], reference: str | None) -> list[list[str]]:
    """Return the methods in panels of at most eight, the reference in each."""
    others = [name for name in methods if name != reference]
    room = MOST_LINES - (reference is not None)
    first = [] if reference is None else [reference]
    parts = [others[at : at + room] for at in range(0, len(others), room)] or [[]]
    return [[*first, *part] for part in parts]


def units(results: Sequence[Result], reference: str | None) -> tuple[dict[int, float], str]:
    """Return the seconds that are one on each seed's clock, and the unit's name.

    Each seed is another cell, so time is given in shares of what the reference took there; in
    seconds where the reference has not finished on every seed.
    """
    seeds = {one.seed for one in results}
    theirs = {r.seed: r.elapsed_s[-1] for r in results if r.method == reference and r.usable}
    if seeds and theirs.keys() == seeds:
        return theirs, f"share of {reference}'s"
    return dict.fromkeys(seeds, 1.0), "s"


def loss_rows(results: Sequence[Result], reference: str | None) -> tuple[list[Row], str]:
    """Return each method's mean loss over its seeds on the virtual clock, lowest and highest.

    A run that has ended keeps its last loss, so that a curve ends at the mean final loss, when its
    last run ends. `part` is 0 where all of the method's runs go on, and 1 from the first end on.
    Where the methods' ends are far apart, times are evenly spaced on a logarithmic axis.
    """
    unit, name = units(results, reference)
    runs = {
        method: [
            (np.array(seconds) / unit[one.seed], loss)
            for one in own.values()
            if one.usable
            for seconds, loss in [loss_curve(one)]
        ]
        for method, own in grouped(results).items()
    }
    ends = [float(times[-1]) for curves in runs.values() for times, _ in curves]
    apart = bool(ends) and max(ends) > FAR_APART * min(ends) > 0
    rows = []
    for method, curves in runs.items():
        own_ends = [times[-1] for times, _ in curves]
        for part, times in enumerate(_times(curves, apart) if curves else ()):
            losses = [np.interp(times, *curve) for curve in curves]
            series = (np.mean(losses, axis=0), np.min(losses, axis=0), np.max(losses, axis=0))
            for time, mean, low, high in zip(times, *series, strict=True):
                running = sum(end >= time for end in own_ends)
                rows.append(_row(method=method, part=part, time=time, loss=mean, low=low,
                                 high=high, seeds=len(curves), running=running))  # fmt: skip
    return rows, name


def _times(curves: Sequence[tuple[Any, Any]], apart: bool) -> list[Any]:
    """Return the times up to the first end of a method's runs, and those from there to the last."""
    first, last = (float(pick(times[-1] for times, _ in curves)) for pick in (min, max))
    begin = min((float(times[1]) for times, _ in curves if len(times) > 1), default=first)
    spaced, begin = (np.geomspace, begin) if apart and begin > 0 else (np.linspace, 0.0)
    parts = [spaced(begin, first, STEPS)]
    if last > first > 0:
        parts.append(spaced(first, last, STEPS))
    return parts


def times_far_apart(rows: Sequence[Row]) -> bool:
    """Return whether `loss_rows` spaced the times for a logarithmic axis."""
    return bool(rows) and min(row["time"] for row in rows) > 0


def spans_orders(rows: Sequence[Row]) -> bool:
    """Return whether losses are so far apart that a linear axis would hide the low ones."""
    lows, highs = [row["low"] for row in rows], [row["high"] for row in rows]
    return bool(rows) and min(lows) > 0 and max(highs) > FAR_APART * min(lows)


def ranking_rows(comparison: Comparison) -> list[Row]:
    """Return each method's three comparisons with the reference: value and interval."""
    rows = []
    for standing in comparison.standings:
        measures = {
            "final loss, difference": standing.loss,
            "time to the target, ratio": standing.time,
            "uplink to the target, ratio": standing.uplink,
        }
        if standing.energy is not None:
            measures["energy to the target, ratio"] = standing.energy
        for measure, estimate in measures.items():
            if not estimate.seeds or not np.isfinite(estimate.value):
                continue
            low, high = estimate.low, estimate.high
            bounded = bool(np.isfinite(low) and np.isfinite(high))
            row = _row(
                method=standing.method, measure=measure, value=estimate.value,
                low=low if bounded else estimate.value, high=high if bounded else estimate.value,
                seeds=estimate.seeds,
            )  # fmt: skip
            rows.append({**row, "verdict": estimate.verdict, "neutral": estimate.neutral})
    return rows


def budget_rows(results: Sequence[Result], reference: str | None) -> tuple[list[Row], str]:
    """Return what a round's mean client does with its time, and how long it waits."""
    unit, name = units(results, reference)
    rounds = {
        one.seed: len(one.elapsed_s) - 1
        for one in results
        if one.method == reference and one.usable
    }
    rows = []
    for method, own in grouped(results).items():
        usable = [one for one in own.values() if one.usable]
        for number, phase in enumerate(("downlink_s", "compute_s", "upload_s", "waiting_s")):
            shares = [
                one.budget_s[phase]
                / unit[one.seed]
                * (rounds.get(one.seed, 1) if name != "s" else 1)
                for one in usable
            ]
            if shares:
                rows.append({"method": method, "phase": phase.removesuffix("_s"),
                             "order": number, "time": float(np.mean(shares))})  # fmt: skip
    return rows, f"{name} mean round" if name != "s" else "s in a round"


def resource_rows(results: Sequence[Result], reference: str | None) -> list[Row]:
    """Return, a method and measure each, what all rounds took as a share of the reference's."""
    theirs = {one.seed: one for one in results if one.method == reference and one.usable}
    names = {
        "elapsed_s": "virtual time", "uplink_bits": "uplink bits",
        "downlink_bits": "downlink bits", "flops": "FLOP", "energy_j": "energy",
    }  # fmt: skip
    rows = []
    for method, own in grouped(results).items():
        for key, measure in names.items():
            shares = [
                getattr(one, key)[-1] / getattr(theirs[seed], key)[-1]
                for seed, one in own.items()
                if one.usable and seed in theirs and getattr(one, key)
                and getattr(theirs[seed], key) and getattr(theirs[seed], key)[-1]
            ]  # fmt: skip
            if shares:
                rows.append({"method": method, "measure": measure, "share": float(np.mean(shares))})
    return rows


def axis_rows(results: Sequence[Result], comparisons: Sequence[Comparison]) -> list[Row]:
    """Return, for each axis, point and method: the mean final loss, and times to the target."""
    targets: Mapping[Any, Mapping[int, float]] = {c.point: c.targets for c in comparisons}
    rows = []
    for comparison in comparisons:
        if not comparison.point:
            continue
        axis = " × ".join(name for name, _ in comparison.point)
        label = " × ".join(text for _, text in comparison.point)
        own = [one for one in results if one.point == comparison.point]
        for method, by_seed in grouped(own).items():
            usable = [one for one in by_seed.values() if one.usable]
            if not usable:
                continue
            losses = [one.loss[-1] for one in usable]
            times = [
                taken(one, "elapsed_s", targets[comparison.point].get(one.seed)) for one in usable
            ]
            known = [time for time in times if time is not None]
            rows.append({
                "axis": axis, "label": label, "method": method,
                "loss": float(np.mean([x for x in losses if x is not None])),
                "low": float(np.min([x for x in losses if x is not None])),
                "high": float(np.max([x for x in losses if x is not None])),
                "time": float(np.mean(known)) if len(known) == len(times) else None,
                "elapsed": float(np.mean([one.elapsed_s[-1] for one in usable])),
            })  # fmt: skip
    return rows


def _row(**values: Any) -> Row:
    return {key: float(v) if isinstance(v, np.floating) else v for key, v in values.items()}
