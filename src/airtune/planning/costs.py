"""What each knob costs in learning: measured by a pilot, read from a file, used by the plan.

A cost e is the share of every round that is lost when all clients' work is changed in one way:
r rounds so changed are worth r(1 − e) unchanged ones (`airtune.rounds.pilot.lost_share`). The
planner multiplies what is left: in a mode 1 − cost = (1 − e_rank)(1 − e_bits)(1 − e_steps), and
with pruning (1 − e(ρ)) more.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.planning.problem import PlanningProblem
from airtune.scenario import Scenario

FORMAT = "airtune-costs/1"
SHIPPED = "smollm2-135m.json"
"""Measured for SmolLM2-135M on GSM8K: `airtune costs`, see its `provenance`."""

Cost = Annotated[float, Field(ge=0, le=1)]


class Measured(BaseModel):
    """One cost and the standard deviation between the pilot's seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cost: Cost
    spread: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """None where one seed was run."""


class Pair(BaseModel):
    """Two knobs turned together, against what the product rule makes of each alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    knobs: tuple[str, ...]
    measured: Cost
    product: Cost


class KnobCosts(BaseModel):
    """A costs file: JSON, `format` first."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    format: Literal["airtune-costs/1"] = FORMAT  # type: ignore[assignment]
    rank: dict[int, Measured]
    """By LoRA rank; the largest is the pilot's own and costs nothing."""
    bits: dict[int, Measured]
    """By bits of an uplink value; the largest costs nothing."""
    steps: dict[float, Measured]
    """By the share of the round's local steps; 1 costs nothing."""
    absent: Measured
    """Of a client that sits out, relative to its weight."""
    pruning: dict[float, Measured]
    """By pruning rate, all clients alike; 0 costs nothing."""
    pairs: tuple[Pair, ...] = ()
    provenance: dict[str, Any]
    """Model, task, rounds, seeds, losses and the command."""

    def of_mode(self, mode: Mode, whole: Mode) -> float:
        """Return what a mode costs beside pruning, relative to a client's whole work.

        Between measured values costs are interpolated, over log2 of ranks and bits and over the
        share of steps; outside they stay at the nearest one.
        """
        left = (
            self._left(self.rank, mode.rank, whole.rank)
            * self._left(self.bits, mode.bits_per_value, whole.bits_per_value)
            * (1.0 - _interpolated(self.steps, mode.local_steps / whole.local_steps))
        )
        return float(np.clip(1.0 - left, 0.0, 1.0))

    @staticmethod
    def _left(costs: Mapping[int, Measured], value: int, whole: int) -> float:
        """Return the progress left at a value, relative to that at the client's own value."""
        by_octave = {float(np.log2(key)): cost for key, cost in costs.items()}
        at_value, at_whole = (
            1.0 - _interpolated(by_octave, float(np.log2(v))) for v in (value, whole)
        )
        return min(1.0, at_value / at_whole) if at_whole > 0 else 1.0

    def pruning_curve(self, max_pruning: float) -> tuple[tuple[float, float], ...]:
        """Return e(ρ) as a convex, non-decreasing curve from (0, 0) to `max_pruning` or beyond.

        The lower convex hull of the measured points, which measurement noise need not leave convex;
        past the last of them its last slope goes on.
        """
        points = {0.0: 0.0} | {rate: one.cost for rate, one in self.pruning.items()}
        return _convex(sorted(points.items()), max_pruning)


def _interpolated(costs: Mapping[float, Measured], value: float) -> float:
    keys = sorted(costs)
    return float(np.interp(value, keys, [costs[key].cost for key in keys]))


def _convex(points: list[tuple[float, float]], end: float) -> tuple[tuple[float, float], ...]:
    hull: list[tuple[float, float]] = []
    for x, y in points:
        while len(hull) > 1:
            (x0, y0), (x1, y1) = hull[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            hull.pop()
        hull.append((x, y))
    rising = [(x, max(0.0, y)) for x, y in hull]
    if len(rising) == 1:
        return (rising[0], (max(end, 1e-3), 0.0))
    (x0, y0), (x1, y1) = rising[-2:]
    if x1 < end:
        rising.append((end, y1 + (y1 - y0) / (x1 - x0) * (end - x1)))
    return tuple(rising)


def read_costs(path: str | Path) -> KnobCosts:
    """Read a costs file.

    Raises:
        InputError: it cannot be read, is not JSON, or is not a costs file; names the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"cannot read costs file '{path}': {reason}") from None
    return _parsed(text, str(path))


def shipped_costs() -> KnobCosts:
    """Return the costs that come with the package."""
    text = (resources.files("airtune.planning") / SHIPPED).read_text(encoding="utf-8")
    return _parsed(text, SHIPPED)


def costs_of(scenario: Scenario) -> KnobCosts | None:
    """Read what a scenario's knobs cost; None where it names no knobs.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    section = scenario.planning
    if section.knobs is None:
        return None
    return shipped_costs() if section.costs is None else read_costs(section.costs)


def absent_beside(problem: PlanningProblem, measured: float, *, rate: float | None = None) -> float:
    """Return what sitting out costs beside the other knobs: 1 − (1 − e_out)·p.

    A pilot measures e_out with all others doing their whole work. The merged change is an average
    over those present: where their mean progress is p̄ and a share s of the weight sits out, a round
    is worth p̄(1 − s·e_out). With p the least progress of any mode, pruned as far as it may be, the
    additive (1 − s)·p̄ + s·p·(1 − e_out) is never more than that: no plan counts on progress that
    nobody makes.

    Args:
        problem: with all modes.
        measured: e_out.
        rate: at which all who take part are pruned; default: each mode as far as it may be.
    """
    table = problem.table
    pruning = table.max_pruning if rate is None else np.full(len(table.owner), rate)
    progress = (1.0 - table.cost) * (1.0 - problem.costs_of(table.owner, pruning))
    # A pilot's last slope goes on past its last rate, and may pass 1.
    return 1.0 - (1.0 - measured) * max(0.0, float(progress.min(initial=1.0)))


def described(costs: KnobCosts, path: str | None) -> str:
    """Name a costs file for the record: its name, SHA-256, and where its costs were measured.

    Args:
        costs: read from it.
        path: the file; None: the one that comes with the package.
    """
    text = costs.model_dump_json()
    known = [f"{key} {costs.provenance[key]}" for key in ("model", "task", "rounds", "seeds")
             if key in costs.provenance]  # fmt: skip
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    return f"{path or SHIPPED + ' (shipped)'}, {mark}" + "".join(f", {one}" for one in known)


def _parsed(text: str, where: str) -> KnobCosts:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else None
        raise InputError(f"{where}: format = {found!r}: '{FORMAT}' is what this version reads")
    try:
        return KnobCosts.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {key}: {first['msg'].lower()}") from None
