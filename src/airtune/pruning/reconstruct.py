"""Refit an output projection after a cut, so that the sublayer's output is preserved.

minimise over W', b':  E‖W h + b − W' h_S − b'‖² + λ‖W' − W_S‖²

with S the kept features. On the regularised covariance C + λI in order of importance, with its
Cholesky factor L: W' = W_S + W_R L_RS L_SS⁻¹, and b' = b + W μ − W' μ_S. The ridge draws
towards the uncut columns, not to zero, so that with little text the refit fades out instead of
shrinking the output.
"""

from __future__ import annotations

import torch
from torch import Tensor


def regress(cross: Tensor, factor: Tensor) -> Tensor:
    """Return the ridge regression of targets on features in order of importance, (d, features).

    Args:
        cross: covariance of the targets with the ordered features, (d, features).
        factor: Cholesky factor of the ordered, regularised covariance of the features.
    """
    return torch.cholesky_solve(cross.to(factor).T, factor).T


def refit(weight: Tensor, factor: Tensor, kept: Tensor) -> Tensor:
    """Return the refitted columns of the kept features, (d, number kept), in their order.

    Args:
        weight: the output projection with columns in order of importance, (d, features).
        factor: Cholesky factor of the ordered, regularised covariance, (features, features).
        kept: (features,) boolean: which features stay.
    """
    weight = weight.to(factor)
    count = int(kept.sum())
    if bool(kept[:count].all()):
        # The most important ones: L_SS is a leading block of the factor.
        moved = weight[:, count:] @ factor[count:, :count]
        leading = factor[:count, :count]
        correction = torch.linalg.solve_triangular(leading, moved, upper=False, left=False)
        return weight[:, :count] + correction
    stays, goes = factor[kept], factor[~kept]
    moved = weight[:, ~kept] @ (goes @ stays.T)
    own = torch.linalg.cholesky(stays @ stays.T)
    return weight[:, kept] + torch.cholesky_solve(moved.T, own).T
