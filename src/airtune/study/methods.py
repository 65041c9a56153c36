"""The shipped sets of methods, and the ranks that slower devices get."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from airtune.models.devices import profile_of
from airtune.scenario import Scenario
from airtune.study.schema import StudyMethod

RANK_SHARES = ((0.5, 1.0), (0.1, 0.5), (0.0, 0.25))
"""From this share of the fastest device's speed on, a device gets this share of the rank."""


@cache
def shipped_sets() -> dict[str, dict[str, StudyMethod]]:
    """Return `published`, `rivals`, `joint`, `ablations`, `knobs`: each set with its methods."""
    text = (resources.files("airtune.study") / "methods.toml").read_text(encoding="utf-8")
    return {
        name: {one: _method(values) for one, values in methods.items()}
        for name, methods in tomllib.loads(text).items()
    }


def _method(values: Mapping[str, Any]) -> StudyMethod:
    settings = {
        f"{section}.{key}": value
        for section, keys in values.get("set", {}).items()
        for key, value in keys.items()
    }
    return StudyMethod(**{**values, "set": settings})


def rank_settings(scenario: Scenario) -> dict[str, Any]:
    """Give slower devices lower ranks, as HetLoRA, FLoRA and FlexLoRA are made for."""
    speeds = [profile_of(device).effective_flops for device in scenario.devices]
    settings = {}
    for index, speed in enumerate(speeds):
        share = next(share for least, share in RANK_SHARES if speed >= least * max(speeds))
        rank = max(1, round(share * scenario.training.lora_rank))
        settings[f"devices.{index}.lora_rank"] = rank
    return settings
