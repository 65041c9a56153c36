"""Explicit randomness: every draw has a generator of its own, named by what it is for.

A method, a client or a resumed run never shifts another's draws, because no generator is
shared: the stream depends only on (seed, purpose, round, client).
"""

from __future__ import annotations

import hashlib

import numpy as np


def _sequence(seed: int, purpose: str, round: int, client: int) -> np.random.SeedSequence:
    # A digest, not hash(): Python's string hash changes from one process to the next.
    digest = hashlib.sha256(purpose.encode()).digest()
    return np.random.SeedSequence([seed, int.from_bytes(digest[:8], "little"), round, client])


def generator(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> np.random.Generator:
    """Return the NumPy generator of one purpose, e.g. ``generator(0, "fading", round=3)``.

    Args:
        seed: the scenario's seed, non-negative.
        purpose: what the draws are for; different purposes are independent streams.
        round: the round the draws belong to, 0 for what is drawn once.
        client: the client the draws belong to, 0 for what is shared.
    """
    return np.random.default_rng(_sequence(seed, purpose, round, client))


def derived_seed(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit integer seed of one purpose, for libraries that want a number (torch)."""
    state = _sequence(seed, purpose, round, client).generate_state(2, np.uint32)
    return int(state[0]) | (int(state[1] & 0x7FFFFFFF) << 32)
