"""What a client may be told to do in a round: its modes, each with its own costs.

A mode is one choice of local steps, LoRA rank and uplink bits. In a mode the costs are affine in
the pruning rate, as without modes, and the loss in learning is

    ℓ(ρ) = 1 − (1 − cost)·(1 − e(ρ)):

what is left of the progress multiplies. A client with an absent cost may also sit out: no band,
no time, no energy, and ℓ = absent_cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.planning.checks import MAX_LATENCY_S
from airtune.planning.curves import Array

if TYPE_CHECKING:
    from airtune.planning.problem import PlanningProblem

# The mode of a client without modes, which may have something else to choose: to sit out.
WHOLE = "whole"
MODE_COSTS = (
    "cost",
    "compute_fixed_s",
    "compute_full_s",
    "payload_fixed_bits",
    "payload_full_bits",
)
"""Fields that every mode must have, a number each."""
MODE_BOUNDS = ("min_pruning", "max_pruning")
MODE_OPTIONS = (*MODE_BOUNDS, "compute_power_w", "transmit_power_w")
"""Fields of a mode that the client's own stand in for."""


@dataclass(frozen=True)
class ClientMode:
    """One mode of one client; None stands for the client's own value.

    Attributes:
        name: distinct among the client's modes.
        cost: what the mode costs in learning, in [0, 1], beside pruning.
        compute_fixed_s, compute_full_s: c(ρ) = fixed + full·(1 − ρ), s.
        payload_fixed_bits, payload_full_bits: u(ρ) = fixed + full·(1 − ρ), bit.
        min_pruning, max_pruning: bounds on ρ in this mode (memory sets the lower one).
        compute_power_w, transmit_power_w: what the device draws while it computes and sends, W.
    """

    name: str
    cost: float
    compute_fixed_s: float
    compute_full_s: float
    payload_fixed_bits: float
    payload_full_bits: float
    min_pruning: float | None = None
    max_pruning: float | None = None
    compute_power_w: float | None = None
    transmit_power_w: float | None = None


Modes = tuple[tuple[ClientMode, ...] | None, ...]
"""Per client its modes, or None for a client without."""


@dataclass(frozen=True, eq=False)
class ModeTable:
    """The modes that can be used, flattened, client after client; every array is (M,).

    Attributes:
        owner: whose mode it is. ``first``: (K,) each client's first. ``best``: (K,) its first one
            of the least cost. ``names``: theirs.
    """

    owner: NDArray[np.intp]
    first: NDArray[np.intp]
    best: NDArray[np.intp]
    names: tuple[str, ...]
    cost: Array
    compute_fixed_s: Array
    compute_full_s: Array
    payload_fixed_bits: Array
    payload_full_bits: Array
    min_pruning: Array
    max_pruning: Array
    compute_power_w: Array
    transmit_power_w: Array


_COLUMNS = (*MODE_COSTS, *MODE_OPTIONS)


def mode_table(problem: PlanningProblem) -> ModeTable:
    """Return the modes of all clients that fit memory, energy budget and channel.

    A client that fits none of its modes has no entry (``owner`` does not name it); it sits out.

    Raises:
        InputError: a mode with a value that is not allowed, or a client that fits no mode and may
            not sit out.
    """
    rows: list[tuple[float, ...]] = []
    names: list[str] = []
    owner: list[int] = []
    for k, modes in enumerate(problem.modes or (None,) * problem.clients):
        check_modes(problem.names[k], modes)
        for mode in (_whole(problem, k),) if modes is None else modes:
            names.append(mode.name)
            owner.append(k)
            rows.append(_row(problem, k, mode))
    values = np.array(rows, dtype=np.float64)
    index = np.array(owner, dtype=np.intp)
    _check_values(problem, index, names, values)
    columns = dict(zip(_COLUMNS, values.T, strict=True))
    fits, reasons = _fits(problem, index, columns)
    _check_each_fits(problem, index, names, fits, reasons)
    index, kept = index[fits], np.flatnonzero(fits)
    first = np.searchsorted(index, np.arange(problem.clients))
    best = first.copy()
    cost = columns["cost"][fits]
    for k in range(problem.clients):
        mine = cost[first[k] : np.searchsorted(index, k, side="right")]
        if len(mine):
            best[k] += int(np.argmin(mine))
    return ModeTable(
        owner=index,
        first=first,
        best=best,
        names=tuple(names[i] for i in kept),
        **{field: np.ascontiguousarray(column[fits]) for field, column in columns.items()},
    )


def filled(problem: PlanningProblem) -> Modes:
    """Return the modes with the clients' own bounds on pruning where they give none.

    The clients' own bounds are replaced afterwards by those of their modes of least cost. Their
    powers are not, and are looked up when they are needed: so they can be replaced.
    """
    return tuple(
        None if modes is None else tuple(_filled(problem, k, mode) for mode in modes)
        for k, modes in enumerate(problem.modes or ())
    )


def _filled(problem: PlanningProblem, k: int, mode: ClientMode) -> ClientMode:
    left_out = [field for field in MODE_BOUNDS if getattr(mode, field) is None]
    if not left_out:
        return mode
    return replace(mode, **cast(Any, {field: _own(problem, k, field) for field in left_out}))


def _own(problem: PlanningProblem, k: int, field: str) -> float:
    values = getattr(problem, field)
    return 0.0 if values is None else float(values[k])


def check_modes(name: str, modes: Sequence[ClientMode] | None) -> None:
    """Refuse an empty list of modes, or two modes of one name."""
    if modes is None:
        return
    if not modes:
        raise InputError(f"client {name!r}: modes is empty; allowed: at least one mode")
    seen: set[str] = set()
    for mode in modes:
        if mode.name in seen:
            raise InputError(
                f"client {name!r}: modes: the name {mode.name!r} appears twice; names must differ"
            )
        seen.add(mode.name)


def _whole(problem: PlanningProblem, k: int) -> ClientMode:
    costs = {field: float(getattr(problem, field)[k]) for field in MODE_COSTS[1:]}
    return ClientMode(name=WHOLE, cost=0.0, **costs)


def _row(problem: PlanningProblem, k: int, mode: ClientMode) -> tuple[float, ...]:
    row = [getattr(mode, field) for field in _COLUMNS]
    return tuple(
        _own(problem, k, field) if value is None else value
        for field, value in zip(_COLUMNS, row, strict=True)
    )


def _check_values(
    problem: PlanningProblem, owner: NDArray[np.intp], names: list[str], values: Array
) -> None:
    top = np.full(len(_COLUMNS), np.inf)
    for field in ("cost", "max_pruning"):
        top[_COLUMNS.index(field)] = 1.0
    for field in ("compute_fixed_s", "compute_full_s"):
        top[_COLUMNS.index(field)] = MAX_LATENCY_S
    bad = ~(np.isfinite(values) & (values >= 0) & (values <= top))
    # A rate that no pruning reaches says that memory does not hold the mode at all.
    memory = _COLUMNS.index("min_pruning")
    bad[:, memory] = ~(values[:, memory] >= 0)
    if bad.any():
        row, column = (int(i[0]) for i in np.nonzero(bad))
        field = _COLUMNS[column]
        allowed = "a number from 0 to 1" if top[column] == 1 else "a finite number, 0 or more"
        if top[column] == MAX_LATENCY_S and values[row, column] > top[column]:
            allowed = f"at most {MAX_LATENCY_S:g} s"
        raise InputError(
            f"client {problem.names[owner[row]]!r}: mode {names[row]!r}: {field} "
            f"{float(values[row, column])!r} is not allowed; allowed: {allowed}"
        )


def _fits(
    problem: PlanningProblem, owner: NDArray[np.intp], columns: dict[str, Array]
) -> tuple[NDArray[np.bool_], list[NDArray[np.bool_]]]:
    """Return which modes can be used: with the whole band, pruned most. And the three reasons."""
    memory = columns["min_pruning"] <= columns["max_pruning"]
    kept = 1.0 - columns["max_pruning"]
    whole = np.full(problem.clients, problem.bandwidth_hz)
    rate = problem.rate_bps(whole)[owner]
    bits = columns["payload_fixed_bits"] + columns["payload_full_bits"] * kept
    seconds = columns["compute_fixed_s"] + columns["compute_full_s"] * kept
    full = columns["payload_full_bits"]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(bits > 0, bits / rate, np.where((full > 0) & (rate <= 0), np.inf, 0.0))
        spent = columns["compute_power_w"] * seconds
        spent = spent + np.where(upload > 0, columns["transmit_power_w"] * upload, 0.0)
    reached = upload <= MAX_LATENCY_S
    affordable = spent <= problem.energy_budgets[owner]
    return memory & reached & affordable, [~memory, ~reached, ~affordable]


def _check_each_fits(
    problem: PlanningProblem,
    owner: NDArray[np.intp],
    names: list[str],
    fits: NDArray[np.bool_],
    reasons: list[NDArray[np.bool_]],
) -> None:
    has = np.zeros(problem.clients, dtype=bool)
    has[owner[fits]] = True
    lost = ~has & ~np.isfinite(problem.absent_costs)
    if not lost.any():
        return
    k = int(np.argmax(lost))
    mine = np.flatnonzero(owner == k)
    words = (
        "min_pruning is above max_pruning: memory does not hold it",
        f"snr_hz {float(problem.snr_hz[k])!r} does not carry it",
        f"energy_budget_j {float(problem.energy_budgets[k])!r} is not enough for it",
    )
    why = [
        f"mode {names[i]!r}: {next(w for w, r in zip(words, reasons, strict=True) if r[i])}"
        for i in mine
    ]
    more = f"; and {len(why) - 3} more" if len(why) > 3 else ""
    raise InputError(
        f"client {problem.names[k]!r}: modes: none fits ({'; '.join(why[:3])}{more}); "
        "allowed: at least one that fits, or an absent_cost (of a scenario: participation.rule, or "
        "'absence' among planning.knobs)"
    )


assert {field.name for field in fields(ClientMode)} == {"name", *_COLUMNS}
