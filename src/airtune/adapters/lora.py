"""A LoRA adapter on a model: put on with PEFT, read off, merged into the weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from torch import Tensor, nn

from airtune.adapters.names import Adapter
from airtune.adapters.placed import check_entries
from airtune.models.reference import BaseReference, adapter_readme
from airtune.scenario import TrainingSection


def lora_config(
    section: TrainingSection,
    targets: Sequence[str],
    rank: int | None = None,
    *,
    transposed: bool = False,
) -> LoraConfig:
    """Return the PEFT configuration of a run: LoRA on every linear layer of the blocks.

    Args:
        section: the run's rank and alpha.
        targets: names of the layers.
        rank: another rank; alpha follows it, so that the scale alpha/rank is one for all.
        transposed: the model stores its weights as (inputs, outputs), as GPT-2 does.
    """
    rank = rank or section.lora_rank
    return LoraConfig(
        r=rank,
        # PEFT types it as an integer, but only divides it by the rank.
        lora_alpha=section.lora_alpha * (rank / section.lora_rank),  # type: ignore[arg-type]
        lora_dropout=0.0,
        target_modules=list(targets),
        bias="none",
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )


@contextmanager
def adapted(
    model: nn.Module, config: LoraConfig, adapter: Adapter | None = None, *, seed: int = 0
) -> Iterator[PeftModel]:
    """Put an adapter on a model for the length of a `with` block, then take it off again.

    The model's own weights are shared, not copied, and are as before afterwards.

    Args:
        model: a causal language model of Transformers.
        config: the LoRA configuration.
        adapter: values for the adapter; without them it starts as LoRA does, B = 0.
        seed: of the random A where no values are given.

    Raises:
        RunError: `adapter` does not have exactly the entries that this model needs.
    """
    frozen = [(p, p.requires_grad) for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            # PEFT 0.21 still calls a property that Transformers 5 renamed.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            peft_model = get_peft_model(model, config)
    try:
        if adapter is not None:
            _load(peft_model, adapter)
        yield peft_model
    finally:
        peft_model.unload()
        # unload() leaves the tuner's configuration on the base model.
        if hasattr(model, "peft_config"):
            del model.peft_config
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)


def _load(peft_model: PeftModel, adapter: Adapter) -> None:
    own = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    check_entries(adapter, own)
    set_peft_model_state_dict(peft_model, adapter)


@contextmanager
def merged_into_base(
    model: nn.Module, adapter: Adapter, scale: float, *, transposed: bool = False
) -> Iterator[None]:
    """Add scale x B A to a model's own weights for the length of a `with` block.

    Args:
        model: the base model.
        adapter: PEFT's names, shapes of this model.
        scale: LoRA's alpha over rank.
        transposed: the model stores its weights as (inputs, outputs).
    """
    before: list[tuple[nn.Parameter, Tensor]] = []
    try:
        with torch.no_grad():
            for name, rows in adapter.items():
                layer, end = name.removeprefix("base_model.model."), ".lora_A.weight"
                if not layer.endswith(end):
                    continue
                weight = model.get_parameter(f"{layer.removesuffix(end)}.weight")
                columns = adapter[name.replace(".lora_A.", ".lora_B.")].to(weight.device)
                added = scale * (columns @ rows.to(weight.device))
                before.append((weight, weight.detach().clone()))
                weight.copy_(weight.float() + (added.T if transposed else added))
        yield
    finally:
        with torch.no_grad():
            for changed, value in before:
                changed.copy_(value)


def save_adapter(
    peft_model: PeftModel, base: BaseReference, folder: str, *, gguf_file: str | None = None
) -> None:
    """Write a model's adapter in PEFT's format, with the name of its base model.

    Args:
        peft_model: with the adapter on it.
        base: what the files say of the base model.
        folder: where to; made where it is not there.
        gguf_file: the base model's file, where its weights are in GGUF form.

    Raises:
        OSError: the folder cannot be written.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    readme = Path(folder) / "README.md"  # PEFT adds its own lines to it
    readme.write_text(adapter_readme(base, gguf_file), encoding="utf-8")
    config: Any = peft_model.peft_config["default"]
    config.base_model_name_or_path = base.name
    # PEFT holds them as a set, whose order is another one in every process.
    config.target_modules = sorted(config.target_modules)
    model: Any = peft_model.get_base_model()
    model.config.name_or_path = model.name_or_path = base.name  # PEFT's README has them from here
    # The embedding is never trained: nothing to look up on the hub.
    peft_model.save_pretrained(folder, save_embedding_layers=False)


def values_of(peft_model: PeftModel) -> Adapter:
    """Return a copy of the adapter's values, float32 on the CPU."""
    state = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    return {name: value.detach().float().cpu().clone() for name, value in sorted(state.items())}
