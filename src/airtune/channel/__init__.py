"""Where the devices are and what the air does to their signals in each round.

`place` draws once per run what stays (positions, line of sight, path loss, shadowing);
`draw` adds one round by the cell's channel model (fading, a row of a table, a model of your own),
or the round's window of a trace, and gives a `ChannelState`.

What reads a scenario is loaded when first used: planning a problem needs the rate formula alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airtune.channel.rate import rate_of_band
from airtune.channel.state import ChannelState

if TYPE_CHECKING:
    from airtune.channel.drawn import draw
    from airtune.channel.models import CHANNEL_MODELS, channel_model, model_name
    from airtune.channel.placement import Placement, place

_HOME = {
    "CHANNEL_MODELS": "models",
    "Placement": "placement",
    "channel_model": "models",
    "draw": "drawn",
    "model_name": "models",
    "place": "placement",
}

__all__ = [
    "CHANNEL_MODELS",
    "ChannelState",
    "Placement",
    "channel_model",
    "draw",
    "model_name",
    "place",
    "rate_of_band",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'airtune.channel' has no attribute '{name}'")
    return getattr(import_module(f"airtune.channel.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
