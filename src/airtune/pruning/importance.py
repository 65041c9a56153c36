"""In which order units are given up, and how much each one costs.

A sublayer ends in an output projection y = W h. Leaving out the features R of h and refitting
W on the kept ones S is least squares, and everything about it follows from the regularised
second moment C of h: with H = C⁻¹ the error grows by tr(V_Q H_QQ⁻¹ V_Qᵀ) when the features Q
go, where V are the weights refitted so far (optimal brain surgeon, Hassibi and Stork 1993;
applied to structures by Kurtic et al. 2023). In an order of importance, with C = L Lᵀ and
G = W L, the error of keeping the first s features is the squared norm of G's other columns:
one Cholesky factor answers every rate.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_RIDGE_DOUBLINGS = 60
_SMALLEST_VARIANCE = 1e-12
_TINY = 1e-30


def regularised(moment: Tensor, ridge: float) -> Tensor:
    """Return C + ridge · mean|diag C| · I, with a floor under the mean.

    The diagonal of a covariance that is zero but for rounding may be negative.
    """
    scale = moment.diagonal().abs().mean().clamp_min(_SMALLEST_VARIANCE)
    result = moment / scale
    result.diagonal().add_(ridge)
    return result * scale


def stable_cholesky(moment: Tensor, ridge: float) -> Tensor:
    """Return the lower Cholesky factor of `regularised(moment, ridge)`, always finite.

    A moment that is singular also after that gets twice the ridge, as often as it takes.
    """
    for doubling in range(MAX_RIDGE_DOUBLINGS):
        strength = max(ridge, 1e-12) * 2**doubling if doubling else ridge
        factor, failed = torch.linalg.cholesky_ex(regularised(moment, strength))
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return factor
    raise FloatingPointError("the second moment is not finite")


def elimination_order(
    moment: Tensor, weight: Tensor, *, width: int, ridge: float, chunk: int
) -> Tensor:
    """Return the units from the most to the least important, by refitted backward elimination.

    Args:
        moment: second moment of the features, (units·width, units·width).
        weight: output projection, rows scaled by how much each output matters, (d, features).
        width: features a unit.
        ridge: relative to the mean of the diagonal.
        chunk: units given up at a time; the scores are exact for one, near for a few.

    Returns:
        Unit indices, (units,).
    """
    inverse = torch.cholesky_inverse(stable_cholesky(moment, ridge))
    current = weight.to(moment).clone()
    alive = torch.arange(moment.shape[0] // width, device=moment.device)
    given_up = []
    gone = torch.zeros_like(alive, dtype=torch.bool)
    while len(alive) - int(gone.sum()) > chunk:
        scores = _scores(inverse, current, width).masked_fill_(gone, torch.inf)
        out = torch.argsort(scores, stable=True)[:chunk]
        given_up.append(alive[out])
        features = _features(out, width)
        # In place: a copy of the inverse a step would cost more than the arithmetic.
        cross = inverse[features]
        solved = torch.linalg.solve(cross[:, features], cross)
        current.addmm_(current[:, features], solved, alpha=-1)
        inverse.addmm_(cross.T, solved, alpha=-1)
        gone[out] = True
        if int(gone.sum()) > len(alive) // 2:
            kept = torch.nonzero(~gone).ravel()
            features = _features(kept, width)
            inverse, current = inverse[features][:, features], current[:, features]
            alive, gone = alive[kept], gone[kept]
    scores = _scores(inverse, current, width).masked_fill_(gone, torch.inf)
    left = torch.argsort(scores, stable=True)[: len(alive) - int(gone.sum())]
    return torch.cat([*given_up, alive[left]]).flip(0)


def _scores(inverse: Tensor, weight: Tensor, width: int) -> Tensor:
    """tr(V_u H_uu⁻¹ V_uᵀ) of every unit u alone."""
    if width == 1:
        return weight.square().sum(0) / inverse.diagonal().clamp_min(_TINY)
    units = weight.shape[1] // width
    blocks = torch.stack(
        [inverse[u * width : (u + 1) * width, u * width : (u + 1) * width] for u in range(units)]
    )
    # A unit that is gone already has a zero block: any regular one does in its place.
    blocks.diagonal(dim1=1, dim2=2).add_((blocks.diagonal(dim1=1, dim2=2) <= 0).to(blocks))
    parts = weight.reshape(weight.shape[0], units, width).permute(1, 2, 0)
    # One by one: PyTorch 2.13's batched solve never returns once set_num_threads() was called.
    return torch.stack(
        [
            (part * torch.linalg.solve(block, part)).sum()
            for block, part in zip(blocks, parts, strict=True)
        ]
    )


def _features(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).ravel()


def ordered_features(order: Tensor, width: int) -> Tensor:
    """Return the features in the order of their units, (units·width,)."""
    return _features(order, width)


def refit_errors(factor: Tensor, weight: Tensor, width: int) -> Tensor:
    """Return the squared output error of keeping the first k units, k = 0…units, (units + 1,).

    Args:
        factor: Cholesky factor of the ordered moment.
        weight: output projection with ordered columns, rows scaled, (d, features).
        width: features a unit.
    """
    columns = (weight.to(factor) @ factor).square().sum(0).reshape(-1, width).sum(1)
    tail = columns.flip(0).cumsum(0).flip(0)
    return torch.cat([tail, tail.new_zeros(1)])
