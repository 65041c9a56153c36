"""The schedules' rules: who begins, when the server merges, what a late answer counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from airtune.errors import InputError
from airtune.merging.functions import Contribution, fedit
from airtune.merging.rules import check_deployable
from airtune.planning.inputs import situation_of_scenario
from airtune.planning.scheduling import check_parts
from airtune.rounds.clock import Turn
from airtune.rounds.schedules import (
    answers_to_merge,
    brought_up,
    buffer_of,
    next_clients,
    share_of,
)
from airtune.scenario import Scenario, load_scenario

NAME = "block.a.lora_A.weight"


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", ["planning.method=none", *overrides])


def turn(client: int, ended_s: float | None, *, start_round: int = 0, number: int = 1) -> Turn:
    return Turn(client, number, start_round, 0.0, 0.0, 1.0, 8.0, 1.0, None, ended_s=ended_s)


def clients_of(turns: tuple[Turn, ...]) -> list[int]:
    return [one.client for one in turns]


def test_a_buffer_takes_the_first_answers_by_time_and_then_by_client() -> None:
    scenario = tiny("schedule.kind=fedbuff", "schedule.buffer_size=3")
    turns = [turn(3, 2.0), turn(1, 2.0), turn(2, 1.0), turn(0, None)]
    assert clients_of(answers_to_merge(scenario, turns, 0, {})) == [2, 1, 3]
    assert answers_to_merge(scenario, turns[:2], 0, {}) == ()
    failed = replace(turn(0, 0.5), can_be_merged=False)
    assert clients_of(answers_to_merge(scenario, [failed, *turns[:3]], 0, {})) == [0, 2, 1, 3]
    assert answers_to_merge(scenario, [failed, *turns[:2]], 0, {}) == ()


def test_buffers_by_default_are_half_of_those_at_work_and_fedasync_merges_each_answer() -> None:
    assert buffer_of(tiny("schedule.kind=fedbuff")) == 2
    assert buffer_of(tiny("schedule.kind=fedbuff", "schedule.concurrency=1")) == 1
    assert buffer_of(tiny("schedule.kind=fedasync")) == 1


def test_a_tier_answers_every_nth_round_and_its_round_waits_for_it() -> None:
    scenario, periods = tiny("schedule.kind=tiers"), {0: 1, 1: 1, 2: 2}
    turns = [turn(0, 5.0), turn(1, 4.0), turn(2, 3.0)]
    assert answers_to_merge(scenario, turns[2:], 1, periods) == ()
    assert clients_of(answers_to_merge(scenario, turns, 0, periods)) == [1, 0]
    assert answers_to_merge(scenario, [turn(0, None), turn(1, 4.0)], 0, periods) == ()
    later = [turn(0, 9.0, start_round=1), turn(1, 8.0, start_round=1), turn(2, None)]
    assert answers_to_merge(scenario, later, 1, periods) == ()
    later[2] = turn(2, 10.0)
    assert clients_of(answers_to_merge(scenario, later, 1, periods)) == [1, 0, 2]


def test_as_many_begin_as_there_is_room_for_drawn_evenly_from_those_who_are_free() -> None:
    scenario = tiny("schedule.kind=fedbuff", "schedule.concurrency=2")
    busy = (turn(0, None), turn(1, 3.0))
    counts = [0, 0, 0, 0]
    for begun in range(3000):
        chosen = next_clients(scenario, busy, begun)
        assert len(chosen) == 1
        counts[chosen[0]] += 1
    assert counts[0] == 0
    # Binomial of 3000 draws at 1/3: a standard deviation of 26.
    assert all(900 < count < 1100 for count in counts[1:])
    assert next_clients(scenario, busy, 7) == next_clients(scenario, busy, 7)
    assert next_clients(tiny("schedule.kind=fedbuff"), busy, 0) == [1, 2, 3]
    assert next_clients(tiny("schedule.kind=tiers"), busy, 0) == [2, 3]


def contribution(values: list[float], held: list[bool], weight: float = 1.0) -> Contribution:
    return Contribution({NAME: torch.tensor([values])}, {NAME: torch.tensor([held])}, weight)


def test_the_mean_of_brought_up_answers_is_the_published_buffered_update() -> None:
    """w + sum p_k s(tau_k) (w_k - w_start_k)/sum p_k, over the holders of each entry."""
    schedule = tiny("schedule.kind=fedbuff").schedule
    server = {NAME: torch.tensor([[1.0, 2.0, 3.0]])}
    starts = [{NAME: torch.tensor([[0.0, 1.0, 1.0]])}, server]
    answers = [
        contribution([4.0, 5.0, 0.0], [True, True, False], 1.0),
        contribution([2.0, 0.0, 0.0], [True, False, False], 3.0),
    ]
    moved = [
        brought_up(schedule, one, start, server, staleness)
        for one, start, staleness in zip(answers, starts, (3, 0), strict=True)
    ]
    assert moved[1] is answers[1]
    merged = fedit(server, moved)[NAME][0].tolist()
    s = 4.0**-0.5
    expected = [1.0 + (1 * s * 4.0 + 3 * 1.0) / 4, 2.0 + s * 4.0, 3.0]
    assert merged == pytest.approx(expected)


def test_fedasync_mixes_the_answer_itself_into_todays_adapter() -> None:
    schedule = tiny("schedule.kind=fedasync", "schedule.mixing=0.8").schedule
    server, start = {NAME: torch.tensor([[1.0, 2.0]])}, {NAME: torch.tensor([[9.0, 9.0]])}
    answer = contribution([3.0, 0.0], [True, False])
    merged = fedit(server, [brought_up(schedule, answer, start, server, 8)])[NAME][0]
    alpha = 0.8 / 3.0
    assert merged.tolist() == pytest.approx([(1 - alpha) * 1.0 + alpha * 3.0, 2.0])
    assert share_of(schedule, 8) == pytest.approx(alpha)


REFUSED = [
    (["schedule.kind=fedbuff", "schedule.concurrency=5"], "above the number of clients, 4"),
    (["schedule.concurrency=2"], "concurrency = 2 has no effect with kind = 'synchronous'"),
    (["schedule.kind=tiers", "schedule.buffer_size=2"], "buffer_size = 2 has no effect"),
    (["schedule.staleness_exponent=0.7"], "staleness_exponent = 0.7 has no effect"),
    (["schedule.kind=fedbuff", "schedule.mixing=0.7"], "mixing = 0.7 has no effect"),
    (["schedule.kind=fedasync", "schedule.tier_rounds=[1, 3]"], r"tier_rounds = \[1, 3\] has no"),
    (["schedule.kind=tiers", "schedule.tier_rounds=[2, 4]"], "must begin with 1"),
    (["schedule.kind=tiers", "schedule.tier_rounds=[1, 1]"], "must begin with 1"),
    (["schedule.kind=fedasync", "schedule.mixing=0.0"], "schedule.mixing"),
    (["schedule.kind=fedasync", "schedule.staleness_exponent=-1"], "staleness_exponent"),
    (["schedule.kind=fedbuff", "participation.rule=deadline"], "participation.rule = 'deadline'"),
    (["schedule.kind=fedbuff", "training.keep_optimizer=true"], "training.keep_optimizer"),
    (["schedule.kind=fedbuff", "training.scaffold=true"], "training.scaffold"),
    (["schedule.kind=tiers", "devices.0.energy_budget_j=5.0"], "devices.energy_budget_j"),
    (["schedule.kind=tiers", "cell.subcarrier_spacing_hz=15000"], "cell.subcarrier_spacing_hz"),
    (["schedule.kind=tiers", "planning.knobs=all"], "planning.knobs"),
    (["schedule.kind=fedbuff", "participation.cohort=2"], "participation.cohort = 2"),
    (["schedule.kind=fedbuff", "cell.csi_error_db=3.0"], "cell.csi_error_db"),
    (["schedule.kind=fedbuff", "cell.csi_margin_db=3.0"], "cell.csi_margin_db"),
    (["schedule.kind=fedbuff", "planning.max_pruning_loss=0.1"], "planning.max_pruning_loss"),
    (["schedule.kind=fedbuff", "cell.outage_probability=0.1"], "cell.outage_probability"),
    (["schedule.kind=fedbuff", "participation.deadline_slack=2.0"], "deadline_slack"),
]


@pytest.mark.parametrize(("settings", "what"), REFUSED, ids=[what for _, what in REFUSED])
def test_what_cannot_be_is_refused_in_one_line(settings: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what) as refused:
        tiny(*settings)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["exact", "random", "uniform"])
def test_methods_that_plan_whole_rounds_are_refused(method: str) -> None:
    with pytest.raises(InputError, match=r"allowed are none, bandwidth-only"):
        check_parts(load_scenario("tiny", ["schedule.kind=tiers", f"planning.method={method}"]))


@pytest.mark.parametrize("rule", ["flora", "flexlora"])
def test_rules_with_new_factors_are_refused(rule: str) -> None:
    with pytest.raises(InputError, match=f"aggregation.rule = '{rule}' cannot go with"):
        check_parts(tiny("schedule.kind=fedbuff", f"aggregation.rule={rule}"))


def test_there_is_no_round_to_plan_before_a_run() -> None:
    with pytest.raises(InputError, match=r"schedule.kind = 'fedbuff' has no round to plan"):
        situation_of_scenario(tiny("schedule.kind=fedbuff"))


def test_real_devices_refuse_other_schedules() -> None:
    with pytest.raises(InputError, match=r"schedule.kind = 'fedbuff' runs in simulation only"):
        check_deployable(tiny("schedule.kind=fedbuff"))
