"""Small-scale fading: one power gain per device and round, with mean 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from airtune.errors import InputError
from airtune.units import FloatArray, db_to_linear

if TYPE_CHECKING:
    from airtune.scenario import CellSection

_LARGEST_K_DB = 100.0


def check_fading(cell: CellSection) -> None:
    """Raise InputError where the Rician K factor is beyond what arithmetic can hold."""
    if cell.fading == "rician" and abs(cell.rician_k_db) > _LARGEST_K_DB:
        raise InputError(
            f"cell.rician_k_db = {cell.rician_k_db:g} must be from "
            f"-{_LARGEST_K_DB:g} to {_LARGEST_K_DB:g}"
        )


def fading_gain(cell: CellSection, clients: int, rng: np.random.Generator) -> FloatArray:
    """Draw the block-fading power gain |h|^2 of each client, (K,), of mean 1.

    Rayleigh: h = (x + jy)/sqrt(2) with x, y standard normal, so that |h|^2 is exponential.
    Rician: h = sqrt(K/(K+1)) + (x + jy)/sqrt(2(K+1)), K = 10^(rician_k_db/10) the power of
    the fixed path over that of the scattered ones. None: 1. Flat over the band, constant over
    the round, independent between clients and rounds.

    Client k takes the generator's values 2k and 2k+1, so that another client at the end
    leaves those before it as they were.
    """
    in_phase, quadrature = rng.standard_normal((clients, 2)).T
    if cell.fading == "none":
        return np.ones(clients)
    k_factor = db_to_linear(cell.rician_k_db) if cell.fading == "rician" else 0.0
    scatter = np.sqrt(0.5 / (k_factor + 1.0))
    fixed = np.sqrt(k_factor / (k_factor + 1.0))
    return (fixed + scatter * in_phase) ** 2 + (scatter * quadrature) ** 2
