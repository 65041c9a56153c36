"""A LoRA adapter's layers, placed on a model once and refilled for every client."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from airtune.adapters.names import Adapter
from airtune.errors import RunError

_NAME = "default"
"""PEFT's name of the one adapter."""


class PlacedAdapter:
    """PEFT's layers on a model of their own, for adapters of any rank and any widths.

    What a client trains is new parameters each time, so that neither gradients nor an optimiser
    can know those of the client before. Values and their order are those of `adapted`.

    Args:
        model: a causal language model of Transformers, frozen; PEFT's layers stay on it.
        config: the LoRA configuration.
    """

    def __init__(self, model: nn.Module, config: LoraConfig) -> None:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT 0.21 still calls a property that Transformers 5 renamed.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            self.peft_model: PeftModel = get_peft_model(model, config)
        self.layers: dict[str, LoraLayer] = {
            name: module
            for name, module in self.peft_model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self._factors: dict[str, nn.Linear] = {}
        for name, _ in self.peft_model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                module = self.peft_model.get_submodule(name.removesuffix(".weight"))
                assert isinstance(module, nn.Linear)
                self._factors[name.replace(f".{_NAME}.", ".")] = module
        self._own = {name: layer.get_base_layer() for name, layer in self.layers.items()}

    def refill(
        self,
        config: LoraConfig,
        adapter: Adapter,
        bases: Mapping[str, nn.Module] | None = None,
        *,
        freezes_a: bool = False,
    ) -> dict[str, nn.Parameter]:
        """Give the layers an adapter's values, and others to be put around.

        Args:
            config: of the adapter: its rank, and alpha.
            adapter: one value a factor.
            bases: linear layers that stand in place of the model's own, by PEFT's name.
            freezes_a: only B is trained.

        Returns:
            The parameters to train by the adapter's names, in PEFT's order.

        Raises:
            RunError: `adapter` does not have exactly the entries, or the rank, that are needed.
        """
        check_entries(adapter, self._factors)
        bases = bases or {}
        for name, layer in self.layers.items():
            self._put_around(name, bases.get(name, self._own[name]))
            layer.r[_NAME], layer.lora_alpha[_NAME] = config.r, config.lora_alpha
            layer.scaling[_NAME] = config.lora_alpha / config.r
        trained = {}
        for name, factor in self._factors.items():
            is_a = name.endswith("lora_A.weight")
            if adapter[name].shape[0 if is_a else 1] != config.r:
                raise RunError(
                    f"the adapter does not fit the model: '{name}' has shape "
                    f"{tuple(adapter[name].shape)}, expected rank {config.r}"
                )
            value = adapter[name].to(factor.weight.device, torch.float32, copy=True)
            factor.weight = nn.Parameter(value, requires_grad=not (is_a and freezes_a))
            if factor.weight.requires_grad:
                trained[name] = factor.weight
        return trained

    def _put_around(self, name: str, base: nn.Module) -> None:
        layer = self.layers[name]
        if layer.base_layer is not base:  # to assign a module takes longer than to ask for it
            layer.base_layer = base

    def values(self) -> Adapter:
        """Return the adapter's values, float32 on the CPU; the next `refill` leaves them alone."""
        weights = ((name, self._factors[name].weight) for name in sorted(self._factors))
        return {name: weight.detach().float().cpu() for name, weight in weights}

    def release(self) -> None:
        """Let go of other layers than the model's own, and of gradients."""
        for name, own in self._own.items():
            self._put_around(name, own)
        for factor in self._factors.values():
            factor.weight.grad = None


def check_entries(adapter: Adapter, needed: Mapping[str, object]) -> None:
    """Refuse an adapter without exactly the entries that a model needs; raises `RunError`."""
    if needed.keys() != adapter.keys():
        missing, extra = needed.keys() - adapter.keys(), adapter.keys() - needed.keys()
        raise RunError(
            f"the adapter does not fit the model: {len(missing)} entries missing "
            f"(first: {sorted(missing)[:1]}), {len(extra)} unknown (first: {sorted(extra)[:1]})"
        )
