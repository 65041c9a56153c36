"""What a planning method answered, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.problem import Array, Chosen, Plan, PlanningProblem, priced

_SLACK = 1e-9
"""Relative excess over a bound that counts as rounding."""

_FORMS = "(pruning, bandwidth_hz), one number a client each, or a Plan"


def checked(problem: PlanningProblem, name: str, answer: object) -> Plan:
    """Return the priced plan of a method's answer.

    Within the bounds on ρ, b >= 0, Σ b <= B, Q <= max_pruning_loss and each client's energy
    budget where they are given, and a band for every client that sends. Rates that pass a bound by
    rounding are put on it. Where the problem has a choice of modes, those of the answered Plan
    count, or else each client's mode of least cost.

    Args:
        problem: what was planned.
        name: the method's.
        answer: what its function returned.

    Raises:
        InputError: names the method, the client, and what is wrong.
    """
    what, names = f"planning method '{name}'", problem.names
    pruning, band = _pair(problem, what, answer)
    chosen = _chosen(problem, what, answer)
    here, low, high = _bounds(problem, chosen)
    outside = here & ((pruning < low - _SLACK) | (pruning > high + _SLACK))
    _refuse(names, outside, what, "pruning", pruning, lambda k: f"{low[k]:g} to {high[k]:g}")
    _refuse(names, here & (band < 0), what, "bandwidth_hz", band, lambda k: "0 or more")
    band = np.where(here, band, 0.0)
    if (total := float(band.sum())) > problem.bandwidth_hz * (1.0 + _SLACK):
        raise InputError(
            f"{what}: the bands sum to {total:.9g} Hz; allowed: at most {problem.bandwidth_hz:.9g}"
        )
    plan = priced(problem, name, np.clip(pruning, low, high), band, chosen=chosen)
    silent = here & ~np.isfinite(plan.upload_s)
    _refuse(names, silent, what, "bandwidth_hz", band, lambda k: "above 0, it has bits to send")
    limit = problem.max_pruning_loss
    if limit is not None and plan.pruning_loss > limit + _SLACK * max(limit, 1.0):
        raise InputError(
            f"{what}: its pruning loss {plan.pruning_loss:.6g} passes the problem's "
            f"max_pruning_loss {limit:.6g}"
        )
    if plan.energy_j is not None:
        budget = problem.energy_budgets
        over = plan.energy_j > budget * (1.0 + _SLACK)
        _refuse(names, over, what, "energy_j", plan.energy_j, lambda k: f"at most {budget[k]:g}")
    return plan


def _chosen(problem: PlanningProblem, what: str, answer: object) -> Chosen | None:
    """Return each client's mode as an index of the problem's table; None: no choice was made."""
    if not problem.chooses:
        return None
    table = problem.table
    if not isinstance(answer, Plan) or answer.modes is None:
        pairs = zip(table.best, problem.has_mode, strict=True)
        return tuple(int(best) if has else None for best, has in pairs)
    index = {
        (int(k), mode): row
        for row, (k, mode) in enumerate(zip(table.owner, table.names, strict=True))
    }
    chosen = []
    for k, mode in enumerate(answer.modes):
        if mode is not None and (k, mode) not in index:
            raise InputError(f"{what}: client '{problem.names[k]}' has no usable mode '{mode}'")
        if mode is None and not np.isfinite(problem.absent_costs[k]):
            raise InputError(f"{what}: client '{problem.names[k]}' has to take part")
        chosen.append(None if mode is None else index[k, mode])
    return tuple(chosen)


def _bounds(
    problem: PlanningProblem, chosen: Chosen | None
) -> tuple[NDArray[np.bool_], Array, Array]:
    """Return who takes part, and each one's least and most pruning; 0 and 0 for the others."""
    if chosen is None:
        return np.ones(problem.clients, dtype=bool), problem.min_pruning, problem.max_pruning
    here = np.array([mode is not None for mode in chosen])
    low, high = np.zeros(problem.clients), np.zeros(problem.clients)
    rows = [mode for mode in chosen if mode is not None]
    low[here], high[here] = problem.table.min_pruning[rows], problem.table.max_pruning[rows]
    return here, low, high


def _pair(problem: PlanningProblem, what: str, answer: object) -> tuple[Array, Array]:
    if isinstance(answer, Plan):
        if answer.names != problem.names:
            raise InputError(f"{what}: its plan is for other clients than the problem's")
        answer = (answer.pruning, answer.bandwidth_hz)
    if not isinstance(answer, tuple | list) or len(answer) != 2:
        raise InputError(f"{what}: it returned {type(answer).__name__}; allowed: {_FORMS}")
    arrays = []
    for field, values in zip(("pruning", "bandwidth_hz"), answer, strict=True):
        try:
            array = np.array(values, dtype=np.float64)
        except (TypeError, ValueError):
            raise InputError(
                f"{what}: {field} is {type(values).__name__}; allowed: {_FORMS}"
            ) from None
        if array.shape != (problem.clients,):
            raise InputError(
                f"{what}: {field} has shape {array.shape}; allowed: ({problem.clients},)"
            )
        bad = ~np.isfinite(array)
        _refuse(problem.names, bad, what, field, array, lambda k: "a finite number")
        arrays.append(array)
    return arrays[0], arrays[1]


def _refuse(
    names: tuple[str, ...],
    bad: NDArray[np.bool_],
    what: str,
    field: str,
    values: Array,
    allowed: Callable[[int], str],
) -> None:
    if bad.any():
        k = int(np.argmax(bad))
        raise InputError(
            f"{what}: {field} {values[k]:.9g} of client '{names[k]}'; allowed: {allowed(k)}"
        )
