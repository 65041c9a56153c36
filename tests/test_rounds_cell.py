"""A cell's hooks, and what joins answers and situations to it: each wire alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import airtune as at
from airtune import channel
from airtune.adapters.names import leading
from airtune.errors import InputError
from airtune.merging.functions import Contribution, normalised
from airtune.merging.functions import merge as merged_by
from airtune.merging.unbiased import unbiased
from airtune.models.devices import profile_of
from airtune.models.workload import HEADER_BITS
from airtune.planning.assigning import assignments_of
from airtune.planning.costs import Measured, shipped_costs
from airtune.planning.inputs import problem_of_round
from airtune.planning.round_plan import plan_round
from airtune.randomness import generator
from airtune.rounds import State
from airtune.rounds import cell as hooks
from airtune.rounds.answers import contribution_of, evaluation_after, measured, status_of
from airtune.rounds.cell import checked_profiles
from airtune.rounds.observer import Observer
from airtune.rounds.situation import situation_of
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientUpdate
from scripted import Round, Scripted


def tiny(*settings: str) -> Scenario:
    return load_scenario("tiny", ["planning.method=none", *settings])


def opened(*settings: str, **given: Any) -> tuple[at.Cell, Scripted]:
    scenario = tiny(*settings)
    engine = Scripted(scenario)
    return at.open_cell(scenario, engine=engine, **given), engine


# --- opening and closing -------------------------------------------------------------------------


def test_a_cell_is_made_of_its_scenario_and_the_hooks_that_are_given() -> None:
    def other(*given: Any) -> Any:
        raise NotImplementedError

    observer = Observer()
    cell, engine = opened("seed=7", draw=other, merge=other, observer=observer)
    scenario = cell.scenario
    assert cell.engine is engine
    assert cell.federation == engine.federation()
    assert cell.profiles == tuple(profile_of(device) for device in scenario.client_devices)
    placed = channel.place(scenario.cell, scenario.client_devices, generator(7, "placement"))
    np.testing.assert_array_equal(cell.placement.positions_m, placed.positions_m)
    np.testing.assert_array_equal(cell.placement.shadowing_db, placed.shadowing_db)
    assert (cell.draw, cell.decide, cell.merge) == (other, hooks.decide, other)
    assert cell.observer is observer
    assert cell.knob_costs is cell.availability is cell.temporary is cell.given_folder is None
    plain, _ = opened("planning.method=exact", "planning.knobs=all", decide=other)
    assert (plain.draw, plain.decide, plain.merge) == (hooks.draw, other, hooks.merge)
    assert type(plain.observer) is Observer
    assert plain.knob_costs == shipped_costs()


def test_an_engine_that_the_cell_made_is_closed_with_it() -> None:
    made: list[Scripted] = []

    def make(scenario: Scenario) -> Scripted:
        made.append(Scripted(scenario))
        return made[-1]

    with at.open_cell(tiny(), engine=make) as cell:
        assert cell.owns_engine
        assert made[0].closed == 0
    assert made[0].closed == 1
    given, engine = opened()
    given.close()
    assert not given.owns_engine
    assert engine.closed == 0


@pytest.mark.parametrize("owned", [True, False])
def test_an_engine_that_cannot_describe_its_clients_is_closed_where_it_was_made(
    owned: bool,
) -> None:
    class Broken(Scripted):
        def federation(self) -> Any:
            raise KeyboardInterrupt

    engine = Broken(tiny())
    with pytest.raises(KeyboardInterrupt):
        at.open_cell(tiny(), engine=(lambda _: engine) if owned else engine)
    assert engine.closed == int(owned)


def test_moments_lie_in_the_folder_that_is_given_or_in_one_that_goes_with_the_cell(
    tmp_path: Path,
) -> None:
    given, _ = opened("participation.cohort=2", folder=tmp_path)
    assert given.folder == given.given_folder == tmp_path
    assert given.temporary is None
    with opened("participation.cohort=2")[0] as cell:
        assert cell.temporary is not None
        folder = cell.folder
        assert folder == cell.temporary.path
        assert folder.is_dir()
    assert not folder.exists()
    assert opened()[0].temporary is None


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"planning": {"method": "best"}}, "best"),
        ({"cell": {"channel": "ether"}}, "ether"),
        ({"aggregation": {"rule": "median"}}, "median"),
        ({"participation": {"cohort": 2, "availability": "nowhere.csv"}}, "nowhere.csv"),
    ],
)
def test_names_that_are_not_known_are_refused_before_anything_is_loaded(
    settings: dict[str, dict[str, Any]], names: str
) -> None:
    changed = {key: getattr(tiny(), key).model_copy(update=values)
               for key, values in settings.items()}  # fmt: skip
    with pytest.raises(InputError, match=names):
        checked_profiles(tiny().model_copy(update=changed))


def test_parts_that_do_not_go_with_the_schedule_are_refused() -> None:
    with pytest.raises(InputError, match=r"planning\.method = 'exact' plans synchronous rounds"):
        checked_profiles(tiny("schedule.kind=fedasync", "planning.method=exact"))


def test_a_profile_is_read_once_a_kind_and_stands_once_a_client() -> None:
    scenario = tiny("devices.1.count=2", "devices.2.memory_bytes=5e9")
    found = checked_profiles(scenario)
    assert [one.name for one in found] == [
        "jetson-orin-nano", "jetson-orin-nano", "raspberry-pi-5", "raspberry-pi-5", "intel-n100",
    ]  # fmt: skip
    assert found[0] is found[1]
    assert found[4].memory_bytes == 5e9


# --- the hooks -----------------------------------------------------------------------------------


def test_a_rounds_channel_is_drawn_for_its_number_and_place() -> None:
    cell, _ = opened("seed=3")
    expected = channel.draw(
        cell.scenario.cell, cell.scenario.client_devices, cell.placement,
        generator(3, "fading", round=5), round=5,
    )  # fmt: skip
    np.testing.assert_array_equal(hooks.draw(cell, 5).snr_hz, expected.snr_hz)


def test_a_table_is_read_at_the_rounds_own_row(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{round},{k},{round + k}" for round in (1, 2) for k in (1, 2, 3, 4)]
    path.write_text("round,client,snr_db\n" + "\n".join(rows) + "\n")
    cell, _ = opened(f"cell.table={path}", "cell.channel=table")
    first, second = (hooks.draw(cell, round).snr_hz for round in (1, 2))
    np.testing.assert_allclose(second / first, 10**0.1)


def test_a_decision_is_the_rounds_plan_in_the_cohorts_own_numbers() -> None:
    settings = ("planning.method=exact", "planning.knobs=all", "participation.cohort=2", "seed=5")
    cell, _ = opened(*settings)
    dear = shipped_costs().model_copy(update={"absent": Measured(cost=1.0)})
    cell = replace(cell, knob_costs=dear)
    situation = situation_of(cell, at.begin(cell), cell.profiles)
    assert situation.cohort != (0, 1)
    made = hooks.decide(cell, situation)
    planned = plan_round(cell.scenario, situation, dear)
    assert made.plan.objective_s == planned.plan.objective_s
    expected = assignments_of(planned.plan, planned.modes, planned.link, situation.cohort)
    assert made.assignments == expected
    assert planned.problem.absent_cost.tolist() == [1.0, 1.0]


def contributions(cell: at.Cell, engine: Scripted) -> tuple[Any, list[Contribution]]:
    start = engine.initial_adapter()
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in start.items()}
    return start, [
        Contribution({n: v + 0.1 * (k + 1) for n, v in start.items()}, held, weight=w, steps=s)
        for k, (w, s) in enumerate([(1.0, 4), (2.0, 1)])
    ]


@pytest.mark.parametrize(
    ("settings", "by_steps"),
    [
        ([], False),
        (["aggregation.rule=hetlora"], False),
        (["participation.rule=partial", "planning.method=bandwidth-only"], False),
        (["participation.rule=partial-fednova", "planning.method=bandwidth-only"], True),
        (["aggregation.normalize_steps=true"], True),
        (['planning.knobs=["steps","bits"]'], True),
        (["planning.knobs=all"], True),
        (["planning.knobs=all", "aggregation.normalize_steps=false"], False),
        (['planning.knobs=["bits","rank"]'], False),
        (["participation.weights=inclusion", "participation.cohort=2"], False),
    ],
)
def test_a_merge_is_the_scenarios_rule_normalised_or_unbiased_where_asked(
    settings: list[str], by_steps: bool
) -> None:
    cell, engine = opened(*settings)
    start, given = contributions(cell, engine)
    found = hooks.merge(cell, start, given)
    used = normalised(start, given) if by_steps else given
    expected = merged_by(cell.scenario.aggregation.rule, start, used)
    if "inclusion" in str(settings):
        expected = unbiased(start, expected, 3.0)
    assert all(torch.equal(found[name], expected[name]) for name in start)
    if by_steps:
        plain = merged_by("fedit", start, given)
        assert any(not torch.equal(found[name], plain[name]) for name in start)


# --- what is known when a round is planned -------------------------------------------------------


def test_a_situation_is_that_of_the_round_after_the_state() -> None:
    cell, engine = opened("seed=6", "cell.csi_error_db=2", "cell.csi_margin_db=3",
                          "devices.0.lora_rank=2",
                          "aggregation.downlink_change_bits=4")  # fmt: skip
    state = State(4, 90.0, engine.initial_adapter(), {}, held_ranks=(2, 0, 4, 1),
                  queues=(0.1, 0.2, 0.3, 0.4))  # fmt: skip
    slower = tuple(replace(one, peak_flops=one.peak_flops / 2) for one in cell.profiles)
    found = situation_of(cell, state, slower)
    air = hooks.draw(cell, 5)
    assert (found.round, found.cohort, found.drawn) == (5, (0, 1, 2, 3), None)
    assert found.air is not None
    np.testing.assert_array_equal(found.air.snr_hz, air.snr_hz)
    np.testing.assert_allclose(found.link.air.snr_hz, air.snr_hz * 10**-0.3)
    assert found.link.held_ranks.tolist() == [2, 0, 4, 1]
    assert found.link.needs_whole.tolist() == [False, True, False, True]
    assert found.profiles == slower
    assert [load.steps for load in found.loads] == [engine.step_tokens(5, k) for k in range(4)]
    assert [load.examples for load in found.loads] == [10, 20, 30, 40]
    assert [mode.rank for mode in found.modes] == [2, 2, 4, 4]
    assert found.queues.tolist() == [0.1, 0.2, 0.3, 0.4]
    expected = problem_of_round(cell.scenario, engine.shape, slower, found.loads, found.modes,
                                found.link)  # fmt: skip
    for field in ("weight", "snr_hz", "downlink_s", "compute_full_s", "payload_full_bits"):
        np.testing.assert_array_equal(getattr(found.problem, field), getattr(expected, field))
    first = situation_of(cell, replace(state, held_ranks=(), queues=()), slower)
    assert first.link.held_ranks.tolist() == first.queues.tolist() == [0] * 4
    merging, _ = opened("aggregation.rule=flora")
    stacked = situation_of(merging, replace(state, missed_bits=(5e4, 0, 6e4, 7e4)),
                           merging.profiles)  # fmt: skip
    assert stacked.link.needed_bits.tolist() == [5e4, HEADER_BITS, 6e4, 7e4]


def test_a_cohort_is_drawn_at_the_states_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "there.csv"
    path.write_text("client,from_s,to_s\n2,0,50\n4,0,1e9\n1,60,1e9\n3,95,1e9\n")
    cell, _ = opened("participation.cohort=2", f"participation.availability={path}",
                     "participation.cohort_by=round-robin",
                     "aggregation.downlink_change_bits=4")  # fmt: skip
    start = at.begin(cell)
    state = replace(start, round=1, elapsed_s=55.0, held_ranks=(1, 2, 3, 4),
                    queues=(0.1, 0.2, 0.3, 0.4))  # fmt: skip
    found = situation_of(cell, state, cell.profiles)
    assert found.cohort == (0, 3)
    assert found.drawn is not None
    assert found.drawn.waited_s == 5.0
    assert found.link.held_ranks.tolist() == [1, 4]
    assert found.queues.tolist() == [0.1, 0.4]
    assert found.profiles == (cell.profiles[0], cell.profiles[3])
    assert found.problem.names == tuple(cell.scenario.client_names[k] for k in (0, 3))
    later = replace(state, elapsed_s=200.0)
    turns = {
        situation_of(cell, replace(later, draws=replace(state.draws, next=n)), cell.profiles).cohort
        for n in range(4)
    }
    assert len(turns) > 1


def test_kappa_is_fitted_to_the_run_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def fitted(*given: Any, **named: Any) -> float:
        asked.append((given, named))
        return 0.123

    monkeypatch.setattr("airtune.rounds.situation.fitted_kappa", fitted)
    cell, engine = opened("planning.method=exact", "planning.fit_kappa=true", "planning.kappa=0.4",
                          "training.learning_rate_schedule=linear", "rounds=4",
                          "devices.1.memory_bytes=1.3e6")  # fmt: skip
    state = State(0, 0.0, engine.initial_adapter(), {})
    first = situation_of(cell, state, cell.profiles).problem
    assert first.kappa == 0.4
    np.testing.assert_array_equal(first.max_pruning, first.min_pruning)
    assert first.min_pruning[2] > 0
    assert asked == []
    later = replace(state, round=3, losses=(3.0, 2.5, None, 2.0), pruning_losses=(0.0, 0.2, 0.1))
    problem = situation_of(cell, later, cell.profiles).problem
    assert problem.kappa == 0.123
    np.testing.assert_array_equal(problem.max_pruning, cell.scenario.pruning.max_pruning)
    ((given, named),) = asked
    assert given == ((3.0, 2.5, None, 2.0), (0.0, 0.2, 0.1))
    assert (named["prior"], named["largest_pruning_loss"]) == (0.4, pytest.approx(0.6))
    rates = [cell.scenario.training.in_round(n, 4).learning_rate for n in (1, 2, 3)]
    assert named["paces"] == [1.0, rates[1] / rates[0], rates[2] / rates[0]]
    assert rates[0] > rates[1] > rates[2]


# --- what came of an answer ----------------------------------------------------------------------


def answer(*settings: str, rank: int = 4) -> tuple[at.Cell, Scripted, ClientUpdate]:
    one = Round(tiny("rounds=5", *settings))
    job = one.engine.jobs[1]
    job = replace(job, assignment=replace(job.assignment, mode=replace(job.assignment.mode,
                                                                       rank=rank)))  # fmt: skip
    return one.cell, one.engine, one.engine.update(job)


def test_an_answer_is_sound_at_the_rank_that_its_client_was_given() -> None:
    cell, engine, update = answer(rank=2)
    start = engine.initial_adapter()
    assert status_of(cell, update, 2, start) == "ok"
    assert "shape" in status_of(cell, update, 4, start)
    # What it began with may have had fewer ranks than it is allowed.
    low = leading(start, 2)
    assert status_of(cell, update, 4, low) == "ok"
    assert status_of(cell, ClientFailure(1, "why"), 2, start) == "failed: why"
    lost = replace(update, train_loss=float("inf"))
    assert status_of(cell, lost, 2, start) == "rejected: training loss is not finite"
    part = replace(update, adapter=dict(list(update.adapter.items())[1:]))
    assert status_of(cell, part, 2, start).startswith("rejected: ")


def test_a_contribution_has_the_servers_shapes_and_its_own_weight() -> None:
    cell, engine, update = answer(rank=2)
    server = engine.initial_adapter()
    own = contribution_of(cell, server, update, 3, 7.0)
    assert (own.weight, own.steps) == (7.0, 3)
    for name, value in own.values.items():
        axis = 0 if "lora_A" in name else 1
        assert value.shape == own.held[name].shape == server[name].shape
        torch.testing.assert_close(value.narrow(axis, 0, 2), update.adapter[name])
        assert not own.held[name].narrow(axis, 2, 2).any()
    # What it began from was rounded on the way: its change counts, on the server's values.
    reached = {name: value - 0.5 for name, value in server.items()}
    moved = contribution_of(cell, server, update, 3, 7.0, reached)
    for name, value in moved.values.items():
        axis = 0 if "lora_A" in name else 1
        torch.testing.assert_close(value.narrow(axis, 0, 2), update.adapter[name] + 0.5)


@pytest.mark.parametrize(
    ("round", "measures", "final"),
    [(1, False, False), (2, False, False), (3, True, False), (4, False, False), (5, True, True)],
)
def test_every_nth_round_and_the_last_are_measured(round: int, measures: bool, final: bool) -> None:
    for cohort, asked in (([], None), (["participation.cohort=2"], (1, 3))):
        cell, engine = opened("evaluation.every_rounds=3", "rounds=5", *cohort)
        adapter = engine.initial_adapter()
        found = evaluation_after(cell, State(round, 0.0, adapter, {}), (1, 3))
        assert (found is not None) == measures
        assert engine.evaluations == ([(adapter, final, asked)] if measures else [])
    assert measured(cell, adapter, (2,), final=True).metrics == {"accuracy": 0.25}
    assert engine.evaluations[-1] == (adapter, True, (2,))
