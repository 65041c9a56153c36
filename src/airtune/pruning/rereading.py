"""Read calibration text again, in a model that has been trained since, for the refit alone.

As an adapter grows, what the removed units compute is less and less what they computed before
training, and a refit to that sets the submodel apart from the model (docs/pruning.md). Which units
are important is kept from the first reading: with few texts to find it is most of a calibration's
arithmetic, and new orders were no better (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from airtune.models.workload import ModelShape
from airtune.pruning.calibration import RIDGE, block_moments
from airtune.pruning.importance import stable_cholesky
from airtune.pruning.statistics import (
    CalibrationBatch,
    Statistics,
    SublayerStatistics,
    kept_moments,
)


@torch.no_grad()
def reread(
    statistics: Statistics,
    model: nn.Module,
    shape: ModelShape,
    batches: Sequence[CalibrationBatch],
) -> Statistics:
    """Return statistics whose moments are those of a model as it now is.

    Args:
        statistics: of the model before; orders of units and harms stay.
        model: a causal language model with the trained adapter merged into its weights.
        shape: of the model.
        batches: the text, or a part of it.

    Raises:
        InputError: the model's activations are not finite.
    """
    was_training = model.training
    model.eval()
    try:
        read = {
            (index, unit): _with_moments(statistics.sublayer(index, unit), *moments)
            for index, of_units, _ in block_moments(model, shape, batches)
            for unit, moments in of_units.items()
        }
    finally:
        model.train(was_training)
    blocks = range(shape.blocks)
    return replace(
        statistics,
        attention=tuple(read[index, "group"] for index in blocks),
        mlp=tuple(read[index, "mlp"] for index in blocks),
    )


def _with_moments(
    known: SublayerStatistics, moment: torch.Tensor, mean: torch.Tensor
) -> SublayerStatistics:
    features = known.ordered_features.to(moment.device)
    covariance = moment - torch.outer(mean, mean)
    factor = stable_cholesky(covariance[features][:, features], RIDGE)
    return replace(known, **kept_moments(factor, mean))
