"""Refits to the model as it is trained: the same function, on the clock, resumed, refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import airtune as at
from airtune.adapters.lora import lora_config, merged_into_base
from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import gather_adapter
from airtune.data import Encoded, encode, eval_batches, load_task
from airtune.errors import InputError
from airtune.merging.rules import rule_of
from airtune.models.energy import idle_w
from airtune.models.loading import LoadedModel, load_model, shape_of
from airtune.models.workload import (
    calibration_flops,
    full_sizes,
    payload_bits,
    rereading_flops,
)
from airtune.planning.inputs import modes_of
from airtune.pruning import Statistics, calibrate, choose, cut
from airtune.pruning.layers import blocks_of, output_projection, weight_of
from airtune.pruning.rereading import reread
from airtune.pruning.statistics import UNITS
from airtune.scenario import Scenario
from airtune.training.client import ClientJob, ClientUpdate, Refit
from airtune.training.placements import Placements
from airtune.training.refits import Refits
from airtune.training.worker import Worker
from assigned import assignment, mode
from scripted import stopped_and_resumed
from small_models import NAMES, small_model, text_batch

RANK, OWN_RANK, RATE = 4, 2, 0.5


class Setting:
    """The tiny model, texts, statistics of before training, and an adapter that is trained."""

    def __init__(self) -> None:
        settings = [f"training.lora_rank={RANK}", "pruning.refit_every_rounds=3"]
        self.scenario: Scenario = at.load_scenario("tiny", settings)
        self.loaded: LoadedModel = load_model(self.scenario.model, seed=0)
        self.scale = self.scenario.training.lora_scale
        task = load_task(self.scenario.task, seed=0, tokenizer=self.loaded.tokenizer)
        self.texts: list[Encoded] = encode(task.train[:16], self.loaded.tokenizer, 64)
        self.before: Statistics = calibrate(
            self.loaded.model, self.loaded.shape, eval_batches(self.texts, 8), stand_ins=False
        )
        rng = torch.Generator().manual_seed(1)
        self.adapter: Adapter = {
            name: value if ".lora_A." in name else 0.05 * torch.randn(value.shape, generator=rng)
            for name, value in Worker(self.scenario).initial_adapter().items()
        }

    def job(self, rank: int, adapter: Adapter | None = None) -> ClientJob:
        """Return a job of round 5; text was read in round 4, in the model with an adapter."""
        assigned = assignment(0, mode(rank), pruning=RATE)
        return ClientJob(5, assigned, self.adapter, refit=Refit(4, adapter or self.adapter))


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("name", NAMES)
def test_the_same_text_in_the_same_model_gives_the_same_statistics(name: str) -> None:
    model = small_model(name)
    shape, batches = shape_of(model), [text_batch(rows=6), text_batch(rows=3, seed=1)]
    known = calibrate(model, shape, batches, stand_ins=False)
    again, fewer = (reread(known, model, shape, some) for some in (batches, batches[:1]))
    for of in UNITS:
        for block in range(shape.blocks):
            first, second = known.sublayer(block, of), again.sublayer(block, of)
            assert torch.equal(first.order, second.order)
            assert torch.equal(first.factor, second.factor)
            assert torch.equal(first.scale, second.scale)
            assert torch.equal(first.mean, second.mean)
            assert not torch.equal(first.mean, fewer.sublayer(block, of).mean)


@pytest.mark.parametrize("rate", [RATE, 0.9])
def test_a_submodel_computes_what_a_cut_of_the_trained_model_does(
    setting: Setting, rate: float
) -> None:
    model, shape, job = setting.loaded.model, setting.loaded.shape, setting.job(RANK)
    refits = Refits(setting.scenario, model, shape)
    read = refits.statistics(None, job, setting.before, setting.texts)
    structure = choose(setting.before, shape, rate)
    without = [b for b in range(shape.blocks) if not structure.units(b, "group")]
    assert bool(without) == (rate == 0.9)
    ids = eval_batches(setting.texts, 4)[0].input_ids
    with merged_into_base(model, setting.adapter, setting.scale), torch.no_grad():
        expected = cut(model, shape, structure, read)(input_ids=ids).logits
    config = lora_config(setting.scenario.training, setting.loaded.lora_targets, RANK)
    own = gather_adapter(setting.adapter, structure, shape)
    placements = Placements(model, shape)
    seen = []
    for added in (refits.added(job), None):
        with (
            placements.submodel(structure, config, own, read, added=added) as (placed, _),
            torch.no_grad(),
        ):
            seen.append(placed.peft_model(input_ids=ids).logits)
    assert torch.allclose(seen[0], expected, atol=1e-4)
    assert not torch.allclose(seen[1], expected, atol=1e-2)


def test_a_lower_rank_leaves_the_other_ranks_in_the_refit(setting: Setting) -> None:
    model, shape, job = setting.loaded.model, setting.loaded.shape, setting.job(OWN_RANK)
    refits = Refits(setting.scenario, model, shape)
    read = refits.statistics(None, job, setting.before, setting.texts)
    structure = choose(setting.before, shape, RATE)
    with merged_into_base(model, setting.adapter, setting.scale):
        trained = cut(model, shape, structure, read)
    config = lora_config(setting.scenario.training, setting.loaded.lora_targets, OWN_RANK)
    own = gather_adapter(leading(setting.adapter, OWN_RANK), structure, shape)
    with Placements(model, shape).submodel(
        structure, config, own, read, added=refits.added(job)
    ) as (placed, _):
        blocks, refitted = blocks_of(placed.peft_model.get_base_model(), shape), 0
        for index in range(shape.blocks):
            for unit, total in (("mlp", shape.mlp_channels), ("group", shape.kv_heads)):
                if len(structure.units(index, unit)) in (0, total):
                    continue
                refitted += 1
                name = output_projection(shape, unit).name
                entry = f"base_model.model.{shape.table.blocks}.{index}.{name}.lora_"
                grown = setting.scale * own[f"{entry}B.weight"] @ own[f"{entry}A.weight"]
                layer = blocks[index].get_submodule(name).base_layer
                expected = weight_of(blocks_of(trained, shape)[index].get_submodule(name))
                assert torch.allclose(weight_of(layer) + grown, expected, atol=1e-5)
        assert refitted >= 2


def test_text_is_read_once_a_reading_and_only_as_much_as_asked(setting: Setting) -> None:
    refits = Refits(setting.scenario, setting.loaded.model, setting.loaded.shape)
    first = refits.statistics(None, setting.job(RANK), setting.before, setting.texts)
    assert refits.statistics(None, setting.job(OWN_RANK), setting.before, setting.texts) is first
    copy = setting.job(RANK, {name: value.clone() for name, value in setting.adapter.items()})
    assert refits.statistics(None, copy, setting.before, setting.texts) is first
    # Another run that the worker serves has a reading in the same round, in another model.
    other = {name: 2 * value for name, value in setting.adapter.items()}
    read = refits.statistics(None, setting.job(RANK, other), setting.before, setting.texts)
    assert not torch.equal(read.mlp[0].mean, first.mlp[0].mean)
    fresh = Refits(setting.scenario, setting.loaded.model, setting.loaded.shape)
    alone = fresh.statistics(None, setting.job(RANK, other), setting.before, setting.texts)
    assert torch.equal(read.mlp[0].mean, alone.mlp[0].mean)
    few = at.load_scenario("tiny", ["pruning.refit_every_rounds=3", "pruning.refit_examples=4"])
    few = few.model_copy(update={"training": setting.scenario.training})
    model, shape = setting.loaded.model, setting.loaded.shape
    short = Refits(few, model, shape).statistics(
        None, setting.job(RANK), setting.before, setting.texts
    )
    four = Refits(setting.scenario, model, shape).statistics(
        None, setting.job(RANK), setting.before, setting.texts[:4]
    )
    assert torch.equal(short.mlp[0].mean, four.mlp[0].mean)
    assert not torch.equal(short.mlp[0].mean, first.mlp[0].mean)


SETTINGS = [
    "rounds=4", "task.eval_examples=8", "planning.method=uniform", "planning.kappa=0.05",
]  # fmt: skip


def test_a_run_reads_again_on_the_clock_and_trains_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_in: list[tuple[int, int, Adapter]] = []
    train = Worker.train

    def noted(worker: Worker, job: ClientJob) -> ClientUpdate:
        if job.refit is not None:
            assert job.assignment.pruning > 0
            read_in.append((job.round, job.refit.round, job.refit.adapter))
            if job.round == job.refit.round:
                assert job.refit.adapter is job.adapter
        return train(worker, job)

    monkeypatch.setattr(Worker, "train", noted)
    without = at.run(at.load_scenario("tiny", SETTINGS), out=tmp_path / "without")
    scenario = at.load_scenario("tiny", [*SETTINGS, "pruning.refit_every_rounds=2"])
    record = at.run(scenario, out=tmp_path / "with")
    assert [one.refit_s is not None for one in record.rounds] == [False, False, True, False]
    assert {(round, of) for round, of, _ in read_in} == {(3, 3), (4, 3)}
    third_adapters = [of for _, _, of in read_in]
    assert all(of is third_adapters[0] for of in third_adapters)
    for before, now in zip(without.rounds[:2], record.rounds[:2], strict=True):
        assert (before.eval_loss, before.elapsed_s) == (now.eval_loss, now.elapsed_s)
    assert without.rounds[2].eval_loss != record.rounds[2].eval_loss
    with at.open_cell(scenario) as cell:
        each = [
            client.rereading_flops / profile.effective_flops
            for client, profile in zip(cell.federation.clients, cell.profiles, strict=True)
        ]
        read = sum(client.rereading_flops for client in cell.federation.clients)
        sent = replace(modes_of(scenario, (0,))[0], bits_per_value=16, bits_per_scale=0)
        bits = payload_bits(cell.federation.shape, full_sizes(cell.federation.shape), sent)
        known = [idle_w(profile) is not None for profile in cell.profiles]
        profiles = cell.profiles
    third, same = record.rounds[2], without.rounds[2]
    # Of a whole model's rank all receive the same, at the rate of the slowest.
    assert {client.downlink_bits for client in same.clients} == {bits}
    received_s = max(client.downlink_s for client in same.clients)
    assert third.refit_s == pytest.approx(received_s + max(each))
    assert third.downlink_bits == same.downlink_bits + bits
    more_j = [
        profile.power_w * own
        + idle_w(profile) * (third.refit_s - own)
        + 1.288 * received_s
        + 0.05197 * bits / 1e6
        if profile.power_w
        else 0.0
        for own, profile in zip(each, profiles, strict=True)
    ]
    assert third.elapsed_s == pytest.approx(
        record.rounds[1].elapsed_s + third.refit_s + third.round_latency_s
    )
    assert third.flops == pytest.approx(same.flops + read)
    for now, before, more, knows in zip(third.clients, same.clients, more_j, known, strict=True):
        if knows:
            assert now.energy_j == pytest.approx(before.energy_j + more)
    assert any(known)
    assert len(set(each)) > 1
    assert record.rounds[3].flops == pytest.approx(without.rounds[3].flops)
    resumed = stopped_and_resumed(scenario, tmp_path / "cut", after=3)
    assert [one.eval_loss for one in resumed.rounds] == [one.eval_loss for one in record.rounds]
    assert resumed.rounds[-1].elapsed_s == record.rounds[-1].elapsed_s
    assert [of for _, of, _ in read_in[len(third_adapters) :]].count(3) == len(third_adapters)


def test_reading_again_is_counted_as_the_part_of_calibration_that_it_is(setting: Setting) -> None:
    shape, lengths = setting.loaded.shape, [30, 40, 50]
    n, m = shape.mlp_channels, shape.query_heads * shape.head_dim
    rest = sum((1 + 8 / 7) * k**3 + (4 / 3 + 2) * k**2 * shape.hidden for k in (n, m))
    counted = calibration_flops(shape, lengths, sensitivity_rows=0)
    assert rereading_flops(shape, lengths) == pytest.approx(counted - shape.blocks * rest)
    assert rereading_flops(shape, lengths) > rereading_flops(shape, lengths[:1]) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pruning.refit=false"], "needs refit = true"),
        (["pruning.units=blocks"], "needs refit = true"),
        (["pruning.refit_examples=64"], "more than calibration_examples = 32"),
        (["participation.cohort=2"], "cannot go with participation.cohort"),
        (["model.quantize=int8"], "cannot go with model.quantize = 'int8'"),
        (["schedule.kind=fedbuff"], "cannot be combined with schedule.kind"),
    ],
)
def test_what_cannot_read_again_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        at.load_scenario("tiny", ["pruning.refit_every_rounds=2", *settings])


def test_it_is_refused_with_restarts_and_alone_and_at_zero() -> None:
    scenario = at.load_scenario("tiny", ["pruning.refit_every_rounds=2", "aggregation.rule=flora"])
    with pytest.raises(InputError, match=r"pruning\.refit_every_rounds cannot go with"):
        rule_of(scenario)
    with pytest.raises(InputError, match="only with refit_every_rounds"):
        at.load_scenario("tiny", ["pruning.refit_examples=4"])
    with pytest.raises(InputError, match="refit_every_rounds"):
        at.load_scenario("tiny", ["pruning.refit_every_rounds=0"])
