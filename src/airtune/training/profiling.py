"""Measure this machine: seconds of a training step against the pruning rate."""

from __future__ import annotations

import os
import platform
import statistics as stats
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from airtune.assignment import Mode
from airtune.errors import InputError
from airtune.models.loading import LoadedModel, label_logits
from airtune.models.precision import speed_up_attention
from airtune.models.structure import Structure
from airtune.models.workload import (
    KeptSizes,
    ModelShape,
    StepTokens,
    check_rate,
    realised_pruning,
    training_flops,
    uniform_sizes,
)
from airtune.pruning import cut


@dataclass(frozen=True)
class StepTime:
    """What one training step took at one pruning rate."""

    pruning: float
    """Realised."""
    seconds: float
    """Median over the repeats."""
    flops: float
    """Counted."""


@dataclass(frozen=True)
class RandomBatch:
    """A batch of random tokens with labels on the later half of each row."""

    input_ids: Tensor
    labels: Tensor


def measure(
    loaded: LoadedModel,
    rates: Sequence[float],
    *,
    rows: int,
    length: int,
    lora_rank: int,
    repeats: int,
) -> list[StepTime]:
    """Time training steps of submodels on the device that the model is on.

    A step is forward, backward and AdamW's update of the adapter, with logits at answer tokens
    only. Which units are cut does not change the time, so the first ones are kept and no text is
    needed. Rates are measured in turn, `repeats` times over, so that a machine that slows down
    while it is measured slows all of them.

    Args:
        loaded: the model.
        rates: pruning rates.
        rows: of a batch.
        length: tokens of a row.
        lora_rank: of the adapter.
        repeats: timed steps a rate, after one that is not timed.

    Raises:
        InputError: a rate outside [0, 1), no rate, or a batch without two tokens a row.
    """
    if not rates:
        raise InputError("no pruning rate to measure: give at least one in [0, 1)")
    if length < 2 or rows < 1 or repeats < 1:
        raise InputError(
            f"rows = {rows}, length = {length}, repeats = {repeats}: a batch needs 1 row of "
            "2 tokens, and 1 repeat"
        )
    shape = loaded.shape
    batch = _random_batch(shape, rows, length, next(loaded.model.parameters()).device)
    labels = int((batch.labels[:, 1:] != -100).sum())
    runs = []
    for rate in rates:
        check_rate(rate)
        sizes = uniform_sizes(shape, rate)
        submodel = cut(loaded.model, shape, first_units(sizes))
        speed_up_attention(submodel, longest=length)
        runs.append((sizes, _Step(submodel, loaded.lora_targets, shape, batch, lora_rank)))
    times: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for taken, (_, step) in zip(times, runs, strict=True):
            seconds = step()
            if repeat:
                taken.append(seconds)
    tokens = StepTokens(rows, length, labels)
    mode = Mode(local_steps=1, rank=lora_rank, bits_per_value=16)
    return [
        StepTime(
            pruning=realised_pruning(shape, sizes),
            seconds=stats.median(taken),
            flops=training_flops(shape, sizes, tokens, mode),
        )
        for (sizes, _), taken in zip(runs, times, strict=True)
    ]


def device_profile(name: str, model: str, steps: Sequence[StepTime]) -> dict[str, Any]:
    """Return a profile as `airtune.models.devices.read_profile` reads it, with the measured steps.

    `effective_flops` is the slope of the line through the origin that fits FLOPs against
    seconds: Σ f² / Σ f s, so that counted FLOPs give back the measured times.
    """
    effective = sum(s.flops**2 for s in steps) / sum(s.flops * s.seconds for s in steps)
    return {
        "name": name,
        "effective_flops": effective,
        "memory_bytes": float(memory_bytes()),
        "source": f"measured with {model}, torch {torch.__version__}, {_processor()}",
        "steps": [
            {"pruning": step.pruning, "seconds": step.seconds, "flops": step.flops}
            for step in steps
        ],
    }


def memory_bytes() -> int:
    """Return the memory of the device that is trained on: the GPU's, or the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def first_units(sizes: KeptSizes) -> Structure:
    """Return the structure that keeps the first units of every block."""
    return Structure(
        tuple(tuple(range(kept)) for kept in sizes.mlp_channels),
        tuple(tuple(range(kept)) for kept in sizes.kv_groups),
    )


class _Step:
    """One submodel with its adapter and optimiser; calling it trains one step."""

    def __init__(
        self,
        submodel: nn.Module,
        targets: Sequence[str],
        shape: ModelShape,
        batch: RandomBatch,
        lora_rank: int,
    ) -> None:
        config = LoraConfig(
            r=lora_rank, target_modules=list(targets), fan_in_fan_out=shape.table.transposed
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT 0.21 still calls a property that Transformers 5 renamed.
            warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
            self.model: Any = get_peft_model(submodel, config)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.batch = batch
        self.targets = batch.labels[:, 1:][batch.labels[:, 1:] != -100]

    def __call__(self) -> float:
        """Train one step and return its seconds."""
        begun = time.perf_counter()
        logits = label_logits(self.model, self.batch).float()
        loss = nn.functional.cross_entropy(logits, self.targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if logits.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun


def _random_batch(shape: ModelShape, rows: int, length: int, device: torch.device) -> RandomBatch:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocab, (rows, length), generator=rng)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return RandomBatch(ids.to(device), labels.to(device))


def _processor() -> str:
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name(0))
    return f"{platform.machine()} with {torch.get_num_threads()} threads"
