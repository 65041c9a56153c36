"""The cell that the planner's benchmarks are measured on."""

from __future__ import annotations

import numpy as np

from airtune.planning import PlanningProblem


def cell(clients: int, seed: int = 0, mhz_per_client: float = 2.0) -> PlanningProblem:
    """A cell as in the literature: 128.1 + 37.6·log10(d) dB, 8 dB shadowing, 23 dBm, Rayleigh.

    Devices from a laptop GPU to a single-board computer; the band grows with the clients, so that
    each size asks the same question. Fades below −13 dB are left out of the round (they would be
    one client's outage, not a plan).
    """
    rng = np.random.default_rng(seed)
    distance_km = np.sqrt(rng.uniform(0.02**2, 0.25**2, clients))
    loss_db = 128.1 + 37.6 * np.log10(distance_km) + rng.normal(0, 8, clients)
    fading = np.maximum(rng.exponential(1.0, clients), 0.05)
    snr_hz = 10 ** ((23 - loss_db + 174 - 5) / 10) * fading
    return PlanningProblem(
        bandwidth_hz=mhz_per_client * 1e6 * clients,
        kappa=0.6,
        names=tuple(map(str, range(clients))),
        weight=rng.gamma(3.0, size=clients),
        snr_hz=np.maximum(snr_hz, 1e6),
        downlink_s=np.full(clients, 0.2),
        compute_fixed_s=rng.uniform(0.2, 1.0, clients),
        compute_full_s=10 ** rng.uniform(0, 1.5, clients),
        payload_fixed_bits=np.full(clients, 1e5),
        payload_full_bits=rng.uniform(0.5, 1.5, clients) * 3e7,
        min_pruning=np.where(rng.random(clients) < 0.3, 0.2, 0.0),
        max_pruning=np.full(clients, 0.8),
    )
