"""What a worker hands on: each argument of each call that could be left out unseen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.adapters.names import leading, rank_of
from airtune.data import encode, eval_batches, load_task, local_batches, partition
from airtune.data.partition import holders_of
from airtune.models import assets
from airtune.models.workload import (
    calibration_flops,
)
from airtune.pruning import calibrate, choose, cost_curve
from airtune.pruning.calibration import SENSITIVITY_ROWS
from airtune.randomness import derived_seed, generator
from airtune.training.evaluation import ExactMatch, answer_loss, group_losses, label_accuracy
from airtune.training.sizes import tokens_of
from airtune.training.worker import Worker
from workers import Spy, moved, same, tiny, worker_of_nine_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def worker(one_thread: None) -> Worker:
    return worker_of_nine_rounds()


# --- the data ------------------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", ["own", "shared"])
def test_texts_are_split_over_clients_and_each_puts_some_aside(calibration: str) -> None:
    scenario = tiny(f"pruning.calibration={calibration}", "task.max_tokens=40")
    made = Worker(scenario)
    task = load_task(scenario.task, seed=11, tokenizer=made._tokenizer)
    data = encode(task.train, made._tokenizer, 40)
    shared = data[:4] if calibration == "shared" else []
    assert made._shared_texts == shared
    data = data[len(shared) :]
    shares = partition([one.label for one in data], 4, scenario.partition,
                       generator(11, "partition"), held_out=2)  # fmt: skip
    for client, share in enumerate(shares):
        own = [data[i] for i in share]
        assert made._client_test_data[client] == own[:2]
        assert made._train_data[client] == own[2:]
        assert made.federation.clients[client].examples == len(own) - 2
        assert made._calibration_texts(client) == (shared or own[2:6])
    tests = eval_batches(encode(task.test, made._tokenizer, 40), 4)
    assert len(made._test_batches) == len(tests) == 2
    for one, other in zip(made._test_batches, tests, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
    assert made._task.train == ()
    assert made._task.test == task.test


def test_labels_that_some_devices_hold_alone_are_theirs(calls_of: Spy) -> None:
    calls = calls_of("airtune.training.worker.partition")
    scenario = tiny('devices.0.only_labels=["2"]')
    made = Worker(scenario)
    ((_, named),) = calls
    labels = {one.label for texts in made._train_data for one in texts}
    labels |= {one.label for texts in made._client_test_data for one in texts}
    names = {label: made._task.label_name(label) for label in labels}
    assert named["reserved"] == holders_of(scenario, names)
    assert any(named["reserved"].values())
    assert named["held_out"] == 2


def test_choices_are_held_against_the_models_positions(
    calls_of: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_of("airtune.training.worker.check_choices_fit")

    def with_choices(*given: Any, **named: Any) -> Any:
        return replace(load_task(*given, **named), choices=("1", "22"))

    monkeypatch.setattr("airtune.training.worker.load_task", with_choices)
    made = Worker(tiny())
    (((tokenizer, examples, choices, longest), _),) = calls
    assert tokenizer is made._tokenizer
    assert (examples, choices) == (made._task.test, ("1", "22"))
    assert longest == made._model.config.max_position_embeddings
    adapter = made.initial_adapter()
    found = made.evaluate(adapter)
    assert set(found.metrics) == {"mean_client_loss", "worst_client_loss", "accuracy"}
    with made._placements.whole(made._config(4), adapter) as model:
        right = label_accuracy(model, tokenizer, examples, ("1", "22"), batch_size=4)
    assert found.metrics["accuracy"] == right
    assert "exact_match" not in made.evaluate(adapter, final=True).metrics
    quiet = Worker(tiny("evaluation.metrics_every_round=false", "evaluation.generate=true"))
    assert set(quiet.evaluate(adapter).metrics) == set()
    assert set(quiet.evaluate(adapter, final=True).metrics) == {
        "mean_client_loss", "worst_client_loss", "accuracy"}  # fmt: skip


def test_the_model_is_loaded_as_the_scenario_says(calls_of: Spy) -> None:
    loads, faster = (
        calls_of("airtune.training.worker.load_model"),
        calls_of("airtune.training.worker.speed_up_attention"),
    )
    scenario = tiny("task.max_tokens=32")
    made = Worker(scenario, device="cpu")
    ((given, named),) = loads
    assert (given, named) == ((scenario.model,), {"seed": 11, "max_tokens": 32})
    assert faster == [((made._model,), {"longest": 32})]
    assert made._device == "cpu"
    assert Worker(scenario)._device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert made._on_disk is None


# --- what is told of it --------------------------------------------------------------------------


def test_the_federation_is_counted_and_measured_where_asked(worker: Worker) -> None:
    known = worker.federation
    assert known.shape == worker.shape
    assert known.model_parameters == sum(p.numel() for p in worker._model.parameters())
    assert known.model_fingerprint == worker._fingerprint
    for client, told_of in enumerate(known.clients):
        texts = worker._train_data[client]
        assert sum(told_of.labels.values()) == told_of.examples == len(texts)
        for label in {one.label for one in texts}:
            name = worker._task.label_name(label)
            assert told_of.labels[name] == sum(one.label == label for one in texts)
        assert list(told_of.labels) == [
            worker._task.label_name(label) for label in sorted({one.label for one in texts})
        ]
        assert told_of.pruning_cost is told_of.most_pruned is None
        lengths = [len(one.input_ids) for one in texts[:4]]
        assert told_of.calibration_flops == calibration_flops(
            worker.shape, lengths, sensitivity_rows=SENSITIVITY_ROWS
        )
    assert worker.federation is known


@pytest.mark.parametrize("calibration", ["own", "shared"])
def test_costs_are_measured_by_a_clients_own_text_or_the_servers(
    calibration: str, calls_of: Spy
) -> None:
    reads = calls_of("airtune.training.worker.calibrate")
    made = Worker(tiny("pruning.cost=measured", f"pruning.calibration={calibration}",
                       "pruning.units=mlp", "pruning.max_pruning=0.5"))  # fmt: skip
    clients = made.federation.clients
    assert len(reads) == (1 if calibration == "shared" else 4)
    for client in (1, 3):
        statistics = calibrate(
            made._model, made.shape, eval_batches(made._calibration_texts(client), 4),
            stand_ins=False,
        )  # fmt: skip
        curve = cost_curve(statistics, made.shape, "mlp", max_pruning=0.5)
        sizes = choose(statistics, made.shape, 0.5, "mlp").sizes
        found = clients[client].pruning_cost
        assert found is not None
        np.testing.assert_allclose(found, curve)
        assert clients[client].most_pruned == sizes
        assert made.measured_costs(client) == (clients[client].pruning_cost, sizes)
        assert made.measured_costs(client) is made.measured_costs(client)
    assert (made.measured_costs(1) is made.measured_costs(3)) == (calibration == "shared")
    if calibration == "shared":
        assert {client.calibration_flops for client in clients} == {0.0}


def test_a_populations_curves_are_measured_when_they_are_asked_for(calls_of: Spy) -> None:
    reads = calls_of("airtune.training.worker.calibrate")
    made = Worker(tiny("pruning.cost=measured", "participation.cohort=2", "pruning.max_pruning=0"))
    assert {client.pruning_cost for client in made.federation.clients} == {None}
    assert reads == []
    curve, most_pruned = made.measured_costs(0)
    assert most_pruned is None
    assert curve[0] == (0.0, 0.0)
    made.close()


def test_a_start_is_random_and_the_same_for_a_seed(worker: Worker) -> None:
    start = worker.initial_adapter()
    assert rank_of(start) == 4
    config = lora_config(worker.scenario.training, worker._targets, 4)
    with adapted(worker._model, config, seed=derived_seed(11, "adapter")) as model:
        same(start, values_of(model))
    assert all((value == 0).all() == ("lora_B" in name) for name, value in start.items())


def test_batches_are_a_rounds_and_a_clients_own(worker: Worker) -> None:
    for round, client in ((1, 0), (2, 0), (1, 2)):
        found = worker.batches(round, client, 3)
        rng = generator(11, "batches", round=round, client=client)
        expected = local_batches(worker._train_data[client], batch_size=8, steps=3, rng=rng)
        assert [b.input_ids.tolist() for b in found] == [b.input_ids.tolist() for b in expected]
        assert worker.step_tokens(round, client) == tuple(tokens_of(batch) for batch in found)


# --- calibration ---------------------------------------------------------------------------------


def test_statistics_of_a_cohort_are_kept_and_others_lie_on_disk(calls_of: Spy) -> None:
    reads = calls_of("airtune.training.worker.cached_calibration")
    made = Worker(tiny("participation.cohort=2"))
    assert made._on_disk is not None
    folder = made._on_disk.path
    first = made._calibrated(0)
    assert made._calibrated(0) is first
    for client in (1, 2):
        made._calibrated(client)
    assert list(made._statistics) == [1, 2]
    assert [given[0] for given, _ in reads] == [folder] * 3
    assert len(list(folder.iterdir())) == 3
    assert reads[0][1] == {"stand_ins": made.scenario.pruning.units == "blocks"}
    made.close()
    assert not folder.exists()


def test_statistics_can_be_kept_over_runs(
    calls_of: Spy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRTUNE_CACHE", str(tmp_path))
    reads = calls_of("airtune.training.worker.cached_calibration")
    for calibration in ("own", "shared"):
        made = Worker(tiny("pruning.cache_statistics=true", "participation.cohort=2",
                           f"pruning.calibration={calibration}"))  # fmt: skip
        made._calibrated(3)
        assert list(made._statistics) == [3 if calibration == "own" else None]
        made.close()
    assert [given[0] for given, _ in reads] == [assets.cache_dir() / "statistics"] * 2
    plain = Worker(tiny("pruning.calibration=shared", "participation.cohort=2"))
    plain._calibrated(3)  # the server's text is read once, and is no client's on disk
    assert len(reads) == 2
    plain.close()
    Worker(tiny()).close()


# --- measuring -----------------------------------------------------------------------------------


def test_the_whole_model_is_measured_on_the_servers_and_the_clients_text(worker: Worker) -> None:
    adapter = moved(worker.initial_adapter())
    found = worker.evaluate(adapter)
    some = worker.evaluate(adapter, clients=(2, 0))
    none = worker.evaluate(adapter, clients=())
    with worker._placements.whole(worker._config(4), adapter) as model:
        loss = answer_loss(model, worker._test_batches)
        own = group_losses(model, worker._client_test_data, 4)
    assert found.loss == some.loss == none.loss == pytest.approx(loss)
    assert found.client_losses == pytest.approx(tuple(own))
    assert some.client_losses == pytest.approx((own[2], own[0]))
    assert (none.client_losses, none.metrics) == ((), {})
    assert found.metrics == pytest.approx(
        {"mean_client_loss": sum(own) / 4, "worst_client_loss": max(own)}
    )
    assert some.metrics["worst_client_loss"] == pytest.approx(max(own[2], own[0]))
    assert len(set(own)) == 4
    small = leading(adapter, 2)
    assert worker.evaluate(small).loss != found.loss  # measured at the adapter's own rank


def test_answers_are_generated_at_the_end_where_asked(
    calls_of: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    matches = calls_of("airtune.training.worker.exact_match")
    made = Worker(tiny("evaluation.generate=true", "evaluation.generate_examples=3",
                       "task.client_eval_examples=0"))  # fmt: skip
    adapter = made.initial_adapter()
    assert made.evaluate(adapter).metrics == {}
    found = made.evaluate(adapter, final=True)
    assert found.client_losses == ()
    assert "exact_match" in found.metrics
    ((given, named),) = matches
    assert given[1:] == (made._tokenizer, made._task.test[:3])
    assert named == {"batch_size": 4}
    Worker(tiny()).evaluate(adapter, final=True)
    assert len(matches) == 1
    Worker(tiny("evaluation.generate=true", "evaluation.generate_batch_size=7")).evaluate(
        adapter, final=True
    )
    assert matches[1][1] == {"batch_size": 7}
    for flexible, expected in ((0.5, {"exact_match": 0.25, "exact_match_flexible": 0.5}),
                               (None, {"exact_match": 0.25})):  # fmt: skip
        answer = ExactMatch(0.25, flexible)
        monkeypatch.setattr(
            "airtune.training.worker.exact_match", lambda *_, answer=answer, **__: answer
        )
        assert made.evaluate(adapter, final=True).metrics == expected


def test_an_adapter_is_saved_with_the_name_of_its_base(
    worker: Worker, calls_of: Spy, tmp_path: Path
) -> None:
    bases, saves = (
        calls_of("airtune.training.worker.base_reference"),
        calls_of("airtune.training.worker.save_adapter"),
    )
    adapter = leading(moved(worker.initial_adapter()), 3)
    worker.save_adapter(adapter, str(tmp_path / "out"))
    assert bases == [((worker.scenario.model,), {"seed": 11})]
    ((given, named),) = saves
    assert given[2] == str(tmp_path / "out")
    assert named == {"gguf_file": worker.scenario.model.gguf_file}
    same(load_file(tmp_path / "out" / "adapter_model.safetensors"), adapter)


def test_an_adapter_of_a_gguf_file_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Worker(tiny())
    section = made.scenario.model.model_copy(update={"gguf_file": "some.gguf"})
    made.scenario = made.scenario.model_copy(update={"model": section})
    named: list[Any] = []
    monkeypatch.setattr("airtune.training.worker.base_reference", lambda *_, **__: None)
    monkeypatch.setattr("airtune.training.worker.save_adapter", lambda *_, **k: named.append(k))
    made.save_adapter(made.initial_adapter(), "nowhere")
    assert named == [{"gguf_file": "some.gguf"}]
