"""Entries that only some of a round's submodels hold: how far they move."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import airtune as at
from airtune.errors import InputError
from airtune.merging.contributions import Contribution
from airtune.merging.coverage import covered
from airtune.merging.functions import fedit, fedmp
from airtune.merging.rules import rule_of
from airtune.rounds.cell import merge

NAME = "block.up.lora_B.weight"
SERVER = {NAME: torch.tensor([[1.0], [1.0], [1.0], [1.0]])}


def contribution(values: list[float], held: list[int], weight: float) -> Contribution:
    has = torch.tensor(held, dtype=torch.bool)[:, None]
    return Contribution({NAME: torch.tensor(values)[:, None]}, {NAME: has}, weight)


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
    torch.testing.assert_close(moved[NAME][:, 0], torch.tensor(expected))
    assert moved[NAME].dtype == torch.float32


def test_power_one_is_fedmps_rule_where_all_weigh_alike() -> None:
    alike = [replace(part, weight=7.0) for part in PARTS]
    moved = covered(SERVER, fedit(SERVER, alike), alike, 1.0)
    torch.testing.assert_close(moved[NAME], fedmp(SERVER, alike)[NAME])


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


def test_weights_by_inclusion_scale_what_coverage_leaves_of_a_change() -> None:
    settings = ["planning.method=pruning-only", "aggregation.rule=fedit",
                "participation.cohort=2", "participation.weights=inclusion"]  # fmt: skip
    scenario = at.load_scenario("tiny", [*settings, "aggregation.coverage_power=2"])
    with at.open_cell(scenario) as cell:
        merged = merge(cell, SERVER, PARTS)
    # Weights 1 and 3: their sum, 4, times what the average with this power moves.
    moves = torch.tensor([2.5, 0.0625 * 2.0, 0.5625 * 4.0, 0.0])
    torch.testing.assert_close(merged[NAME][:, 0], 1.0 + 4.0 * moves)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["aggregation.rule=flora"], "no average by weights; allowed: fedit, ffa-lora, heterofl"),
        (["aggregation.rule=flexlora"], "no average by weights"),
        (["aggregation.rule=hetlora"], "no average by weights"),
        (["aggregation.rule=fedmp"], "no average by weights"),
        (["schedule.kind=fedbuff"], "schedule.kind = 'fedbuff'"),
        (["schedule.kind=fedasync"], "schedule.kind = 'fedasync'"),
        (["aggregation.server_optimizer=adam"], "server_optimizer = 'adam'"),
    ],
)
def test_what_it_cannot_go_with_is_refused(settings: list[str], said: str) -> None:
    scenario = at.load_scenario("tiny", ["aggregation.coverage_power=1", *settings])
    with pytest.raises(
        InputError, match=r"aggregation\.coverage_power = 1 cannot go with"
    ) as refusal:
        rule_of(scenario)
    assert said in str(refusal.value)


def test_a_rank_that_some_do_not_train_moves_by_the_mean_of_those_that_do() -> None:
    # One client trains rank 1 of 2; the units are the columns of A and the rows of B.
    server = {"m.lora_A.weight": torch.zeros(2, 3), "m.lora_B.weight": torch.zeros(3, 2)}
    whole = {name: torch.ones_like(value) for name, value in server.items()}
    held = {name: value.bool() for name, value in whole.items()}
    low = {name: mask.clone() for name, mask in held.items()}
    low["m.lora_A.weight"][1] = False
    low["m.lora_B.weight"][:, 1] = False
    low["m.lora_B.weight"][2] = False  # and it lacks the last unit
    parts = [Contribution(whole, held, 1.0), Contribution(whole, low, 1.0)]
    moved = covered(server, fedit(server, parts), parts, 2.0)
    torch.testing.assert_close(moved["m.lora_A.weight"], torch.ones(2, 3))
    torch.testing.assert_close(
        moved["m.lora_B.weight"], torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.25, 0.25]])
    )


@pytest.mark.parametrize("power", [-1, 1e7, "inf"])
def test_a_power_out_of_range_is_refused(power: object) -> None:
    with pytest.raises(InputError, match=r"aggregation\.coverage_power"):
        at.load_scenario("tiny", [f"aggregation.coverage_power={power}"])
