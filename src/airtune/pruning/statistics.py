"""What a client learns from one reading of its calibration text, and keeps.

The text is streamed block by block: of the whole text only the residual stream is held, and of
one block at a time the second moments. What is kept of a sublayer is the order of its units, a
Cholesky factor of the ordered covariance in half precision, and the harm of every cut.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from airtune.errors import InputError
from airtune.pruning.importance import ordered_features
from airtune.workload import ModelShape

FORMAT = "airtune-statistics-2"
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


_SUBLAYER_TENSORS = ("order", "factor", "scale", "mean", "harm")
_BLOCK_TENSORS = ("replacement", "constant")


def save_statistics(statistics: Statistics, path: Path) -> None:
    """Write statistics as safetensors, with the hashes of model and text in its header."""
    tensors = {}
    for index, block in enumerate(statistics.blocks):
        for key in _BLOCK_TENSORS:
            tensors[f"block.{index}.{key}"] = getattr(block, key).contiguous()
        for unit in UNITS:
            for key in _SUBLAYER_TENSORS:
                value = getattr(statistics.sublayer(index, unit), key)
                tensors[f"{unit}.{index}.{key}"] = value.contiguous()
    header = {
        "format": FORMAT,
        "fingerprint": statistics.fingerprint,
        "text": statistics.text,
        "tokens": str(statistics.tokens),
        "loss": repr(statistics.loss),
        "widths": json.dumps({unit: statistics.sublayer(0, unit).width for unit in UNITS}),
        "harms": json.dumps([[block.harm, block.replaced_harm] for block in statistics.blocks]),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: others may be writing the same statistics.
    handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        save_file(tensors, partial, metadata=header)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{path}: {error}") from None


def load_statistics(path: Path, *, fingerprint: str, text: str) -> Statistics:
    """Read statistics back, for the very model and text that they were taken from.

    Raises:
        InputError: no such file, not statistics, or those of another model or other text.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_header(header, path, fingerprint=fingerprint, text=text)
            widths, harms = json.loads(header["widths"]), json.loads(header["harms"])

            def tensors(prefix: str, keys: tuple[str, ...]) -> dict[str, Tensor]:
                return {key: file.get_tensor(f"{prefix}.{key}") for key in keys}

            attention, mlp = (
                tuple(
                    SublayerStatistics(
                        width=widths[unit], **tensors(f"{unit}.{index}", _SUBLAYER_TENSORS)
                    )
                    for index in range(len(harms))
                )
                for unit in UNITS
            )
            blocks = tuple(
                BlockStatistics(
                    harm=harm,
                    replaced_harm=replaced,
                    **tensors(f"block.{index}", _BLOCK_TENSORS),
                )
                for index, (harm, replaced) in enumerate(harms)
            )
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot read calibration statistics: {error}") from None
    return Statistics(
        fingerprint=fingerprint,
        text=text,
        tokens=int(header["tokens"]),
        loss=float(header["loss"]),
        attention=attention,
        mlp=mlp,
        blocks=blocks,
    )


def _check_header(header: dict[str, str], path: Path, *, fingerprint: str, text: str) -> None:
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: not calibration statistics ({FORMAT})")
    for key, name, wanted in (
        ("fingerprint", "another model", fingerprint),
        ("text", "other text", text),
    ):
        if header[key] != wanted:
            raise InputError(
                f"{path}: statistics of {name} ({key} {header[key][:12]}…, wanted "
                f"{wanted[:12]}…): calibrate anew"
            )
