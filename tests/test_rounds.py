"""The round loop, whole: real submodels of the tiny model, on the virtual clock."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel

import airtune as at
from airtune.data import encode, eval_batches, load_task
from airtune.engines.local import LocalEngine
from airtune.models.devices import profile_of
from airtune.models.loading import load_model
from airtune.planning import fitted_kappa
from airtune.pruning import calibrate
from airtune.record import RunDescription
from airtune.rounds import run
from airtune.scenario import Scenario, load_scenario
from airtune.training.client import ClientFailure, ClientJob, ClientUpdate, Measured
from airtune.training.evaluation import answer_loss
from airtune.training.worker import Worker


def tiny(*overrides: str) -> Scenario:
    return load_scenario("tiny", ["rounds=2", "task.eval_examples=16", *overrides])


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return rounds.jsonl without the real time, which no two runs share."""
    rounds = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    for entry in rounds:
        del entry["wall_s"]
    return rounds


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run(tiny(), out=folder)
    return folder


def test_the_loss_falls_and_the_record_is_whole(finished: Path) -> None:
    record = at.read_record(finished)
    assert record.finished
    assert [entry.round for entry in record.rounds] == [1, 2]
    first = record.description.initial_eval_loss if record.description else None
    assert first is not None
    last = record.rounds[-1].eval_loss
    assert last is not None
    assert last < first - 1.0


def test_calibration_passes_before_the_first_round(tmp_path: Path) -> None:
    def cell_of(folder: str, *overrides: str) -> RunDescription:
        run(tiny("rounds=1", *overrides), out=tmp_path / folder)
        record = at.read_record(tmp_path / folder)
        assert record.description is not None
        first = record.rounds[0]
        assert first.elapsed_s == record.description.setup_s + first.round_latency_s
        return record.description

    own = cell_of("own")
    worker = Worker(tiny())
    needed = [client.calibration_flops for client in worker.federation.clients]
    assert min(needed) > 0
    assert own.setup_flops == sum(needed)
    assert own.setup_s == pytest.approx(
        max(n / site.effective_flops for n, site in zip(needed, own.clients, strict=True))
    )
    for name, free in {
        "shared": "pruning.calibration=shared",
        "none": "planning.method=none",
        "unpruned": "pruning.max_pruning=0",
    }.items():
        described = cell_of(name, free)
        assert (described.setup_s, described.setup_flops) == (0, 0), name


def test_a_cut_that_memory_forces_is_calibrated_for_too(tmp_path: Path) -> None:
    run(
        tiny("rounds=1", "planning.method=none", "devices.2.memory_bytes=1e6"),
        out=tmp_path / "run",
    )
    record = at.read_record(tmp_path / "run")
    assert record.description is not None
    cut = [client.pruning > 0 for client in record.rounds[0].clients]
    assert cut == [False, False, False, True]
    needed = Worker(tiny()).federation.clients[3].calibration_flops
    assert record.description.setup_flops == needed


def test_shared_text_is_read_once_and_is_no_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def counting(*arguments: Any, **options: Any) -> Any:
        read.append(arguments)
        return calibrate(*arguments, **options)

    monkeypatch.setattr("airtune.training.worker.calibrate", counting)
    shared = ["pruning.calibration=shared", "pruning.cost=measured"]
    worker = Worker(tiny(*shared))
    clients = worker.federation.clients
    assert len(read) == 1
    assert {client.pruning_cost for client in clients} == {clients[0].pruning_cost}
    assert sum(row.input_ids.shape[0] for row in read[0][2]) == 32
    own = Worker(tiny("pruning.cost=measured"))
    assert sum(c.examples for c in clients) == sum(c.examples for c in own.federation.clients) - 32
    assert len(read) == 1 + len(clients)


def test_the_clock_is_the_slowest_clients_counted_time(finished: Path) -> None:
    record = at.read_record(finished)
    assert record.description is not None
    elapsed = record.description.setup_s
    for entry in record.rounds:
        for client in entry.clients:
            assert client.total_s == pytest.approx(
                client.downlink_s + client.compute_s + client.upload_s
            )
            assert client.upload_s == pytest.approx(client.uplink_bits / client.rate_bps)
        assert entry.round_latency_s == max(client.total_s for client in entry.clients)
        elapsed += entry.round_latency_s
        assert entry.elapsed_s == pytest.approx(elapsed)
        assert sum(c.bandwidth_hz for c in entry.clients) <= 1e5 * (1 + 1e-9)
        assert entry.gap is not None
        assert entry.gap <= 1e-6


def test_the_adapter_loads_with_plain_peft_and_gives_the_recorded_loss(finished: Path) -> None:
    scenario = tiny()
    loaded = load_model(scenario.model, seed=scenario.seed)
    task = load_task(scenario.task, seed=scenario.seed, tokenizer=loaded.tokenizer)
    batches = eval_batches(encode(task.test, loaded.tokenizer, scenario.task.max_tokens), 16)
    untrained = answer_loss(loaded.model, batches)
    model = PeftModel.from_pretrained(loaded.model, str(finished / "adapter"))
    recorded = at.read_record(finished).rounds[-1].eval_loss
    assert answer_loss(model, batches) == pytest.approx(recorded, rel=1e-5)
    assert untrained != pytest.approx(recorded, rel=1e-2)


def test_every_method_sees_the_same_draws(finished: Path, tmp_path: Path) -> None:
    run(tiny("planning.method=none"), out=tmp_path / "none")
    exact, none = lines(finished), lines(tmp_path / "none")
    for ours, theirs in zip(exact, none, strict=True):
        # What `none` took is what the other run said it would have taken.
        assert theirs["round_latency_s"] == pytest.approx(ours["none_latency_s"], rel=1e-9)
        for a, b in zip(ours["clients"], theirs["clients"], strict=True):
            assert a["label_tokens"] == b["label_tokens"]
            assert a["examples"] == b["examples"]
        assert theirs["uplink_bits"] > ours["uplink_bits"]


def test_the_next_plan_knows_what_a_device_really_took(tmp_path: Path) -> None:
    scenario = tiny("rounds=3", "planning.method=bandwidth-only")
    speeds = [profile_of(device).effective_flops for device in scenario.client_devices]
    ratios: dict[tuple[int, int], float] = {}

    class TwiceAsLong(LocalEngine):
        """Stands for devices with a clock of their own; the first one fails once."""

        def train(self, jobs: Iterable[ClientJob]) -> Iterator[ClientUpdate | ClientFailure]:
            for job in jobs:
                (outcome,) = super().train([job])
                assert isinstance(outcome, ClientUpdate)
                assert job.assignment.planned is not None
                named_s = outcome.flops / speeds[job.client]
                ratios[job.round, job.client] = job.assignment.planned.compute_s / named_s
                if (job.round, job.client) == (2, 0):
                    yield ClientFailure(job.client, "it went away", after_s=1.0)
                    continue
                yield replace(outcome, measured=Measured(0.0, 2 * named_s, 0.1, 0.1))

    run(scenario, out=tmp_path / "run", engine=TwiceAsLong)
    # Half of what the last plan expected and half of the 2 that it took; nothing from a failure.
    for (round, client), ratio in ratios.items():
        expected = {1: 1.0, 2: 1.5, 3: 1.5 if client == 0 else 1.75}[round]
        assert ratio == pytest.approx(expected), (round, client)


def test_a_linear_schedule_ends_at_a_fraction_of_the_learning_rate(tmp_path: Path) -> None:
    def losses(name: str, *settings: str) -> list[float]:
        given = ["rounds=2", "task.eval_examples=8", *settings]
        run(load_scenario("tiny", given), out=tmp_path / name)
        return [one["eval_loss"] for one in lines(tmp_path / name)]

    constant = losses("constant")
    linear = losses("linear", "training.learning_rate_schedule=linear")
    assert linear[0] == constant[0]
    assert linear[1] != constant[1]

    section = load_scenario("tiny", ["training.learning_rate_schedule=linear"]).training
    assert section.in_round(6, 4) == section.in_round(5, 4) == section.in_round(4, 4)
    rates = [section.in_round(number, 4).learning_rate for number in (1, 2, 3, 4)]
    assert rates == pytest.approx([section.learning_rate * k / 4 for k in (4, 3, 2, 1)])


def test_kappa_is_fitted_with_the_learning_rate_of_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces = []

    def fitted(losses: object, pruning_losses: object, **given: Any) -> float:
        paces.append(given["paces"])
        return float(given["prior"])

    monkeypatch.setattr("airtune.rounds.situation.fitted_kappa", fitted)
    falls = "training.learning_rate_schedule=linear"
    given = ["rounds=4", "planning.fit_kappa=true", falls, "task.eval_examples=8"]
    run(load_scenario("tiny", given), out=tmp_path / "run")
    # The first round is before any loss.
    assert paces == [pytest.approx([1.0, 0.75, 0.5][:count]) for count in (1, 2, 3)]


def test_the_same_seed_gives_the_same_record_and_another_does_not(
    finished: Path, tmp_path: Path
) -> None:
    run(tiny(), out=tmp_path / "again")
    assert lines(tmp_path / "again") == lines(finished)
    run(tiny("seed=2"), out=tmp_path / "other")
    assert lines(tmp_path / "other") != lines(finished)


def test_whole_resource_blocks_are_handed_out(tmp_path: Path) -> None:
    scenario = tiny("rounds=1", "cell.uplink_bandwidth_hz=5e6", "cell.subcarrier_spacing_hz=15000")
    clients = run(scenario, out=tmp_path / "run").rounds[0].clients
    counts = [client.bandwidth_hz / 180e3 for client in clients]
    assert all(count == pytest.approx(round(count)) for count in counts)
    assert sum(round(count) for count in counts) <= 25


def test_kappa_is_fitted_from_the_run_and_used_in_its_next_plan(tmp_path: Path) -> None:
    fitting = tiny("rounds=5", "planning.fit_kappa=true")
    run(fitting, out=tmp_path / "whole")
    record = at.read_record(tmp_path / "whole")
    first, *later = record.rounds
    assert first.pruning_loss == 0
    assert {client.pruning for client in first.clients} == {0.0}
    assert first.kappa == later[0].kappa == fitting.planning.kappa  # nothing to compare with yet
    assert later[0].pruning_loss > 0
    assert record.description is not None
    losses = [record.description.initial_eval_loss, *(r.eval_loss for r in record.rounds)]
    for at_round in (2, 3, 4):
        before = record.rounds[:at_round]
        expected = fitted_kappa(
            losses[: at_round + 1],
            [r.pruning_loss for r in before],
            prior=fitting.planning.kappa,
            largest_pruning_loss=fitting.pruning.max_pruning,
        )
        assert record.rounds[at_round].kappa == expected
    assert record.rounds[-1].kappa != fitting.planning.kappa


def test_measured_cost_curves_and_clients_own_losses_reach_the_record(tmp_path: Path) -> None:
    scenario = tiny("rounds=1", "pruning.cost=measured", "task.client_eval_examples=4")
    entry = run(scenario, out=tmp_path / "run").rounds[0]
    own = [client.eval_loss for client in entry.clients]
    assert len(set(own)) > 1
    assert entry.metrics["worst_client_loss"] == max(own)  # type: ignore[type-var]
    assert entry.metrics["mean_client_loss"] == pytest.approx(sum(own) / len(own))  # type: ignore[arg-type]
    assert entry.pruning_loss <= 1


def test_metrics_beside_the_loss_are_taken_when_they_are_asked_for(tmp_path: Path) -> None:
    texts = [f"what {k}?,{('Sports', 'Health')[k % 2]}" for k in range(80)]
    for name, part in (("train", texts[:70]), ("test", texts[70:])):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(part) + "\n")
    task = [
        "task.name=yahoo-answers",
        f"task.source='{tmp_path}'",
        "task.train_examples=64",
        "task.eval_examples=8",
        "task.max_tokens=64",
        "task.client_eval_examples=2",
    ]
    for every in (True, False):
        settings = [*task, f"evaluation.metrics_every_round={str(every).lower()}"]
        worker = Worker(tiny(*settings))
        adapter = worker.initial_adapter()
        expected = {"accuracy", "mean_client_loss", "worst_client_loss"}
        assert set(worker.evaluate(adapter).metrics) == (expected if every else set())
        final = worker.evaluate(adapter, final=True)
        assert set(final.metrics) == expected
        assert 0 <= final.metrics["accuracy"] <= 1
        assert final.loss == worker.evaluate(adapter).loss
