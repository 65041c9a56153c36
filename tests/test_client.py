"""Local training: against a plain PyTorch + PEFT loop, and what it must leave alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict

from airtune.adapters.lora import adapted, lora_config, values_of
from airtune.adapters.slices import gather_adapter, scatter_adapter
from airtune.data import Batch, encode, load_task, local_batches
from airtune.errors import RunError
from airtune.models.loading import LoadedModel, load_model
from airtune.models.structure import Structure, whole
from airtune.pruning import cut
from airtune.scenario import ModelSection, TaskSection, TrainingSection
from airtune.training.client import answer_token_loss, gather_moments, scatter_moments, train

SECTION = TrainingSection(local_steps=3, batch_size=4, learning_rate=1e-2, lora_rank=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(ModelSection(id="tiny"), seed=0)


@pytest.fixture(scope="module")
def batches(loaded: LoadedModel) -> list[Batch]:
    task = load_task(TaskSection(name="sums", train_examples=32, eval_examples=8), seed=0)
    encoded = encode(task.train, loaded.tokenizer, 64)
    return local_batches(encoded, batch_size=4, steps=3, rng=np.random.default_rng(0))


@pytest.fixture
def start(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    config = lora_config(SECTION, loaded.lora_targets)
    with adapted(loaded.model, config, seed=1) as peft_model:
        return values_of(peft_model)


def test_a_bfloat16_model_computes_its_adapter_in_bfloat16(batches: list[Batch]) -> None:
    base = load_model(ModelSection(id="tiny", dtype="bfloat16"), seed=0)
    config = lora_config(SECTION, base.lora_targets)
    seen = set()
    with adapted(base.model, config, seed=1) as peft_model:
        for name, module in peft_model.named_modules():
            if "lora_A.default" in name or "lora_B.default" in name:
                module.register_forward_hook(
                    lambda _, given, result: seen.add((given[0].dtype, result.dtype))
                )
        answer_token_loss(peft_model, batches[0]).backward()
        assert seen == {(torch.bfloat16, torch.bfloat16)}
        trained = [p for p in peft_model.parameters() if p.requires_grad]
        assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}


def test_training_is_the_plain_peft_loop(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    config = lora_config(SECTION, loaded.lora_targets)
    trained = train(loaded.model, config, start, batches, SECTION)

    plain = get_peft_model(copy.deepcopy(loaded.model), config)
    plain.load_state_dict(
        {k.replace(".weight", ".default.weight"): v for k, v in start.items()}, strict=False
    )
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=SECTION.learning_rate, weight_decay=0.0)
    for batch in batches:
        loss = plain(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, SECTION.max_grad_norm)
        optimizer.step()
    expected = get_peft_model_state_dict(plain)
    assert trained.adapter.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(trained.adapter[name], value, rtol=1e-4, atol=1e-5)


def test_loss_on_answer_tokens_is_that_of_full_logits(
    loaded: LoadedModel, batches: list[Batch]
) -> None:
    batch = batches[0]
    logits = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    full = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), batch.labels[:, 1:].reshape(-1)
    )
    torch.testing.assert_close(answer_token_loss(loaded.model, batch), full)


def test_the_base_model_is_as_before(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    modules = [name for name, _ in loaded.model.named_modules()]
    train(loaded.model, lora_config(SECTION, loaded.lora_targets), start, batches, SECTION)
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert modules == [name for name, _ in loaded.model.named_modules()]
    assert not hasattr(loaded.model, "peft_config")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_training_does_not_depend_on_the_global_generator(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    config = lora_config(SECTION, loaded.lora_targets)
    torch.manual_seed(1)
    first = train(loaded.model, config, start, batches, SECTION).adapter
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = train(loaded.model, config, start, batches, SECTION).adapter
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(state, torch.random.get_rng_state())


def test_two_halves_with_kept_moments_are_one_whole(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    config = lora_config(SECTION, loaded.lora_targets)
    keeping = SECTION.model_copy(update={"keep_optimizer": True})
    whole_run = train(loaded.model, config, start, batches, keeping)
    first = train(loaded.model, config, start, batches[:1], keeping)
    assert first.optimizer_state is not None
    second = train(loaded.model, config, first.adapter, batches[1:], keeping, first.optimizer_state)
    for name, value in whole_run.adapter.items():
        torch.testing.assert_close(second.adapter[name], value, rtol=0, atol=0)
    afresh = train(loaded.model, config, first.adapter, batches[1:], keeping)
    assert any(not torch.equal(afresh.adapter[n], whole_run.adapter[n]) for n in afresh.adapter)


def test_moments_go_to_the_submodel_and_back(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    shape = loaded.shape
    half = tuple(range(0, shape.mlp_channels, 2))
    structure = Structure((half,) * shape.blocks, ((0,),) * shape.blocks)
    keeping = SECTION.model_copy(update={"keep_optimizer": True})
    config = lora_config(SECTION, loaded.lora_targets)
    everything = train(loaded.model, config, start, batches, keeping).optimizer_state
    assert everything is not None

    part = gather_moments(everything, structure, shape)
    assert scatter_moments(part, everything, start, structure, shape).keys() == everything.keys()
    submodel = cut(loaded.model, shape, structure)
    trained = train(
        submodel, config, gather_adapter(start, structure, shape), batches, keeping, part
    )
    assert trained.optimizer_state is not None
    back = scatter_moments(trained.optimizer_state, everything, start, structure, shape)
    _, held = scatter_adapter(trained.adapter, structure, shape)
    for name, mask in held.items():
        before, after = everything[f"{name}|exp_avg"], back[f"{name}|exp_avg"]
        assert torch.equal(before[~mask], after[~mask])
        assert not torch.equal(before[mask], after[mask])


def test_an_adapter_that_does_not_fit_is_refused(
    loaded: LoadedModel, start: dict[str, torch.Tensor]
) -> None:
    config = lora_config(SECTION, loaded.lora_targets)
    name = next(iter(start))
    short = {key: value for key, value in start.items() if key != name}
    with (
        pytest.raises(RunError, match="1 entries missing"),
        adapted(loaded.model, config, short),
    ):
        pass
    # The model is clean again even though the load failed.
    assert not any("lora" in module for module, _ in loaded.model.named_modules())


def test_keeping_everything_trains_exactly_like_the_whole_model(
    loaded: LoadedModel, batches: list[Batch], start: dict[str, torch.Tensor]
) -> None:
    config = lora_config(SECTION, loaded.lora_targets)
    uncut = train(loaded.model, config, start, batches, SECTION)
    same = cut(loaded.model, loaded.shape, whole(loaded.shape))
    again = train(same, config, start, batches, SECTION)
    assert all(torch.equal(uncut.adapter[n], again.adapter[n]) for n in uncut.adapter)
