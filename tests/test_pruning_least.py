"""pruning.min_pruning: what every client leaves out, whoever decides its rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import airtune as at
from airtune.cli.plan_tables import print_plan
from airtune.engines.local import LocalEngine
from airtune.errors import InputError
from airtune.models.affine import affine_coefficients
from airtune.models.workload import full_sizes, largest_step, memory_bytes
from airtune.planning.inputs import least_rate, modes_of, situation_of_scenario
from airtune.planning.round_plan import plan_round
from airtune.rounds.cohort import may_be_cut
from airtune.rounds.loop import begin, opening, step
from airtune.rounds.running import run
from airtune.rounds.situation import situation_of
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate

LEAST = "pruning.min_pruning=0.4"


def test_the_least_rate_is_the_scenarios_or_what_memory_holds_whichever_is_larger() -> None:
    scenario = at.load_scenario("tiny", [LEAST])
    found = situation_of_scenario(scenario)
    cost = affine_coefficients(found.shape, found.loads[0].steps, found.modes[0], max_pruning=0.6)
    for held, expected in ((1.0, 0.4), (0.7, 0.4), (0.5, 0.5)):
        memory = cost.memory_fixed_bytes + held * cost.memory_full_bytes
        profile = replace(found.profiles[0], memory_bytes=memory)
        step = largest_step(found.shape, scenario.pruning.units) / 2 if held < 0.6 else 0.0
        least = least_rate(scenario, found.shape, cost, profile)
        assert least == pytest.approx(expected + step)


@pytest.mark.parametrize(
    "settings",
    [
        ["planning.method=none"],
        ["planning.method=exact"],
        ["planning.method=bcd"],
        ["planning.knobs=all", "participation.floor=0.2"],
        ['planning.knobs=["bandwidth","steps"]'],
        ["planning.method=none", "participation.cohort=2"],
        ["planning.method=none", "schedule.kind=fedbuff"],
    ],
)
def test_every_client_of_a_run_leaves_out_that_much(settings: list[str], tmp_path: Path) -> None:
    scenario = at.load_scenario("tiny", ["rounds=2", LEAST, *settings])
    run(scenario, out=tmp_path / "run")
    record = at.read_record(tmp_path / "run")
    worked = [
        client for round in record.rounds for client in round.clients if client.status == "ok"
    ]
    assert worked
    # A submodel has whole units: its own rate is a little off the planned one.
    assert all(client.pruning > 0.3 for client in worked)
    assert record.description is not None
    assert record.description.setup_flops > 0  # they read calibration text before


def test_whoever_is_drawn_may_be_cut() -> None:
    drawn = ["planning.method=none", "participation.cohort=2"]
    for settings, expected in ((drawn, [False] * 4), ([*drawn, LEAST], [True] * 4)):
        with at.open_cell(at.load_scenario("tiny", settings)) as cell:
            assert may_be_cut(cell) == expected


def test_a_least_rate_above_the_most_is_refused() -> None:
    with pytest.raises(InputError, match=r"min_pruning = 0\.7 is above max_pruning = 0\.6"):
        at.load_scenario("tiny", ["pruning.min_pruning=0.7"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["planning.method=none", LEAST], {"least"}),
        (["planning.method=none", "devices.0.memory_bytes=1.2e6"], {"memory", None}),
        (['planning.knobs=["bandwidth","steps"]', LEAST], {"least"}),
    ],
)
def test_the_record_says_whether_scenario_or_memory_asked_for_the_cut(
    settings: list[str], said: set[str | None], tmp_path: Path
) -> None:
    run(at.load_scenario("tiny", ["rounds=1", *settings]), out=tmp_path / "run")
    (round,) = at.read_record(tmp_path / "run").rounds
    found = {(client.binds or "").partition(", ")[2] or None for client in round.clients}
    assert found == said


@pytest.mark.parametrize(("least", "word"), [("0.4", "least"), ("0", "memory")])
def test_a_plan_says_so_too(least: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = at.load_scenario("tiny", ['planning.knobs=["steps"]', f"pruning.min_pruning={least}",
                                         "devices.2.memory_bytes=2.6e6"])  # fmt: skip
    found = situation_of_scenario(scenario)
    made = plan_round(scenario, found)
    print_plan(made.problem, made.plan, made.modes, None, scenario.pruning.min_pruning)
    shown = capsys.readouterr().out
    assert word in shown
    assert ("memory" in shown) == (word == "memory")


@pytest.mark.parametrize("units", ["mixed", "mlp", "blocks"])
def test_a_submodel_that_memory_forces_fits(units: str) -> None:
    """It is rounded to whole units: up, where the nearest would not fit."""
    held_bytes = 1.15e6
    scenario = at.load_scenario(
        "tiny",
        ["planning.method=bandwidth-only", f"pruning.units={units}", "rounds=2",
         "pruning.max_pruning=0.6", "pruning.calibration_examples=8",
         *(f"devices.{k}.memory_bytes={held_bytes}" for k in range(3))],
    )  # fmt: skip
    updates: list[ClientUpdate] = []

    class Noting(LocalEngine):
        def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
            for outcome in super().train(jobs):
                assert isinstance(outcome, ClientUpdate)
                updates.append(outcome)
                yield outcome

    with at.open_cell(scenario, engine=Noting) as cell:
        _, record = step(cell, begin(cell))
        cut = 0
        for update, client, sizes in zip(
            updates, record.clients, (one.structure.sizes for one in updates), strict=True
        ):
            tokens = cell.engine.step_tokens(1, update.client)
            mode = modes_of(scenario, (update.client,))[0]
            needed = [memory_bytes(cell.federation.shape, sizes, one, mode) for one in tokens]
            assert max(needed) <= held_bytes
            cut += client.pruning > 0
    assert cut


def test_a_cut_that_a_later_rounds_batches_force_is_in_the_setup() -> None:
    scenario = at.load_scenario(
        "tiny", ["planning.method=bandwidth-only", "rounds=8", "seed=1",
                 "devices.2.memory_bytes=1.086e6"]
    )  # fmt: skip
    with at.open_cell(scenario) as cell:
        may, (state, description) = may_be_cut(cell), opening(cell)
        forced = [
            situation_of(cell, replace(state, round=done), cell.profiles).problem.min_pruning > 0
            for done in range(8)
        ]
    assert may == np.any(forced, axis=0).tolist() == [False, False, False, True]
    assert not np.any(forced[0])
    assert description.setup_s > 0
    shorter = scenario.model_copy(update={"rounds": 2})
    with at.open_cell(shorter) as cell:
        assert not any(may_be_cut(cell))  # no batch of its two rounds is too large


def test_who_may_be_drawn_is_counted_with_batches_that_are_all_answers() -> None:
    settings = ["planning.method=none", "participation.cohort=2"]
    found = situation_of_scenario(at.load_scenario("tiny", settings))
    whole = full_sizes(found.shape)
    half = found.loads[0].steps[0]
    all_answers = replace(half, label_tokens=half.rows * half.length)
    some, most = (
        memory_bytes(found.shape, whole, one, found.modes[0]) for one in (half, all_answers)
    )
    assert most > 1.05 * some
    for held_bytes, expected in ((0.5 * (some + most), True), (1.01 * most, False)):
        device = f"devices.2.memory_bytes={held_bytes}"
        with at.open_cell(at.load_scenario("tiny", [*settings, device])) as cell:
            assert may_be_cut(cell) == [False, False, False, expected]
