"""Where the devices are and what the air does to their signals in each round.

`place` draws once per run what stays (positions, line of sight, path loss, shadowing);
`draw` adds one round by the cell's channel model (fading, a row of a table, a model of your own),
or the round's window of a trace, and gives a `ChannelState`.
"""

from airtune.channel.drawn import draw
from airtune.channel.models import CHANNEL_MODELS, channel_model, model_name
from airtune.channel.placement import Placement, place
from airtune.channel.rate import rate_of_band
from airtune.channel.state import ChannelState, broadcast_rate_bps

__all__ = [
    "CHANNEL_MODELS",
    "ChannelState",
    "Placement",
    "broadcast_rate_bps",
    "channel_model",
    "draw",
    "model_name",
    "place",
    "rate_of_band",
]
