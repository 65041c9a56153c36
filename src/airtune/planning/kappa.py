"""κ from the run itself: whether rounds that pruned more learnt more slowly."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from airtune.planning.problem import Array

NOISE = 0.005
"""Standard deviation of an evaluation's loss, relative to the loss before training."""
PRIOR_OCTAVES = 1.0
"""Standard deviation of log2(κ) around the scenario's own κ."""
OCTAVES = np.linspace(-4.0, 4.0, 161)
"""Where κ is looked for, relative to the scenario's, as powers of two."""
HALF_ROUNDS = np.geomspace(0.05, 50.0, 400)
"""Where the curve's pace is looked for: rounds after which half of the way is gone."""
LARGEST_SLOWDOWN = 0.95
"""κ·Q stays below this for every plan that may come."""


def fitted_kappa(
    losses: Sequence[float | None],
    pruning_losses: Sequence[float],
    *,
    prior: float,
    largest_pruning_loss: float,
    paces: Sequence[float] | None = None,
) -> float:
    """Return the most probable κ after the rounds so far.

    A round with pruning loss Q counts as 1 − κQ rounds without pruning, the planner's own model
    (N(Q) = 1/(1 − κQ)), times its pace. The loss falls along L(m) = a + (L0 − a) / (1 + m/h) in
    the rounds m that have counted so. a, h and κ minimise

        Σ (L_r − L(m_r))² / (NOISE · L0)² + (log2(κ/prior) / PRIOR_OCTAVES)²,

    so that κ stays where it was until rounds of unlike Q say otherwise.

    Args:
        losses: test loss before training and after each round; None where it was not measured
            or is not finite. Without the first one there is nothing to fit.
        pruning_losses: Q of each round.
        prior: κ before any round, above 0.
        largest_pruning_loss: the largest Q that a later plan can have.
        paces: learning rate of each round, relative to the first; None: all alike. Left out,
            a rate that falls makes κ come out too small.
    """
    if losses[0] is None or losses[0] <= 0:
        return prior
    pace = np.ones(len(pruning_losses)) if paces is None else np.asarray(paces)
    octaves = OCTAVES
    if largest_pruning_loss > 0:
        limit = math.log2(LARGEST_SLOWDOWN / (largest_pruning_loss * prior))
        octaves = np.append(octaves[octaves < limit], min(limit, float(octaves[-1])))
    known = np.array([loss is not None for loss in losses])
    measured = np.array([loss for loss in losses if loss is not None])
    start = measured[0]
    best, chosen = math.inf, prior
    for octave in octaves:
        kappa = prior * 2.0**octave
        learnt = pace * (1.0 - kappa * np.asarray(pruning_losses))
        counted = np.concatenate([[0.0], np.cumsum(learnt)])
        cost = _misfit(measured, counted[known]) / (NOISE * start) ** 2
        cost += (octave / PRIOR_OCTAVES) ** 2
        if cost < best:
            best, chosen = cost, kappa
    return float(chosen)


def _misfit(losses: Array, counted: Array) -> float:
    """Return the least Σ (L − L(m))² over the curve's end a and pace h."""
    return float(_curves(losses, counted)[2].min())


def learning_curve(losses: Array, counted: Array) -> tuple[float, float]:
    """Return the end a and the pace h of L(m) = a + (L0 − a)/(1 + m/h) nearest to the losses.

    Args:
        losses: (N,) before training and after, L0 first.
        counted: (N,) rounds that they come after, 0 first.
    """
    ends, paces, misfit = _curves(losses, counted)
    best = int(np.argmin(misfit))
    return float(ends[best]), float(paces[best])


def _curves(losses: Array, counted: Array) -> tuple[Array, Array, Array]:
    """Return for every pace h the best end a, at most the lowest loss, and its Σ (L − L(m))².

    With x = 1/(1 + m/h) the curve is a (1 − x) + L0 x: a straight line in a.
    """
    x = 1.0 / (1.0 + counted / HALF_ROUNDS[:, None])
    rest = losses - losses[0] * x
    weight = np.maximum(((1.0 - x) ** 2).sum(1), np.finfo(float).tiny)
    end = np.clip((rest * (1.0 - x)).sum(1) / weight, 0.0, losses.min())
    return end, HALF_ROUNDS, ((rest - end[:, None] * (1.0 - x)) ** 2).sum(1)
