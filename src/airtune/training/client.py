"""What one client does in a round: fine-tune a LoRA adapter on its submodel and hand it back.

The adapter is passed as `dict[str, Tensor]` with PEFT's state-dict names and float32 values.
The base weights stay frozen and never move.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from peft import LoraConfig
from torch import Tensor, nn

from airtune.adapters.few_bits import Change
from airtune.adapters.lora import adapted, values_of
from airtune.adapters.names import Adapter
from airtune.adapters.slices import gather_adapter, scatter_adapter
from airtune.assignment import Assignment
from airtune.data import Batch
from airtune.errors import RunError
from airtune.models.loading import label_logits
from airtune.models.structure import Structure
from airtune.models.workload import ModelShape
from airtune.scenario import TrainingSection
from airtune.training.local_terms import LocalTerms, local_optimizer, with_untrained

OptimizerState = dict[str, Tensor]
"""AdamW's moments by `<adapter entry>|exp_avg`, `…|exp_avg_sq` and `…|step`."""

_USED_UP = r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
"""Of errors that are no `OutOfMemoryError`: libraries of CUDA have their own."""
_USED_UP_ON_CPU = r"DefaultCPUAllocator|not enough memory: you tried to allocate"
"""PyTorch's words where the machine itself has no memory left."""
_OF_A_GPU = r"CUDA|cuBLAS|cuDNN|on the same device"
"""What PyTorch's errors say where a GPU failed, or tensors lie on another one."""
_SHAPED = ("exp_avg", "exp_avg_sq")
_MOMENTS = (*_SHAPED, "step")


@dataclass(frozen=True)
class Measured:
    """What a real device's part took, where the clock is not virtual."""

    downlink_s: float
    compute_s: float
    upload_s: float
    engine_s: float
    """The rest, up to the moment the server had the answer: polling, process starts."""
    emulated: bool = False
    """It takes the time of a profile, whose speed no round changes."""


@dataclass(frozen=True)
class Refit:
    """The last round in which calibration text was read again, and in which model."""

    round: int
    adapter: Adapter
    """The server's, all of its ranks, as broadcast to everyone who reads."""


@dataclass(frozen=True)
class ClientJob:
    """What the server asks of one client in one round."""

    round: int
    assignment: Assignment
    adapter: Adapter
    """The server's adapter, of the full model."""
    optimizer_state: OptimizerState | None = None
    """AdamW's moments of the full adapter, where clients keep them between rounds."""
    rate_round: int | None = None
    """The round that the learning rate is of, where `round` is the client's own turn."""
    correction: Adapter | None = None
    """c - c_k of the full adapter, where training has control variates (SCAFFOLD)."""
    refit: Refit | None = None
    """When the calibration text was last read again; None: only before training, or no cut."""
    change: Change | None = None
    """What a real device that holds the last broadcast's adapter is sent in place of this one."""

    @property
    def client(self) -> int:
        """Its place in the scenario's order of clients."""
        return self.assignment.client


@dataclass(frozen=True)
class ClientUpdate:
    """What comes back: the submodel's adapter, what was kept, and what it cost."""

    round: int
    client: int
    adapter: Adapter
    structure: Structure
    pruning: float
    """Realised: parameters left out over parameters that may be left out."""
    flops: float
    uplink_bits: float
    examples: int
    """Size of the client's training set: its weight in the average."""
    train_loss: float | None
    """Mean over the local steps, per answer token; None where privacy keeps it on the device."""
    optimizer_state: OptimizerState | None = None
    control: Adapter | None = None
    """The client's new control variate, shaped as `adapter`, where training has them."""
    measured: Measured | None = None
    """Given: these times go on the record in place of the counted ones."""


@dataclass(frozen=True)
class ClientFailure:
    """One client's work failed; the round goes on without it."""

    client: int
    reason: str
    after_s: float | None = None
    """How long the round waited for it, where the clock is real."""


def failure_of(job: ClientJob, error: Exception) -> ClientFailure:
    """Report what a client's work ended with in one line, for the record.

    Raises:
        RunError: the machine that simulates the device has no memory left, or its GPU failed. That
            says nothing of the device, and a round without the client would be another method's.
    """
    lines = str(error).strip().splitlines() or [""]
    of_gpu = isinstance(error, torch.OutOfMemoryError) or re.search(_USED_UP, str(error))
    if of_gpu or isinstance(error, MemoryError) or re.search(_USED_UP_ON_CPU, str(error)):
        memory = "GPU's memory" if of_gpu else "memory"
        raise RunError(
            f"the {memory} is used up (of the machine that simulates, not of a device): do fewer "
            "runs at once, or lower training.batch_size; --resume goes on"
        ) from None
    if re.search(_OF_A_GPU, str(error), re.IGNORECASE):
        raise RunError(
            f"the GPU failed (of the machine that simulates, not of a device): {lines[0]}; "
            "--resume goes on"
        ) from None
    return ClientFailure(job.client, f"{type(error).__name__}: {lines[0]}")


@dataclass(frozen=True)
class Trained:
    """The outcome of local training, before it is put on the air."""

    adapter: Adapter
    optimizer_state: OptimizerState | None
    train_loss: float
    control: Adapter | None = None
    """The mean of the steps' gradients, where a correction was given."""


def train(
    submodel: nn.Module,
    config: LoraConfig,
    adapter: Adapter,
    batches: Sequence[Batch],
    section: TrainingSection,
    optimizer_state: OptimizerState | None = None,
    *,
    freezes_a: bool = False,
    correction: Adapter | None = None,
) -> Trained:
    """Fine-tune the adapter for one optimiser step a batch; loss on answer tokens only.

    Args:
        submodel: the client's model, cut or whole; its own weights stay as they are.
        config: the LoRA configuration.
        adapter: where to start, in the submodel's shapes.
        batches: one a local step.
        section: learning rate, weight decay, gradient-norm bound.
        optimizer_state: AdamW's moments to go on from, in the submodel's shapes.
        freezes_a: train B alone.
        correction: c - c_k of SCAFFOLD, in the submodel's shapes, added to every step's gradient.

    Returns:
        The new adapter and, where `section.keep_optimizer`, the new moments; with a correction
        also the new control variate.
    """
    with adapted(submodel, config, adapter) as peft_model:
        peft_model.train()
        for name, parameter in peft_model.named_parameters():
            if freezes_a and ".lora_A." in name:
                parameter.requires_grad_(False)
        named = {
            name.replace(".default.", "."): parameter
            for name, parameter in peft_model.named_parameters()
            if parameter.requires_grad
        }
        kept, train_loss, control = fit(
            peft_model, named, batches, section, optimizer_state, correction
        )
        trained = values_of(peft_model)
    return Trained(trained, kept, train_loss, with_untrained(control, trained))


def fit(
    model: nn.Module,
    named: Mapping[str, nn.Parameter],
    batches: Sequence[Batch],
    section: TrainingSection,
    optimizer_state: OptimizerState | None = None,
    correction: Adapter | None = None,
) -> tuple[OptimizerState | None, float, Adapter | None]:
    """Train the named parameters of a model, where they are, as `train` does.

    Args:
        model: with an adapter on it, in training mode.
        named: what to train, by the adapter's names.
        batches: one a local step.
        section: as for `train`.
        optimizer_state: as for `train`.
        correction: as for `train`.

    Returns:
        The new moments where `section.keep_optimizer`, the mean loss over the steps, and with a
        correction the new control variate of what was trained.
    """
    parameters = list(named.values())
    optimizer = local_optimizer(section, named)
    terms = LocalTerms(named, section.proximal_mu, correction)
    if optimizer_state is not None:
        for name, parameter in named.items():
            moments = {key: optimizer_state[f"{name}|{key}"].clone() for key in _MOMENTS}
            for key in _SHAPED:
                moments[key] = moments[key].to(parameter.device)
            optimizer.state[parameter] = moments
    losses = []
    for batch in batches:
        loss = answer_token_loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        terms.before_clipping()
        nn.utils.clip_grad_norm_(parameters, section.max_grad_norm)
        terms.after_clipping()
        optimizer.step()
        losses.append(float(loss.detach()))
    kept = None
    if section.keep_optimizer:
        kept = {
            f"{name}|{key}": optimizer.state[parameter][key].detach().cpu().clone()
            for name, parameter in named.items()
            for key in _MOMENTS
        }
    return kept, sum(losses) / len(losses), terms.control(len(losses))


def gather_moments(
    state: OptimizerState, structure: Structure, shape: ModelShape
) -> OptimizerState:
    """Return the submodel's part of AdamW's moments of the full adapter."""
    parts = {moment: gather_adapter(_moment(state, moment), structure, shape) for moment in _SHAPED}
    gathered = {f"{n}|{m}": v for m, part in parts.items() for n, v in part.items()}
    steps = {f"{n}|step": state[f"{n}|step"] for n in parts[_SHAPED[0]]}
    return gathered | steps


def scatter_moments(
    new: OptimizerState,
    old: OptimizerState | None,
    adapter: Adapter,
    structure: Structure,
    shape: ModelShape,
) -> OptimizerState:
    """Put a submodel's moments back among the full adapter's; the others keep what they had.

    Args:
        new: the submodel's moments after training.
        old: the full adapter's before; None stands for none yet (zeros).
        adapter: the full adapter, for its shapes.
        structure: what the submodel kept.
        shape: of the full model.
    """
    if old is None:
        old = {f"{n}|{m}": torch.zeros_like(v) for n, v in adapter.items() for m in _SHAPED}
        old |= {f"{n}|step": torch.zeros(()) for n in adapter}
    merged = dict(old)
    for moment in _SHAPED:
        values, held = scatter_adapter(_moment(new, moment), structure, shape)
        for name, value in values.items():
            merged[f"{name}|{moment}"] = torch.where(held[name], value, old[f"{name}|{moment}"])
    return merged | {key: value for key, value in new.items() if key.endswith("|step")}


def _moment(state: OptimizerState, moment: str) -> Adapter:
    end = f"|{moment}"
    return {key.removesuffix(end): value for key, value in state.items() if key.endswith(end)}


def answer_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy per answer token; logits are computed only there."""
    targets = batch.labels[:, 1:]
    targets = targets[targets != -100]
    return nn.functional.cross_entropy(label_logits(model, batch).float(), targets)
