"""What a client learns from one reading of its calibration text, and keeps.

The text is streamed block by block: of the whole text only the residual stream is held, and of
one block at a time the second moments. What is kept of a sublayer is the order of its units, a
Cholesky factor of the ordered covariance in half precision, and the harm of every cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypedDict

import torch
from torch import Tensor

from airtune.errors import InputError
from airtune.models.workload import ModelShape
from airtune.pruning.importance import ordered_features

UNITS = ("group", "mlp")


class CalibrationBatch(Protocol):
    """What is asked of a batch here; `airtune.data.Batch` has it."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, (rows, length), padded on the right."""

    @property
    def attention_mask(self) -> Tensor:
        """1 at tokens, 0 at padding, (rows, length)."""

    @property
    def labels(self) -> Tensor:
        """Token ids to predict, -100 where there is none, (rows, length)."""


class Moments(TypedDict):
    """The fields of `SublayerStatistics` that hold the moments of its features."""

    factor: Tensor
    scale: Tensor
    mean: Tensor


def kept_moments(factor: Tensor, mean: Tensor) -> Moments:
    """Return what is kept of a Cholesky factor L of the ordered covariance, and of the means."""
    scale = factor.square().sum(1).sqrt()
    return {
        "factor": (factor / scale[:, None]).half().cpu(),
        "scale": scale.cpu(),
        "mean": mean.cpu(),
    }


@dataclass(frozen=True)
class SublayerStatistics:
    """The attention or the MLP of one block, seen from its output projection."""

    order: Tensor
    """Units from the most to the least important, (units,)."""
    width: int
    """Features a unit."""
    factor: Tensor
    """Lower Cholesky factor of the ordered covariance with unit diagonal, float16."""
    scale: Tensor
    """Standard deviations of the ordered features, (features,); factor · scale is L."""
    mean: Tensor
    """Means of the features in the model's order, (features,)."""
    harm: Tensor
    """Expected loss increase per label token of keeping the first k units, refitted,
    (units + 1,)."""

    @cached_property
    def ordered_features(self) -> Tensor:
        """Features in the order of their units, (features,)."""
        return ordered_features(self.order, self.width)

    def factor_on(self, like: Tensor) -> Tensor:
        """Return L with L Lᵀ the ordered, regularised covariance, on `like`'s device."""
        return self.factor.to(like.device).to(like.dtype) * self.scale.to(like)[:, None]


@dataclass(frozen=True)
class BlockStatistics:
    """What it costs to leave a whole block out, and what can stand in for it.

    The block's change of the residual stream, regressed on the MLP channels of the block before:
    added to that block's output projection it costs nothing to compute.
    """

    harm: float
    """Expected loss increase per label token without the block."""
    replaced_harm: float
    """The same with the replacement; equal to `harm` where there is none."""
    replacement: Tensor
    """(d, features of the previous MLP in the model's order), float16; (d, 0) for none."""
    constant: Tensor
    """Output at features zero, (d,)."""


@dataclass(frozen=True)
class Block:
    """All that is kept of one block."""

    attention: SublayerStatistics
    mlp: SublayerStatistics
    whole: BlockStatistics


@dataclass(frozen=True)
class Statistics:
    """The calibration of one model on one text."""

    fingerprint: str
    """Of the model: `airtune.models.fingerprint_of`."""
    text: str
    """SHA-256 of the token ids."""
    tokens: int
    loss: float
    """Of the whole model, per answer token of the texts whose gradients were taken."""
    attention: tuple[SublayerStatistics, ...]
    mlp: tuple[SublayerStatistics, ...]
    blocks: tuple[BlockStatistics, ...]

    @classmethod
    def of(
        cls, blocks: Sequence[Block], *, fingerprint: str, text: str, tokens: int, loss: float
    ) -> Statistics:
        """Put the blocks of a model together, in their order."""
        return cls(
            fingerprint=fingerprint,
            text=text,
            tokens=tokens,
            loss=loss,
            attention=tuple(block.attention for block in blocks),
            mlp=tuple(block.mlp for block in blocks),
            blocks=tuple(block.whole for block in blocks),
        )

    def sublayer(self, block: int, unit: str) -> SublayerStatistics:
        """Return the part of a block that holds units of a kind (`mlp` or `group`)."""
        return (self.mlp if unit == "mlp" else self.attention)[block]

    def check_shape(self, shape: ModelShape) -> None:
        """Refuse another model's sizes; raises `InputError`."""
        units = {
            (len(s.order), len(t.order)) for s, t in zip(self.attention, self.mlp, strict=True)
        }
        if len(self.mlp) != shape.blocks or units != {(shape.kv_heads, shape.mlp_channels)}:
            raise InputError(
                f"calibration statistics of {len(self.mlp)} blocks with {sorted(units)} "
                f"(groups, channels) do not fit a model of {shape.blocks} blocks with "
                f"({shape.kv_heads}, {shape.mlp_channels})"
            )


def text_hash(batches: Sequence[CalibrationBatch]) -> str:
    """Return SHA-256 over the token ids and labels of calibration text."""
    digest = hashlib.sha256()
    for batch in batches:
        for part in (batch.input_ids, batch.attention_mask, batch.labels):
            digest.update(f"{tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().to(torch.int64).contiguous().numpy().tobytes())
    return digest.hexdigest()
