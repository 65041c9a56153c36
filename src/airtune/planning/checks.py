"""What a planning problem refuses: every message names the client and the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.curves import Array, checked_curve

if TYPE_CHECKING:
    from airtune.planning.problem import PlanningProblem

# A client that needs longer than this with the whole band for itself counts as unreachable
# (thirty million years; it also keeps every later product finite).
MAX_LATENCY_S = 1e15
# κ·Q must stay below 1 by more than rounding, or N = 1/(1 − κQ) means nothing.
MIN_PROGRESS = 1e-9
# A bound on Q may lie so much below the least Q, relatively, by rounding.
_LOSS_SLACK = 1e-9


def frozen(values: Array) -> Array:
    """Return the array, no longer writeable."""
    values.flags.writeable = False
    return values


def check_names(names: tuple[str, ...]) -> None:
    """Refuse an empty list of clients, or two of one name."""
    if not names:
        raise InputError("clients: the list is empty; allowed: at least one client")
    if len(set(names)) < len(names):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise InputError(f"clients: the name {name!r} appears twice; names must differ")
            seen.add(name)


def check_number(field: str, value: float, *, positive: bool = False) -> None:
    """Refuse what is no finite number of the allowed sign."""
    if not np.isfinite(value) or value < 0 or (positive and value == 0):
        allowed = "a finite number above 0" if positive else "a finite number, 0 or more"
        raise InputError(f"{field}: {value!r} is not allowed; allowed: {allowed}")


def client_array(names: tuple[str, ...], field: str, values: object) -> Array:
    """Return a field of all clients as a frozen array, one number of 0 or more each."""
    array = np.array(values, dtype=np.float64)
    if array.shape != (len(names),):
        raise InputError(
            f"{field}: {array.shape} values for {len(names)} clients; allowed: one each"
        )
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        refuse(names, bad, field, array, "a finite number, 0 or more")
    return frozen(array)


def check_length(names: tuple[str, ...], field: str, count: int) -> None:
    """Refuse a list that does not have one entry a client."""
    if count != len(names):
        raise InputError(f"{field}: {count} values for {len(names)} clients; allowed: one each")


def option_array(names: tuple[str, ...], field: str, values: object) -> Array:
    """Return an optional per-client array; infinity stands for no limit where that has a sense."""
    array = np.array(values, dtype=np.float64)
    check_length(names, field, len(array))
    unlimited = field in ("absent_cost", "energy_budget_j")
    top = 1.0 if field == "absent_cost" else np.inf
    bad = ~((array >= 0) & (array <= top) & np.isfinite(array))
    if unlimited:
        bad &= ~np.isposinf(array)
    allowed = "a number from 0 to 1" if top == 1 else "a finite number, 0 or more"
    refuse(names, bad, field, array, allowed)
    return frozen(array)


def efficiencies(names: tuple[str, ...], values: object) -> Array:
    """Return the largest spectral efficiencies, infinity where there is no cap."""
    array = np.full(len(names), np.inf) if values is None else np.array(values, dtype=np.float64)
    if array.shape != (len(names),):
        raise InputError(
            f"max_spectral_efficiency: {array.shape} values for {len(names)} clients; "
            "allowed: one each"
        )
    refuse(names, ~(array > 0), "max_spectral_efficiency", array, "a number above 0")
    return frozen(array)


def refuse(
    names: tuple[str, ...], bad: NDArray[np.bool_], field: str, values: Array, allowed: str
) -> None:
    """Refuse the first value that is bad, if any, naming its client."""
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"client {names[first]!r}: {field} {float(values[first])!r} is not allowed; "
            f"allowed: {allowed}"
        )


def check_pruning(problem: PlanningProblem) -> None:
    """Refuse bounds on pruning that are none."""
    names = problem.names
    refuse(names, problem.max_pruning > 1, "max_pruning", problem.max_pruning, "0 to 1")
    above = problem.min_pruning > problem.max_pruning
    if above.any():
        first = int(np.argmax(above))
        raise InputError(
            f"client {names[first]!r}: min_pruning {float(problem.min_pruning[first])!r} is above "
            f"max_pruning {float(problem.max_pruning[first])!r}; allowed: min <= max"
        )


def curves(problem: PlanningProblem) -> tuple[Array | None, ...] | None:
    """Return the checked cost curves, None where all are linear."""
    given = problem.pruning_cost
    if given is None or all(curve is None for curve in given):
        return None
    if len(given) != problem.clients:
        raise InputError(
            f"pruning_cost: {len(given)} curves for {problem.clients} clients; allowed: one each"
        )
    tops = problem.max_pruning.copy()
    if problem.chooses:
        np.maximum.at(tops, problem.table.owner, problem.table.max_pruning)
    return tuple(
        None if curve is None else frozen(checked_curve(name, curve, float(top)))
        for name, curve, top in zip(problem.names, given, tops, strict=True)
    )


def check_powers(problem: PlanningProblem) -> None:
    """Refuse a budget of energy where nothing is known to draw any: it would bind nothing."""
    bounded = np.isfinite(problem.energy_budgets)
    for own in (problem.compute_power_w, problem.transmit_power_w):
        bounded &= own is None or own <= 0
    for k in np.flatnonzero(bounded):
        rows = (problem.modes[k] if problem.modes else None) or ()
        if not any(row.compute_power_w or row.transmit_power_w for row in rows):
            raise InputError(
                f"client {problem.names[k]!r}: energy_budget_j needs compute_power_w or "
                "transmit_power_w above 0: without a power no energy is counted"
            )


def check_progress(problem: PlanningProblem) -> None:
    """Refuse a κ with which no plan makes progress, and a bound on Q that no plan keeps."""
    limit = problem.max_pruning_loss
    least = _least_loss(problem)
    if limit is None:
        if problem.kappa * least > 1 - MIN_PROGRESS:
            raise InputError(
                f"kappa: with kappa {problem.kappa!r} and every client at its least loss, kappa·Q "
                f"is {problem.kappa * least:.6g}; allowed: below 1"
            )
        return
    worst = problem.kappa * (1.0 if problem.chooses else problem.pruning_loss(problem.max_pruning))
    if min(problem.kappa * limit, worst) > 1 - MIN_PROGRESS:
        raise InputError(
            f"kappa: with max_pruning_loss {limit!r}, kappa·Q can reach 1; allowed: below 1"
        )
    if least > limit * (1.0 + _LOSS_SLACK):
        raise InputError(
            f"max_pruning_loss: {limit!r} is below {least:.6g}, the loss with every client at "
            "its min_pruning; allowed: that or more"
        )


def _least_loss(problem: PlanningProblem) -> float:
    """Return Q with every client in its best mode at that mode's min_pruning."""
    if not problem.chooses:
        return problem.pruning_loss(problem.min_pruning)
    return float(problem.weight @ problem.least_losses())


def check_reach(problem: PlanningProblem) -> None:
    """Refuse a client whose smallest payload the whole band cannot carry in finite time."""
    payload = problem.payload_bits(problem.max_pruning)
    full = problem.payload_bits(problem.min_pruning)
    rate = problem.rate_bps(np.full(problem.clients, problem.bandwidth_hz))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(np.maximum(payload, full) > 0, payload / rate, 0.0)
    # A client that can cut its payload to nothing is reachable, but never at rate 0.
    upload = np.where((full > 0) & (rate <= 0), np.inf, upload)
    refuse(
        problem.names,
        ~(upload <= MAX_LATENCY_S),
        "snr_hz",
        problem.snr_hz,
        "a received power that carries the payload (it cannot be reached with the whole band)",
    )
    for field in ("downlink_s", "compute_fixed_s", "compute_full_s"):
        seconds = getattr(problem, field)
        refuse(
            problem.names, seconds > MAX_LATENCY_S, field, seconds, f"at most {MAX_LATENCY_S:g} s"
        )
