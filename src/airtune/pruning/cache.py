"""Calibration statistics on disk: read a client's text once, for all later runs."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from airtune.errors import InputError
from airtune.models.loading import fingerprint_of
from airtune.models.workload import ModelShape
from airtune.pruning.calibration import ATTENTION_WEIGHT, RIDGE, SENSITIVITY_ROWS, calibrate
from airtune.pruning.statistics import Block, CalibrationBatch, Statistics, text_hash
from airtune.pruning.store import FORMAT, load_statistics, save_block, save_header

ABANDONED_S = 86_400.0
"""Half-written statistics that were not written to for this long are abandoned."""


def cached_calibration(
    folder: Path,
    model: nn.Module,
    shape: ModelShape,
    batches: Sequence[CalibrationBatch],
    *,
    stand_ins: bool,
) -> Statistics:
    """Return `calibrate`'s statistics, from the folder where it has those of this model and text.

    Otherwise each block's are written as soon as they are known, and only mapped from then on: what
    is kept does not add up in memory. What cannot be read is made anew.

    Args:
        folder: where they lie, a folder each; made where there is none.
        model: a causal language model, frozen.
        shape: of the model.
        batches: the text, with labels at its answers.
        stand_ins: also what can replace whole blocks.

    Raises:
        InputError: as `calibrate`, or the folder cannot be written.
    """
    fingerprint, text = fingerprint_of(model), text_hash(batches)
    kind = "with-stand-ins" if stand_ins else "plain"
    constants = repr((FORMAT, RIDGE, ATTENTION_WEIGHT, SENSITIVITY_ROWS))
    how = hashlib.sha256(constants.encode()).hexdigest()[:8]
    path = folder / f"{fingerprint[:16]}-{text[:16]}-{how}-{kind}"
    if path.is_dir():
        try:
            return load_statistics(path, fingerprint=fingerprint, text=text)
        except InputError:
            shutil.rmtree(path, ignore_errors=True)  # a block is missing, or cut off
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        # A name of its own: others may be writing the same statistics.
        partial = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=folder))
        try:

            def written(index: int, block: Block) -> Block:
                return save_block(block, index, partial)

            statistics = calibrate(model, shape, batches, stand_ins=stand_ins, kept=written)
            save_header(statistics, partial)
            _move(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write calibration statistics into {folder}: {error.strerror or error}; make "
            "room there, set AIRTUNE_CACHE to another folder or pruning.cache_statistics = false"
        ) from None
    return statistics


def _sweep(folder: Path) -> None:
    """Remove what calibrations left that were killed: a live one writes within a day."""
    for partial in folder.glob(".*.partial"):
        try:
            if time.time() - partial.stat().st_mtime > ABANDONED_S:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError:
            continue  # somebody else's sweep, or move, was sooner


def _move(partial: Path, path: Path) -> None:
    """Put a finished folder in its place; one that another process put there first stays."""
    try:
        partial.rename(path)
    except OSError:
        if not path.is_dir():
            raise
