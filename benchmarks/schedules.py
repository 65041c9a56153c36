"""Synchronous and asynchronous rounds on the same virtual clock, over the same channels and data.

    .venv/bin/python benchmarks/schedules.py --scenario tiny --rounds 12

Every schedule runs until the synchronous one's rounds are over on the virtual clock. Printed are, a
schedule each: merges, test loss at that time and the best on the way, uplink bits, joules, and the
mean and largest staleness. One seed says little: give several.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np

import airtune as at
from airtune.record import RoundRecord
from airtune.scenario import Scenario, load_scenario

SCHEDULES = {
    "synchronous": [],
    "fedbuff": ["schedule.kind=fedbuff"],
    "fedasync": ["schedule.kind=fedasync"],
    "tiers": ["schedule.kind=tiers"],
}
BASE = ["planning.method=bandwidth-only"]


def records_of(scenario: Scenario, until_s: float | None) -> Iterator[RoundRecord]:
    """Yield the rounds of a run: the scenario's, or those that end by a time."""
    with at.open_cell(scenario) as cell:
        state = at.begin(cell)
        while until_s is not None or state.round < scenario.rounds:
            state, record = at.step(cell, state)
            if until_s is not None and record.elapsed_s > until_s:
                return
            yield record


def row_of(name: str, records: Sequence[RoundRecord]) -> tuple[float, ...]:
    """Return merges, last and best loss, uplink Mbit, J, mean and largest staleness."""
    losses = [r.eval_loss for r in records if r.eval_loss is not None]
    late = [turn.staleness for r in records for turn in r.turns] or [0]
    joules = sum(np.nan if r.energy_j is None else r.energy_j for r in records)
    bits = sum(r.uplink_bits for r in records)
    return len(records), losses[-1], min(losses), bits / 1e6, joules, np.mean(late), max(late)


def main() -> None:
    """Run every schedule on every seed and print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", default="tiny")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    chosen = parser.parse_args()
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in SCHEDULES}
    for seed in chosen.seeds:
        until_s = None
        for name, settings in SCHEDULES.items():
            own = [*BASE, *chosen.overrides, *settings, f"seed={seed}", f"rounds={chosen.rounds}"]
            records = list(records_of(load_scenario(chosen.scenario, own), until_s))
            until_s = until_s or records[-1].elapsed_s
            rows[name].append(row_of(name, records))
    heading = "merges", "loss", "best loss", "uplink Mbit", "J", "staleness", "largest"
    print("| schedule | " + " | ".join(heading) + " |")
    print("| --- |" + " ---: |" * len(heading))
    for name, values in rows.items():
        mean = np.mean(values, axis=0)
        print(f"| `{name}` | " + " | ".join(f"{value:.3g}" for value in mean) + " |", flush=True)


if __name__ == "__main__":
    main()
