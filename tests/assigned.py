"""Modes and assignments for tests that make their own."""

from __future__ import annotations

from airtune.assignment import Assignment, Mode, PlannedTimes

TIMES = PlannedTimes(downlink_s=1.0, compute_s=1.0, upload_s=1.0, round_s=3.0)


def mode(
    rank: int = 8, *, steps: int = 1, bits: int = 16, scale: int = 0, freezes_a: bool = False
) -> Mode:
    return Mode(
        local_steps=steps,
        rank=rank,
        bits_per_value=bits,
        bits_per_scale=scale,
        freezes_a=freezes_a,
    )


def assignment(client: int, how: Mode, *, pruning: float = 0.0) -> Assignment:
    return Assignment(
        client=client,
        mode=how,
        pruning=pruning,
        bandwidth_hz=1e6,
        rate_bps=1e6,
        downlink_rate_bps=1e6,
        downlink_bits=1e6,
        planned=TIMES,
    )
