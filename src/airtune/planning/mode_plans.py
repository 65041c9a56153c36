"""Plans with modes: how they are priced, and whether they keep the energy budgets."""

from __future__ import annotations

import numpy as np

from airtune.planning.problem import Array, Chosen, Plan, PlanningProblem, rounds_factor

# By how much a budget may be passed, relatively: rounding.
_OVER_BUDGET = 1e-9


def chosen_of(problem: PlanningProblem, made: Plan) -> Chosen | None:
    """Return a plan's modes as ``priced`` takes them."""
    if made.modes is None:
        return None
    place = {
        (int(owner), name): index
        for index, (owner, name) in enumerate(
            zip(problem.table.owner, problem.table.names, strict=True)
        )
    }
    return tuple(None if name is None else place[k, name] for k, name in enumerate(made.modes))


def keeps_budgets(problem: PlanningProblem, made: Plan) -> bool:
    """Whether no client draws more than its energy budget, but for rounding."""
    if made.energy_j is None:
        return True
    return bool((made.energy_j <= problem.energy_budgets * (1.0 + _OVER_BUDGET)).all())


def priced_modes(
    problem: PlanningProblem,
    method: str,
    pruning: Array,
    bandwidth_hz: Array,
    solve_s: float,
    chosen: Chosen | None,
) -> Plan:
    """Return the plan of given modes, pruning rates and bands: see ``priced``."""
    table = problem.table
    if chosen is None:
        chosen = tuple(
            int(best) if has else None
            for best, has in zip(table.best, problem.has_mode, strict=True)
        )
    here = np.array([mode is not None for mode in chosen])
    row = np.array([0 if mode is None else mode for mode in chosen], dtype=np.intp)

    def of(field: str) -> Array:
        column = getattr(table, field)
        return np.where(here, column[row], 0.0) if len(column) else np.zeros(problem.clients)

    pruning, band = np.where(here, pruning, 0.0), np.where(here, bandwidth_hz, 0.0)
    kept = 1.0 - pruning
    compute = of("compute_fixed_s") + of("compute_full_s") * kept
    payload = of("payload_fixed_bits") + of("payload_full_bits") * kept
    rate = problem.rate_bps(band)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        upload = np.where(payload > 0, payload / rate, 0.0)
        spent = of("compute_power_w") * compute
        spent = spent + np.where(upload > 0, of("transmit_power_w") * upload, 0.0)
    downlink = np.array(problem.downlink_s)
    if problem.listen_s is not None:
        downlink = downlink + np.where(here, problem.listen_s, 0.0).max()
    downlink = np.where(here, downlink, 0.0)
    total = downlink + compute + upload
    latency = float(total.max())
    left = (1.0 - of("cost")) * (1.0 - problem.cost(pruning))
    losses = np.where(here, 1.0 - left, problem.absent_costs)
    loss = float(problem.weight[problem.weight > 0] @ losses[problem.weight > 0])
    factor = rounds_factor(problem.kappa, loss)
    # A round without anyone makes no progress, however cheap it is to sit out.
    factor = factor if here.any() else float("inf")
    objective = latency * factor if latency > 0 else (0.0 if np.isfinite(factor) else factor)
    powers = problem.compute_power_w is not None or problem.transmit_power_w is not None
    powers |= bool(table.compute_power_w.any() or table.transmit_power_w.any())
    return Plan(
        method=method,
        names=problem.names,
        pruning=pruning,
        bandwidth_hz=band,
        rate_bps=rate,
        downlink_s=downlink,
        compute_s=compute,
        upload_s=upload,
        total_s=total,
        round_latency_s=latency,
        pruning_loss=loss,
        rounds_factor=factor,
        objective_s=objective if problem.max_pruning_loss is None else latency,
        lower_bound_s=None,
        gap=None,
        solve_s=solve_s,
        modes=tuple(None if mode is None else table.names[mode] for mode in chosen),
        losses=losses,
        energy_j=spent if powers else None,
    )
