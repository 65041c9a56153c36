"""How far a plan is above a bound, or above another plan."""

from __future__ import annotations


def relative_excess(objective_s: float, reference_s: float) -> float:
    """Return how far an objective, s, is above a reference, relative to it; 0 where that is 0."""
    return objective_s / reference_s - 1.0 if reference_s > 0 else 0.0
