"""Where the devices are: what is drawn once per run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.channel.fading import check_fading
from airtune.channel.link import snr_hz_db
from airtune.channel.pathloss import check_cell, los_probability, path_loss_db, shadowing_sigma_db
from airtune.channel.rate import rate_of_band
from airtune.channel.table import ChannelTable, read_table
from airtune.channel.trace import Direction, Trace, read_trace
from airtune.errors import InputError
from airtune.scenario import CellSection, DeviceSection, names_of_clients
from airtune.units import FloatArray, db_to_linear, linear_to_db

MIN_REACH_BPS = 1000.0
"""A client that gets less from the whole band, without fading, counts as out of reach."""

MAX_SNR_DB = 200.0
"""More than any transmitter gives any receiver: a slip in a power or a noise density."""

MAX_TRACE_EFFICIENCY = 60.0
"""bit/s/Hz: a trace that needs more does not fit the band it is said to be carried in."""


@dataclass(frozen=True, eq=False)
class Placement:
    """What a run's devices keep over all rounds; the base station stands at the origin.

    Attributes:
        positions_m: (K, 2) horizontal position, m.
        distance_m: (K,) horizontal distance to the base station, m.
        is_los: (K,) line of sight; all False for the classic model.
        path_loss_db: (K,) distance-dependent loss, dB.
        shadowing_db: (K,) log-normal shadowing, dB; positive is a further loss.
        uplink_traces: K entries, None where the channel model holds.
        downlink_traces: K entries, likewise.
        trace_start: (K,) in [0, 1): the share of its trace at which a client begins.
        table: what `cell.table` says, where it is given.
    """

    positions_m: FloatArray
    distance_m: FloatArray
    is_los: NDArray[np.bool_]
    path_loss_db: FloatArray
    shadowing_db: FloatArray
    uplink_traces: tuple[Trace | None, ...]
    downlink_traces: tuple[Trace | None, ...]
    trace_start: FloatArray
    table: ChannelTable | None = None

    @property
    def loss_db(self) -> FloatArray:
        """Path loss and shadowing together, dB, (K,)."""
        return self.path_loss_db + self.shadowing_db


def place(
    cell: CellSection, devices: Sequence[DeviceSection], rng: np.random.Generator
) -> Placement:
    """Place the devices in the cell and draw what stays for the run.

    Uniform by area between `min_distance_m` and `radius_m` (d^2 is uniform), or at the fixed
    distance that a device gives, in a uniform direction. Then line of sight with TR 38.901's
    probability, the path loss, and shadowing as a normal variable in dB with the model's
    deviation, independent between devices (TR 38.901's correlation over 10 to 50 m is ignored).

    Each client takes the same number of values from the generator in turn, whatever the
    options are: another client at the end leaves those before it as they were.

    Args:
        cell: geometry and propagation.
        devices: one entry a client.
        rng: the generator of this purpose.

    Raises:
        InputError: the geometry is outside the model's range, a fixed distance is outside the
            cell, a trace is malformed or too fast for the band, or a client is out of reach.
    """
    check_cell(cell)
    check_fading(cell)
    clients = len(devices)
    # One normal and four uniform values a client, in this order.
    normal, uniform = np.empty(clients), np.empty((clients, 4))
    for k in range(clients):
        normal[k] = rng.standard_normal()
        uniform[k] = rng.random(4)
    distance_m = _distances_m(cell, devices, uniform[:, 0])
    angle = 2.0 * np.pi * uniform[:, 1]
    is_los = uniform[:, 2] < los_probability(cell, distance_m)
    placement = Placement(
        positions_m=distance_m[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1),
        distance_m=distance_m,
        is_los=is_los,
        path_loss_db=path_loss_db(cell, distance_m, is_los),
        shadowing_db=shadowing_sigma_db(cell, is_los) * normal,
        uplink_traces=_read_traces([d.uplink_trace for d in devices], "uplink"),
        downlink_traces=_read_traces([d.downlink_trace for d in devices], "downlink"),
        trace_start=uniform[:, 3].copy(),
        table=_read_table(cell, devices),
    )
    for array in (placement.positions_m, distance_m, is_los, placement.path_loss_db,
                  placement.shadowing_db, placement.trace_start):  # fmt: skip
        array.flags.writeable = False
    _check_traces(cell, placement)
    if cell.channel in (None, "statistical") and cell.table is None:
        _check_reach(cell, devices, placement)
    return placement


def uplink_snr_hz_db(
    cell: CellSection, devices: Sequence[DeviceSection], loss_db: FloatArray
) -> FloatArray:
    """Return the devices' received power over noise density at the base station, dB Hz, (K,)."""
    return snr_hz_db(
        power_dbm=[device.power_dbm for device in devices],
        loss_db=loss_db,
        noise_density_dbm_hz=cell.noise_density_dbm_hz,
        noise_figure_db=cell.base_station_noise_figure_db,
        gap_db=cell.gap_db,
    )


def downlink_snr_hz_db(cell: CellSection, loss_db: FloatArray) -> FloatArray:
    """Return the base station's received power over noise density at each device, dB Hz, (K,)."""
    return snr_hz_db(
        power_dbm=cell.base_station_power_dbm,
        loss_db=loss_db,
        noise_density_dbm_hz=cell.noise_density_dbm_hz,
        noise_figure_db=cell.device_noise_figure_db,
        gap_db=cell.gap_db,
    )


def recorded_link(cell: CellSection, rate_bps: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the snr_hz and max_spectral_efficiency of uplinks whose rate was recorded.

    A recorded link is shared like spectrum: a share of the band gets that share of the rate. So
    the cap is rate over band, and the SNR so large that it never decides.
    """
    efficiency = rate_bps / cell.uplink_bandwidth_hz
    return np.full_like(
        efficiency, cell.uplink_bandwidth_hz * 2.0**MAX_TRACE_EFFICIENCY
    ), efficiency


def _distances_m(
    cell: CellSection, devices: Sequence[DeviceSection], uniform: FloatArray
) -> FloatArray:
    inner, outer = cell.min_distance_m, cell.radius_m
    distance_m = np.sqrt(inner**2 + uniform * (outer**2 - inner**2))
    for k, device in enumerate(devices):
        if device.distance_m is None:
            continue
        if not inner <= device.distance_m <= outer:
            raise InputError(
                f"devices.distance_m = {device.distance_m:g} of '{device.profile}' is outside "
                f"the cell: allowed is cell.min_distance_m = {inner:g} to "
                f"cell.radius_m = {outer:g}"
            )
        distance_m[k] = device.distance_m
    return distance_m


def _read_traces(paths: Sequence[str | None], direction: Direction) -> tuple[Trace | None, ...]:
    """Read each file once; clients that name the same one share it."""
    known = {path: read_trace(path, direction) for path in dict.fromkeys(paths) if path is not None}
    return tuple(None if path is None else known[path] for path in paths)


def _read_table(cell: CellSection, devices: Sequence[DeviceSection]) -> ChannelTable | None:
    if cell.table is None:
        return None
    table = read_table(cell.table, names_of_clients(devices), max_snr_db=MAX_SNR_DB)
    fastest = float(table.uplink.max())
    if table.quantity == "rate_bps" and fastest > MAX_TRACE_EFFICIENCY * cell.uplink_bandwidth_hz:
        raise InputError(
            f"{table.path}: the table reaches {fastest / 1e6:.4g} Mbit/s, which no uplink of "
            f"{cell.uplink_bandwidth_hz:g} Hz carries; set cell.uplink_bandwidth_hz to the "
            "recorded link's"
        )
    return table


def _check_traces(cell: CellSection, placement: Placement) -> None:
    for direction, traces, band_hz in (
        ("uplink", placement.uplink_traces, cell.uplink_bandwidth_hz),
        ("downlink", placement.downlink_traces, cell.downlink_bandwidth_hz),
    ):
        for trace in {id(t): t for t in traces if t is not None}.values():
            fastest = trace.busiest_rate_bps()
            if fastest > MAX_TRACE_EFFICIENCY * band_hz:
                raise InputError(
                    f"{trace.path}: the trace reaches {fastest / 1e6:.4g} Mbit/s, which no "
                    f"{direction} of {band_hz:g} Hz carries; set cell.{direction}_bandwidth_hz "
                    f"to the recorded link's"
                )


def _check_reach(cell: CellSection, devices: Sequence[DeviceSection], placement: Placement) -> None:
    """Refuse clients whose signal is far too weak, or stronger than can be."""
    directions = (
        ("uplink", "devices.power_dbm", uplink_snr_hz_db(cell, devices, placement.loss_db),
         cell.uplink_bandwidth_hz, placement.uplink_traces),
        ("downlink", "cell.base_station_power_dbm", downlink_snr_hz_db(cell, placement.loss_db),
         cell.downlink_bandwidth_hz, placement.downlink_traces),
    )  # fmt: skip
    for direction, key, snr_db, band_hz, traces in directions:
        modelled = np.array([trace is None for trace in traces])
        in_band_db = snr_db - linear_to_db(band_hz)
        for k in np.flatnonzero(modelled & (in_band_db > MAX_SNR_DB)).tolist():
            raise InputError(
                f"client {k + 1} ('{devices[k].profile}'): an SNR of {in_band_db[k]:.4g} dB on "
                f"the {direction} cannot be; check {key} and cell.noise_density_dbm_hz"
            )
        reach_bps = rate_of_band(band_hz, db_to_linear(np.where(modelled, snr_db, 0.0)))
        for k in np.flatnonzero(modelled & (reach_bps < MIN_REACH_BPS)).tolist():
            raise InputError(
                f"client {k + 1} ('{devices[k].profile}') cannot be reached: "
                f"{placement.loss_db[k]:.4g} dB of loss at {placement.distance_m[k]:.0f} m leave "
                f"{reach_bps[k]:.3g} bit/s of the whole {direction}, {MIN_REACH_BPS:g} are "
                f"needed; raise {key} or cell.{direction}_bandwidth_hz, or shrink cell.radius_m"
            )
