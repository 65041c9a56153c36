"""Fairness over a run: a client that has contributed less so far weighs more in the plan.

Q is a mean: a plan may let a slow client do next to nothing in every round, and what that client
alone holds is then hardly learnt. Let x̄ be the mean contribution 1 − ℓ of a client to the rounds so
far. If what it holds is learnt from it alone, it needs 1/x̄ times as many rounds as with its whole
work, and the time to a loss is the length of a round times Σ w/x̄. The plan of a round goes along
the gradient of such a sum (gradient scheduling: Stolyar, Operations Research 53(1), 2005): Q has
the weights

    w·x̄^(−α),

which with α = 2 is the gradient of Σ w/x̄. α = 0 is the mean, α = 1 proportional fairness, and a
large α looks at the client that contributes least (α-fairness: Mo and Walrand, IEEE/ACM
Transactions on Networking 8(5), 2000).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from airtune.planning.problem import Array, PlanningProblem

LEAST_MEAN = 1e-3
"""Least x̄ in a weight: a client that is never heard does not take all of the weight."""


@dataclass(frozen=True)
class Contributed:
    """What each client of the population has contributed so far; part of the state.

    Attributes:
        total: Σ (1 − ℓ) over the rounds that were merged.
        rounds: rounds in whose cohort the client was.
    """

    total: tuple[float, ...] = ()
    rounds: tuple[int, ...] = ()

    def means(self, cohort: Sequence[int]) -> Array:
        """Return (K,) the mean contribution x̄ of each client of a cohort.

        A whole contribution is counted beside the others, so that a run begins at x̄ = 1.
        """
        if not self.rounds:
            return np.ones(len(cohort))
        at = list(cohort)
        return (1.0 + np.array(self.total)[at]) / (1.0 + np.array(self.rounds)[at])

    def after(self, clients: int, cohort: Sequence[int], contributed: Array) -> Contributed:
        """Return what is known after a round.

        Args:
            clients: of the population.
            cohort: who could take part.
            contributed: (K,) 1 − ℓ of each of the cohort; 0 where nothing was merged.
        """
        total = np.array(self.total or (0.0,) * clients)
        rounds = np.array(self.rounds or (0,) * clients)
        total[list(cohort)] += contributed
        rounds[list(cohort)] += 1
        return Contributed(tuple(total.tolist()), tuple(rounds.tolist()))


def fair(problem: PlanningProblem, means: Array, alpha: float) -> PlanningProblem:
    """Return the problem in which client k weighs w·x̄^(−α); κ stays.

    Args:
        problem: the round's.
        means: (K,) x̄.
        alpha: α.
    """
    return replace(problem, weight=problem.weight * np.maximum(means, LEAST_MEAN) ** -alpha)
