"""How the best plan changes with a resource: the capacity-planning question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from airtune.errors import InputError
from airtune.pictures import check_picture, save_picture
from airtune.planning.methods import plan
from airtune.planning.problem import Array, Plan, PlanningProblem
from airtune.units import LEAST_BANDWIDTH_HZ

KEYS = {
    "bandwidth_hz": "uplink band, Hz",
    "clients": "clients in the round (the given ones, repeated in order beyond their number)",
    "kappa": "how much pruning slows learning",
    "power_db": "dB added to every client's received power",
}
# Checked before anything is repeated by them; beyond 200 dB a double has no use for the power.
_RANGES = {
    "bandwidth_hz": (LEAST_BANDWIDTH_HZ, 1e12),
    "clients": (1.0, 1e5),
    "kappa": (0.0, 1e6),
    "power_db": (-200.0, 200.0),
}
# A range that spans this factor or more is walked in equal ratios, not equal steps.
_GEOMETRIC_FROM = 10.0


@dataclass(frozen=True)
class SweepAxis:
    """One swept key and its values, in order."""

    key: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class SweepPoint:
    """One plan of a sweep, and the values of the swept keys it was made at."""

    at: tuple[float, ...]
    plan: Plan


def axis_from_text(text: str) -> SweepAxis:
    """Return the axis that ``key=low:high:count`` describes.

    Raises:
        InputError: another form, an unknown key, or a range that is none.
    """
    key, _, span = text.partition("=")
    key = "power_db" if key == "power" else key
    allowed = f"key=low:high:count with key one of {', '.join(KEYS)}"
    parts = span.split(":")
    if key not in KEYS or len(parts) != 3:
        raise InputError(f"sweep {text!r} is not allowed; allowed: {allowed}")
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except ValueError:
        raise InputError(f"sweep {text!r} is not allowed; allowed: {allowed}") from None
    if not (np.isfinite([low, high]).all() and low < high and 2 <= count <= 1000):
        raise InputError(f"sweep {text!r}: low must be below high, and count 2 to 1000")
    least, most = _RANGES[key]
    if not least <= low <= high <= most:
        raise InputError(f"sweep {text!r}: {key} must be from {least:g} to {most:g}")
    if low > 0 and high >= _GEOMETRIC_FROM * low and key != "power_db":
        values = np.geomspace(low, high, count)
    else:
        values = np.linspace(low, high, count)
    if key == "clients":
        values = np.unique(np.maximum(np.round(values), 1))
    return SweepAxis(key, tuple(values.tolist()))


def with_value(problem: PlanningProblem, key: str, value: float) -> PlanningProblem:
    """Return the problem with one swept key changed."""
    if key == "clients":
        return _with_clients(problem, int(value))
    if key == "power_db":
        return replace(problem, snr_hz=problem.snr_hz * 10.0 ** (value / 10.0))
    if key == "kappa":
        return replace(problem, kappa=value)
    return replace(problem, bandwidth_hz=value)


def sweep(
    problem: PlanningProblem, axes: list[SweepAxis], method: str = "exact", tolerance: float = 1e-6
) -> list[SweepPoint]:
    """Return the plans over one axis, or over the grid of two (the second one in outer order)."""
    points = []
    outer = axes[1].values if len(axes) > 1 else (None,)
    for second in outer:
        base = problem if second is None else with_value(problem, axes[1].key, second)
        for first in axes[0].values:
            made = plan(with_value(base, axes[0].key, first), method, tolerance=tolerance)
            points.append(SweepPoint((first,) if second is None else (first, second), made))
    return points


def draw(axes: list[SweepAxis], points: list[SweepPoint], path: Path) -> None:
    """Draw the objective over the first axis, one line per value of the second; SVG or PNG.

    Raises:
        InputError: a file name that ends in neither, a folder that is not there, or a file that
            cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    panel = figure.add_subplot()
    x = np.array(axes[0].values)
    for row in range(len(points) // len(x)):
        line = points[row * len(x) : (row + 1) * len(x)]
        label = f"{axes[1].key} = {line[0].at[1]:.4g}" if len(axes) > 1 else None
        panel.plot(x, [point.plan.objective_s for point in line], marker="o", ms=3, label=label)
    if len(x) > 2 and _is_geometric(x):
        panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel(KEYS[axes[0].key].partition(" (")[0])
    panel.set_ylabel("latency N·T, s")
    panel.grid(alpha=0.3, which="both")
    if len(axes) > 1:
        panel.legend()
    save_picture(figure, path)


def _is_geometric(x: Array) -> bool:
    return bool(x[0] > 0 and x[-1] / x[0] >= _GEOMETRIC_FROM)


def _with_clients(problem: PlanningProblem, count: int) -> PlanningProblem:
    index = np.arange(count) % problem.clients
    rounds = np.arange(count) // problem.clients
    names = tuple(
        problem.names[k] if again == 0 else f"{problem.names[k]}#{again + 1}"
        for k, again in zip(index, rounds, strict=True)
    )
    return problem.of_clients(index, names)
