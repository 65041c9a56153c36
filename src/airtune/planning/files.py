"""Planning problems and plans as JSON: a format that other programs rely on (docs/planning.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from airtune.encoding import surrogate_in
from airtune.errors import InputError
from airtune.planning.modes import MODE_COSTS, MODE_OPTIONS, ClientMode
from airtune.planning.plausible import check_units
from airtune.planning.problem import MODE_FIELDS, PER_CLIENT, Array, Plan, PlanningProblem

_OPTIONAL_NUMBERS = (
    "max_spectral_efficiency",
    "absent_cost",
    "energy_budget_j",
    "compute_power_w",
    "transmit_power_w",
)
_OPTIONAL_CLIENT_FIELDS = (*_OPTIONAL_NUMBERS, "pruning_cost", "modes")
# What a client without a value has: no cap, must take part, no budget, no power.
_LEFT_OUT = {"compute_power_w": 0.0, "transmit_power_w": 0.0}
_PLAN_CLIENT_FIELDS = (
    "pruning",
    "bandwidth_hz",
    "rate_bps",
    "downlink_s",
    "compute_s",
    "upload_s",
    "total_s",
)


def problem_from_json(source: str | Mapping[str, Any]) -> PlanningProblem:
    """Return the problem that a JSON text, or the object read from it, describes.

    Raises:
        InputError: no JSON, an unknown or missing key, a value of the wrong type, a unit that
            cannot be meant, or anything that :class:`PlanningProblem` refuses.
    """
    document = parsed(source) if isinstance(source, str) else source
    if not isinstance(document, Mapping):
        raise InputError("a planning problem is a JSON object with bandwidth_hz, kappa and clients")
    _check_keys(
        "planning problem", document, ("bandwidth_hz", "kappa", "clients"), ("max_pruning_loss",)
    )
    clients = document["clients"]
    if not isinstance(clients, list | tuple):
        raise InputError(f"clients: {_shown(clients)} is not allowed; allowed: a list of clients")
    limit = document.get("max_pruning_loss")
    names = []
    rows: dict[str, list[float]] = {field: [] for field in PER_CLIENT}
    options: dict[str, list[float | None]] = {field: [] for field in _OPTIONAL_NUMBERS}
    curves: list[Any] = []
    modes: list[tuple[ClientMode, ...] | None] = []
    for number, client in enumerate(clients):
        name = _client_name(number, client)
        where = f"client {name!r}"
        # What each mode gives need not be given by the client as well.
        spare = MODE_FIELDS if "modes" in client else ()
        needed = tuple(field for field in PER_CLIENT if field not in spare)
        _check_keys(where, client, ("name", *needed), (*spare, *_OPTIONAL_CLIENT_FIELDS))
        names.append(name)
        for field in PER_CLIENT:
            rows[field].append(_number(f"{where}: {field}", client.get(field, 0.0)))
        for field in _OPTIONAL_NUMBERS:
            value = client.get(field)
            options[field].append(None if value is None else _number(f"{where}: {field}", value))
        curves.append(client.get("pruning_cost"))
        modes.append(_modes(where, client["modes"]) if "modes" in client else None)
    problem = PlanningProblem(
        bandwidth_hz=_number("bandwidth_hz", document["bandwidth_hz"]),
        kappa=_number("kappa", document["kappa"]),
        names=tuple(names),
        pruning_cost=tuple(curves),
        max_pruning_loss=None if limit is None else _number("max_pruning_loss", limit),
        modes=None if all(mine is None for mine in modes) else tuple(modes),
        **cast(Any, {field: _filled(field, values) for field, values in options.items()}),
        **cast(Any, {field: np.array(values) for field, values in rows.items()}),
    )
    check_units(problem)
    return problem


def _filled(field: str, values: list[float | None]) -> Array | None:
    if all(value is None for value in values):
        return None
    rest = _LEFT_OUT.get(field, np.inf)
    return np.array([rest if value is None else value for value in values])


def _modes(where: str, rows: object) -> tuple[ClientMode, ...]:
    if not isinstance(rows, list | tuple):
        raise InputError(f"{where}: modes {_shown(rows)} is not allowed; allowed: a list of modes")
    modes = []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"{where}: modes[{number}]: {_shown(row)} is not allowed; allowed: an object"
            )
        name = row.get("name")
        if not isinstance(name, str) or not name:
            raise InputError(
                f"{where}: modes[{number}]: name {_shown(name)} is not allowed; allowed: a text"
            )
        here = f"{where}: mode {name!r}"
        _check_keys(here, row, ("name", *MODE_COSTS), MODE_OPTIONS)
        numbers = {
            field: _number(f"{here}: {field}", value)
            for field, value in row.items()
            if field != "name"
        }
        modes.append(ClientMode(name=name, **numbers))
    return tuple(modes)


def problem_to_json(problem: PlanningProblem) -> dict[str, Any]:
    """Return the problem as the JSON object that :func:`problem_from_json` reads.

    Raises:
        InputError: a problem with ``listen_s`` or ``equal_bands``, which a file does not have.
    """
    if problem.listen_s is not None or problem.equal_bands:
        raise InputError(
            "a planning problem file has no listen_s and no equal bands; allowed: each "
            "client's own downlink_s, and bands that are planned"
        )
    document: dict[str, Any] = {"bandwidth_hz": problem.bandwidth_hz, "kappa": problem.kappa}
    if problem.max_pruning_loss is not None:
        document["max_pruning_loss"] = problem.max_pruning_loss
    document["clients"] = clients = []
    for k, name in enumerate(problem.names):
        client: dict[str, Any] = {"name": name}
        client.update({field: float(getattr(problem, field)[k]) for field in PER_CLIENT})
        for field in _OPTIONAL_NUMBERS:
            values = getattr(problem, field)
            if values is not None and np.isfinite(values[k]):
                client[field] = float(values[k])
        curve = None if problem.pruning_cost is None else problem.pruning_cost[k]
        if curve is not None:
            client["pruning_cost"] = curve.tolist()
        modes = None if problem.modes is None else problem.modes[k]
        if modes is not None:
            for field in MODE_COSTS[1:]:
                del client[field]
            client["modes"] = [
                {key: value for key, value in vars(mode).items() if value is not None}
                for mode in modes
            ]
        clients.append(client)
    return document


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as a JSON object: the totals, then one object a client."""
    document: dict[str, Any] = {
        "method": plan.method,
        "objective_s": plan.objective_s,
        "lower_bound_s": plan.lower_bound_s,
        "gap": plan.gap,
        "round_latency_s": plan.round_latency_s,
        "pruning_loss": plan.pruning_loss,
        "rounds_factor": plan.rounds_factor,
        "solve_s": plan.solve_s,
    }
    if plan.blocks is not None:
        document["block_loss"] = plan.block_loss
    columns = {field: getattr(plan, field).tolist() for field in _PLAN_CLIENT_FIELDS}
    if plan.blocks is not None:
        columns["blocks"] = plan.blocks.tolist()
    if plan.modes is not None:
        columns = {"mode": list(plan.modes), **columns}
    if plan.energy_j is not None:
        columns["energy_j"] = plan.energy_j.tolist()
    document["clients"] = [
        {"name": name, **{field: values[k] for field, values in columns.items()}}
        for k, name in enumerate(plan.names)
    ]
    return document


def parsed(text: str) -> Any:
    """Return what a JSON text holds; raises `InputError`, also at a key that is there twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            doubled = next(key for key in keys if keys.count(key) > 1)
            raise InputError(f"the key {doubled!r} is there twice in one object")
        return found

    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None
    except RecursionError:
        raise InputError("not JSON that can be read: nested too deeply") from None
    except InputError:
        raise
    except ValueError:  # Python's own limit of digits
        raise InputError("a whole number has too many digits; allowed: a finite number") from None


def _client_name(number: int, client: object) -> str:
    if not isinstance(client, Mapping):
        raise InputError(f"clients[{number}]: {_shown(client)} is not allowed; allowed: an object")
    name = client.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"clients[{number}]: name {_shown(name)} is not allowed; allowed: a text")
    if (half := surrogate_in(name)) is not None:
        raise InputError(f"clients[{number}]: name holds {half}, half of a surrogate pair")
    return name


def _check_keys(
    where: str, document: Mapping[str, Any], needed: tuple[str, ...], optional: tuple[str, ...]
) -> None:
    for key in needed:
        if key not in document:
            raise InputError(f"{where}: {key} is missing")
    for key in document:
        if key not in needed and key not in optional:
            allowed = ", ".join((*needed, *optional))
            raise InputError(f"{where}: unknown key {key!r}; allowed: {allowed}")


def _number(where: str, value: object) -> float:
    # bool is an int to Python, and true is no bandwidth.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} {_shown(value)} is not allowed; allowed: a number")
    try:
        return float(value)
    except OverflowError:
        raise InputError(f"{where} is too large; allowed: a finite number") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
