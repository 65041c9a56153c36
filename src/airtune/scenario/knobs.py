"""What a plan may turn, by name."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BeforeValidator

Knob = Literal["bandwidth", "pruning", "steps", "rank", "bits", "absence"]
NAMES: tuple[str, ...] = get_args(Knob)


def _checked(value: Any) -> Any:
    """Refuse other names in one message; raises `ValueError`."""
    allowed = f"allowed is 'all' or a list of {', '.join(NAMES)}"
    if value is None or value == "all":
        return value
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r}: {allowed}")
    for name in value:
        if name not in NAMES:
            raise ValueError(f"{name!r} is no knob: {allowed}")
    return value


KNOWN = BeforeValidator(_checked)
