"""Planning problems and plans as JSON: a format that other programs rely on (docs/planning.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from airtune.errors import InputError
from airtune.planning.plausible import check_units
from airtune.planning.problem import PER_CLIENT, Plan, PlanningProblem

_OPTIONAL_CLIENT_FIELDS = ("max_spectral_efficiency", "pruning_cost")
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
    document = _parsed(source) if isinstance(source, str) else source
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
    efficiency: list[float] = []
    curves: list[Any] = []
    for number, client in enumerate(clients):
        name = _client_name(number, client)
        where = f"client {name!r}"
        _check_keys(where, client, ("name", *PER_CLIENT), _OPTIONAL_CLIENT_FIELDS)
        names.append(name)
        for field in PER_CLIENT:
            rows[field].append(_number(f"{where}: {field}", client[field]))
        cap = client.get("max_spectral_efficiency")
        efficiency.append(
            np.inf if cap is None else _number(f"{where}: max_spectral_efficiency", cap)
        )
        curves.append(client.get("pruning_cost"))
    problem = PlanningProblem(
        bandwidth_hz=_number("bandwidth_hz", document["bandwidth_hz"]),
        kappa=_number("kappa", document["kappa"]),
        names=tuple(names),
        max_spectral_efficiency=np.array(efficiency),
        pruning_cost=tuple(curves),
        max_pruning_loss=None if limit is None else _number("max_pruning_loss", limit),
        **{field: np.array(values) for field, values in rows.items()},
    )
    check_units(problem)
    return problem


def problem_to_json(problem: PlanningProblem) -> dict[str, Any]:
    """Return the problem as the JSON object that :func:`problem_from_json` reads."""
    document: dict[str, Any] = {"bandwidth_hz": problem.bandwidth_hz, "kappa": problem.kappa}
    if problem.max_pruning_loss is not None:
        document["max_pruning_loss"] = problem.max_pruning_loss
    document["clients"] = clients = []
    for k, name in enumerate(problem.names):
        client: dict[str, Any] = {"name": name}
        client.update({field: float(getattr(problem, field)[k]) for field in PER_CLIENT})
        if np.isfinite(problem.efficiency[k]):
            client["max_spectral_efficiency"] = float(problem.efficiency[k])
        curve = None if problem.pruning_cost is None else problem.pruning_cost[k]
        if curve is not None:
            client["pruning_cost"] = curve.tolist()
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
    document["clients"] = [
        {"name": name, **{field: values[k] for field, values in columns.items()}}
        for k, name in enumerate(plan.names)
    ]
    return document


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None
    except (ValueError, RecursionError) as error:
        # Not the JSON, but its size: a number of thousands of digits, thousands of brackets.
        raise InputError(f"cannot be read as JSON: {error}") from None


def _client_name(number: int, client: object) -> str:
    if not isinstance(client, Mapping):
        raise InputError(f"clients[{number}]: {_shown(client)} is not allowed; allowed: an object")
    name = client.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"clients[{number}]: name {_shown(name)} is not allowed; allowed: a text")
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
