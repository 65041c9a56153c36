"""Refits where they meet the rest: what is read in, by whose text, who is billed, who is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import airtune as at
from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.adapters.names import Adapter, rank_of
from airtune.cli.progress import _line
from airtune.models.energy import idle_w
from airtune.models.loading import shape_of
from airtune.models.workload import rereading_flops
from airtune.pruning import calibrate
from airtune.pruning.layers import blocks_of, output_projection
from airtune.pruning.statistics import UNITS, Statistics
from airtune.rounds import State
from airtune.rounds.cohort import may_be_cut
from airtune.rounds.refits import Reading, reading_of
from airtune.rounds.situation import situation_of
from airtune.training import refits as refits_module
from airtune.training.client import ClientJob, Refit
from airtune.training.placements import Placements
from airtune.training.refits import Refits
from airtune.training.worker import Worker
from assigned import assignment, mode
from scripted import Scripted
from small_models import NAMES, small_model, text_batch

RANK = 4
READS = "pruning.refit_every_rounds=2"


def trained(start: Adapter, seed: int) -> Adapter:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: value if ".lora_A." in name else 0.1 * torch.randn(value.shape, generator=rng)
        for name, value in start.items()
    }


def job_of(client: int, adapter: Adapter, refit: Refit) -> ClientJob:
    return ClientJob(6, assignment(client, mode(RANK), pruning=0.5), adapter, refit=refit)


@pytest.mark.parametrize("name", NAMES)
def test_text_is_read_in_the_model_with_its_adapter(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(name)
    shape, batches = shape_of(model), [text_batch(rows=6), text_batch(rows=3, seed=1)]
    scenario = at.load_scenario("tiny", [f"training.lora_rank={RANK}", "training.lora_alpha=12"])
    targets = sorted({matrix.name.split(".")[-1] for matrix in shape.matrices})
    config = lora_config(scenario.training, targets, RANK, transposed=shape.table.transposed)
    with adapted(model, config, seed=0) as fresh:
        adapter = trained(values_of(fresh), seed=1)
    before = calibrate(model, shape, batches, stand_ins=False)
    monkeypatch.setattr(refits_module, "eval_batches", lambda texts, size: batches)
    job = job_of(0, adapter, Refit(5, adapter))
    read = Refits(scenario, model, shape).statistics(0, job, before, [])
    seen = _means(model, config, adapter, batches)
    for (block, unit), mean in seen.items():
        assert torch.allclose(read.sublayer(block, unit).mean, mean, atol=1e-4)
        assert not torch.allclose(before.sublayer(block, unit).mean, mean, atol=1e-3) or block == 0


def _means(
    model: nn.Module, config: Any, adapter: Adapter, batches: list[Any]
) -> dict[tuple[int, str], Tensor]:
    """Return the mean input of every output projection, as its hook sees it under PEFT."""
    shape = shape_of(model)
    rows: dict[tuple[int, str], list[Tensor]] = {}
    with adapted(model, config, adapter) as peft_model, torch.no_grad():
        for block, layer in enumerate(blocks_of(peft_model.get_base_model(), shape)):
            for unit in UNITS:

                def keep(_: nn.Module, given: tuple[Tensor, ...], key: Any = (block, unit)) -> None:
                    rows.setdefault(key, []).append(given[0].reshape(-1, given[0].shape[-1])[real])

                projection = layer.get_submodule(output_projection(shape, unit).name)
                projection.register_forward_pre_hook(keep)
        for batch in batches:
            real = batch.attention_mask.bool().reshape(-1)
            peft_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    for layer in blocks_of(model, shape):
        for module in layer.modules():
            module._forward_pre_hooks.clear()
    return {key: torch.cat(values).mean(0) for key, values in rows.items()}


def test_a_worker_refits_by_the_clients_own_text_in_the_readings_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    placed: list[tuple[Statistics, Any]] = []
    submodel = Placements.submodel

    @contextmanager
    def noted(self: Placements, *given: Any, **named: Any) -> Iterator[Any]:
        placed.append((given[3], named["added"]))
        with submodel(self, *given, **named) as found:
            yield found

    monkeypatch.setattr(Placements, "submodel", noted)
    settings = [f"training.lora_rank={RANK}", READS, "pruning.refit_examples=8"]
    worker = Worker(at.load_scenario("tiny", settings))
    then, now = (trained(worker.initial_adapter(), seed) for seed in (1, 2))
    for client in (0, 1):
        worker.train(job_of(client, now, Refit(5, then)))
    (first, added), (second, _) = placed
    assert not torch.equal(first.mlp[0].mean, second.mlp[0].mean)
    for client, (found, _) in enumerate(placed):
        texts = worker._calibration_texts(client)
        alone = Refits(worker.scenario, worker._model, worker.shape).statistics(
            client, job_of(client, now, Refit(5, then)), worker._calibrated(client), texts
        )
        assert torch.equal(found.mlp[0].mean, alone.mlp[0].mean)
        assert not torch.equal(found.mlp[0].mean, worker._calibrated(client).mlp[0].mean)
    assert added is not None
    names = {id(value) for value in then.values()}
    assert all(id(one.rows) in names and id(one.columns) in names for one in added.values())


def test_only_the_text_that_is_read_is_counted() -> None:
    settings = ["pruning.refit_examples=4", READS]
    worker = Worker(at.load_scenario("tiny", settings))
    for client, told in enumerate(worker.federation.clients):
        lengths = [len(text.input_ids) for text in worker._calibration_texts(client)[:4]]
        assert told.rereading_flops == rereading_flops(worker.shape, lengths)


def test_a_reading_is_that_of_the_clients_that_may_be_cut() -> None:
    settings = ["planning.method=none", READS, "devices.0.memory_bytes=1.2e6"]
    scenario = at.load_scenario("tiny", settings)
    with at.open_cell(scenario) as cell:
        start = trained(cell.engine.initial_adapter(), 1)
        state = State(2, 9.0, start, {})
        situation = situation_of(cell, state, cell.profiles)
        assert reading_of(cell, Refit(1, start), situation, cell.profiles) == Reading()
        assert reading_of(cell, None, situation, cell.profiles) == Reading()
        found = reading_of(cell, Refit(3, start), situation, cell.profiles)
        reads = [k in found.each for k in range(len(cell.profiles))]
        assert True in reads
        assert False in reads
        rates = situation.link.air.downlink_rate_bps[reads]
        slowest = found.downlink_bits / rates.min()
        for k, one in found.each.items():
            flops = cell.federation.clients[k].rereading_flops
            assert one.flops == flops
            assert one.compute_s == pytest.approx(flops / cell.profiles[k].effective_flops)
            assert one.downlink_s == pytest.approx(slowest)
        known = list(found.each.values())
        assert found.time_s == max(one.downlink_s + one.compute_s for one in known)
        assert found.flops == sum(one.flops for one in known)
        assert rank_of(start) == scenario.training.lora_rank


def test_nobody_reads_where_no_client_may_be_cut() -> None:
    scenario = at.load_scenario("tiny", ["planning.method=none", READS])
    engine = Scripted(scenario)
    with at.open_cell(scenario, engine=engine) as cell:
        start = engine.initial_adapter()
        situation = situation_of(cell, State(2, 9.0, start, {}), cell.profiles)
        assert reading_of(cell, Refit(3, start), situation, cell.profiles) == Reading()


def test_a_client_that_only_a_later_rounds_batches_cut_reads_as_well() -> None:
    scenario = at.load_scenario(
        "tiny", ["planning.method=none", "seed=4", "devices.0.memory_bytes=1.24e6", READS]
    )
    with at.open_cell(scenario) as cell:
        start = cell.engine.initial_adapter()
        cuts = [
            situation_of(cell, State(done, 0.0, start, {}), cell.profiles).problem.min_pruning > 0
            for done in range(scenario.rounds)
        ]
        assert (np.any(cuts, axis=0) & ~cuts[0]).any()
        assert may_be_cut(cell) == np.any(cuts, axis=0).tolist()


def test_a_round_with_a_reading_says_so_and_its_absentees_pay_for_it(tmp_path: Path) -> None:
    settings = [
        "rounds=3", "task.eval_examples=8", "planning.method=exact", READS,
        "participation.rule=in-turn", "participation.every_rounds=9",
    ]  # fmt: skip
    scenario = at.load_scenario("tiny", settings)
    record = at.run(scenario, out=tmp_path)
    third = record.rounds[2]
    assert third.refit_s
    assert f"read again {third.refit_s:.1f} s" in _line(third, 3)
    assert "read again" not in _line(record.rounds[1], 3)
    with at.open_cell(scenario) as cell:
        profiles, data = cell.profiles, cell.federation.clients
    absent = [
        (client, profile, told)
        for client, profile, told in zip(third.clients, profiles, data, strict=True)
        if client.status == "sat out" and idle_w(profile) is not None
    ]
    assert absent
    for client, profile, told in absent:
        reading_s = told.rereading_flops / profile.effective_flops
        assert client.compute_j == pytest.approx(profile.power_w * reading_s)
        assert client.receive_j is not None
        assert client.receive_j > 0
        assert client.wait_j == 0
