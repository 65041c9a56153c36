"""Joint pruning and bandwidth planning: the problem, the methods, the certificate.

``PlanningProblem`` in, ``Plan`` out: ``plan(problem, method="exact")``. docs/planning.md states the
problem and what each method guarantees.
"""

from __future__ import annotations

from airtune.planning.files import plan_to_json, problem_from_json, problem_to_json
from airtune.planning.kappa import fitted_kappa
from airtune.planning.methods import METHODS, Method, plan, planning_method
from airtune.planning.modes import ClientMode
from airtune.planning.problem import Plan, PlanningProblem

__all__ = [
    "METHODS",
    "ClientMode",
    "Method",
    "Plan",
    "PlanningProblem",
    "fitted_kappa",
    "plan",
    "plan_to_json",
    "planning_method",
    "problem_from_json",
    "problem_to_json",
]
