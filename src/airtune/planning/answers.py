"""What a planning method answered, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.problem import Array, Plan, PlanningProblem

_SLACK = 1e-9
"""Relative excess over a bound that counts as rounding."""

_FORMS = "(pruning, bandwidth_hz), one number a client each, or a Plan"


def checked(problem: PlanningProblem, what: str, answer: object) -> tuple[Array, Array]:
    """Return pruning rates and bands, (K,) each, of a method's answer.

    Within [min_pruning, max_pruning], b >= 0, Σ b <= B, Q <= max_pruning_loss where that is given,
    and a band for every client that sends. Rates that pass a bound by rounding are put on it.

    Args:
        problem: what was planned.
        what: the method, e.g. "planning method 'mine'".
        answer: what its function returned.

    Raises:
        InputError: names the method, the client, and what is wrong.
    """
    pruning, band = _pair(problem, what, answer)
    names, low, high = problem.names, problem.min_pruning, problem.max_pruning
    outside = (pruning < low - _SLACK) | (pruning > high + _SLACK)
    _refuse(names, outside, what, "pruning", pruning, lambda k: f"{low[k]:g} to {high[k]:g}")
    pruning = np.clip(pruning, low, high)
    _refuse(names, band < 0, what, "bandwidth_hz", band, lambda k: "0 or more")
    total = float(band.sum())
    if total > problem.bandwidth_hz * (1.0 + _SLACK):
        raise InputError(
            f"{what}: the bands sum to {total:.9g} Hz; allowed: at most {problem.bandwidth_hz:.9g}"
        )
    silent = (problem.payload_bits(pruning) > 0) & ~(problem.rate_bps(band) > 0)
    _refuse(names, silent, what, "bandwidth_hz", band, lambda k: "above 0, it has bits to send")
    limit, loss = problem.max_pruning_loss, problem.pruning_loss(pruning)
    if limit is not None and loss > limit + _SLACK * max(limit, 1.0):
        raise InputError(
            f"{what}: its pruning loss {loss:.6g} passes the problem's max_pruning_loss {limit:.6g}"
        )
    return pruning, band


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
