"""5G NR tables against TS 38.101-1 and TS 38.306's own arithmetic."""

from __future__ import annotations

import pytest

from airtune.channel.numerology import block_hz, peak_rate_bps, resource_blocks
from airtune.errors import InputError
from airtune.scenario import load_scenario

# TS 38.214 Table 5.2.2.1-2 (CQI table 1): the highest entry, 64QAM.
TOP_CQI_EFFICIENCY = 5.5547

CHANNELS_MHZ = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100)


@pytest.mark.parametrize(
    ("channel_mhz", "spacing_khz", "blocks"),
    [(20, 15, 106), (20, 30, 51), (100, 30, 273), (100, 60, 135), (50, 15, 270), (10, 60, 11)],
)
def test_table_entries(channel_mhz: int, spacing_khz: int, blocks: int) -> None:
    assert resource_blocks(channel_mhz * 1e6, spacing_khz * 1000) == blocks


@pytest.mark.parametrize("spacing_hz", [15_000, 30_000, 60_000])
def test_blocks_fill_most_of_the_channel_and_leave_a_guard_band(spacing_hz: int) -> None:
    for channel_mhz in CHANNELS_MHZ:
        try:
            blocks = resource_blocks(channel_mhz * 1e6, spacing_hz)
        except InputError:
            # 15 kHz ends at 50 MHz (3300 subcarriers at most), 60 kHz begins at 10 MHz.
            assert (spacing_hz, channel_mhz > 50) == (15_000, True) or (
                spacing_hz,
                channel_mhz,
            ) == (60_000, 5)
            continue
        used = blocks * block_hz(spacing_hz) / (channel_mhz * 1e6)
        assert 0.78 < used < 0.99


@pytest.mark.parametrize(
    ("channel_hz", "spacing_hz", "message"),
    [
        (1e5, 30_000, "100000 Hz is no 5G channel at 30 kHz.*allowed are 5, 10, 15"),
        (20.5e6, 15_000, "no 5G channel"),
        (60e6, 15_000, "no 5G channel"),
        (20e6, 45_000, "subcarrier_spacing_hz = 45000 must be one of 15000, 30000, 60000"),
    ],
)
def test_what_the_table_lacks_is_refused(channel_hz: float, spacing_hz: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resource_blocks(channel_hz, spacing_hz)


def test_peak_rate_check_values() -> None:
    """Downlink 100 MHz, 4 layers of 256QAM: 2337.0 Mbit/s; uplink 20 MHz, 64QAM: 87.57."""
    downlink = peak_rate_bps(
        resource_blocks(100e6, 30_000), 30_000, bits_per_symbol=8, layers=4, overhead=0.14
    )
    uplink = peak_rate_bps(resource_blocks(20e6, 30_000), 30_000, bits_per_symbol=6)
    assert downlink == pytest.approx(2337.0e6, abs=0.05e6)
    assert uplink == pytest.approx(87.57e6, abs=0.005e6)


def test_the_demo_is_capped_at_the_highest_cqi() -> None:
    cap = load_scenario("demo").cell.max_spectral_efficiency
    assert cap == TOP_CQI_EFFICIENCY
    assert cap == pytest.approx(6 * 948 / 1024, abs=5e-5)
    # A block of 12 subcarriers carries 14 symbols in each 12 * 15 kHz ms: hence 14/15 of the cap.
    one_block_bps = peak_rate_bps(1, 30_000, bits_per_symbol=6, overhead=0.0)
    assert one_block_bps == pytest.approx(cap * block_hz(30_000) * 14 / 15, rel=1e-5)
