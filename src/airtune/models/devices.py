"""What a device can compute and hold: profiles, and FLOPs to seconds.

A profile is a sustained rate, ``effective_flops = peak_flops * utilisation``, and a memory.
What "peak" means differs by entry, and the default utilisation with it:

- GPUs (Jetson, Apple): the dense arithmetic peak. Fine-tuning reaches 0.15 to 0.35 of it: 0.25.
- CPUs known by HPL: a rate achieved on very large matrices, doubled from double to single
  precision. Fine-tuning multiplies much smaller ones: 0.5.
- CPUs known by LLM prefill: a rate achieved on the very matrices that the forward pass
  multiplies. The backward pass and the optimiser reach somewhat less: 0.8.

The two CPU shares were checked on two x86 cores with a LoRA step of a SmolLM2-shaped model
(4 x 160 tokens): 0.51 of the rate of a 2048 x 2048 matrix product, 0.85 of the forward pass's.

Marks in the sources: [V] read in the maker's or benchmark's own figures, [D] derived from
such a figure, [R] common knowledge not checked further. "GB" is 10^9 bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from airtune.encoding import read_text
from airtune.errors import InputError, did_you_mean
from airtune.scenario import DeviceSection

GPU_UTILISATION = 0.25
HPL_UTILISATION = 0.5
PREFILL_UTILISATION = 0.8


@dataclass(frozen=True)
class DeviceProfile:
    """One kind of device.

    Attributes:
        name: how scenarios call it.
        peak_flops: FLOP/s that `utilisation` is a share of.
        utilisation: share of it that fine-tuning reaches, in (0, 1].
        memory_bytes: bytes for the model, its activations and the optimiser together.
        power_w: W while it fine-tunes: measured where known, else the upper end of the maker's
            range; None if unknown.
        source: where the figures come from.
        idle_power_w: W while it does not compute, None if unknown (see `energy.py`).
    """

    name: str
    peak_flops: float
    utilisation: float
    memory_bytes: float
    power_w: float | None
    source: str
    idle_power_w: float | None = None

    @property
    def effective_flops(self) -> float:
        """FLOP/s that fine-tuning sustains."""
        return self.peak_flops * self.utilisation


_TABLE = (
    DeviceProfile(
        "jetson-orin-nano", 10e12, GPU_UTILISATION, 8e9, 11.15,
        "fp16 dense peak [D] from 40 sparse INT8 TOPS [V]; 8 GB, 68 GB/s [V]; 11.15 W while "
        "fine-tuning (KICS 2025) of 7-15 W [V]",
    ),
    DeviceProfile(
        "jetson-orin-nano-super", 16.7e12, GPU_UTILISATION, 8e9, 25.0,
        "fp16 dense peak [D] from 67 sparse INT8 TOPS [V]; 8 GB, 102 GB/s [V]; 7-25 W",
    ),
    DeviceProfile(
        "jetson-agx-orin", 42e12, GPU_UTILISATION, 64e9, 60.0,
        "fp16 dense peak [R/D]; 64 GB, 205 GB/s [R]; 15-60 W [V]",
    ),
    DeviceProfile(
        "jetson-xavier-nx", 1.69e12, GPU_UTILISATION, 16e9, 14.29,
        "1.69 TFLOP/s [V]; 16 GB; 14.29 W while fine-tuning (KICS 2025) of 20 W [V]",
    ),
    DeviceProfile(
        "raspberry-pi-5", 60.4e9, HPL_UTILISATION, 8e9, 11.0,
        "fp32, twice [D] the 30.2 GFLOP/s of HPL in fp64 [V]; 8 GB; 11 W [V]",
    ),
    DeviceProfile(
        "intel-n100", 125.8e9, HPL_UTILISATION, 16e9, 25.0,
        "fp32, twice [D] the 62.9 GFLOP/s of HPL in fp64 [V]; 16 GB; 25 W [V]",
    ),
    DeviceProfile(
        "apple-m4", 4.6e12, GPU_UTILISATION, 16e9, None,
        "fp32 peak of the GPU [V]; 16 GB",
    ),
    DeviceProfile(
        "laptop-cpu", 0.74e12, PREFILL_UTILISATION, 32e9, None,
        "i9-13900K, achieved on LLM prefill [D]; 32 GB",
    ),
    DeviceProfile(
        "jetson-nano", 236e9, 0.19, 4e9, 10.0,
        "fp32 peak of 128 cores at 921 MHz [D]; share [D] from 10.4-14.1 s a step of Gemma 3 270M "
        "(EdgeFlowerTune, 8 x 64 tokens, 4P FLOP a token) [V]; 4 GB; MAXN 10 W [R]",
    ),
    DeviceProfile(
        "phone-snapdragon-778g", 3.2e9, 1.0, 6e9, None,
        "achieved [D]: 167-174 s a step of Gemma 3 270M (EdgeFlowerTune, 8 x 64 tokens, 4P FLOP a "
        "token) [V]; 6 GB [R]",
    ),
)  # fmt: skip

PROFILES: Mapping[str, DeviceProfile] = MappingProxyType({entry.name: entry for entry in _TABLE})
"""The built-in device profiles, by name."""

_FIELDS = ("name", "effective_flops", "peak_flops", "utilisation", "memory_bytes", "power_w",
           "idle_power_w", "source", "steps")  # fmt: skip


def profile_of(section: DeviceSection) -> DeviceProfile:
    """Return the profile that a scenario's device names, with its overrides applied.

    `section.profile` is a built-in name or the path of a JSON profile (see `read_profile`);
    `section.utilisation` and `section.memory_bytes` replace the profile's own.

    Raises:
        InputError: the profile is neither, or its file is malformed.
    """
    named = PROFILES.get(section.profile)
    if named is None:
        path = Path(section.profile)
        if path.suffix != ".json" and not path.exists():
            hint = did_you_mean(section.profile, PROFILES)
            raise InputError(
                f"devices.profile = '{section.profile}' is neither a built-in profile nor a "
                f"JSON file: {hint}built in are {', '.join(PROFILES)}"
            )
        named = read_profile(path)
    if section.utilisation is not None:
        named = replace(named, utilisation=section.utilisation)
    if section.memory_bytes is not None:
        named = replace(named, memory_bytes=section.memory_bytes)
    return named


def read_profile(path: str | Path) -> DeviceProfile:
    """Read a device profile from a JSON file.

    One object with ``name``, ``memory_bytes``, and either ``effective_flops`` (measured on the
    device; it becomes the peak at utilisation 1) or ``peak_flops`` and ``utilisation``;
    ``power_w`` and ``source`` may be given too, and ``steps``, the single measurements of
    `airtune profile`, which are only kept for people to read.

    Raises:
        InputError: the file cannot be read, is not such an object, or a field is impossible.
    """
    values = _read_object(Path(path))
    unknown = [key for key in values if key not in _FIELDS]
    if unknown:
        raise InputError(f"{path}: unknown field '{unknown[0]}'; known: {', '.join(_FIELDS)}")
    for field in ("name", "source"):
        if field in values and not (isinstance(values[field], str) and values[field].strip()):
            raise InputError(f"{path}: {field} = {values[field]!r} must be a non-empty text")
    if "name" not in values:
        raise InputError(f"{path}: 'name' is missing")
    measured = "effective_flops" in values
    if measured and ("peak_flops" in values or "utilisation" in values):
        raise InputError(
            f"{path}: give either 'effective_flops' or 'peak_flops' and 'utilisation', not both"
        )
    utilisation = 1.0 if measured else _positive(path, values, "utilisation")
    if utilisation > 1:
        raise InputError(f"{path}: utilisation = {utilisation!r} must be above 0 and at most 1")
    powers = {
        field: _positive(path, values, field)
        for field in ("power_w", "idle_power_w")
        if values.get(field) is not None
    }
    return DeviceProfile(
        name=values["name"],
        peak_flops=_positive(path, values, "effective_flops" if measured else "peak_flops"),
        utilisation=utilisation,
        memory_bytes=_positive(path, values, "memory_bytes"),
        power_w=powers.get("power_w"),
        idle_power_w=powers.get("idle_power_w"),
        source=values.get("source", f"profile file {Path(path).name}"),
    )


def compute_s(flops: float, profile: DeviceProfile) -> float:
    """Return the seconds that a device needs: flops / effective_flops.

    Zero is allowed, for a part of a workload that is empty; ignored are memory bandwidth,
    start-up and throttling, which belong into the utilisation.

    Raises:
        ValueError: `flops` is negative or not finite.
    """
    if not (math.isfinite(flops) and flops >= 0):
        raise ValueError(f"flops = {flops!r} must be finite and not negative")
    return flops / profile.effective_flops


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_text(path))
    except OSError as error:
        raise InputError(f"cannot read device profile '{path}': {error.strerror}") from None
    except InputError as error:
        raise InputError(f"cannot read device profile '{path}': {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON, line {error.lineno}: {error.msg}") from None
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: a device profile is one JSON object, not {type(values).__name__}"
        )
    return values


def _positive(path: str | Path, values: Mapping[str, Any], field: str) -> float:
    if field not in values:
        raise InputError(f"{path}: '{field}' is missing")
    value = values[field]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and value > 0):
        raise InputError(f"{path}: {field} = {value!r} must be a positive, finite number")
    return float(value)
