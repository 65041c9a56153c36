"""Which knobs a plan may turn: every rival is the optimum over its own knobs.

A scenario's full problem has all of them. Without a knob the problem is restricted, not the
method: ``restricted(problem, knobs)`` is a planning problem like any other one, and ``exact`` finds
its optimum. Which of a client's modes differ in what its maker knows, so it says so
by their settings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from airtune.errors import InputError
from airtune.planning.modes import ClientMode
from airtune.planning.problem import PlanningProblem

KNOBS: dict[str, str] = {
    "bandwidth": "each one's band; without it: equal bands for all who take part",
    "pruning": "each one's pruning rate; without it: what memory demands",
    "steps": "local steps in the round; without it: all of them",
    "rank": "LoRA rank; without it: the largest",
    "bits": "bits of an uplink value; without it: the most",
    "absence": "which clients sit the round out; without it: none",
}
"""The knobs by name, each with what holds where it is not turned."""
MODE_KNOBS = ("steps", "rank", "bits")


@dataclass(frozen=True)
class Setting:
    """What a mode stands for: local steps, LoRA rank and bits of an uplink value."""

    steps: int
    rank: int
    bits: int


def check_knobs(knobs: Iterable[str]) -> frozenset[str]:
    """Return the knobs as a set.

    Raises:
        InputError: an unknown one.
    """
    found = list(knobs)
    for knob in found:
        if knob not in KNOBS:
            raise InputError(f"knobs: {knob!r} is unknown; allowed: {', '.join(KNOBS)}")
    return frozenset(found)


def restricted(
    problem: PlanningProblem, knobs: Iterable[str], settings: Mapping[str, Setting]
) -> PlanningProblem:
    """Return the problem in which only some knobs are turned.

    Args:
        problem: with every client's modes.
        knobs: names of ``KNOBS``.
        settings: of every mode, by its name.

    Raises:
        InputError: an unknown knob, a mode without a setting, or a client that has no mode left.
    """
    turned = check_knobs(knobs)
    modes = None
    if problem.modes is not None:
        modes = tuple(
            None if mine is None else _restricted(problem, k, mine, turned, settings)
            for k, mine in enumerate(problem.modes)
        )
    changes: dict[str, object] = {"modes": modes, "equal_bands": "bandwidth" not in turned}
    if "absence" not in turned:
        changes["absent_cost"] = None
    if "pruning" not in turned and problem.modes is None:
        changes["max_pruning"] = problem.min_pruning
    return replace(problem, **changes)  # type: ignore[arg-type]


def _restricted(
    problem: PlanningProblem,
    client: int,
    modes: tuple[ClientMode, ...],
    turned: frozenset[str],
    settings: Mapping[str, Setting],
) -> tuple[ClientMode, ...]:
    name = problem.names[client]
    for mode in modes:
        if mode.name not in settings:
            raise InputError(f"client {name!r}: mode {mode.name!r} has no setting of its knobs")
    fixed = [knob for knob in MODE_KNOBS if knob not in turned]
    # What is not turned stands at its most; the least that any mode of this client goes up to.
    most = {knob: max(getattr(settings[mode.name], knob) for mode in modes) for knob in fixed}
    kept = [
        mode
        for mode in modes
        if all(getattr(settings[mode.name], knob) == most[knob] for knob in fixed)
    ]
    if not kept:
        wanted = ", ".join(f"{knob} {most[knob]}" for knob in fixed)
        raise InputError(
            f"client {name!r}: modes: none has {wanted}; allowed: a mode with the most of every "
            "knob that is not turned"
        )
    if "pruning" in turned:
        return tuple(kept)
    return tuple(
        # What memory does not hold stays so.
        replace(mode, max_pruning=min(mode.min_pruning, mode.max_pruning))
        if mode.min_pruning is not None and mode.max_pruning is not None
        else mode
        for mode in kept
    )
