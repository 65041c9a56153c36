"""Fairness over a run: weights by what each client has contributed, and what they lead to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.errors import InputError
from airtune.planning import PlanningProblem, plan
from airtune.planning.fairness import LEAST_MEAN, Contributed, fair
from airtune.planning.floor import contributions
from airtune.planning.inputs import Situation, situation_of_scenario
from airtune.planning.modes import ClientMode
from airtune.planning.round_plan import plan_round
from airtune.rounds import cell as hooks
from airtune.rounds.cell import Decision
from airtune.scenario import Scenario, load_scenario
from scripted import Scripted, failing, stopped_and_resumed

pytestmark = pytest.mark.usefixtures("one_thread")


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", list(settings))


def test_means_count_a_whole_contribution_and_the_rounds_of_the_cohort() -> None:
    nothing = Contributed()
    assert nothing.means((0, 2)).tolist() == [1.0, 1.0]
    first = nothing.after(3, (0, 2), np.array([0.5, 0.0]))
    assert first == Contributed((0.5, 0.0, 0.0), (1, 0, 1))
    second = first.after(3, (0, 1), np.array([0.25, 1.0]))
    assert second == Contributed((0.75, 1.0, 0.0), (2, 1, 1))
    assert second.means((2, 0, 1)) == pytest.approx([1 / 2, 1.75 / 3, 2 / 2])


def test_who_contributed_less_weighs_more() -> None:
    problem = situation_of_scenario(tiny()).problem
    means = np.array([1.0, 0.5, 0.1, 0.0])
    for alpha in (1.0, 2.0):
        weight = problem.weight * np.array([1.0, 0.5, 0.1, LEAST_MEAN]) ** -alpha
        assert fair(problem, means, alpha).weight == pytest.approx(weight / weight.sum())
    assert fair(problem, means, 2.0).kappa == problem.kappa


def progress(steps: int) -> float:
    """What steps of four are worth: a little less than their share."""
    return steps / 4 * (0.9 + 0.1 * steps / 4)


def slow_beside_fast() -> PlanningProblem:
    """Three fast clients, and one that takes 2 s and another second a step."""

    def modes(fixed_s: float, step_s: float) -> tuple[ClientMode, ...]:
        return tuple(
            ClientMode(f"{n} steps", 1.0 - progress(n), fixed_s, n * step_s, 1e4, 0.0)
            for n in (1, 2, 3, 4)
        )

    return PlanningProblem(
        names=("a", "b", "c", "slow"),
        bandwidth_hz=1e6,
        weight=np.ones(4),
        snr_hz=np.full(4, 1e8),
        downlink_s=np.zeros(4),
        compute_fixed_s=np.zeros(4),
        compute_full_s=np.zeros(4),
        payload_fixed_bits=np.zeros(4),
        payload_full_bits=np.zeros(4),
        min_pruning=np.zeros(4),
        max_pruning=np.zeros(4),
        kappa=1.0,
        modes=(modes(0.05, 0.1),) * 3 + (modes(2.0, 1.0),),
    )


def followed(problem: PlanningProblem, alpha: float, rounds: int = 60) -> tuple[float, np.ndarray]:
    """Return the length of a round and what each client contributes to one, on average."""
    so_far, total_s = Contributed(), 0.0
    everyone = range(problem.clients)
    for _ in range(rounds):
        made = plan(fair(problem, so_far.means(everyone), alpha))
        so_far = so_far.after(problem.clients, everyone, contributions(problem, made))
        total_s += made.round_latency_s
    return total_s / rounds, np.array(so_far.total) / rounds


def test_along_the_gradient_the_slowest_data_is_learnt_sooner() -> None:
    problem = slow_beside_fast()
    mean, harmonic, least = (followed(problem, alpha) for alpha in (0.0, 2.0, 8.0))

    def needed_s(found: tuple[float, np.ndarray]) -> float:
        """Σ w/x̄ times the length of a round."""
        return found[0] * float(np.mean(1.0 / found[1]))

    assert needed_s(harmonic) < 0.95 * needed_s(mean)
    # Each is the best of the three for what it looks at.
    per_round = [found[0] / found[1].mean() for found in (mean, harmonic, least)]
    assert per_round == sorted(per_round)
    longest = [found[0] / found[1].min() for found in (mean, harmonic, least)]
    assert longest == sorted(longest, reverse=True)
    # To alternate is no worse than the best single plan, whatever steps the slow one does.
    singles = [(2.0 + n) * (3.0 + 1.0 / progress(n)) / 4.0 for n in (1, 2, 3, 4)]
    assert needed_s(harmonic) <= min(singles) * 1.001


def test_a_rounds_plan_has_the_weights() -> None:
    scenario = tiny("planning.knobs=all", "planning.method=exact", "participation.fairness=2")
    means = np.array([1.0, 0.5, 0.25, 0.8])
    situation = replace(situation_of_scenario(scenario), contributed=means)
    weight = situation.problem.weight / means**2
    made = plan_round(scenario, situation)
    assert made.problem.weight == pytest.approx(weight / weight.sum())
    even = plan_round(tiny("planning.knobs=all", "planning.method=exact"), situation)
    assert even.problem.weight == pytest.approx(situation.problem.weight)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["participation.fairness=2"], "participation.fairness = 2 has no effect without"),
        (
            ["participation.fairness=2", "participation.floor=0.2", "planning.knobs=all"],
            "floor = 0.2 cannot be combined with fairness = 2",
        ),
        (["participation.fairness=-1", "planning.knobs=all"], "participation.fairness = -1"),
    ],
)
def test_fairness_that_cannot_be_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        tiny(*settings)


def settled() -> Scenario:
    return tiny("planning.knobs=all", "planning.method=exact", "participation.fairness=2",
                "rounds=4", "task.eval_examples=8", "planning.tolerance=1e-3",
                "devices.1.utilisation=4e-5")  # fmt: skip


def test_contributions_of_merged_updates_are_kept_over_a_stop(tmp_path: Path) -> None:
    asked = settled()
    seen: list[tuple[float, ...]] = []

    def decide(cell: at.Cell, situation: Situation) -> Decision:
        seen.append(tuple(situation.contributed.tolist()))
        return hooks.decide(cell, situation)

    with at.open_cell(asked, decide=decide) as cell:
        state = at.begin(cell)
        plans = []
        for _ in range(3):
            state, _ = at.step(cell, state)
            plans.append(state.contributed)
    assert seen[0] == (1.0,) * 4
    assert plans[0].rounds == (1,) * 4
    assert plans[2].rounds == (3,) * 4
    assert len(set(plans[2].total)) > 1
    assert seen[2] == pytest.approx([(1 + x) / 3 for x in plans[1].total])

    whole = at.run(asked, out=tmp_path / "whole")
    resumed = stopped_and_resumed(asked, tmp_path / "cut", after=2)
    assert [one.clients for one in resumed.rounds] == [one.clients for one in whole.rounds]
    even = at.run(asked.model_copy(update={"participation": tiny().participation}),
                  out=tmp_path / "even")  # fmt: skip
    assert [one.clients for one in even.rounds] != [one.clients for one in whole.rounds]


def test_an_update_that_is_not_merged_contributes_nothing() -> None:
    asked = settled()
    engine = Scripted(asked, failing(0))
    with at.open_cell(asked, engine=engine) as cell:
        state, record = at.step(cell, at.begin(cell))
    assert record.clients[0].status != "ok"
    assert state.contributed.total[0] == 0.0
    assert max(state.contributed.total) > 0.0
