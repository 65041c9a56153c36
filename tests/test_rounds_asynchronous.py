"""Rounds that do not wait for everyone: identities with synchronous ones, events, resuming."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import airtune as at
from airtune.adapters.names import Adapter
from airtune.engines.local import LocalEngine
from airtune.errors import RunError
from airtune.record import RoundRecord
from airtune.report import write_report
from airtune.rounds import State, run
from airtune.rounds.observer import Observer
from airtune.rounds.schedules import next_clients
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from scripted import Scripted
from watched import Watched

SMALL = ["task.eval_examples=8", "training.local_steps=2", "planning.method=bandwidth-only"]
ALIKE = [
    "devices.0.count=4", "devices.0.distance_m=60.0", "cell.path_loss=classic",
    "cell.shadowing=false", "cell.fading=none",
]  # fmt: skip


def tiny(*overrides: str, one_kind: bool = False) -> Scenario:
    scenario = load_scenario("tiny", [*SMALL, *overrides])
    return scenario.model_copy(update={"devices": scenario.devices[:1]}) if one_kind else scenario


pytestmark = pytest.mark.usefixtures("one_thread")


def followed(
    scenario: Scenario, rounds: int, engine: Watched | None = None
) -> list[tuple[State, RoundRecord]]:
    found = []
    with at.open_cell(scenario, engine=engine or LocalEngine) as cell:
        state = at.begin(cell)
        for _ in range(rounds):
            state, record = at.step(cell, state)
            found.append((state, record))
    return found


def same(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other)


def test_a_buffer_of_all_clients_without_differences_is_the_synchronous_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for where in ("airtune.rounds.bills.compute_s", "airtune.rounds.turns.compute_s"):
        monkeypatch.setattr(where, lambda flops, profile: 0.5)
    settings = [*ALIKE, "planning.method=none"]
    ours = followed(
        tiny(*settings, "schedule.kind=fedbuff", "schedule.buffer_size=4", one_kind=True), 3
    )
    theirs = followed(tiny(*settings, one_kind=True), 3)
    for (mine, record), (state, expected) in zip(ours, theirs, strict=True):
        assert same(mine.adapter, state.adapter)
        assert record.eval_loss == expected.eval_loss
        assert record.elapsed_s == pytest.approx(expected.elapsed_s)
        assert record.uplink_bits == expected.uplink_bits
        assert record.flops == expected.flops
        assert record.energy_j == pytest.approx(expected.energy_j)
        assert record.downlink_bits == 4 * expected.downlink_bits  # to each alone
        assert [turn.staleness for turn in record.turns] == [0] * 4
        for row, other in zip(record.clients, expected.clients, strict=True):
            assert row.bandwidth_hz == pytest.approx(other.bandwidth_hz)
            assert row.rate_bps == pytest.approx(other.rate_bps)
            assert row.total_s == pytest.approx(other.total_s)
            assert row.transmit_j == pytest.approx(other.transmit_j)


def test_one_tier_is_the_synchronous_round_whatever_the_delays() -> None:
    ours = followed(tiny("schedule.kind=tiers", "schedule.tier_rounds=[1]"), 2)
    for (mine, record), (state, expected) in zip(ours, followed(tiny(), 2), strict=True):
        assert same(mine.adapter, state.adapter)
        assert record.eval_loss == expected.eval_loss
        assert record.uplink_bits == expected.uplink_bits


def test_fedasync_of_one_client_without_discount_is_fedit_of_one_client() -> None:
    one = ["devices.0.count=1"]
    whole = ["schedule.kind=fedasync", "schedule.mixing=1.0", "schedule.staleness_exponent=0.0"]
    ours = followed(tiny(*one, *whole, one_kind=True), 3)
    theirs = followed(tiny(*one, one_kind=True), 3)
    for (mine, record), (state, expected) in zip(ours, theirs, strict=True):
        assert same(mine.adapter, state.adapter)
        assert record.elapsed_s == pytest.approx(expected.elapsed_s)
        assert record.downlink_bits == expected.downlink_bits


@pytest.mark.parametrize("kind", ["fedbuff", "fedasync"])
def test_a_merge_is_the_published_one_from_the_adapters_that_clients_began_with(kind: str) -> None:
    """Recomputed from the jobs and answers alone, at real staleness."""
    scenario = tiny(f"schedule.kind={kind}", "schedule.staleness_exponent=1.0")
    engine = Watched(scenario)
    names = list(scenario.client_names)
    found = followed(scenario, 6, engine)
    before = engine.initial_adapter()
    stale = 0
    for state, record in found:
        expected = {name: value.double() for name, value in before.items()}
        keys = [(turn.turn, names.index(turn.name)) for turn in record.turns]
        weights = [engine.update_at[key].examples for key in keys]
        for key, turn, weight in zip(keys, record.turns, weights, strict=True):
            assert turn.staleness == record.round - 1 - turn.start_round
            stale = max(stale, turn.staleness)
            factor = 1.0 / (1 + turn.staleness)
            for name, value in engine.update_at[key].adapter.items():
                start = engine.job_at[key].adapter[name].double()
                if kind == "fedbuff":
                    share = factor * weight / sum(weights)
                    expected[name] += share * (value.double() - start)
                else:
                    expected[name] += 0.6 * factor * (value.double() - before[name].double())
        for name, value in expected.items():
            assert torch.allclose(state.adapter[name].double(), value, atol=1e-6)
        before = state.adapter
    assert stale >= 2


def test_draws_rates_and_momentum_go_on_from_merge_to_merge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[int] = []
    chosen: list[int] = []

    def noted(scenario: Scenario, turns: Any, so_far: int) -> list[int]:
        begun.append(so_far)
        chosen.append(len(found := next_clients(scenario, turns, so_far)))
        return found

    monkeypatch.setattr("airtune.rounds.asynchronous.next_clients", noted)
    scenario = tiny(
        "schedule.kind=fedasync",
        "schedule.concurrency=2",
        "training.learning_rate_schedule=linear",
        "rounds=6",
        "aggregation.server_optimizer=momentum",
    )
    engine = Watched(scenario)
    state, _ = followed(scenario, 5, engine)[-1]
    assert begun == [sum(chosen[:i]) for i in range(len(chosen))]
    assert set(state.server_moments) == {"momentum"}
    key, job = next((k, j) for k, j in engine.job_at.items() if j.rate_round != j.round)
    by_turn = next(iter(LocalEngine.train(engine, [replace(job, rate_round=None)])))
    assert isinstance(by_turn, ClientUpdate)
    assert not same(by_turn.adapter, engine.update_at[key].adapter)


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for entry in found:
        del entry["wall_s"]
    return found


class Stopped(Exception):
    pass


class Stopping(Observer):
    def round_ended(self, record: RoundRecord) -> None:
        raise Stopped


SCHEDULES = {
    "fedbuff": ["schedule.kind=fedbuff", "schedule.concurrency=3", "schedule.buffer_size=2"],
    "fedasync": ["schedule.kind=fedasync", "aggregation.server_optimizer=momentum"],
    "tiers": ["schedule.kind=tiers", "schedule.tier_rounds=[1, 3]"],
}


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_a_run_stopped_at_every_merge_has_the_record_of_one_that_was_not(
    kind: str, tmp_path: Path
) -> None:
    scenario = tiny(*SCHEDULES[kind], "rounds=4", "training.learning_rate_schedule=linear")
    run(scenario, out=tmp_path / "whole")
    for resume in (False, True, True):
        with pytest.raises(Stopped):
            run(scenario, out=tmp_path / "cut", resume=resume, observer=Stopping())
    run(scenario, out=tmp_path / "cut", resume=True)
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    assert 'id="overlaps"' in write_report(tmp_path / "cut").read_text()


@pytest.mark.parametrize("kind", list(SCHEDULES))
def test_events_are_in_order_and_every_turn_says_what_it_began_from(kind: str) -> None:
    scenario = tiny(*SCHEDULES[kind])
    found = followed(scenario, 6)
    records = [record for _, record in found]
    ends = [0.0, *(record.elapsed_s for record in records)]
    assert ends == sorted(ends)
    last: dict[str, float] = {}
    seen = []
    for record in records:
        ended = [turn.ended_s for turn in record.turns]
        assert ended == sorted(ended)
        assert max(ended) <= record.elapsed_s
        assert record.turns[-1].ended_s == record.elapsed_s
        for turn in record.turns:
            assert turn.started_s < turn.received_s < turn.computed_s < turn.ended_s
            merged = [end for end in ends[1:] if end <= turn.started_s]
            assert turn.start_round == len(merged)
            assert turn.started_s >= last.get(turn.name, 0.0)
            last[turn.name] = turn.ended_s
            seen.append((turn.name, turn.turn))
        by_name = {row.name: row for row in record.clients}
        assert [row.name for row in record.clients] == list(scenario.client_names)
        merged_names = {turn.name for turn in record.turns}
        assert {n for n, row in by_name.items() if row.status == "ok"} == merged_names
        assert record.uplink_bits == pytest.approx(sum(t.uplink_bits for t in record.turns))
        assert record.energy_j == pytest.approx(sum(row.energy_j or 0.0 for row in record.clients))
        assert {n for n, row in by_name.items() if row.energy_j} == merged_names
        for name in merged_names:
            spent = sum(t.ended_s - t.started_s for t in record.turns if t.name == name)
            assert by_name[name].total_s == pytest.approx(spent)
    assert len(seen) == len(set(seen))
    at_work = SCHEDULES[kind][1].removeprefix("schedule.concurrency=")
    if at_work.isdecimal():
        _at_most_at_work(records, int(at_work))
    if kind == "tiers":
        merged = {name: [r.round for r in records for t in r.turns if t.name == name]
                  for name in scenario.client_names}  # fmt: skip
        assert sorted(merged.values()) == sorted([list(range(1, 7))] * 2 + [[3, 6]] * 2)


def _at_most_at_work(records: list[RoundRecord], most: int) -> None:
    turns = [turn for record in records for turn in record.turns]
    for turn in turns:
        there = [t for t in turns if t.started_s <= turn.started_s < t.ended_s]
        assert 1 <= len(there) <= most


def test_what_a_client_sent_and_drew_is_billed_by_its_turns() -> None:
    """Equal links and bands: a turn's energy is that of its own times."""
    settings = [*ALIKE, "planning.method=none", "schedule.kind=fedasync"]
    (_, record), *_ = followed(tiny(*settings, one_kind=True), 1)
    turn = record.turns[0]
    row = next(row for row in record.clients if row.name == turn.name)
    assert row.upload_s == pytest.approx(turn.ended_s - turn.computed_s)
    assert row.rate_bps == pytest.approx(row.uplink_bits / row.upload_s)
    assert row.transmit_j == pytest.approx((10 ** (23 / 10 - 3) / 0.35 + 0.1) * row.upload_s)
    span = turn.ended_s - turn.started_s
    round = followed(tiny(*ALIKE, "planning.method=none", one_kind=True), 1)[0][1]
    sync = round.clients[0]
    assert row.compute_j is not None
    assert sync.compute_j is not None
    assert sync.wait_j is not None
    power_w = sync.compute_j / sync.compute_s
    idle_w = sync.wait_j / (round.round_latency_s - sync.compute_s)
    assert row.compute_j == pytest.approx(power_w * row.compute_s)
    assert row.wait_j == pytest.approx(idle_w * (span - row.compute_s))
    others = [r for r in record.clients if r.name != turn.name]
    assert all(r.status == "sat out" and r.uplink_bits == 0 for r in others)


class Failing(LocalEngine):
    """The work of the clients named fails."""

    def __init__(self, scenario: Scenario, failing: set[int]) -> None:
        super().__init__(scenario)
        self.failing = failing

    def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
        for job in jobs:
            if job.client in self.failing:
                yield ClientFailure(job.client, "RuntimeError: no")
            else:
                yield from super().train([job])


def test_a_client_that_fails_sends_nothing_and_the_others_go_on() -> None:
    scenario = tiny("schedule.kind=fedbuff", "schedule.buffer_size=2")
    with at.open_cell(scenario, engine=Failing(scenario, {0})) as cell:
        state = at.begin(cell)
        records = []
        for _ in range(3):
            state, record = at.step(cell, state)
            records.append(record)
    rows = [record.clients[0] for record in records]
    failed = [row for row in rows if row.status == "failed: RuntimeError: no"]
    assert failed
    assert all(row.uplink_bits == 0 and row.upload_s == 0 for row in failed)
    for record in records:
        assert sum(turn.status == "ok" for turn in record.turns) == 2


def test_a_run_in_which_everyone_fails_ends() -> None:
    scenario = tiny("schedule.kind=fedasync")
    with (
        at.open_cell(scenario, engine=Failing(scenario, {0, 1, 2, 3})) as cell,
        pytest.raises(RunError, match=r"no client's update could be used; first: failed"),
    ):
        at.step(cell, at.begin(cell))


@pytest.mark.parametrize("fault", ["failed", "not finite"])
def test_a_fast_client_whose_answers_cannot_be_merged_does_not_end_the_run(fault: str) -> None:
    # The others take far longer, so that many of its turns end before their first answer.
    scenario = load_scenario("tiny", [
        "planning.method=none", "schedule.kind=fedasync", "devices.0.count=1",
        "devices.0.utilisation=1e-4", "devices.1.utilisation=1e-7", "devices.2.utilisation=1e-7",
    ])  # fmt: skip

    def answer(job: ClientJob, update: ClientUpdate) -> ClientUpdate | ClientFailure:
        if job.client != 0:
            return update
        if fault == "failed":
            return ClientFailure(0, "RuntimeError: no")
        return replace(update, train_loss=float("nan"))

    with at.open_cell(scenario, engine=Scripted(scenario, answer)) as cell:
        state = at.begin(cell)
        turns = []
        for _ in range(4):
            state, record = at.step(cell, state)
            turns += record.turns
            assert [turn.status for turn in record.turns].count("ok") == 1
    bad = [turn for turn in turns if turn.name == scenario.client_names[0]]
    assert len(bad) > len(scenario.client_devices)
    assert not any(turn.status == "ok" for turn in bad)
