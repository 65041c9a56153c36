"""An adapter's layers that stay in place: every client trains as on layers of its own."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.adapters.names import Adapter, leading
from airtune.adapters.slices import gather_adapter, submodel_shapes
from airtune.data import Batch, encode, eval_batches, load_task, local_batches
from airtune.engines.packing import packed, unpacked
from airtune.errors import RunError
from airtune.models.loading import (
    LoadedModel,
    label_logits,
    load_model,
    lora_targets,
    shape_of,
)
from airtune.models.structure import Structure, whole
from airtune.pruning import Statistics, calibrate, cut
from airtune.scenario import ModelSection, TaskSection, TrainingSection, load_scenario
from airtune.training import placements as placements_module
from airtune.training.client import OptimizerState, Trained, fit, gather_moments, train
from airtune.training.evaluation import answer_loss
from airtune.training.placements import MOST_KINDS, Placements
from airtune.training.sizes import tokens_of
from airtune.training.worker import Worker
from small_models import NAMES, small_model, text_batch
from test_pruning_submodel import some_structure

SECTION = TrainingSection(
    local_steps=2, batch_size=4, learning_rate=1e-2, lora_rank=4, keep_optimizer=True
)


@dataclass(frozen=True)
class Given:
    """A model in float32 that drops out in training, data, and an adapter with B not zero."""

    loaded: LoadedModel
    batches: list[Batch]
    statistics: Statistics
    adapter: Adapter
    moments: OptimizerState


@pytest.fixture(scope="module")
def given() -> Given:
    loaded = load_model(ModelSection(id="tiny"), seed=0)
    for module in loaded.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.2
    task = load_task(TaskSection(name="sums", train_examples=32, eval_examples=8), seed=0)
    encoded = encode(task.train, loaded.tokenizer, 64)
    batches = local_batches(encoded, batch_size=4, steps=2, rng=np.random.default_rng(0))
    statistics = calibrate(loaded.model, loaded.shape, eval_batches(encoded[:8], 4))
    config = lora_config(SECTION, loaded.lora_targets)
    with adapted(loaded.model, config, seed=1) as peft_model:
        fresh = values_of(peft_model)
    trained = train(loaded.model, config, fresh, batches, SECTION)
    assert trained.optimizer_state is not None
    return Given(loaded, batches, statistics, trained.adapter, trained.optimizer_state)


@dataclass(frozen=True)
class Client:
    """What differs from client to client."""

    structure: Structure
    rank: int = 4
    refits: bool = False
    freezes_a: bool = False
    keeps: bool = False


def some(
    loaded: LoadedModel, first: int, channels: int, groups: tuple[tuple[int, ...], ...]
) -> Any:
    units = tuple(range(first, first + channels))
    kept = tuple(units if groups[b] != (-1,) else () for b in range(loaded.shape.blocks))
    return Structure(kept, tuple(() if g == (-1,) else g for g in groups))


def clients(loaded: LoadedModel) -> list[Client]:
    """Return settings whose order has each follow one that could leave something behind."""
    assert (loaded.shape.blocks, loaded.shape.kv_heads) == (3, 2)
    full = whole(loaded.shape)
    small = some(loaded, 0, 8, ((0,), (1,), (0, 1)))
    other = some(loaded, 5, 8, ((0,), (1,), (0, 1)))  # of equal sizes
    deaf = some(loaded, 2, 9, ((), (0,), (0, 1)))
    short = some(loaded, 0, 12, ((0, 1), (-1,), (0,)))
    return [
        Client(small, refits=True),
        Client(other),
        Client(full),
        Client(full),
        Client(small, rank=2),
        Client(deaf, refits=True, keeps=True),
        Client(full, freezes_a=True),
        Client(full, keeps=True),
        Client(short, rank=1, refits=True),
        Client(deaf),
        Client(small, keeps=True, refits=True),
        Client(full),
    ]


def afresh(given: Given, client: Client, start: Adapter, moments: OptimizerState | None) -> Trained:
    loaded = given.loaded
    statistics = given.statistics if client.refits else None
    submodel = cut(loaded.model, loaded.shape, client.structure, statistics)
    config = lora_config(SECTION, loaded.lora_targets, client.rank)
    torch.manual_seed(7)
    return train(
        submodel, config, start, given.batches, SECTION, moments, freezes_a=client.freezes_a
    )


def in_place(
    placements: Placements,
    given: Given,
    client: Client,
    start: Adapter,
    moments: OptimizerState | None,
) -> Trained:
    statistics = given.statistics if client.refits else None
    config = lora_config(SECTION, given.loaded.lora_targets, client.rank)
    with placements.submodel(
        client.structure, config, start, statistics, freezes_a=client.freezes_a
    ) as (placed, parameters):
        torch.manual_seed(7)
        kept, loss, _ = fit(placed.peft_model, parameters, given.batches, SECTION, moments)
        return Trained(placed.values(), kept, loss)


def test_a_client_trains_as_on_layers_of_its_own(given: Given) -> None:
    loaded = given.loaded
    placements = Placements(loaded.model, loaded.shape)
    config = lora_config(SECTION, loaded.lora_targets)
    with adapted(loaded.model, config, given.adapter) as peft_model:
        expected_loss = answer_loss(peft_model.eval(), given.batches)
    results = []
    for client in clients(loaded):
        start = gather_adapter(leading(given.adapter, client.rank), client.structure, loaded.shape)
        moments = None
        if client.keeps:
            moments = gather_moments(given.moments, client.structure, loaded.shape)
        expected = afresh(given, client, start, moments)
        got = in_place(placements, given, client, start, moments)
        assert got.train_loss == expected.train_loss, client
        same(got.adapter, expected.adapter)
        same(got.optimizer_state or {}, expected.optimizer_state or {})
        assert got.optimizer_state
        results.append((got.adapter, {n: v.clone() for n, v in got.adapter.items()}))
        with placements.whole(config, given.adapter) as model:
            assert answer_loss(model, given.batches) == expected_loss
    for kept, copied in results:  # no later client wrote into what was handed out
        same(kept, copied)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_is_refilled_as_it_is_cut(name: str) -> None:
    model = small_model(name)
    shape, batch = shape_of(model), text_batch()
    targets, placements = lora_targets(shape), Placements(model, shape)
    config = lora_config(SECTION, targets, transposed=shape.table.transposed)
    rng = torch.Generator().manual_seed(3)
    for structure in (
        some_structure(shape),
        whole(shape),
        some_structure(shape, no_attention=0),
        some_structure(shape, drop_block=1),
        some_structure(shape, no_attention=0, drop_block=1),
        whole(shape),
    ):
        adapter = {
            entry: torch.randn(size, generator=rng)
            for entry, size in submodel_shapes(structure, shape, 4).items()
        }
        with torch.no_grad():
            with adapted(cut(model, shape, structure), config, adapter) as peft_model:
                expected = label_logits(peft_model.train(), batch)
            with placements.submodel(structure, config, adapter) as (placed, _):
                assert torch.equal(label_logits(placed.peft_model, batch), expected)


def same(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_few_kinds_are_kept_and_no_cut_weights(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, made = given.loaded, []

    class Counted(placements_module.PlacedAdapter):
        def __init__(self, model: nn.Module, config: Any) -> None:
            super().__init__(model, config)
            made.append(self)

    monkeypatch.setattr(placements_module, "PlacedAdapter", Counted)
    placements = Placements(loaded.model, loaded.shape)
    config = lora_config(SECTION, loaded.lora_targets)
    own = {t.data_ptr() for t in loaded.model.parameters()}

    def use(groups: tuple[tuple[int, ...], ...]) -> None:
        structure = some(loaded, 0, 8, groups)
        start = gather_adapter(given.adapter, structure, loaded.shape)
        with placements.submodel(structure, config, start) as (placed, _):
            layers = [layer.get_base_layer() for layer in placed.layers.values()]
            cut_ones = [weakref.ref(m) for m in layers if m.weight.data_ptr() not in own]
            assert cut_ones
            del layers
        assert all(one() is None for one in cut_ones)
        assert all(p.data_ptr() in own for n, p in base_weights(placed.peft_model))

    usual = ((0, 1), (0,), (1,))
    choices: list[tuple[int, ...]] = [(0,), (), (-1,)]
    every = [(a, b, c) for a in choices for b in choices for c in choices]
    kinds = [kind for kind in every if kind != 3 * ((-1,),)]
    for kind in kinds[1:13]:  # the first is the usual one's kind
        use(kind)
        use(usual)
        assert len(placements) <= MOST_KINDS
    assert len(placements) == MOST_KINDS
    assert len(made) == 13  # the one in constant use was placed once


def base_weights(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if ".lora_" not in n]


def test_what_does_not_fit_is_refused_and_leaves_no_trace(given: Given) -> None:
    loaded = given.loaded
    placements = Placements(loaded.model, loaded.shape)
    config = lora_config(SECTION, loaded.lora_targets)
    client = Client(whole(loaded.shape))
    short = {name: value for name, value in given.adapter.items() if name != min(given.adapter)}
    low = leading(given.adapter, 2)
    for wrong, message in ((short, "1 entries missing"), (low, "expected rank 4")):
        with (
            pytest.raises(RunError, match=message),
            placements.submodel(client.structure, config, wrong),
        ):
            pass
    expected = afresh(given, client, given.adapter, None)
    got = in_place(placements, given, client, given.adapter, None)
    same(got.adapter, expected.adapter)
    assert not any("lora" in name for name, _ in loaded.model.named_modules())


def test_step_sizes_are_those_of_the_batches() -> None:
    worker = Worker(load_scenario("tiny", ["task.eval_examples=8", "training.batch_size=5"]))
    for round in (1, 2):
        for client in range(4):
            batches = worker.batches(round, client, 4)
            assert worker.step_tokens(round, client) == tuple(map(tokens_of, batches))


def test_shapes_of_a_submodel_are_those_of_its_adapter(given: Given) -> None:
    shape = given.loaded.shape
    for client in clients(given.loaded):
        start = gather_adapter(leading(given.adapter, client.rank), client.structure, shape)
        expected = {name: tuple(value.shape) for name, value in start.items()}
        assert submodel_shapes(client.structure, shape, client.rank) == expected


def test_packed_tensors_come_back_in_order_and_by_themselves() -> None:
    tensors = {"b": torch.randn(3, 2), "a": torch.tensor(4.0), "empty": torch.zeros(0, 4)}
    back = unpacked(packed(tensors))
    same(back, tensors)
    back["b"].zero_()
    assert float(back["a"]) == 4.0
    assert float(tensors["b"].abs().sum()) > 0
    assert unpacked(packed({})) == {}
    with pytest.raises(TypeError, match="float64"):
        packed({"a": torch.zeros(1, dtype=torch.float64)})
