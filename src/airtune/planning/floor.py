"""A floor on being heard: over a run every client contributes at least a share of what it could.

A price on absence alone lets a plan leave slow clients out for good. A virtual queue per client
remembers what is owed to it (drift plus penalty: Neely, Stochastic Network Optimization, 2010),

    Z ← max(0, Z + φ − (1 − ℓ)),

and weighs the client in Q by w·(1 + Z). A client that is left out gains weight until leaving it out
again costs more than waiting for it. The mean contribution over N rounds is at least φ − Z_N/N, so
it reaches φ as long as the queues stay bounded. Queues start apart from each other, so that those
who were left out do not all come back in one round.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.errors import InputError
from airtune.planning.problem import Array, Plan, PlanningProblem

# However long the queues, the plan in which everyone loses least keeps this much progress.
_LEAST_PROGRESS = 0.01


def check_floor(problem: PlanningProblem, share: float) -> None:
    """Refuse a share that is none, or that some client cannot contribute even by itself.

    Raises:
        InputError: naming the client and what it can contribute at most.
    """
    if not 0 <= share <= 1:
        raise InputError(f"floor: {share!r} is not allowed; allowed: a share from 0 to 1")
    most = most_contributed(problem)
    short = most < share * (1.0 - 1e-12)
    if short.any():
        k = int(np.argmax(short))
        table = problem.table
        mine = np.flatnonzero(table.owner == k)
        best = f"mode {table.names[table.best[k]]!r}" if len(mine) else "sitting out"
        raise InputError(
            f"client {problem.names[k]!r}: floor {share!r} cannot be met: in {best}, its best, at "
            f"its min_pruning it contributes {float(most[k]):.4g}; allowed: that or less"
        )


def most_contributed(problem: PlanningProblem) -> Array:
    """Return (K,) 1 − ℓ of each client in its best mode, pruned as little as it may be."""
    if not problem.chooses:
        return 1.0 - problem.cost(problem.min_pruning)
    return 1.0 - problem.least_losses()


def contributions(problem: PlanningProblem, made: Plan) -> Array:
    """Return (K,) 1 − ℓ of each client in a plan."""
    losses = problem.cost(made.pruning) if made.losses is None else made.losses
    return 1.0 - losses


def first_queues(clients: int, share: float, rng: np.random.Generator) -> Array:
    """Return (K,) queues to start a run with: apart from each other by equal steps, below φ."""
    return share * rng.permutation(clients) / max(clients, 1)


def next_queues(queues: Array, contributed: Array, share: float) -> Array:
    """Return (K,) the queues after a round: Z ← max(0, Z + φ − contribution)."""
    return np.maximum(0.0, queues + share - contributed)


def required(problem: PlanningProblem, queues: Array) -> PlanningProblem:
    """Return the problem in which a client to which a whole round is owed must take part.

    Weights alone are slow: one of K clients with a long queue is left out as long as
    κ·w·(1 + Z)·ℓ stays below what waiting for it costs, for 28 rounds where K = 8 and φ = 0.25. So
    Z ≥ 1 rules absence out, and the mean contribution is at least φ − (1 + φ)/N, as far as the
    client's modes let it contribute φ at all.
    """
    if problem.absent_cost is None:
        return problem
    return replace(problem, absent_cost=np.where(queues >= 1.0, np.inf, problem.absent_cost))


def weighed(problem: PlanningProblem, queues: Array) -> PlanningProblem:
    """Return the problem in which client k weighs w·(1 + Z).

    A problem's weights sum to 1, so their sum moves into κ: κ·Q is κ·Σ w·(1 + Z)·ℓ. It is held
    below 1 for the plan in which everyone loses least; that far every client but takes part.
    """
    weight = problem.weight * (1.0 + queues)
    total = float(weight.sum())
    kappa = problem.kappa * total
    if problem.max_pruning_loss is not None:
        # The bound is on the same sum; κ plays no part in the plan.
        return replace(problem, weight=weight)
    least = float((weight / total) @ (1.0 - most_contributed(problem)))
    if least > 0:
        kappa = min(kappa, max((1.0 - _LEAST_PROGRESS) / least, problem.kappa))
        kappa = min(kappa, (1.0 - 1e-6) / least)
    return replace(problem, weight=weight, kappa=kappa)
