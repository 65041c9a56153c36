"""Device profiles: the table, overrides, profile files, FLOPs to seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.errors import InputError
from airtune.models.devices import PROFILES, compute_s, profile_of, read_profile
from airtune.scenario import DeviceSection, builtin_scenarios, load_scenario

NAMES = {
    "jetson-orin-nano", "jetson-orin-nano-super", "jetson-agx-orin", "jetson-xavier-nx",
    "raspberry-pi-5", "intel-n100", "apple-m4", "laptop-cpu",
    "jetson-nano", "phone-snapdragon-778g",
}  # fmt: skip

MEASURED = {"name": "shed", "effective_flops": 3e10, "memory_bytes": 4e9}


def written(folder: Path, values: Any) -> Path:
    path = folder / "shed.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
    return path


def test_the_table_has_every_profile_with_its_source() -> None:
    assert set(PROFILES) == NAMES
    for name, profile in PROFILES.items():
        assert profile.name == name
        assert profile.source
        assert profile.peak_flops > 0
        assert 0.15 <= profile.utilisation <= 1
        assert profile.memory_bytes >= 4e9


def test_devices_rank_as_their_makers_say() -> None:
    speed = {name: profile.effective_flops for name, profile in PROFILES.items()}
    order = ["phone-snapdragon-778g", "raspberry-pi-5", "jetson-nano", "intel-n100",
             "jetson-xavier-nx", "laptop-cpu", "apple-m4",
             "jetson-orin-nano", "jetson-orin-nano-super", "jetson-agx-orin"]  # fmt: skip
    assert sorted(speed, key=lambda name: speed[name]) == order


def test_cpu_rates_that_were_achieved_are_used_at_half_or_more() -> None:
    """HPL counts fp64: single precision doubles it, the default utilisation takes half of that."""
    assert PROFILES["raspberry-pi-5"].effective_flops == pytest.approx(30.2e9)
    assert PROFILES["intel-n100"].effective_flops == pytest.approx(62.9e9)
    assert PROFILES["laptop-cpu"].effective_flops == pytest.approx(0.8 * 0.74e12)


@pytest.mark.parametrize(
    ("name", "least_s", "most_s"),
    [("jetson-nano", 10.4, 14.1), ("phone-snapdragon-778g", 167.0, 174.0)],
)
def test_a_measured_step_takes_as_long_as_published(
    name: str, least_s: float, most_s: float
) -> None:
    """Gemma 3 270M, 8 x 64 tokens, 4 FLOP a parameter and token (docs/energy.md)."""
    assert least_s <= compute_s(4 * 268e6 * 8 * 64, PROFILES[name]) <= most_s


def test_overrides_replace_the_profile_s_own() -> None:
    section = DeviceSection(profile="jetson-orin-nano", utilisation=0.5, memory_bytes=4e9)
    profile = profile_of(section)
    assert (profile.effective_flops, profile.memory_bytes) == (5e12, 4e9)
    assert profile_of(DeviceSection(profile="jetson-orin-nano")) is PROFILES["jetson-orin-nano"]


def test_every_built_in_scenario_names_known_devices() -> None:
    for name in builtin_scenarios():
        for device in load_scenario(name).client_devices:
            assert profile_of(device).effective_flops > 0


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'rasberry-pi-5'.*did you mean 'raspberry-pi-5'\?"):
        profile_of(DeviceSection(profile="rasberry-pi-5"))


def test_a_measured_profile_file(tmp_path: Path) -> None:
    profile = profile_of(DeviceSection(profile=str(written(tmp_path, MEASURED))))
    assert (profile.name, profile.effective_flops, profile.memory_bytes) == ("shed", 3e10, 4e9)
    assert profile.power_w is None
    assert "shed.json" in profile.source


def test_a_peak_profile_file(tmp_path: Path) -> None:
    values = {"name": "x", "peak_flops": 1e12, "utilisation": 0.3, "memory_bytes": 1e10,
              "power_w": 9, "source": "data sheet"}  # fmt: skip
    profile = read_profile(written(tmp_path, values))
    assert profile.effective_flops == pytest.approx(3e11)
    assert (profile.power_w, profile.source) == (9.0, "data sheet")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({k: v for k, v in MEASURED.items() if k != "name"}, "'name' is missing"),
        ({k: v for k, v in MEASURED.items() if k != "memory_bytes"}, "'memory_bytes' is missing"),
        ({"name": "x", "memory_bytes": 1e9}, "'utilisation' is missing"),
        ({"name": "x", "memory_bytes": 1e9, "utilisation": 0.2}, "'peak_flops' is missing"),
        (MEASURED | {"peak_flops": 1e12}, "either 'effective_flops' or 'peak_flops'"),
        (MEASURED | {"effective_flops": 0}, "effective_flops = 0 must be a positive"),
        (MEASURED | {"effective_flops": float("inf")}, "effective_flops = inf must be a positive"),
        (MEASURED | {"effective_flops": "fast"}, "effective_flops = 'fast' must be a positive"),
        (MEASURED | {"memory_bytes": True}, "memory_bytes = True must be a positive"),
        (MEASURED | {"memory_bytes": -1}, "memory_bytes = -1 must be a positive"),
        (MEASURED | {"power_w": 0}, "power_w = 0 must be a positive"),
        (MEASURED | {"power_w": -5}, "power_w = -5 must be a positive"),
        (MEASURED | {"name": " "}, "name = ' ' must be a non-empty text"),
        (MEASURED | {"memory": 1}, "unknown field 'memory'; known: name"),
        (
            {"name": "x", "peak_flops": 1e12, "utilisation": 1.5, "memory_bytes": 1e9},
            "utilisation = 1.5 must be above 0 and at most 1",
        ),
        ([MEASURED], "one JSON object, not list"),
        ('{"name": "x",', "not valid JSON, line 1"),
    ],
)
def test_a_malformed_profile_file_is_refused(tmp_path: Path, values: Any, message: str) -> None:
    path = written(tmp_path, values)
    with pytest.raises(InputError, match=message) as refusal:
        read_profile(path)
    assert str(path) in str(refusal.value)


def test_a_missing_profile_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read device profile .*none\.json"):
        profile_of(DeviceSection(profile=str(tmp_path / "none.json")))
    with pytest.raises(InputError, match="cannot read device profile"):
        profile_of(DeviceSection(profile=str(tmp_path)))


@given(st.floats(1e3, 1e18), st.sampled_from(sorted(NAMES)))
def test_seconds_are_flops_over_the_sustained_rate(flops: float, name: str) -> None:
    profile = PROFILES[name]
    seconds = compute_s(flops, profile)
    assert seconds * profile.peak_flops * profile.utilisation == pytest.approx(flops)
    assert compute_s(2 * flops, profile) == pytest.approx(2 * seconds)


@pytest.mark.parametrize("flops", [-1.0, float("nan"), float("inf")])
def test_impossible_flops_are_refused(flops: float) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        compute_s(flops, PROFILES["apple-m4"])
