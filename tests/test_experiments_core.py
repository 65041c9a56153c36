"""The tables of the rows of the first experiment, and the scenarios that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from airtune.scenario import load_scenario
from scripts import script

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"


tables = script(EXPERIMENTS / "core" / "tables.py")


def made(
    method: str,
    losses: Sequence[float],
    round_s: float = 10.0,
    bits: float = 8.0,
    seed: int = 0,
    reached: int | None = None,
) -> dict[str, Any]:
    """A row with these losses, the first before training, of rounds that are alike."""
    count = range(len(losses))
    return {
        "task": "gsm8k",
        "method": method,
        "seed": seed,
        "rounds": len(losses) - 1,
        "final_loss": losses[-1],
        "worst_client_loss": None if method == "bcd" else 2.0,
        "time_to_target_s": None if reached is None else round_s * reached,
        "uplink_bits_to_target": None if reached is None else bits * reached,
        "curve": {
            "loss": list(losses),
            "elapsed_s": [round_s * k for k in count],
            "uplink_bits": [bits * k for k in count],
            "flops": [1e12 * k for k in count],
        },
    }


def by_name(table: str) -> dict[str, str]:
    """The lines of a table by their method."""
    return {line.split("`")[1]: line for line in table.splitlines() if "`" in line}


def test_a_table_gives_shares_of_fedits_and_of_the_best_baselines_totals() -> None:
    rows = [
        made("fedit", [3.0, 2.0, 1.0], 10.0, 8.0, reached=2),
        # The same losses in less time: of equals it sets the target.
        made("bandwidth-only", [3.0, 2.0, 1.0], 5.0, 8.0, reached=2),
        # Lower, but no baseline: it sets no target.
        made("flexlora-4-bit", [3.0, 2.0, 0.5], 10.0, 1.0, reached=2),
        made("exact", [3.0, 2.0, 1.1], 5.0, 7.0),
        made("exact-combined", [3.0, 1.5, 0.9, 0.4], 2.0, 2.0, reached=2),
        made("bcd", [3.0, 2.0, 1.1], 6.0, 7.0),
    ]
    lines = by_name(tables.table(rows, "gsm8k"))
    assert (
        "| 1 | 3 | 0.400 | -0.600 | 2.000 | 0.30 | 0.38 | 3.0 | 1 of 1 | 0.40 | 0.25 |"
        in (lines["exact-combined"])
    )
    assert "| 2 | 1.100 | +0.100 | – | 0.60 |" in lines["bcd"]
    assert "0 of 1 | – | –" in lines["exact"]


def test_a_baseline_that_is_not_on_every_seed_is_not_the_best() -> None:
    rows = [
        made("fedit", [3.0, 1.0], seed=0, reached=1),
        made("fedit", [3.0, 1.3], seed=1, reached=1),
        # Luckier on seed 0, worse in mean.
        made("flexlora", [3.0, 0.5], seed=0, reached=1),
        made("flexlora", [3.0, 2.0], seed=1),
        made("flora", [3.0, 0.1], seed=0, reached=1),
        made("exact", [3.0, 0.9], seed=0, reached=1),
        made("exact", [3.0, 1.4], seed=1),
    ]
    lines = by_name(tables.table(rows, "gsm8k"))
    assert "1 of 2 | 1.00 | 1.00 |" in lines["exact"]
    assert "2 of 2 | 1.00 | 1.00 |" in lines["fedit"]


def test_the_short_table_has_means_over_seeds_and_shares_of_fedit() -> None:
    rows = [
        made("fedit", [3.0, 1.0], 10.0, 8.0, seed=0),
        made("fedit", [3.0, 2.0], 20.0, 8.0, seed=1),
        made("exact", [3.0, 2.0, 1.5], 2.0, 2.0, seed=0),
        made("exact", [3.0, 2.0, 1.6], 2.0, 4.0, seed=1),
    ]
    heads, _, *lines = tables.short_table(rows).splitlines()
    assert heads == "| method | what it does | GSM8K: test loss | time | uplink |"
    assert [line.split("`")[1] for line in lines] == list(tables.SHORT_METHODS)
    shown = by_name(tables.short_table(rows))
    assert shown["fedit"].endswith("| 1.500 | 1.00 | 1.00 |")
    assert shown["exact"].endswith("| 1.550 | 0.30 | 0.75 |")
    assert shown["in-turn"].endswith("| – | – | – |")


def test_shares_of_other_cells_are_of_fedits_own_there() -> None:
    def run(
        cell: str, method: str, seed: int, loss: float, time: float | None
    ) -> dict[str, object]:
        return {
            "cell": cell,
            "method": method,
            "seed": seed,
            "final_loss": loss,
            "time_to_target_s": time,
            "uplink_bits_to_target": None if time is None else time / 2,
            "curve": {"elapsed_s": [0.0, 5.0, 10.0 if method == "fedit" else 6.0]},
        }

    lines = tables.cells_table(
        [
            run("far", "fedit", 0, 1.0, 10.0),
            run("far", "fedit", 1, 2.0, 8.0),
            run("far", "exact", 0, 1.5, 2.0),
            run("far", "exact", 1, 1.9, 4.0),
            run("near", "fedit", 0, 1.0, 10.0),
            run("near", "fedit", 1, 1.0, 10.0),
            run("near", "exact", 0, 1.1, None),
            run("near", "exact", 1, 1.1, 4.0),
        ]
    ).splitlines()
    assert lines[2:] == [
        "| far | `exact` | +0.200 | 0.60 | 0.35 | 0.35 |",
        "| near | `exact` | +0.100 | 0.60 | – | – |",
    ]


def test_the_document_holds_what_the_committed_rows_hold() -> None:
    # Out of date? `python experiments/core/tables.py` writes them.
    text = tables.DOCUMENT.read_text()
    assert tables.with_tables(text) == text
    assert all(f"<!-- {name} -->" in text for name in ("results", "gsm8k", "yahoo", "cells"))
    assert "old" not in tables.with_tables("<!-- cells -->\nold\n<!-- end -->\n")
    assert len(tables.short_table(tables.rows_of("results")).splitlines()) <= 2 + 6


@pytest.mark.parametrize("name", ["gsm8k", "yahoo"])
def test_the_core_is_eight_clients_with_uneven_labels(name: str) -> None:
    scenario = load_scenario(EXPERIMENTS / "core" / f"{name}.toml")
    assert len(scenario.client_names) == 8
    assert scenario.partition.alpha == 0.3
