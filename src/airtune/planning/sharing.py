"""The uplink band where rounds are not synchronous: shared by the clients that send just then."""

from __future__ import annotations

import numpy as np

from airtune.planning.bcd import bandwidth_block
from airtune.planning.problem import Array, PlanningProblem


def shared_bands(
    bandwidth_hz: float, snr_hz: Array, efficiency: Array, left_bits: Array, *, equal: bool
) -> Array:
    """Return the bands of the K clients that send now, Hz; their sum is the uplink's band.

    equal: B/K each. Otherwise argmin max_k left_k/r(b_k) subject to sum b_k <= B: what is still to
    be sent would end together if nobody else began.

    Args:
        bandwidth_hz: B.
        snr_hz: (K,) received power over noise density.
        efficiency: (K,) bit/s/Hz, infinity where there is no cap.
        left_bits: (K,) what each has still to send, above 0.
        equal: split the band alike.
    """
    clients = left_bits.size
    if equal or clients == 1:
        return np.full(clients, bandwidth_hz / clients)
    zeros, ones = np.zeros(clients), np.ones(clients)
    problem = PlanningProblem(
        bandwidth_hz=bandwidth_hz,
        kappa=0.0,
        names=tuple(str(k) for k in range(clients)),
        weight=ones,
        snr_hz=snr_hz,
        downlink_s=zeros,
        compute_fixed_s=zeros,
        compute_full_s=zeros,
        payload_fixed_bits=left_bits,
        payload_full_bits=zeros,
        min_pruning=zeros,
        max_pruning=zeros,
        max_spectral_efficiency=efficiency,
    )
    return bandwidth_block(problem, zeros, left_bits)[1]
