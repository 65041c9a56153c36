"""Statistics as files, one a block: what is written is mapped, and need not stay in memory.

A folder holds `block-000.safetensors` and so on, and `statistics.json`, which names the model and
the text and is written last: without it there are no statistics.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from airtune.errors import InputError
from airtune.pruning.statistics import Block, BlockStatistics, Statistics, SublayerStatistics

FORMAT = "airtune-statistics-3"

_HEADER = "statistics.json"
_TENSORS = ("order", "factor", "scale", "mean", "harm")
_WHOLE_TENSORS = ("replacement", "constant")


def save_block(block: Block, index: int, folder: Path) -> Block:
    """Write one block's statistics; return them as read from the file, mapped.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _file_of(folder, index)
    parts = {"attention": block.attention, "mlp": block.mlp}
    tensors = {
        f"{name}.{key}": getattr(part, key).contiguous()
        for name, part in parts.items()
        for key in _TENSORS
    }
    tensors |= {key: getattr(block.whole, key).contiguous() for key in _WHOLE_TENSORS}
    header = {
        "widths": json.dumps({name: part.width for name, part in parts.items()}),
        "harms": json.dumps([block.whole.harm, block.whole.replaced_harm]),
    }
    try:
        save_file(tensors, path, metadata=header)
        return _load_block(path)
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def save_header(statistics: Statistics, folder: Path) -> None:
    """Write what makes a folder of blocks the statistics of a model on a text."""
    header = {
        "format": FORMAT,
        "fingerprint": statistics.fingerprint,
        "text": statistics.text,
        "tokens": statistics.tokens,
        "loss": statistics.loss,
        "blocks": len(statistics.blocks),
    }
    partial = folder / f".{_HEADER}.partial"
    partial.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, folder / _HEADER)


def load_statistics(folder: Path, *, fingerprint: str, text: str) -> Statistics:
    """Map statistics from their folder, for the very model and text that they were taken from.

    Raises:
        InputError: no such folder, not statistics, or those of another model or other text.
    """
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        _check_header(header, folder, fingerprint=fingerprint, text=text)
        blocks = [_load_block(_file_of(folder, index)) for index in range(header["blocks"])]
        return Statistics.of(
            blocks,
            fingerprint=fingerprint,
            text=text,
            tokens=int(header["tokens"]),
            loss=float(header["loss"]),
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder}: cannot read calibration statistics: {error}") from None


def _file_of(folder: Path, index: int) -> Path:
    return folder / f"block-{index:03}.safetensors"


def _load_block(path: Path) -> Block:
    with safe_open(path, framework="pt") as file:
        header = file.metadata() or {}
        widths, (harm, replaced) = json.loads(header["widths"]), json.loads(header["harms"])

        def sublayer(name: str) -> SublayerStatistics:
            tensors = {key: file.get_tensor(f"{name}.{key}") for key in _TENSORS}
            return SublayerStatistics(width=widths[name], **tensors)

        return Block(
            attention=sublayer("attention"),
            mlp=sublayer("mlp"),
            whole=BlockStatistics(
                harm=harm,
                replaced_harm=replaced,
                **{key: file.get_tensor(key) for key in _WHOLE_TENSORS},
            ),
        )


def _check_header(header: Any, folder: Path, *, fingerprint: str, text: str) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{folder}: not calibration statistics ({FORMAT})")
    for key, name, wanted in (
        ("fingerprint", "another model", fingerprint),
        ("text", "other text", text),
    ):
        if header[key] != wanted:
            raise InputError(
                f"{folder}: statistics of {name} ({key} {header[key][:12]}…, wanted "
                f"{wanted[:12]}…): calibrate anew"
            )
