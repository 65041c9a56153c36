"""Small parts of the merging rules by hand: sums in float64, completed factors, refusals."""

from __future__ import annotations

import pytest
import torch

from airtune.errors import InputError
from airtune.merging.averages import product_norm
from airtune.merging.contributions import Contribution
from airtune.merging.functions import merge
from airtune.merging.products import _completed, _with_identity
from airtune.merging.rules import MERGING, check_deployable, merging_rule, rule_of
from airtune.plugins.registry import added, added_since, remove
from airtune.scenario import Scenario, load_scenario

A, B = "x.lora_A.weight", "x.lora_B.weight"
Tensors = dict[str, torch.Tensor]


def adapter(b: float, dtype: torch.dtype = torch.float64) -> Tensors:
    return {A: torch.ones(1, 1, dtype=dtype), B: torch.full((1, 1), b, dtype=dtype)}


def holding(values: Tensors, weight: float = 1.0) -> Contribution:
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    return Contribution(values, held, weight=weight, steps=1)


@pytest.mark.parametrize("rule", ["fedit", "heterofl", "fedmp", "fedspallm"])
def test_what_float32_would_round_away_is_summed(rule: str) -> None:
    parts = [holding(adapter(value)) for value in (1e9, 1.0, -1e9)]
    assert merge(rule, adapter(0.0), parts)[B].item() == pytest.approx(1 / 3, rel=1e-6)


def test_weights_are_not_rounded_to_float32() -> None:
    parts = [holding(adapter(0.0), weight=2.0**25 + 1), holding(adapter(1.0), weight=1.0)]
    assert merge("fedit", adapter(0.0), parts)[B].item() == 1 / (2.0**25 + 2)


def test_fedspallm_does_not_weigh() -> None:
    parts = [holding(adapter(0.0), weight=1.0), holding(adapter(1.0), weight=3.0)]
    assert merge("fedspallm", adapter(0.0), parts)[B].item() == 0.5
    assert merge("fedit", adapter(0.0), parts)[B].item() == 0.75


def test_hetlora_of_untrained_clients_weighs_by_examples() -> None:
    first, second = adapter(0.0), adapter(0.0)
    second[A] = torch.full((1, 1), 5.0, dtype=torch.float64)
    merged = merge(
        "hetlora", adapter(0.0), [holding(first, weight=1.0), holding(second, weight=3.0)]
    )
    assert merged[A].item() == 4.0
    # Norms of 0 and 1 are norms, also where they sum to 1.
    merged = merge(
        "hetlora", adapter(0.0), [holding(adapter(0.0), weight=9.0), holding(adapter(1.0))]
    )
    assert merged[B].item() == 1.0


def test_the_norm_of_large_factors_is_finite() -> None:
    large = {name: value * 1e25 for name, value in adapter(1.0, torch.float32).items()}
    assert product_norm(large) == pytest.approx(1e50, rel=1e-6)


def held_corner(shape: tuple[int, int], rows: int, columns: int) -> torch.Tensor:
    held = torch.zeros(shape, dtype=torch.bool)
    held[:rows, :columns] = True
    return held


def test_units_that_a_client_lacks_have_the_servers_values_in_its_ranks_alone() -> None:
    server = {A: torch.full((3, 5), 2.0), B: torch.full((4, 3), 2.0)}
    values = {A: torch.full((3, 5), 7.0), B: torch.full((4, 3), 7.0)}
    values[A][2], values[B][:, 2] = 0.0, 0.0  # rank 2 of 3, zero-padded
    held = {A: held_corner((3, 5), 2, 4), B: held_corner((4, 3), 2, 2)}
    one = Contribution(values, held, weight=1.0, steps=1)
    a, b = _completed(one, server, A), _completed(one, server, B)
    assert a.dtype == b.dtype == torch.float64
    assert a.tolist() == [[7, 7, 7, 7, 2], [7, 7, 7, 7, 2], [0, 0, 0, 0, 0]]
    assert b.tolist() == [[7, 7, 0], [7, 7, 0], [2, 2, 0], [2, 2, 0]]


def test_a_layer_left_out_whole_is_the_servers() -> None:
    server = {A: torch.full((3, 5), 2.0), B: torch.full((4, 3), 2.0)}
    held = {A: held_corner((3, 5), 0, 0), B: held_corner((4, 3), 0, 0)}
    one = Contribution({A: torch.zeros(3, 5), B: torch.zeros(4, 3)}, held, weight=1.0, steps=1)
    assert torch.equal(_completed(one, server, A), server[A].double())
    assert torch.equal(_completed(one, server, B), server[B].double())


def test_factors_with_an_identity_keep_their_precision() -> None:
    rows, columns = torch.ones(4, 2), torch.ones(3, 4)
    assert {factor.dtype for factor in _with_identity(rows, columns, 2)} == {torch.float32}


def test_a_rule_that_fails_is_named() -> None:
    before = added()

    @merging_rule("failing-rule", description="fails")
    def failing(server: Tensors, contributions: object) -> Tensors:
        raise ValueError("no reason")

    try:
        with pytest.raises(InputError, match="merging rule 'failing-rule'"):
            merge("failing-rule", adapter(0.0), [holding(adapter(1.0))])
    finally:
        remove(added_since(before))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cell.csi_error_db=2", "cell.csi_error_db = 2"),
        ("cell.outage_probability=0.1", "cell.outage_probability = 0.1"),
        ("participation.deadline_slack=1.5", "participation.deadline_slack = 1.5"),
        ("participation.availability=there.csv", "participation.availability = 'there.csv'"),
    ],
)
def test_what_is_simulated_alone_is_refused_on_devices(setting: str, said: str) -> None:
    scenario = load_scenario("tiny", [setting])
    with pytest.raises(InputError) as refusal:
        check_deployable(scenario)
    line = str(refusal.value)
    assert line.startswith(said)
    assert line.endswith("is for simulation only: real devices are away and late by themselves")


def test_unbiased_weights_need_an_average_by_weights() -> None:
    def unbiased(rule: str) -> Scenario:
        settings = [
            "participation.cohort=2",
            "participation.weights=inclusion",
            f"aggregation.rule={rule}",
        ]
        return load_scenario("tiny", settings)

    assert rule_of(unbiased("fedit")).weighs
    with pytest.raises(InputError) as refusal:
        rule_of(unbiased("hetlora"))
    allowed = ", ".join(name for name, rule in MERGING.items() if rule.weighs)
    assert str(refusal.value) == (
        "participation.weights = 'inclusion' with aggregation.rule = 'hetlora', which is no "
        f"average by weights; allowed: {allowed}"
    )
    assert "fedit" in allowed.split(", ")
