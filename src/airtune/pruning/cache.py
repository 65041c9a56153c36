"""Calibration statistics on disk: read a client's text once, for all later runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from airtune.errors import InputError
from airtune.models import fingerprint_of
from airtune.pruning.calibration import ATTENTION_WEIGHT, RIDGE, SENSITIVITY_ROWS, calibrate
from airtune.pruning.statistics import (
    FORMAT,
    CalibrationBatch,
    Statistics,
    load_statistics,
    save_statistics,
    text_hash,
)
from airtune.workload import ModelShape


def cached_calibration(
    folder: Path,
    model: nn.Module,
    shape: ModelShape,
    batches: Sequence[CalibrationBatch],
    *,
    stand_ins: bool,
) -> Statistics:
    """Return `calibrate`'s statistics, from the folder where it has those of this model and text.

    A file that cannot be read is written anew.

    Args:
        folder: where the files lie; made where there is none.
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
    path = folder / f"{fingerprint[:16]}-{text[:16]}-{how}-{kind}.safetensors"
    if path.is_file():
        try:
            return load_statistics(path, fingerprint=fingerprint, text=text)
        except InputError:
            pass  # cut off by a full disk, or of an older format
    statistics = calibrate(model, shape, batches, stand_ins=stand_ins)
    try:
        save_statistics(statistics, path)
    except OSError as error:
        raise InputError(
            f"cannot write calibration statistics into {folder}: {error.strerror or error}; make "
            "room there, set AIRTUNE_CACHE to another folder or pruning.cache_statistics = false"
        ) from None
    return statistics
