"""Where the devices are and what the air does to their signals in each round.

`place` draws once per run what stays (positions, line of sight, path loss, shadowing);
`draw` adds one round's fading, or the round's window of a trace, and gives a `ChannelState`.
"""

from airtune.channel.link import rate_bps
from airtune.channel.placement import Placement, place
from airtune.channel.state import ChannelState, broadcast_rate_bps, draw

__all__ = ["ChannelState", "Placement", "broadcast_rate_bps", "draw", "place", "rate_bps"]
