"""Read calibration text once, block by block, and take the statistics that every cut needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from airtune.errors import InputError
from airtune.models.loading import fingerprint_of, label_logits
from airtune.models.precision import wide_products
from airtune.models.workload import ModelShape
from airtune.pruning.importance import (
    elimination_order,
    ordered_features,
    refit_errors,
    stable_cholesky,
)
from airtune.pruning.layers import blocks_of, output_projection, weight_of
from airtune.pruning.reconstruct import regress
from airtune.pruning.statistics import (
    UNITS,
    Block,
    BlockStatistics,
    CalibrationBatch,
    Statistics,
    SublayerStatistics,
    kept_moments,
    text_hash,
)

RIDGE = 0.03
"""λ relative to the mean variance of a sublayer's features."""
ATTENTION_WEIGHT = 4.0
"""What an attention output's error weighs against an MLP's.

Its errors are alike over the tokens of a text, which the estimate below takes as independent;
between 4 and 12 submodels of SmolLM2 are equally good, with 1 they are worse.
"""
SENSITIVITY_ROWS = 4
"""Texts whose gradients weigh one sublayer's error against another's."""


def calibrate(
    model: nn.Module,
    shape: ModelShape,
    batches: Sequence[CalibrationBatch],
    *,
    min_rows: int = 1,
    stand_ins: bool = True,
    kept: Callable[[int, Block], Block] = lambda _, block: block,
) -> Statistics:
    """Return the statistics of a model on calibration text.

    Args:
        model: a causal language model, frozen.
        shape: of the model.
        batches: the text, with labels at its answers.
        min_rows: how many texts there must be, e.g. one batch.
        stand_ins: also what can replace whole blocks (SmolLM2-135M: 53 MB); without, a block
            that is left out is simply gone.
        kept: given each block's index and statistics as soon as they are known, returns what is
            kept of them, e.g. the same from a file.

    Raises:
        InputError: the text is empty, too short or without labels, or the model's activations
            are not finite.
    """
    rows = sum(batch.input_ids.shape[0] for batch in batches)
    if rows < max(1, min_rows):
        raise InputError(
            f"calibration text has {rows} examples, at least {max(1, min_rows)} are needed "
            "(one batch): give the client more examples or calibrate on fewer"
        )
    if not any(bool((batch.labels[:, 1:] != -100).any()) for batch in batches):
        raise InputError("calibration text has no answer tokens: every label is -100")
    was_training = model.training
    model.eval()
    try:
        gradients, tokens_per_label, loss = _sensitivity(model, shape, batches)
        blocks: list[Block] = []
        for index, moments, change in block_moments(model, shape, batches):
            folds = stand_ins and index > 0 and _folds(model, shape)
            before = blocks[-1].mlp if folds else None
            factor = _residual_factor(model, shape)
            whole = _replacement(
                change, before, gradients["block"][index], tokens_per_label, factor
            )
            sublayers = {}
            for unit in UNITS:
                matrix = output_projection(shape, unit)
                sublayers[unit] = _summarise(
                    *moments[unit],
                    weight=weight_of(blocks_of(model, shape)[index].get_submodule(matrix.name)),
                    gradient=gradients[unit][index],
                    width=sum(matrix.inputs.widths),
                    chunk=max(1, shape.mlp_channels // 24) if unit == "mlp" else 1,
                    tokens_per_label=tokens_per_label
                    * (ATTENTION_WEIGHT if unit == "group" else 1.0),
                )
            blocks.append(kept(index, Block(sublayers["group"], sublayers["mlp"], whole)))
    finally:
        model.train(was_training)
    return Statistics.of(
        blocks,
        fingerprint=fingerprint_of(model),
        text=text_hash(batches),
        tokens=sum(int(batch.attention_mask.sum()) for batch in batches),
        loss=loss,
    )


def _summarise(
    moment: Tensor,
    mean: Tensor,
    *,
    weight: Tensor,
    gradient: Tensor,
    width: int,
    chunk: int,
    tokens_per_label: float,
) -> SublayerStatistics:
    """Turn a sublayer's moments into order, factor and harm.

    A small output error δ raises the loss per label token by about
    tokens_per_label / 2 · Σ_d E[g_d²] E[δ_d²], with g the gradient of the summed loss: the
    diagonal of the Fisher information, tokens taken as independent.
    """
    covariance = moment - torch.outer(mean, mean)
    weighted = weight.to(moment) * gradient.to(moment).sqrt()[:, None]
    order = elimination_order(covariance, weighted, width=width, ridge=RIDGE, chunk=chunk)
    features = ordered_features(order, width)
    factor = stable_cholesky(covariance[features][:, features], RIDGE)
    ordered = weighted[:, features]
    half = tokens_per_label / 2
    return SublayerStatistics(
        order=order.cpu(),
        width=width,
        harm=(half * refit_errors(factor, ordered, width)).cpu(),
        **kept_moments(factor, mean),
    )


@dataclass(frozen=True)
class _Change:
    """What a block adds to the residual stream, against the previous block's MLP channels."""

    mean: Tensor
    """(d,)"""
    square: Tensor
    """E[Δ²], (d,)."""
    cross: Tensor
    """E[Δ hᵀ], (d, features); (d, 0) for the first block."""


def _folds(model: nn.Module, shape: ModelShape) -> bool:
    """Whether what is added to an MLP's output projection reaches the residual stream as is."""
    family, config = shape.table, cast(Any, model).config
    switch = family.residual_outputs_key
    return family.residual_outputs and (switch is None or bool(getattr(config, switch)))


def _residual_factor(model: nn.Module, shape: ModelShape) -> float:
    """Return what a sublayer's output is multiplied by before it is added to the stream."""
    key = shape.table.residual_factor_key
    return 1.0 if key is None else float(getattr(cast(Any, model).config, key))


def _replacement(
    change: _Change,
    before: SublayerStatistics | None,
    gradient: Tensor,
    tokens_per_label: float,
    factor: float,
) -> BlockStatistics:
    """Regress a block's change on the previous block's MLP channels.

    What is added to an output projection changes the stream by `factor` times as much.
    """
    weight = tokens_per_label / 2 * gradient
    harm = float((weight * change.square).sum())
    none = BlockStatistics(
        harm, harm, change.cross[:, :0].half().cpu(), torch.zeros_like(change.mean).cpu()
    )
    if before is None:
        return none
    mean, features = before.mean.to(change.mean), before.ordered_features.to(change.mean.device)
    covariance = (change.cross - torch.outer(change.mean, mean))[:, features]
    fitted = regress(covariance, before.factor_on(change.mean))
    # With the ridge term the fit explains tr(D Cov) less what the penalty takes: a lower bound.
    explained = (fitted * covariance).sum(1)
    rest = change.square - change.mean.square() - explained
    replaced = float((weight * rest.clamp_min(0)).sum())
    if replaced >= harm:
        return none
    matrix = torch.empty_like(fitted)
    matrix[:, features] = fitted
    return BlockStatistics(
        harm=harm,
        replaced_harm=replaced,
        replacement=(matrix / factor).half().cpu(),
        constant=((change.mean - matrix @ mean) / factor).cpu(),
    )


@torch.no_grad()
def block_moments(
    model: nn.Module, shape: ModelShape, batches: Sequence[CalibrationBatch]
) -> Iterator[tuple[int, dict[str, tuple[Tensor, Tensor]], _Change]]:
    """Yield each block's moments: of what its output projections read, and of what it changes."""
    device = next(model.parameters()).device
    streams = []
    for batch in batches:
        with _recording(model, shape) as recorders, wide_products(model):
            causal: Any = model
            causal.base_model(input_ids=batch.input_ids.to(device), use_cache=False)
        streams.append([recorder.call for recorder in recorders])
    hidden = [calls[0][0] for calls in streams]
    masks = [batch.attention_mask.to(device).bool().reshape(-1) for batch in batches]
    channels_before: list[Tensor] = [states.new_empty(0) for states in hidden]
    for index, block in enumerate(blocks_of(model, shape)):
        sums = {
            unit: _Moments(block.get_submodule(output_projection(shape, unit).name))
            for unit in UNITS
        }
        change = _ChangeSums()
        try:
            for i, calls in enumerate(streams):
                _, args, kwargs = calls[index]
                for moments in sums.values():
                    moments.mask = masks[i]
                with wide_products(model):
                    after = block(hidden[i], *args, **kwargs)
                change.add(after - hidden[i], channels_before[i], masks[i])
                hidden[i], channels_before[i] = after, sums["mlp"].latest
        finally:
            for moments in sums.values():
                moments.handle.remove()
        results = {unit: moments.result(index) for unit, moments in sums.items()}
        yield index, results, change.result()


class _Moments:
    """Accumulates Σ h hᵀ and Σ h of what a layer reads, over the tokens of a mask."""

    def __init__(self, layer: nn.Module) -> None:
        features = weight_of(layer).shape[1]
        device = weight_of(layer).device
        self.second = torch.zeros(features, features, device=device)
        self.first = torch.zeros(features, device=device)
        self.tokens = 0
        self.latest = torch.empty(0)
        self.mask: Tensor | None = None
        self.handle = layer.register_forward_pre_hook(self._add)

    def _add(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert self.mask is not None
        self.latest = inputs[0].reshape(-1, inputs[0].shape[-1])[self.mask]
        hidden = self.latest.float()
        self.second.addmm_(hidden.T, hidden)
        self.first += hidden.sum(0)
        self.tokens += len(hidden)

    def result(self, block: int) -> tuple[Tensor, Tensor]:
        second, first = self.second / self.tokens, self.first / self.tokens
        if not bool(torch.isfinite(second).all()):
            raise InputError(f"model: the activations of block {block} are not finite")
        return second, first


class _ChangeSums:
    """Accumulates a block's `_Change` over batches."""

    def __init__(self) -> None:
        self.parts: tuple[Tensor, ...] | None = None
        self.tokens = 0

    def add(self, change: Tensor, channels: Tensor, mask: Tensor) -> None:
        delta = change.reshape(-1, change.shape[-1])[mask].float()
        features = channels.float() if channels.numel() else delta[:, :0]
        parts = (delta.sum(0), delta.square().sum(0), delta.T @ features)
        self.parts = parts if self.parts is None else tuple(map(torch.add, self.parts, parts))
        self.tokens += len(delta)

    def result(self) -> _Change:
        assert self.parts is not None
        return _Change(*(part / self.tokens for part in self.parts))


class _Recorder(nn.Module):
    """Stands in for a block: remembers how it was called and passes the stream on."""

    def __init__(self) -> None:
        super().__init__()
        self.call: tuple[Tensor, tuple[Any, ...], dict[str, Any]] | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self.call = (hidden_states, args, kwargs)
        return hidden_states


@contextmanager
def _recording(model: nn.Module, shape: ModelShape) -> Iterator[list[Any]]:
    blocks = blocks_of(model, shape)
    own = list(blocks)
    recorders = [_Recorder() for _ in own]
    try:
        for index, recorder in enumerate(recorders):
            blocks[index] = recorder
        yield recorders
    finally:
        for index, block in enumerate(own):
            blocks[index] = block


def _sensitivity(
    model: nn.Module, shape: ModelShape, batches: Sequence[CalibrationBatch]
) -> tuple[dict[str, list[Tensor]], float, float]:
    """Return E[g_d²] of every sublayer's and block's output, tokens per label, loss per label.

    One text at a time, so that memory stays that of a training step with a single row.
    """
    device = next(model.parameters()).device
    sums: dict[str, list[Tensor]] = {
        unit: [torch.zeros(shape.hidden, device=device) for _ in range(shape.blocks)]
        for unit in (*UNITS, "block")
    }
    embedding: Any = model
    handles = [
        embedding.get_input_embeddings().register_forward_hook(
            lambda _, __, output: output.requires_grad_()
        )
    ]
    for index, block in enumerate(blocks_of(model, shape)):
        layers = {unit: block.get_submodule(output_projection(shape, unit).name) for unit in UNITS}
        for unit, layer in {**layers, "block": block}.items():
            handles.append(layer.register_forward_hook(_square_sum(sums[unit][index])))
    tokens = labels = 0
    loss = 0.0
    try:
        for row in _rows(batches, SENSITIVITY_ROWS, device):
            targets = row.labels[:, 1:]
            targets = targets[targets != -100]
            if not len(targets):
                continue
            with torch.enable_grad():
                logits = label_logits(model, row).float()
                lost = nn.functional.cross_entropy(logits, targets, reduction="sum")
                lost.backward()
            loss += float(lost.detach())
            tokens += row.input_ids.shape[1]
            labels += len(targets)
    finally:
        for handle in handles:
            handle.remove()
    gradients = {unit: [total / tokens for total in totals] for unit, totals in sums.items()}
    for unit, means in gradients.items():
        if not all(bool(torch.isfinite(mean).all()) for mean in means):
            raise InputError(f"model: the gradients of its {unit} outputs are not finite")
    return gradients, tokens / labels, loss / labels


def _square_sum(total: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            total.add_(gradient.reshape(-1, gradient.shape[-1]).float().square().sum(0))

        output.register_hook(add)

    return hook


class _Row:
    """One text of a batch without its padding."""

    def __init__(self, batch: CalibrationBatch, index: int, device: torch.device) -> None:
        length = int(batch.attention_mask[index].sum())
        self.input_ids = batch.input_ids[index : index + 1, :length].to(device)
        self.labels = batch.labels[index : index + 1, :length].to(device)


def _rows(batches: Sequence[CalibrationBatch], count: int, device: torch.device) -> Iterator[_Row]:
    """Yield `count` texts, on a device, spread evenly over the batches, sorted by length."""
    places = [(batch, i) for batch in batches for i in range(batch.input_ids.shape[0])]
    step = max(1, len(places) // count)
    for batch, i in places[::step][:count]:
        yield _Row(batch, i, device)
