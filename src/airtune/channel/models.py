"""Channel models by name, and what each draws in one round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.channel.fading import fading_gain
from airtune.channel.placement import (
    Placement,
    downlink_snr_hz_db,
    recorded_link,
    uplink_snr_hz_db,
)
from airtune.channel.rate import rate_of_band
from airtune.channel.state import ChannelState
from airtune.plugins import Registry
from airtune.scenario import CellSection, DeviceSection
from airtune.units import FloatArray, db_to_linear, linear_to_db

ChannelAnswer = ChannelState | FloatArray | tuple[FloatArray, FloatArray]
"""A state; or snr_hz (K,); or snr_hz and downlink_rate_bps, (K,) each."""

ChannelFunction = Callable[
    [CellSection, Sequence[DeviceSection], Placement, np.random.Generator, int], ChannelAnswer
]
"""(cell, devices, placement, rng, round) → the round's channel; rounds count from 1."""


@dataclass(frozen=True)
class ChannelModel:
    """What a channel model does, in one line, its source, and its function."""

    description: str
    source: str
    draw: ChannelFunction


def statistical(
    cell: CellSection,
    devices: Sequence[DeviceSection],
    placement: Placement,
    rng: np.random.Generator,
    round: int,
) -> ChannelState:
    """Path loss and shadowing of the placement, and one fading gain a client and round.

    The gain serves both directions (channel reciprocity, as in time-division duplex).
    """
    loss_db = placement.loss_db - linear_to_db(fading_gain(cell, len(devices), rng))
    return ChannelState(
        db_to_linear(uplink_snr_hz_db(cell, devices, loss_db)),
        np.full(len(devices), spectral_cap(cell)),
        _downlink_rate_bps(cell, loss_db),
    )


def from_table(
    cell: CellSection,
    devices: Sequence[DeviceSection],
    placement: Placement,
    rng: np.random.Generator,
    round: int,
) -> ChannelAnswer:
    """The round's row of `cell.table`: SNR, or rate, of each client over the whole uplink.

    Under SNRs the downlink follows by reciprocity. Under rates it is the table's own column, or
    else what `statistical` draws.
    """
    table = placement.table
    assert table is not None
    row = table.row(round)
    downlink = None if table.downlink_rate_bps is None else table.downlink_rate_bps[row]
    if table.quantity == "snr_db":
        snr_hz = cell.uplink_bandwidth_hz * db_to_linear(table.uplink[row] - cell.gap_db)
        return snr_hz if downlink is None else (snr_hz, downlink.copy())
    if downlink is None:
        downlink = statistical(cell, devices, placement, rng, round).downlink_rate_bps
    snr_hz, efficiency = recorded_link(cell, table.uplink[row])
    none = np.zeros(len(devices), dtype=bool)
    return ChannelState(snr_hz, efficiency, downlink.copy(), has_snr=none)


CHANNEL_MODELS: Registry[ChannelModel] = Registry(
    "channel model",
    "cell.channel",
    {
        "statistical": ChannelModel(
            "path loss, shadowing and block fading, as the cell's keys say",
            "3GPP TR 38.901, or 128.1 + 37.6 log10(d)",
            statistical,
        ),
        "table": ChannelModel(
            "SNR or rate by round and client, read from cell.table",
            "your file",
            from_table,
        ),
    },
)
"""Channel models by name, in the order in which they are listed."""


def channel_model(
    name: str, *, description: str, source: str = "a plugin"
) -> Callable[[ChannelFunction], ChannelFunction]:
    """Register a function as a channel model.

    The function takes (cell, devices, placement, rng, round), rounds counted from 1, and returns
    one of: `snr_hz` (K,), received power over noise density on the uplink in Hz, from which the
    downlink follows by reciprocity; (`snr_hz`, `downlink_rate_bps`); or a `ChannelState`. What it
    returns is checked: one positive, finite number a client.

    Args:
        name: as cell.channel names it.
        description: one line for `airtune methods`.
        source: where it was published.

    Raises:
        InputError: the name exists already.
    """

    def register(function: ChannelFunction) -> ChannelFunction:
        CHANNEL_MODELS.add(name, ChannelModel(description, source, function))
        return function

    return register


def model_name(cell: CellSection) -> str:
    """Return the name of a cell's channel model: its own, or what its keys imply."""
    if cell.channel is not None:
        return cell.channel
    return "statistical" if cell.table is None else "table"


def spectral_cap(cell: CellSection) -> float:
    """Return the cell's largest spectral efficiency, bit/s/Hz; infinite where none is given."""
    return np.inf if cell.max_spectral_efficiency is None else cell.max_spectral_efficiency


def downlink_of_uplink(
    cell: CellSection, devices: Sequence[DeviceSection], snr_hz: FloatArray
) -> FloatArray:
    """Return the downlink rates, bit/s, (K,), that belong to uplink SNRs by reciprocity.

    The uplink's loss, power − (N0 + F + gap) − SNR in dB, is the downlink's.
    """
    lossless_db = uplink_snr_hz_db(cell, devices, np.zeros(len(devices)))
    return _downlink_rate_bps(cell, lossless_db - linear_to_db(snr_hz))


def _downlink_rate_bps(cell: CellSection, loss_db: FloatArray) -> FloatArray:
    return rate_of_band(
        cell.downlink_bandwidth_hz,
        db_to_linear(downlink_snr_hz_db(cell, loss_db)),
        spectral_cap(cell),
    )
