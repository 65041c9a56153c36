"""Draw one round's channel by the cell's model, check it, and put traces in its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airtune.channel.models import (
    CHANNEL_MODELS,
    downlink_of_uplink,
    model_name,
    spectral_cap,
)
from airtune.channel.placement import Placement, recorded_link
from airtune.channel.state import ChannelState
from airtune.channel.trace import Trace
from airtune.errors import InputError
from airtune.plugins import called
from airtune.scenario import CellSection, DeviceSection
from airtune.units import FloatArray


def draw(
    cell: CellSection,
    devices: Sequence[DeviceSection],
    placement: Placement,
    rng: np.random.Generator,
    *,
    round: int,
) -> ChannelState:
    """Draw the channel of one round.

    The base station sends one broadcast with its whole power over the whole downlink: client k
    could receive B min(log2(1 + s_k/B), eta) bit/s of it.

    Args:
        cell: the radio cell; its `channel` names the model.
        devices: one entry a client.
        placement: what `place` drew for them.
        rng: the generator of this purpose and round.
        round: selects the window of a trace and the rows of a table.

    Raises:
        InputError: no such model, or a plugin's model gave what cannot be a channel.
    """
    name = model_name(cell)
    what = f"channel model '{name}'"
    answer = called(what, CHANNEL_MODELS.find(name).draw, cell, devices, placement, rng, round)
    state = _state(f"{what}, round {round}", answer, cell, devices)
    return _with_traces(state, cell, placement, round)


def _state(
    what: str, answer: object, cell: CellSection, devices: Sequence[DeviceSection]
) -> ChannelState:
    """Return what a model answered as a checked state."""
    clients = len(devices)
    if isinstance(answer, ChannelState):
        cap = np.asarray(answer.max_spectral_efficiency, dtype=np.float64)
        if cap.shape != (clients,) or not (cap > 0).all():
            raise InputError(f"{what}: max_spectral_efficiency must have {clients} numbers above 0")
        has_snr = np.asarray(answer.has_snr)
        if has_snr.shape != (clients,) or has_snr.dtype != bool:
            raise InputError(f"{what}: has_snr must have {clients} values, true or false")
        snr_hz = _positive(what, "snr_hz", answer.snr_hz, clients)
        downlink = _positive(what, "downlink_rate_bps", answer.downlink_rate_bps, clients)
        return ChannelState(snr_hz, cap.copy(), downlink, has_snr.copy())
    cap = np.full(clients, spectral_cap(cell))
    if isinstance(answer, tuple):
        if len(answer) != 2:
            raise InputError(
                f"{what}: it returned {len(answer)} values; allowed: snr_hz, or snr_hz and "
                "downlink_rate_bps, or a ChannelState"
            )
        snr_hz = _positive(what, "snr_hz", answer[0], clients)
        return ChannelState(snr_hz, cap, _positive(what, "downlink_rate_bps", answer[1], clients))
    snr_hz = _positive(what, "snr_hz", answer, clients)
    return ChannelState(snr_hz, cap, downlink_of_uplink(cell, devices, snr_hz))


def _positive(what: str, field: str, values: object, clients: int) -> FloatArray:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{what}: {field} is not numbers but {type(values).__name__}") from None
    if array.shape != (clients,):
        raise InputError(f"{what}: {field} has shape {array.shape}; allowed: ({clients},)")
    bad = ~(np.isfinite(array) & (array > 0))
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{what}: {field} of client {first + 1} is {array[first]:g}; "
            "allowed: a finite number above 0"
        )
    return array


def _with_traces(
    state: ChannelState, cell: CellSection, placement: Placement, round: int
) -> ChannelState:
    """Put recorded capacities in the place of the model's, in the directions that have them."""
    if not any(placement.uplink_traces) and not any(placement.downlink_traces):
        return state
    snr_hz, efficiency = state.snr_hz.copy(), state.max_spectral_efficiency.copy()
    downlink_bps, has_snr = state.downlink_rate_bps.copy(), np.array(state.has_snr)
    for k, start in enumerate(placement.trace_start):
        uplink, downlink = placement.uplink_traces[k], placement.downlink_traces[k]
        if uplink is not None:
            rate = np.array(_trace_rate_bps(uplink, start, round))
            snr_hz[k], efficiency[k] = recorded_link(cell, rate)
            has_snr[k] = False
        if downlink is not None:
            downlink_bps[k] = _trace_rate_bps(downlink, start, round)
    return ChannelState(snr_hz, efficiency, downlink_bps, has_snr)


def _trace_rate_bps(trace: Trace, start: float, round: int) -> float:
    return trace.round_rate_bps(round, start_ms=int(start * trace.period_ms))
