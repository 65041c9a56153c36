"""Figures as people read them: few digits, a unit, and an en dash where there is none."""

from __future__ import annotations

import itertools
import math

NOTHING = "–"
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def digits(value: float | None, count: int = 3) -> str:
    """Return the value with `count` significant digits and thousands separators."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    value = float(f"{value:.{count - 1}e}")  # first, lest 9.996 be called 10.00
    places = max(0, count - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{places}f}"


def seconds(value: float | None) -> str:
    """Return a duration in seconds, or in hours from a day on."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if abs(value) >= 86_400:
        return f"{digits(value / 3600)} h"
    return f"{digits(value)} s"


def scaled(value: float | None, unit: str) -> str:
    """Return the value with an SI prefix, e.g. ``scaled(2.9e8, "bit")`` is "290 Mbit"."""
    if value is None or not math.isfinite(value):
        return NOTHING
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{digits(value / factor)} {prefix}{unit}"
    return f"{digits(value)} {unit}"


def loss(value: float | None) -> str:
    """Return a loss with three decimals: its differences are small."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.3f}"


def percent(value: float | None, count: int = 2) -> str:
    """Return a fraction as a percentage."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{digits(100 * value, count)} %"


def gap(value: float | None) -> str:
    """Return a gap to a bound as a percentage; below a millionth only that it is."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return "< 0.0001 %" if value < 1e-6 else percent(value)


def counted(count: int, noun: str) -> str:
    """Return "1 round" or "6 rounds"."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers within [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    rough = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(values: list[float]) -> list[str]:
    """Return the values with as many decimals as tell neighbours apart."""
    step = min((b - a for a, b in itertools.pairwise(values)), default=values[0] or 1)
    places = next((p for p in range(7) if abs(step * 10**p - round(step * 10**p)) < 1e-6), 6)
    return [f"{value:,.{places}f}" for value in values]
