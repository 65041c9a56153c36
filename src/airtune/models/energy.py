"""What a client draws in a round, in joules: computing, sending, receiving, waiting.

    compute_j  = power_w · compute_s
    transmit_j = P_up(r) · upload_s         P_up = p/η + P_c, or a fitted line a + b·r
    receive_j  = (α + β·r) · downlink_s
    wait_j     = idle_w · (round_s − compute_s)

p is the transmit power, r the rate in Mbit/s. A device draws its idle power all the time that it
does not compute, also while its radio sends and receives. Ignored: the radio's tail after a
transfer, its paging, a screen, and the base station. Marks as in `devices.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from airtune.errors import InputError
from airtune.models.devices import DeviceProfile
from airtune.scenario import DeviceSection
from airtune.units import FloatArray, db_to_linear

AMPLIFIER_EFFICIENCY = 0.35
"""η of a handset's power amplifier near its full power [R]."""
CIRCUIT_W = 0.1
"""P_c, the transmitter's other circuits; the value of many papers on federated learning [R]."""

UPLINK_LINES = {
    # W = a + b·(Mbit/s), up to the largest rate measured: least-squares fits to the transfer
    # measurements of "A Variegated Look at 5G in the Wild" (SIGCOMM 2021), its public data [V].
    "lte": (2.926, 0.0767, 28.0),
    "5g-low-band": (3.199, 0.0322, 46.0),
    "mmwave": (5.664, 0.0089, 220.0),
}

RECEIVE_W, RECEIVE_W_PER_MBIT_S = 1.288, 0.05197
"""α and β of LTE: Huang et al., "A Close Examination of Performance and Power Characteristics of
4G LTE Networks" (MobiSys 2012), Table 4 [R]."""

IDLE_SHARE = 0.3
"""Of the power while computing, where a profile says no idle power: an assumption [R]."""


@dataclass(frozen=True)
class Energy:
    """What one client drew in one round, J."""

    compute_j: float
    transmit_j: float
    receive_j: float
    wait_j: float

    @property
    def energy_j(self) -> float:
        """The sum of the four."""
        return self.compute_j + self.transmit_j + self.receive_j + self.wait_j


def transmit_w(device: DeviceSection, rate_bps: float) -> float:
    """Return what a device's radio draws while it sends, W; a line ends at its largest rate."""
    if device.radio == "amplifier":
        return db_to_linear(device.power_dbm - 30.0) / AMPLIFIER_EFFICIENCY + CIRCUIT_W
    base_w, slope, most = UPLINK_LINES[device.radio]
    return base_w + slope * min(rate_bps / 1e6, most)


def idle_w(profile: DeviceProfile) -> float | None:
    """Return what a device draws while it does not compute, W; None where no power is known."""
    if profile.idle_power_w is not None or profile.power_w is None:
        return profile.idle_power_w
    return IDLE_SHARE * profile.power_w


def energy_of(
    device: DeviceSection,
    profile: DeviceProfile,
    *,
    compute_s: float,
    upload_s: float,
    uplink_bits: float,
    downlink_s: float,
    downlink_bits: float,
    round_s: float,
) -> Energy | None:
    """Return what a client drew in a round; None where its device's power is not known.

    Args:
        device: its transmit power and radio.
        profile: its powers.
        compute_s: time of fine-tuning.
        upload_s: time of sending `uplink_bits`.
        uplink_bits: what it sent.
        downlink_s: time of receiving `downlink_bits`.
        downlink_bits: what it received.
        round_s: the whole round, at whose end the slowest client is done.
    """
    idle = idle_w(profile)
    if profile.power_w is None or idle is None:
        return None
    sends, receives = upload_s > 0, downlink_s > 0
    return Energy(
        compute_j=profile.power_w * compute_s,
        transmit_j=transmit_w(device, uplink_bits / upload_s) * upload_s if sends else 0.0,
        receive_j=RECEIVE_W * downlink_s + RECEIVE_W_PER_MBIT_S * downlink_bits / 1e6
        if receives
        else 0.0,
        wait_j=idle * max(round_s - compute_s, 0.0),
    )


class EnergyFields(TypedDict, total=False):
    """The fields of a planning problem that hold budgets and powers, (K,) each."""

    energy_budget_j: FloatArray
    compute_power_w: FloatArray
    transmit_power_w: FloatArray


def budgets_of(devices: Sequence[DeviceSection], profiles: Sequence[DeviceProfile]) -> EnergyFields:
    """Return the planning problem's energy fields; empty where no device has a budget.

    A budget holds computing and sending. A fitted line is taken at its largest rate, so that a
    plan never draws more than it says.

    Raises:
        InputError: a device has a budget and no known power.
    """
    if all(device.energy_budget_j is None for device in devices):
        return {}
    for device, profile in zip(devices, profiles, strict=True):
        if device.energy_budget_j is not None and profile.power_w is None:
            raise InputError(
                f"devices.energy_budget_j = {device.energy_budget_j:g} of '{device.profile}': no "
                "power of this profile is known; allowed: a profile with power_w"
            )
    budgets = [d.energy_budget_j for d in devices]
    return {
        "energy_budget_j": np.array([np.inf if b is None else b for b in budgets]),
        "compute_power_w": np.array([p.power_w or 0.0 for p in profiles]),
        "transmit_power_w": np.array([transmit_w(device, np.inf) for device in devices]),
    }
