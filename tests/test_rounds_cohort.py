"""Rounds of a cohort: every wire from the draw to the record is the client's own, not a place's."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import airtune as at
from airtune.engines.local import LocalEngine
from airtune.merging.functions import Contribution
from airtune.models.energy import energy_of
from airtune.planning.cohorts import DrawMemory, draw_cohort
from airtune.rounds import Cell, Decision, Situation
from airtune.rounds import cell as hooks
from airtune.rounds.moments import StoredMoments
from airtune.rounds.observer import Observer
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate
from watched import Watched

SMALL = ["rounds=3", "task.eval_examples=8", "training.local_steps=2", "partition.kind=quantity",
         "partition.alpha=1.0", "partition.min_examples=4"]  # fmt: skip
COHORT = ["participation.cohort=2"]


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", [*SMALL, *overrides])


pytestmark = pytest.mark.usefixtures("one_thread")


def situations_of(scenario: Scenario, rounds: int = 2) -> list[Situation]:
    """The situations of a run's first rounds, none of which trains anything new."""
    seen: list[Situation] = []

    def decide(cell: Cell, situation: Situation) -> Decision:
        seen.append(situation)
        return hooks.decide(cell, situation)

    with at.open_cell(scenario, decide=decide) as cell:
        state = at.begin(cell)
        for _ in range(rounds):
            state, _ = at.step(cell, state)
    return seen


def test_what_is_planned_is_the_cohorts_own() -> None:
    """Against the situation of all clients on the same channel and batches, client by client."""
    settings = ["devices.1.lora_rank=2"]
    settings += [f"devices.{kind}.energy_budget_j={kind + 1}e6" for kind in range(3)]
    whole = situations_of(tiny(*settings))
    parts = situations_of(tiny(*settings, *COHORT))
    assert {len(part.cohort) for part in parts} == {2}
    assert any(part.cohort != (0, 1) for part in parts)
    for every, part in zip(whole, parts, strict=True):
        own = list(part.cohort)
        assert part.loads == tuple(every.loads[k] for k in own)
        assert part.modes == tuple(every.modes[k] for k in own)
        assert part.profiles == tuple(every.profiles[k] for k in own)
        for name in ("snr_hz", "max_spectral_efficiency", "downlink_rate_bps"):
            values = getattr(every.link.air, name)[own]
            np.testing.assert_array_equal(getattr(part.link.air, name), values)
        np.testing.assert_array_equal(part.link.needed_bits, every.link.needed_bits[own])
        for name in ("snr_hz", "compute_full_s", "payload_full_bits", "min_pruning",
                     "energy_budget_j", "compute_power_w", "transmit_power_w"):  # fmt: skip
            values = getattr(every.problem, name)[own]
            np.testing.assert_array_equal(getattr(part.problem, name), values)
        assert part.problem.names == tuple(every.problem.names[k] for k in own)
        np.testing.assert_allclose(
            part.problem.weight, every.problem.weight[own] / every.problem.weight[own].sum()
        )
        # The broadcast waits for the slowest of the cohort, not of the population.
        slowest = part.link.air.downlink_rate_bps.min()
        np.testing.assert_allclose(part.problem.downlink_s, part.link.needed_bits / slowest)


def test_clients_are_asked_billed_and_measured_by_who_they_are() -> None:
    scenario = tiny(*COHORT, "task.client_eval_examples=2")
    engine = Watched(scenario)
    with at.open_cell(scenario, engine=engine) as cell:
        state = at.begin(cell)
        assert [one["clients"] for one in engine.measured] == [()]
        for _ in range(3):
            engine.jobs.clear()
            state, record = at.step(cell, state)
            cohort = tuple(job.client for job in engine.jobs)
            assert engine.measured[-1]["clients"] == cohort
            assert [c.name for c in record.clients] == [scenario.client_names[k] for k in cohort]
            alone = engine.evaluate(state.adapter, clients=(cohort[1],)).client_losses
            assert record.clients[1].eval_loss == pytest.approx(alone[0], rel=1e-5)
            for k, bill in zip(cohort, record.clients, strict=True):
                profile, device = cell.profiles[k], scenario.client_devices[k]
                assert bill.examples == cell.federation.clients[k].examples
                assert bill.compute_s == pytest.approx(bill.flops / profile.effective_flops)
                drawn = energy_of(
                    device,
                    profile,
                    compute_s=bill.compute_s,
                    upload_s=bill.upload_s,
                    uplink_bits=bill.uplink_bits,
                    downlink_s=bill.downlink_s,
                    downlink_bits=bill.downlink_bits,
                    round_s=record.round_latency_s,
                )
                assert drawn is not None
                assert bill.energy_j == pytest.approx(drawn.energy_j)
            assert (record.cohort, record.available, record.waited_s) == (2, 4, 0.0)
            assert {c.inclusion_probability for c in record.clients} == {0.5}
        assert len({job.client for job in engine.jobs}) == 2


def test_a_client_of_the_cohort_that_sits_out_is_recorded_by_its_name() -> None:
    def decide(cell: Cell, situation: Situation) -> Decision:
        made = hooks.decide(cell, situation)
        return replace(made, assignments=(made.assignments[0], None))

    with at.open_cell(tiny(*COHORT), decide=decide) as cell:
        _, record = at.step(cell, at.begin(cell))
        names = cell.scenario.client_names
    cohort = draw_of(tiny(*COHORT), 1)
    assert cohort != (0, 1)
    assert [client.name for client in record.clients] == [names[k] for k in cohort]
    assert [client.status for client in record.clients] == ["ok", "sat out"]


def draw_of(scenario: Scenario, round: int) -> tuple[int, ...]:
    clients = len(scenario.client_devices)
    drawn = draw_cohort(
        scenario,
        round=round,
        time_s=0.0,
        rate_bps=np.ones(clients),
        examples=np.ones(clients),
        availability=None,
        memory=DrawMemory(),
    )
    return drawn.clients


EVERYONE = {
    "plain": ["training.keep_optimizer=true", "task.client_eval_examples=2"],
    "measured": ["pruning.cost=measured", "aggregation.rule=flora"],
    "floor": ["planning.knobs=all", "participation.floor=0.3", "planning.tolerance=1e-3"],
}


@pytest.mark.parametrize("name", EVERYONE)
def test_a_cohort_of_all_is_the_run_without_one(name: str, tmp_path: Path) -> None:
    """Also where moments, statistics and curves then come from disk."""
    settings = EVERYONE[name]
    at.run(tiny(*settings), out=tmp_path / "without")
    at.run(tiny(*settings, "participation.cohort=1.0"), out=tmp_path / "with")
    without, cohort = (_lines(tmp_path / folder) for folder in ("without", "with"))
    for line in cohort:
        assert (line.pop("cohort"), line.pop("available"), line.pop("waited_s")) == (4, 4, 0.0)
        assert {client.pop("inclusion_probability") for client in line["clients"]} == {1.0}
    # The untrained model is measured on no client's own text.
    # Equal but for rounding: kernels for AVX2 add up by where in memory their factors lie.
    for (path, one), (other_path, other) in zip(_numbers(cohort), _numbers(without), strict=True):
        assert path == other_path
        assert one == other or one == pytest.approx(other, rel=1e-5)


def _numbers(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return the leaves of a record's lines with where they are, in order of their places."""
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in _numbers(value[key], f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for i, one in enumerate(value) for leaf in _numbers(one, f"{path}[{i}]")]
    return [(path, value)]


def _lines(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for line in lines:
        del line["wall_s"]
    return lines


RESUMED = ["training.keep_optimizer=true", *COHORT, "rounds=4"]


@pytest.mark.parametrize("by", ["uniform", "round-robin", "proportional-fair"])
def test_a_resumed_run_draws_on_and_finds_its_moments(by: str, tmp_path: Path) -> None:
    scenario = tiny(*RESUMED, f"participation.cohort_by={by}", "cell.outage_probability=0.3")
    at.run(scenario, out=tmp_path / "whole")

    class Stopped(LocalEngine):
        def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
            for job in jobs:
                if job.round == 3:
                    raise KeyboardInterrupt
                yield from super().train([job])

    with pytest.raises(KeyboardInterrupt):
        at.run(scenario, out=tmp_path / "run", engine=Stopped)
    # The newest checkpoint is damaged: the one before it finds the moments of its own round.
    (tmp_path / "run" / "checkpoint" / "round-00002" / "state.safetensors").write_bytes(b"")
    at.run(scenario, out=tmp_path / "run", resume=True)
    assert _lines(tmp_path / "run") == _lines(tmp_path / "whole")
    stored = sorted(path.name for path in (tmp_path / "run" / "clients").iterdir())
    assert stored == sorted(path.name for path in (tmp_path / "whole" / "clients").iterdir())
    assert stored


def test_moments_are_on_disk_three_files_a_client_and_gone_with_a_temporary_cell() -> None:
    scenario = tiny(*COHORT, "training.keep_optimizer=true", "participation.cohort_by=channel")
    with at.open_cell(scenario) as cell:
        state = at.begin(cell)
        for _ in range(4):
            state, record = at.step(cell, state)
        moments, folder = state.optimizer_states, cell.folder
        assert isinstance(moments, StoredMoments)
        last = [scenario.client_names.index(client.name) for client in record.clients]
        assert all(moments.written[client] == 4 for client in last)
        assert all(len(list(folder.glob(f"{client:06d}-*"))) <= 3 for client in moments)
        step = next(value for key, value in moments[last[0]].items() if key.endswith("|step"))
        assert step >= 2
    assert not folder.exists()


def test_the_floor_owes_for_the_rounds_in_whose_cohort_a_client_is() -> None:
    settings = ["planning.knobs=all", "participation.floor=0.4", "planning.tolerance=1e-3"]
    seen: list[Situation] = []

    def decide(cell: Cell, situation: Situation) -> Decision:
        seen.append(situation)
        return hooks.decide(cell, situation)

    with at.open_cell(tiny(*settings, *COHORT), decide=decide) as cell:
        before = at.begin(cell)
        after, record = at.step(cell, before)
        names = [client.name for client in record.clients]
    assert len(after.queues) == 4
    own = [before.queues[client] for client in seen[-1].cohort]
    assert seen[-1].queues.tolist() == own
    assert seen[-1].cohort != (0, 1)
    assert len(set(before.queues)) == 4
    for k, name in enumerate(cell.scenario.client_names):
        if name not in names:
            assert after.queues[k] == before.queues[k]
    changed = [k for k in range(4) if after.queues[k] != before.queues[k]]
    assert changed
    assert {cell.scenario.client_names[k] for k in changed} <= set(names)


def test_calibration_is_billed_for_the_population_before_the_first_round(tmp_path: Path) -> None:
    """Every device reads its own text once, whenever it is first drawn."""
    for method in ("exact", "none"):
        chosen = f"planning.method={method}"
        cohort = at.run(tiny(chosen, *COHORT, "rounds=1"), out=tmp_path / f"{method}-cohort")
        everyone = at.run(tiny(chosen, "rounds=1"), out=tmp_path / method)
        for record in (cohort, everyone):
            assert record.description is not None
        assert cohort.description == everyone.description


def test_clients_that_are_away_are_never_passed_over_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "there.csv"
    path.write_text("client,from_s,to_s\n2,0,1e9\n4,0,1e9\n")
    there = [f"participation.availability={path}", "participation.too_few=fewer"]
    scenario = tiny("participation.cohort=3", *there)
    said: list[str] = []

    class Listening(Observer):
        def noticed(self, what: str) -> None:
            said.append(what)

    with at.open_cell(scenario, observer=Listening()) as cell:
        _, record = at.step(cell, at.begin(cell))
    assert (record.cohort, record.available, record.waited_s) == (2, 2, 0.0)
    assert [client.name for client in record.clients] == [scenario.client_names[k] for k in (1, 3)]
    assert f"{path}: 2 clients are never available" in said
    assert "round 1: 2 of the 3 clients asked for are available" in said


# --- waiting, lost uploads, weights ------------------------------------------------------------


def test_waiting_is_on_the_clock_and_on_the_record(tmp_path: Path) -> None:
    path = tmp_path / "there.csv"
    path.write_text("client,from_s,to_s\n1,0,1e9\n2,40,1e9\n3,0,5\n4,0,1\n")
    scenario = tiny(*COHORT, f"participation.availability={path}", "planning.method=none")
    with at.open_cell(scenario) as cell:
        state = replace(at.begin(cell), elapsed_s=10.0)
        after, record = at.step(cell, state)
        assert [client.name for client in record.clients] == list(scenario.client_names[:2])
        assert (record.waited_s, record.available) == (30.0, 2)
        assert after.elapsed_s == record.elapsed_s == 40.0 + record.round_latency_s
        _, next_one = at.step(cell, after)
        assert next_one.waited_s == 0.0


def test_weights_by_inclusion_are_shares_of_those_who_were_available(tmp_path: Path) -> None:
    seen: list[list[Contribution]] = []

    def merge(cell: Cell, adapter: Any, contributions: Any) -> Any:
        seen.append(list(contributions))
        return hooks.merge(cell, adapter, contributions)

    path = tmp_path / "there.csv"
    path.write_text("client,from_s,to_s\n1,0,1e9\n2,0,1e9\n4,0,1e9\n")
    scenario = tiny(
        "participation.cohort=2",
        f"participation.availability={path}",
        "participation.weights=inclusion",
        "cell.outage_probability=0.2",
    )
    with at.open_cell(scenario, merge=merge) as cell:
        state, record = at.begin(cell), None
        for _ in range(4):
            seen.clear()
            state, record = at.step(cell, state)
            examples = [cell.federation.clients[k].examples for k in range(4)]
            there = examples[0] + examples[1] + examples[3]  # the third is never there
            assert examples[2] > 0
            # Two of three are drawn, each with 2/3, and arrive with 0.8.
            expected = [
                client.examples / there / (2 / 3 * 0.8)
                for client in record.clients
                if client.status == "ok"
            ]
            assert [one.weight for one in (seen[0] if seen else [])] == pytest.approx(expected)


def test_only_what_arrives_is_merged_and_everything_is_billed() -> None:
    seen: list[list[Contribution]] = []

    def merge(cell: Cell, adapter: Any, contributions: Any) -> Any:
        seen.append(list(contributions))
        return hooks.merge(cell, adapter, contributions)

    reliable = tiny("rounds=4")
    lossy = tiny("rounds=4", "cell.outage_probability=0.4", "training.keep_optimizer=true")
    with at.open_cell(reliable) as cell:
        _, sent = at.step(cell, at.begin(cell))
    with at.open_cell(lossy, merge=merge) as cell:
        state = at.begin(cell)
        for round in range(1, 5):
            before, merged = state, len(seen)
            state, record = at.step(cell, state)
            ok = [client for client in record.clients if client.status == "ok"]
            lost = [client for client in record.clients if client.status == "lost: outage"]
            assert len(ok) + len(lost) == 4
            assert {client.success_probability for client in record.clients} == {0.6}
            if ok:
                assert [one.weight for one in seen[-1]] == [client.examples for client in ok]
            else:
                assert len(seen) == merged
                assert all((state.adapter[k] == before.adapter[k]).all() for k in state.adapter)
                assert record.train_loss is None
            if round == 1:
                pairs = zip(record.clients, sent.clients, strict=True)
                for mine, other in pairs:
                    assert (mine.uplink_bits, mine.total_s) == (other.uplink_bits, other.total_s)
                assert record.round_latency_s == sent.round_latency_s
        assert len(state.optimizer_states) == 4  # a device keeps its own, whatever arrives


def test_a_round_of_which_nothing_arrives_leaves_the_adapter_and_goes_on() -> None:
    for rule in ("fedit", "flora"):
        scenario = tiny("cell.outage_probability=0.99", f"aggregation.rule={rule}", "rounds=2")
        with at.open_cell(scenario) as cell:
            start = at.begin(cell)
            state, record = at.step(cell, start)
            assert {client.status for client in record.clients} == {"lost: outage"}
            assert all(torch.equal(state.adapter[k], start.adapter[k]) for k in start.adapter)
            assert state.elapsed_s == start.elapsed_s + record.round_latency_s
            _, second = at.step(cell, state)
            assert second.clients[0].downlink_bits == record.clients[0].downlink_bits


def test_a_deadline_ends_the_round(tmp_path: Path) -> None:
    scenario = tiny(
        "participation.deadline_slack=1.05", "cell.csi_error_db=6", "rounds=3", "cell.gap_db=20"
    )
    record = at.run(scenario, out=tmp_path / "run")
    late = [c for r in record.rounds for c in r.clients if c.status.startswith("lost: late")]
    assert late
    for entry in record.rounds:
        assert entry.predicted_latency_s is not None
        deadline_s = 1.05 * entry.predicted_latency_s
        assert entry.round_latency_s <= deadline_s * (1 + 1e-12)
        for client in entry.clients:
            if client.status.startswith("lost: late"):
                assert client.total_s == pytest.approx(deadline_s)
            assert client.total_s == client.downlink_s + client.compute_s + client.upload_s
