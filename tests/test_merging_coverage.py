"""Entries that only some of a round's submodels hold: how far they move."""

from __future__ import annotations

import pytest
import torch

import airtune as at
from airtune.errors import InputError
from airtune.merging.contributions import Contribution
from airtune.merging.coverage import covered
from airtune.merging.functions import fedit, fedmp
from airtune.merging.rules import rule_of
from airtune.rounds.cell import merge

SERVER = {"x": torch.tensor([1.0, 1.0, 1.0, 1.0])}


def contribution(values: list[float], held: list[int], weight: float) -> Contribution:
    return Contribution(
        {"x": torch.tensor(values)}, {"x": torch.tensor(held, dtype=torch.bool)}, weight
    )


# Held by both, by the first (a quarter of the weight), by the second, by none.
PARTS = [
    contribution([2.0, 3.0, 0.0, 0.0], [1, 1, 0, 0], 1.0),
    contribution([4.0, 0.0, 5.0, 0.0], [1, 0, 1, 0], 3.0),
]


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (0.0, [3.5, 3.0, 5.0, 1.0]),
        (1.0, [3.5, 1.0 + 0.25 * 2.0, 1.0 + 0.75 * 4.0, 1.0]),
        (2.0, [3.5, 1.0 + 0.0625 * 2.0, 1.0 + 0.5625 * 4.0, 1.0]),
        (100.0, [3.5, 1.0, 1.0, 1.0]),
    ],
)
def test_a_change_counts_by_the_share_of_the_weight_that_holds_it(
    power: float, expected: list[float]
) -> None:
    moved = covered(SERVER, fedit(SERVER, PARTS), PARTS, power)
    torch.testing.assert_close(moved["x"], torch.tensor(expected))
    assert moved["x"].dtype == torch.float32


def test_power_one_is_fedmps_rule_where_all_weigh_alike() -> None:
    alike = [contribution(p.values["x"].tolist(), p.held["x"].tolist(), 7.0) for p in PARTS]
    moved = covered(SERVER, fedit(SERVER, alike), alike, 1.0)
    torch.testing.assert_close(moved["x"], fedmp(SERVER, alike)["x"])


def test_a_cell_merges_by_the_scenarios_power() -> None:
    settings = ["planning.method=pruning-only", "aggregation.rule=fedit"]
    moved = {}
    for power in (0, 1, 100):
        scenario = at.load_scenario("tiny", [*settings, f"aggregation.coverage_power={power}"])
        with at.open_cell(scenario) as cell:
            server = cell.engine.initial_adapter()
            name = next(iter(server))
            size = server[name].shape
            held = {key: torch.ones_like(value, dtype=torch.bool) for key, value in server.items()}
            half = {**held, name: torch.zeros(size, dtype=torch.bool)}
            new = {key: value + 1.0 for key, value in server.items()}
            parts = [Contribution(new, held, 1.0), Contribution(new, half, 1.0)]
            merged = merge(cell, server, parts)
            moved[power] = [float((merged[key] - server[key]).mean()) for key in server][:2]
    assert moved[0] == pytest.approx([1.0, 1.0])
    assert moved[1] == pytest.approx([0.5, 1.0])
    assert moved[100] == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("rule", ["flora", "flexlora"])
def test_a_rule_with_new_factors_every_round_has_no_change_of_an_entry(rule: str) -> None:
    settings = [f"aggregation.rule={rule}", "aggregation.coverage_power=1"]
    with pytest.raises(InputError, match=r"coverage_power = 1 cannot go with aggregation\.rule"):
        rule_of(at.load_scenario("tiny", settings))


@pytest.mark.parametrize("power", [-1, 101, "inf"])
def test_a_power_out_of_range_is_refused(power: object) -> None:
    with pytest.raises(InputError, match=r"aggregation\.coverage_power"):
        at.load_scenario("tiny", [f"aggregation.coverage_power={power}"])
