"""Which knobs a plan may turn, and which values each has: each rival is optimal for its own knobs.

``modes_offered`` makes a client's modes from a scenario: the values of the knobs that are turned,
multiplied. For a problem that has all modes already, ``restricted(problem, knobs)`` is the one in
which only some knobs are turned, and ``exact`` finds its optimum. In what its modes differ their
settings say. In both, a knob that is not turned stands at its most.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.planning.broadcast import SCALE_BITS
from airtune.planning.modes import ClientMode
from airtune.planning.problem import PlanningProblem
from airtune.scenario import Scenario

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
"""Those that make a client's modes."""
MOST_STEPS = 4
"""Numbers of local steps to choose from, where the scenario does not list them."""


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


def modes_offered(scenario: Scenario, whole: Mode, turned: frozenset[str]) -> tuple[Mode, ...]:
    """Return the modes that a client may be told, its whole one first.

    The values of a knob that is turned are the scenario's or, where it lists none, the client's own
    one and its halves (ranks), an even spread (steps) or 8, 4 and 2 (bits).
    """
    section = scenario.planning
    steps, ranks = [whole.local_steps], [whole.rank]
    few_bits: list[int | None] = [None]
    if "steps" in turned:
        listed = section.steps_values or _spread(whole.local_steps)
        steps = sorted(
            {min(s, whole.local_steps) for s in listed} | {whole.local_steps}, reverse=True
        )
    if "rank" in turned:
        listed = section.rank_values or halves(whole.rank)
        ranks = sorted({min(r, whole.rank) for r in listed} | {whole.rank}, reverse=True)
    if "bits" in turned:
        few_bits += [bits for bits in section.bits_values if bits < whole.bits_per_value]
    return tuple(
        replace(whole, local_steps=s, rank=r)
        if bits is None
        else replace(whole, local_steps=s, rank=r, bits_per_value=bits, bits_per_scale=SCALE_BITS)
        for s, r, bits in itertools.product(steps, ranks, few_bits)
    )


def halves(value: int) -> list[int]:
    """Return a value and its halves down to 1, rounded down."""
    return [value >> i for i in range(value.bit_length())]


def _spread(steps: int) -> list[int]:
    return sorted({int(np.ceil(steps * i / MOST_STEPS)) for i in range(1, MOST_STEPS + 1)})


def name_of(mode: Mode) -> str:
    """Return a mode's name in plans: its steps, rank and bits."""
    return f"{mode.local_steps} steps, rank {mode.rank}, {mode.bits_per_value} bits"
