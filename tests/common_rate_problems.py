"""Problems in which one rate is to be planned for all, and what they are at a given rate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from airtune.errors import InputError
from airtune.planning import ClientMode, PlanningProblem
from mode_oracles import mode_problem

MOST = 0.6
"""The largest rate of every mode."""


def problem_of(rng: np.random.Generator, clients: int = 3) -> PlanningProblem:
    """A random problem whose modes all go up to the same rate; some begin above 0."""
    while True:
        base = mode_problem(rng, clients, 3)
        assert base.modes is not None
        if any(own is None for own in base.modes):
            continue
        try:
            return replace(
                base,
                modes=tuple(
                    tuple(
                        replace(
                            mode,
                            min_pruning=float(rng.choice([0.0, 0.0, 0.23])),
                            max_pruning=MOST,
                        )
                        for mode in own or ()
                    )
                    for own in base.modes
                ),
                pruning_cost=tuple(
                    np.array([[0.0, 0.0], [0.3, a], [MOST, a + b]])
                    for a, b in zip(
                        rng.uniform(0.0, 0.2, clients), rng.uniform(0.2, 0.6, clients), strict=True
                    )
                ),
            )
        except InputError:
            continue


def pinned(problem: PlanningProblem, rate: float, out_cost: float | None = None) -> PlanningProblem:
    """The problem at one rate, with times, bits and losses written out and nothing to prune."""
    assert problem.modes is not None
    assert problem.pruning_cost is not None
    curves = [curve for curve in problem.pruning_cost if curve is not None]
    modes = tuple(
        tuple(
            replace(
                mode,
                cost=1 - (1 - mode.cost) * (1 - float(np.interp(rate, curve[:, 0], curve[:, 1]))),
                compute_fixed_s=mode.compute_fixed_s + mode.compute_full_s * (1 - rate),
                compute_full_s=0.0,
                payload_fixed_bits=mode.payload_fixed_bits + mode.payload_full_bits * (1 - rate),
                payload_full_bits=0.0,
                # What memory does not hold cannot be used.
                min_pruning=0.0 if (mode.min_pruning or 0.0) <= rate else 1.0,
                max_pruning=0.0,
            )
            for mode in own or ()
        )
        for own, curve in zip(problem.modes, curves, strict=True)
    )
    absent = problem.absent_cost
    if absent is not None and out_cost is not None:
        least = min(1 - mode.cost for own in modes for mode in own)
        absent = np.where(np.isfinite(absent), 1 - (1 - out_cost) * least, np.inf)
    return replace(problem, modes=modes, pruning_cost=None, absent_cost=absent)


def kinked(
    *, free_to: float = 0.35, held_from: float = 0.0, shrinks: bool = True
) -> PlanningProblem:
    """Two clients whose pruning is free up to a rate and dear beyond."""
    seconds = 10.0 if shrinks else 0.0
    modes = tuple(
        (
            ClientMode(
                name="all", cost=0.0, compute_fixed_s=0.1 + 10.0 - seconds,
                compute_full_s=seconds, payload_fixed_bits=1e4, payload_full_bits=0.0,
                min_pruning=held_from * here, max_pruning=MOST,
            ),
        )
        for here in (1, 0)
    )  # fmt: skip
    zero = np.zeros(2)
    return PlanningProblem(
        bandwidth_hz=1e6, kappa=1.0, names=("a", "b"), weight=np.ones(2),
        snr_hz=np.full(2, 1e7), downlink_s=zero, compute_fixed_s=zero, compute_full_s=zero,
        payload_fixed_bits=zero, payload_full_bits=zero, min_pruning=zero,
        max_pruning=np.full(2, MOST), modes=modes,
        pruning_cost=(np.array([[0.0, 0.0], [free_to, 0.0], [MOST, 0.9]]),) * 2,
    )  # fmt: skip
