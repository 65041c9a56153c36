"""What is known when a round is planned: its air, its cohort, their batches and their devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from airtune.channel.outage import backed_off
from airtune.models.devices import DeviceProfile
from airtune.planning import PlanningProblem, fitted_kappa
from airtune.planning.broadcast import link_of
from airtune.planning.inputs import Situation, modes_of, problem_of_round
from airtune.rounds.cell import Cell
from airtune.rounds.cohort import cohort_of_round, load_of
from airtune.rounds.state import State
from airtune.scenario import Scenario


def situation_of(cell: Cell, state: State, profiles: Sequence[DeviceProfile]) -> Situation:
    """Return what is known when the round after `state` is planned.

    Args:
        cell: the run's.
        state: after the round before.
        profiles: of all clients, at the speed that they have kept.

    Raises:
        RunError: too few clients are ever available again.
    """
    scenario, round = cell.scenario, state.round + 1
    everyone = cell.draw(cell, round)
    drawn = cohort_of_round(cell, round, state.elapsed_s, state.draws, everyone)
    cohort = tuple(range(len(profiles))) if drawn is None else drawn.clients
    air = everyone if drawn is None else everyone.of(cohort)
    own = tuple(profiles[client] for client in cohort)
    loads = tuple(load_of(cell, round, client) for client in cohort)
    modes, shape = modes_of(scenario, cohort), cell.federation.shape
    held = [state.held_ranks[client] for client in cohort] if state.held_ranks else ()
    known = backed_off(scenario.cell, air)
    missed = [state.missed_bits[client] for client in cohort] if state.missed_bits else ()
    link = link_of(scenario, shape, modes, known, missed, held)
    problem = problem_of_round(scenario, shape, own, loads, modes, link, cohort)
    if scenario.planning.fit_kappa:
        problem = _with_fitted_kappa(problem, state, scenario)
    owed = np.array(state.queues)[list(cohort)] if state.queues else np.zeros(len(cohort))
    so_far = state.contributed.means(cohort)
    return Situation(
        round, shape, cohort, own, loads, modes, link, problem, owed, so_far, drawn, air
    )


def _with_fitted_kappa(
    problem: PlanningProblem, state: State, scenario: Scenario
) -> PlanningProblem:
    """Put the run's own κ into the problem; the first round leaves models as whole as they fit."""
    if not state.pruning_losses:
        return replace(problem, max_pruning=problem.min_pruning)
    rates = [
        scenario.training.in_round(number, scenario.rounds).learning_rate
        for number in range(1, len(state.pruning_losses) + 1)
    ]
    kappa = fitted_kappa(
        state.losses,
        state.pruning_losses,
        prior=problem.kappa,
        largest_pruning_loss=problem.pruning_loss(problem.max_pruning),
        paces=[rate / rates[0] for rate in rates],
    )
    return replace(problem, kappa=kappa)
