"""From a round's plan to what each client is told."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from airtune.assignment import Assignment, Mode, PlannedTimes
from airtune.planning.broadcast import Link
from airtune.planning.problem import Plan


def assignments_of(
    plan: Plan, modes: Sequence[Mode | None], link: Link, clients: Sequence[int]
) -> tuple[Assignment | None, ...]:
    """Return each client's assignment, None for one that sits the round out.

    Args:
        plan: of the round, K clients.
        modes: K modes, None for a client that sits out.
        link: the round's channel, and what each of the K clients needs of the broadcast.
        clients: K places in the scenario's order of clients.
    """
    listens = np.array([mode is not None for mode in modes])
    downlink_rate_bps, needed_s = link.rate_bps(listens), link.needed_s(listens)
    received_bits = link.received_bits(listens)
    return tuple(
        None
        if mode is None
        else Assignment(
            client=client,
            mode=mode,
            pruning=float(plan.pruning[k]),
            bandwidth_hz=float(plan.bandwidth_hz[k]),
            rate_bps=float(plan.rate_bps[k]),
            downlink_rate_bps=downlink_rate_bps,
            downlink_bits=float(received_bits[k]),
            planned=PlannedTimes(
                downlink_s=float(needed_s[k]),
                compute_s=float(plan.compute_s[k]),
                upload_s=float(plan.upload_s[k]),
                round_s=plan.round_latency_s,
            ),
        )
        for k, (client, mode) in enumerate(zip(clients, modes, strict=True))
    )
