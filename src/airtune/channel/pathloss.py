"""Large-scale propagation: line of sight, path loss and shadowing (TR 38.901 UMi/UMa, classic).

Notation of TR 38.901: d_2D horizontal and d_3D slant distance in m, fc carrier in GHz,
h_BS and h_UT antenna heights in m. Outdoor devices only; no penetration loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from airtune.errors import InputError
from airtune.units import SPEED_OF_LIGHT_M_S, FloatArray

if TYPE_CHECKING:
    from airtune.scenario import CellSection

# TR 38.901 note 1 of Table 7.4.1-1: the ground that reflects lies 1 m up. For UMa that is
# certain only where h_UT < 13 m, hence the bound on the device's height below.
ENVIRONMENT_HEIGHT_M = 1.0


@dataclass(frozen=True)
class PathLossModel:
    """What a path-loss model fixes beside its formulas.

    Attributes:
        base_station_height_m: default h_BS; None where heights play no part.
        distance_range_m: horizontal distances that the formulas are used at.
        device_height_range_m: h_UT that the formulas hold for.
        shadowing_los_db: standard deviation with line of sight.
        shadowing_nlos_db: standard deviation without.
    """

    base_station_height_m: float | None
    distance_range_m: tuple[float, float]
    device_height_range_m: tuple[float, float] | None
    shadowing_los_db: float
    shadowing_nlos_db: float


# TR 38.901 Tables 7.2-1, 7.4.1-1; the classic model's lower bound keeps its loss above 0 dB.
MODELS: dict[str, PathLossModel] = {
    "umi": PathLossModel(10.0, (10.0, 5000.0), (1.5, 22.5), 4.0, 7.82),
    "uma": PathLossModel(25.0, (10.0, 5000.0), (1.5, 13.0), 4.0, 6.0),
    "classic": PathLossModel(None, (1.0, float("inf")), None, 8.0, 8.0),
}


def check_cell(cell: CellSection) -> None:
    """Refuse a geometry outside the range that the path-loss model is given for.

    Raises:
        InputError: a distance or a height is outside; the message names the key.
    """
    model = MODELS[cell.path_loss]
    nearest, farthest = model.distance_range_m
    for key, value in (("min_distance_m", cell.min_distance_m), ("radius_m", cell.radius_m)):
        if not nearest <= value <= farthest:
            upper = "" if farthest == float("inf") else f" and at most {farthest:g} m"
            raise InputError(
                f"cell.{key} = {value:g}: path loss '{cell.path_loss}' asks for "
                f"at least {nearest:g} m{upper}"
            )
    if model.device_height_range_m is None:
        return
    lowest, highest = model.device_height_range_m
    if not lowest <= cell.device_height_m <= highest:
        raise InputError(
            f"cell.device_height_m = {cell.device_height_m:g}: path loss '{cell.path_loss}' "
            f"holds from {lowest:g} to {highest:g} m"
        )
    if base_station_height_m(cell) <= ENVIRONMENT_HEIGHT_M:
        raise InputError(
            f"cell.base_station_height_m = {cell.base_station_height_m:g}: "
            f"must be above {ENVIRONMENT_HEIGHT_M:g} m, the height of the reflecting ground"
        )


def base_station_height_m(cell: CellSection) -> float:
    """Return h_BS: the cell's own, or the model's default of 10 m (UMi) or 25 m (UMa)."""
    default = MODELS[cell.path_loss].base_station_height_m or 0.0
    return default if cell.base_station_height_m is None else cell.base_station_height_m


def breakpoint_distance_m(cell: CellSection) -> float:
    """Return d'_BP = 4 (h_BS - 1)(h_UT - 1) fc / c, fc in Hz (TR 38.901 Table 7.4.1-1)."""
    above_ground_m2 = (base_station_height_m(cell) - ENVIRONMENT_HEIGHT_M) * (
        cell.device_height_m - ENVIRONMENT_HEIGHT_M
    )
    return 4.0 * above_ground_m2 * cell.carrier_hz / SPEED_OF_LIGHT_M_S


def los_probability(cell: CellSection, distance_m: FloatArray) -> FloatArray:
    """Return the probability of line of sight at each horizontal distance, (K,) -> (K,).

    TR 38.901 Table 7.4.2-1: 1 up to 18 m, then 18/d + exp(-d/a) (1 - 18/d) with a = 36 m (UMi)
    or 63 m (UMa, h_UT at most 13 m). The classic model knows no line of sight: 0.
    """
    if cell.path_loss == "classic":
        return np.zeros_like(distance_m)
    decay_m = 36.0 if cell.path_loss == "umi" else 63.0
    near = 18.0 / np.maximum(distance_m, 18.0)
    return near + np.exp(-distance_m / decay_m) * (1.0 - near)


def path_loss_db(
    cell: CellSection, distance_m: FloatArray, is_los: NDArray[np.bool_]
) -> FloatArray:
    """Return the path loss without shadowing, dB.

    TR 38.901 Table 7.4.1-1 for `umi` and `uma` (the optional formulas are not used), or the
    classic evaluation model 128.1 + 37.6 log10(d_km), in which carrier and heights do not
    appear.

    Args:
        cell: the model's name, the carrier and the heights.
        distance_m: (K,) horizontal distance d_2D, m.
        is_los: (K,) line of sight; ignored by the classic model.
    """
    if cell.path_loss == "classic":
        return 128.1 + 37.6 * np.log10(distance_m / 1000.0)
    los = _los_db(cell, distance_m)
    log_d3d, log_fc = np.log10(_slant_distance_m(cell, distance_m)), np.log10(cell.carrier_hz / 1e9)
    if cell.path_loss == "umi":
        nlos = 35.3 * log_d3d + 22.4 + 21.3 * log_fc - 0.3 * (cell.device_height_m - 1.5)
    else:
        nlos = 13.54 + 39.08 * log_d3d + 20.0 * log_fc - 0.6 * (cell.device_height_m - 1.5)
    return np.where(is_los, los, np.maximum(los, nlos))


def shadowing_sigma_db(cell: CellSection, is_los: NDArray[np.bool_]) -> FloatArray:
    """Return the standard deviation of shadowing for each device, dB, (K,).

    The cell's own where given, otherwise the model's: 4 / 7.82 dB (UMi LOS / NLOS), 4 / 6 dB
    (UMa), 8 dB (classic); 0 where shadowing is off.
    """
    if not cell.shadowing:
        return np.zeros(is_los.shape)
    if cell.shadowing_db is not None:
        return np.full(is_los.shape, cell.shadowing_db)
    model = MODELS[cell.path_loss]
    return np.where(is_los, model.shadowing_los_db, model.shadowing_nlos_db)


def _los_db(cell: CellSection, distance_m: FloatArray) -> FloatArray:
    # Two slopes that meet at the breakpoint; the second one's last term makes them meet.
    intercept, slope, correction = (
        (32.4, 21.0, 9.5) if cell.path_loss == "umi" else (28.0, 22.0, 9.0)
    )
    log_d3d, log_fc = np.log10(_slant_distance_m(cell, distance_m)), np.log10(cell.carrier_hz / 1e9)
    breakpoint_m = breakpoint_distance_m(cell)
    height_m = base_station_height_m(cell) - cell.device_height_m
    before = intercept + slope * log_d3d + 20.0 * log_fc
    after = (
        intercept
        + 40.0 * log_d3d
        + 20.0 * log_fc
        - correction * np.log10(breakpoint_m**2 + height_m**2)
    )
    return np.where(distance_m <= breakpoint_m, before, after)


def _slant_distance_m(cell: CellSection, distance_m: FloatArray) -> FloatArray:
    return np.hypot(distance_m, base_station_height_m(cell) - cell.device_height_m)
