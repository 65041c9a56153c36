"""Block coordinate descent over every knob: modes, absence and pruning; then bands; and again.

This is what one would do first, and it is weaker than ``bcd`` by one more trap: a client that sits
out has no band, and a client without a band cannot take part again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.errors import InputError
from airtune.planning.bcd import bandwidth_block
from airtune.planning.mode_plans import chosen_of, keeps_budgets
from airtune.planning.optimum.choices import choices_of
from airtune.planning.optimum.fixed_bands import at_bands
from airtune.planning.problem import Plan, PlanningProblem, priced

# Sweeps end by the tolerance, after some tens at most; this only ends a cycle of rounding.
_MAX_SWEEPS = 100


def bcd_knobs(problem: PlanningProblem, *, tolerance: float = 1e-6) -> Plan:
    """Return the plan of the descent from equal bands; each block is solved exactly.

    argmin over modes, absence and ρ of N(Q)·T at given bands; argmin over b of T at given modes
    and ρ; until a sweep improves the objective by less than ``tolerance``, relatively.

    Raises:
        InputError: no plan at equal bands keeps the energy budgets.
    """
    choices = choices_of(problem)
    band = np.full(problem.clients, problem.bandwidth_hz / problem.clients)
    best: Plan | None = None
    for _ in range(_MAX_SWEEPS):
        made, _bound = at_bands(problem, band, choices=choices)
        if made is None:
            break
        known = np.inf if best is None else best.objective_s
        rebanded = made if problem.equal_bands else _rebanded(problem, made)
        better = min(
            (plan for plan in (made, rebanded) if keeps_budgets(problem, plan)),
            key=lambda plan: plan.objective_s,
        )
        if better.objective_s <= known:
            best = better
        if better.objective_s >= known * (1.0 - tolerance):
            break
        band = better.bandwidth_hz
    if best is None:
        raise InputError(
            "clients: no plan at equal bands keeps every energy budget and bound; allowed: larger "
            "ones, more bandwidth_hz, or another method"
        )
    return replace(best, method="bcd-knobs")


def _rebanded(problem: PlanningProblem, made: Plan) -> Plan:
    payload = made.upload_s * made.rate_bps
    _, band = bandwidth_block(problem, made.downlink_s + made.compute_s, payload)
    return priced(problem, "bcd-knobs", made.pruning, band, chosen=chosen_of(problem, made))
