"""One round's channel: what the planner is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airtune.units import FloatArray


@dataclass(frozen=True, eq=False)
class ChannelState:
    """The channel of one round, constant until the next.

    The uplink rate of client k in a band b is `rate_of_band(b, snr_hz[k],
    max_spectral_efficiency[k])`.

    Attributes:
        snr_hz: (K,) received power over noise density on the uplink, p g/(N0 F gap), Hz.
        max_spectral_efficiency: (K,) bit/s/Hz, infinite where there is no cap.
        downlink_rate_bps: (K,) what each client could receive over the whole downlink, bit/s.
        has_snr: (K,) whether `snr_hz` is a received power. False where a rate was recorded and no
            power (a trace, a table of rates): the rate over the uplink band is then the cap, and
            `snr_hz` is a number so large that this cap alone decides. None: all have one.
    """

    snr_hz: FloatArray
    max_spectral_efficiency: FloatArray
    downlink_rate_bps: FloatArray
    has_snr: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if self.has_snr is None:
            object.__setattr__(self, "has_snr", np.ones(len(self.snr_hz), dtype=bool))
        for array in (self.snr_hz, self.max_spectral_efficiency, self.downlink_rate_bps):
            array.flags.writeable = False

    def of(self, clients: Sequence[int] | NDArray[np.intp]) -> ChannelState:
        """Return the channel of these clients alone, in their order."""
        assert self.has_snr is not None
        at = np.asarray(clients, dtype=np.intp)
        return ChannelState(
            self.snr_hz[at],
            self.max_spectral_efficiency[at],
            self.downlink_rate_bps[at],
            self.has_snr[at],
        )

    def received_snr_hz(self, client: int) -> float | None:
        """Return a client's received power over noise density, Hz; None where it has none."""
        assert self.has_snr is not None
        return float(self.snr_hz[client]) if self.has_snr[client] else None
