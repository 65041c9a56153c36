"""5G NR numerology: resource blocks of a channel, their width, and the peak data rate."""

from __future__ import annotations

from airtune.errors import InputError

SUBCARRIERS_PER_BLOCK = 12
SYMBOLS_PER_SLOT = 14
MAX_CODE_RATE = 948 / 1024

# TS 38.101-1 Table 5.3.2-1 (FR1): subcarrier spacing in Hz -> channel in MHz -> blocks.
_RESOURCE_BLOCKS: dict[int, dict[int, int]] = {
    15_000: {5: 25, 10: 52, 15: 79, 20: 106, 25: 133, 30: 160, 40: 216, 50: 270},
    30_000: {5: 11, 10: 24, 15: 38, 20: 51, 25: 65, 30: 78, 40: 106, 50: 133, 60: 162, 70: 189,
             80: 217, 90: 245, 100: 273},
    60_000: {10: 11, 15: 18, 20: 24, 25: 31, 30: 38, 40: 51, 50: 65, 60: 79, 70: 93, 80: 107,
             90: 121, 100: 135},
}  # fmt: skip


def resource_blocks(channel_hz: float, subcarrier_spacing_hz: int) -> int:
    """Return how many resource blocks a 5G channel holds (TS 38.101-1 Table 5.3.2-1).

    The blocks do not fill the channel: the rest is guard band.

    Args:
        channel_hz: channel bandwidth, Hz; one of the table's.
        subcarrier_spacing_hz: 15000, 30000 or 60000.

    Raises:
        InputError: the table has no such spacing, or no such channel at that spacing.
    """
    channels = _RESOURCE_BLOCKS.get(subcarrier_spacing_hz)
    if channels is None:
        raise InputError(
            f"subcarrier_spacing_hz = {subcarrier_spacing_hz:g} must be one of "
            f"{', '.join(map(str, _RESOURCE_BLOCKS))}"
        )
    blocks = channels.get(round(channel_hz / 1e6)) if channel_hz % 1e6 == 0 else None
    if blocks is None:
        raise InputError(
            f"bandwidth {channel_hz:g} Hz is no 5G channel at {subcarrier_spacing_hz // 1000} kHz "
            f"subcarrier spacing: allowed are {', '.join(map(str, channels))} MHz"
        )
    return blocks


def block_hz(subcarrier_spacing_hz: int) -> float:
    """Return the width of one resource block, Hz: 12 subcarriers (TS 38.211 §4.4.4.1)."""
    return float(SUBCARRIERS_PER_BLOCK * subcarrier_spacing_hz)


def peak_rate_bps(
    blocks: int,
    subcarrier_spacing_hz: int,
    *,
    bits_per_symbol: int,
    layers: int = 1,
    overhead: float = 0.08,
    scaling: float = 1.0,
    code_rate: float = MAX_CODE_RATE,
) -> float:
    """Return the largest data rate of one carrier, bit/s (TS 38.306 §4.1.2).

    v * Qm * f * R * (N_PRB * 12 / Ts) * (1 - OH), with Ts = 1e-3 / (14 * 2^mu) s and
    2^mu the subcarrier spacing over 15 kHz.

    Args:
        blocks: N_PRB, resource blocks of the carrier.
        subcarrier_spacing_hz: 15000 times a power of two.
        bits_per_symbol: Qm: 2 QPSK, 4 16QAM, 6 64QAM, 8 256QAM.
        layers: v, spatial layers.
        overhead: OH: downlink 0.14 (FR1) or 0.18 (FR2), uplink 0.08 or 0.10.
        scaling: f, one of 1, 0.8, 0.75, 0.4.
        code_rate: R, 948/1024 at most.
    """
    symbols_per_s = SYMBOLS_PER_SLOT * (subcarrier_spacing_hz / 15_000) / 1e-3
    resource_elements_per_s = blocks * SUBCARRIERS_PER_BLOCK * symbols_per_s
    return layers * bits_per_symbol * scaling * code_rate * resource_elements_per_s * (1 - overhead)
