"""A client's work in a worker: against the plain loop on a submodel of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from airtune.adapters.few_bits import rounded_change
from airtune.adapters.lora import adapted, lora_config, merged_into_base, values_of
from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import gather_adapter
from airtune.data import eval_batches
from airtune.models.structure import whole
from airtune.models.workload import (
    payload_bits,
    realised_pruning,
    training_flops,
)
from airtune.pruning import calibrate, choose, cut
from airtune.pruning.selection import selection_of
from airtune.randomness import derived_seed
from airtune.training import client as local
from airtune.training.client import ClientJob, gather_moments, scatter_moments
from airtune.training.sizes import tokens_of
from airtune.training.worker import Worker
from assigned import mode
from workers import Spy, moved, same, tiny, told, worker_of_nine_rounds

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def worker(one_thread: None) -> Worker:
    return worker_of_nine_rounds()


def by_hand(worker: Worker, job: ClientJob, start: Adapter, structure: Any, refit: Any) -> Any:
    """Train on a submodel of its own, by the plain loop."""
    asked = job.assignment.mode
    submodel = cut(worker._model, worker.shape, structure, refit)
    config = lora_config(worker.scenario.training, worker._targets, asked.rank)
    section = worker.scenario.training.in_round(job.rate_round or job.round,
                                                worker.scenario.rounds)  # fmt: skip
    moments = job.optimizer_state
    if moments is not None:
        moments = gather_moments(moments, structure, worker.shape)
    correction = job.correction
    if correction is not None:
        correction = gather_adapter(leading(correction, asked.rank), structure, worker.shape)
    batches = worker.batches(job.round, job.client, 3)[: asked.local_steps]
    inside = gather_adapter(start, structure, worker.shape)
    trained = local.train(submodel, config, inside, batches, section, moments,
                          freezes_a=asked.freezes_a, correction=correction)  # fmt: skip
    return trained, inside, batches


@pytest.mark.parametrize("pruning", [0.0, 0.4])
@pytest.mark.parametrize("rate_round", [None, 8])
def test_a_client_trains_as_the_plain_loop_on_its_submodel(
    worker: Worker, pruning: float, rate_round: int | None
) -> None:
    shape, server = worker.shape, moved(worker.initial_adapter())
    asked = mode(4, steps=2)
    first = worker.train(ClientJob(2, told(1, asked), server))
    job = ClientJob(3, told(1, asked, pruning), server, first.optimizer_state, rate_round)
    update = worker.train(job)
    structure, refit = whole(shape), None
    if pruning:
        texts = eval_batches(worker._calibration_texts(1), 4)
        refit = calibrate(worker._model, shape, texts, stand_ins=False)
        structure = choose(refit, shape, pruning, "mlp")
    trained, _, batches = by_hand(worker, job, server, structure, refit)
    same(update.adapter, trained.adapter)
    assert update.structure == structure
    assert update.optimizer_state is not None
    assert first.optimizer_state is not None
    assert trained.optimizer_state is not None
    same(update.optimizer_state, scatter_moments(
        trained.optimizer_state, first.optimizer_state, server, structure, shape))  # fmt: skip
    sizes = structure.sizes
    assert update.pruning == realised_pruning(shape, sizes)
    assert (update.pruning > 0.3) == (pruning > 0)
    assert update.flops == sum(training_flops(shape, sizes, tokens_of(b), asked) for b in batches)
    assert update.uplink_bits == payload_bits(shape, sizes, asked)
    assert (update.round, update.client) == (3, 1)
    assert update.examples == len(worker._train_data[1])
    assert update.train_loss == pytest.approx(trained.train_loss, rel=1e-4)
    assert update.control is None


def test_a_smaller_rank_is_the_leading_one_and_bits_round_its_change(worker: Worker) -> None:
    server = moved(worker.initial_adapter())
    few = mode(2, steps=3, bits=4, scale=32)
    job = ClientJob(5, told(2, few), server)
    plain = worker.train(replace(job, assignment=told(2, mode(2, steps=3))))
    start = leading(server, 2)
    seed = derived_seed(11, "rounding", round=5, client=2)
    update = worker.train(job)
    same(update.adapter, rounded_change(start, plain.adapter, 4, seed=seed))
    assert update.uplink_bits == payload_bits(worker.shape, update.structure.sizes, few)
    assert any(not torch.equal(update.adapter[n], plain.adapter[n]) for n in start)
    trained, _, _ = by_hand(worker, replace(job, assignment=told(2, mode(2, steps=3))), start,
                            whole(worker.shape), None)  # fmt: skip
    same(plain.adapter, trained.adapter)


def test_more_steps_than_the_rounds_are_drawn_for(worker: Worker) -> None:
    server = worker.initial_adapter()
    update = worker.train(ClientJob(1, told(0, mode(4, steps=5)), server))
    batches = worker.batches(1, 0, 5)
    sizes = update.structure.sizes
    assert update.flops == sum(
        training_flops(worker.shape, sizes, tokens_of(b), mode(4, steps=5)) for b in batches
    )


@pytest.mark.parametrize("freezes_a", [False, True])
def test_a_correction_and_a_frozen_factor_reach_the_training(freezes_a: bool) -> None:
    worker = Worker(tiny())
    server = moved(worker.initial_adapter())
    correction = {name: 0.02 * torch.ones_like(value) for name, value in server.items()}
    asked = replace(mode(2, steps=2), freezes_a=freezes_a)
    job = ClientJob(1, told(3, asked), server, correction=correction)
    update = worker.train(job)
    trained, _, _ = by_hand(worker, job, leading(server, 2), whole(worker.shape), None)
    same(update.adapter, trained.adapter)
    assert update.control is not None
    same(update.control, trained.control)
    frozen = [torch.equal(update.adapter[n], server[n][:2]) for n in server if "lora_A" in n]
    assert all(frozen) == freezes_a


@pytest.mark.parametrize(
    "settings",
    [["pruning.refit=false"], ["pruning.selection=rolling"], ["pruning.units=blocks"]],
)
def test_a_submodel_is_chosen_as_the_scenario_says(settings: list[str], calls_of: Spy) -> None:
    made = Worker(tiny(*settings))
    shape, server = made.shape, made.initial_adapter()
    section = made.scenario.pruning
    job = ClientJob(2, told(1, pruning=0.35), server)
    structure, refit = made._cut_of(job)
    statistics = calibrate(made._model, shape, eval_batches(made._calibration_texts(1), 4),
                           stand_ins=section.units == "blocks")  # fmt: skip
    select = selection_of(section.selection, seed=11, round=2, client=1)
    assert structure == choose(statistics, shape, 0.35, section.units, select=select)
    assert (refit is not None) == section.refit
    assert made._cut_of(ClientJob(2, told(1), server)) == (whole(shape), None)
    if section.selection == "rolling":
        assert structure != made._cut_of(replace(job, round=3))[0]
    calls = calls_of("airtune.training.worker.selection_of")
    made._cut_of(job)
    assert calls == [((section.selection,), {"seed": 11, "round": 2, "client": 1})]


def test_clients_that_restart_begin_anew_on_the_merged_base(calls_of: Spy) -> None:
    made = Worker(tiny("aggregation.rule=flora", "training.lora_alpha=6.0"))
    merges = calls_of("airtune.training.worker.merged_into_base")
    server = moved(made.initial_adapter())
    asked = mode(2, steps=1)
    job = ClientJob(4, told(1, asked, 0.3), server)
    base = {name: value.clone() for name, value in made._model.state_dict().items()}
    update = made.train(job)
    ((given, named),) = merges
    assert given == (made._model, server, 1.5)
    assert named == {"transposed": False}
    # Cut by the base as it began, and put back as it was.
    statistics = calibrate(made._model, made.shape, eval_batches(made._calibration_texts(1), 4),
                           stand_ins=False)  # fmt: skip
    assert update.structure == choose(statistics, made.shape, 0.3, made.scenario.pruning.units)
    after = made._model.state_dict()
    assert all(torch.equal(base[name], after[name]) for name in base)
    plain = made.train(replace(job, assignment=told(1, asked)))
    config = lora_config(made.scenario.training, made._targets, 2)
    with adapted(made._model, config, seed=derived_seed(11, "restart", round=4)) as model:
        start = values_of(model)
    with merged_into_base(made._model, server, 1.5):
        trained, _, _ = by_hand(made, job, start, whole(made.shape), None)
    same(plain.adapter, trained.adapter)
    assert made._restart.cache_info().hits == 1
    assert made._restart.cache_info().maxsize == 4
