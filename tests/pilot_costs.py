"""Costs of the knobs as a pilot would have measured them, for plans in tests."""

from __future__ import annotations

from airtune.planning.costs import KnobCosts, Measured


def pilot_costs(
    *,
    absent: float,
    rank: dict[int, float],
    steps: dict[float, float],
    pruning: dict[float, float],
) -> KnobCosts:
    """Return costs by value of each knob; of few bits always the same."""

    def of(values: dict) -> dict:
        return {key: Measured(cost=value) for key, value in values.items()}

    return KnobCosts(
        rank=of(rank),
        bits=of({16: 0.0, 8: 0.0, 4: 0.02, 2: 0.3}),
        steps=of(steps),
        absent=Measured(cost=absent),
        pruning=of(pruning),
        provenance={"made": "for a test"},
    )
