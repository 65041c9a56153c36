"""What is said of a bad update and of a bad scenario, to the letter; and small parts by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from airtune.adapters.names import leading, padded, pairs, rank_of, units_held
from airtune.errors import InputError
from airtune.merging.averages import product_norm
from airtune.merging.contributions import Contribution, fault_of, normalised
from airtune.merging.functions import merge
from airtune.merging.products import _with_identity, flora
from airtune.merging.rules import (
    MERGING,
    check_deployable,
    merging_rule,
    normalizes_steps,
    rule_of,
)
from airtune.scenario import load_scenario

A, B = "x.lora_A.weight", "x.lora_B.weight"
Tensors = dict[str, torch.Tensor]


def entries(count: int) -> Tensors:
    return {f"t{k}": torch.zeros(2, 3) for k in range(count)}


def expected(count: int) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(entries(count), (2, 3))


def only(made: Tensors, *names: str) -> Tensors:
    return {name: value for name, value in made.items() if name not in names}


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (entries(3), None),
        (only(entries(3), "t1"), "rejected: wrong keys (1 missing, 0 unknown); missing t1"),
        (
            only(entries(6), "t0", "t2", "t3", "t5") | {"n": torch.zeros(1)},
            "rejected: wrong keys (4 missing, 1 unknown); missing t0, t2, t3, …; unknown n",
        ),
        (
            only(entries(5), "t4", "t2", "t3"),
            "rejected: wrong keys (3 missing, 0 unknown); missing t2, t3, t4",
        ),
        (
            entries(3) | {"t1": torch.zeros(3, 2)},
            "rejected: wrong shape of t1: (3, 2), not (2, 3)",
        ),
        (
            entries(3) | {"t1": torch.zeros(1), "t2": torch.zeros(1)},
            "rejected: wrong shape of t1: (1,), not (2, 3) and 1 more of 3 tensors; also t2",
        ),
        (entries(2) | {"t1": torch.full((2, 3), math.nan)}, "rejected: not finite: t1"),
    ],
)
def test_a_bad_update_is_described(update: Tensors, said: str | None) -> None:
    count = 6 if said and "t5" not in update and "unknown n" in said else None
    count = count or (5 if said and "t2, t3, t4" in said else 2 if said and "nite" in said else 3)
    assert fault_of(update, expected(count), 1.0) == said


def test_only_averages_by_weights_are_normalised_by_default() -> None:
    planned = ["planning.knobs=all", "planning.method=exact"]
    assert normalizes_steps(load_scenario("tiny", planned))
    for rule, entry in MERGING.items():
        found = normalizes_steps(load_scenario("tiny", [*planned, f"aggregation.rule={rule}"]))
        assert found == entry.weighs, rule
    assert {name for name, entry in MERGING.items() if entry.weighs} >= {"fedit", "heterofl"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["participation.rule=partial-fednova", "aggregation.normalize_steps=false"],
            "normalize_steps = false contradicts",
        ),
        (
            ["participation.weights=inclusion", "aggregation.normalize_steps=true"],
            "normalize_steps = true cannot be combined with participation.weights = 'inclusion'",
        ),
        (
            ["schedule.kind=fedbuff", "aggregation.normalize_steps=true"],
            "aggregation.normalize_steps = true cannot be combined with schedule.kind",
        ),
    ],
)
def test_where_steps_cannot_be_normalised_it_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_scenario("tiny", settings)


def test_weights_by_inclusion_leave_steps_as_they_are() -> None:
    planned = ['planning.knobs=["steps"]', "planning.method=exact", "participation.cohort=2"]
    assert normalizes_steps(load_scenario("tiny", planned))
    drawn = [*planned, "participation.weights=inclusion"]
    assert not normalizes_steps(load_scenario("tiny", drawn))


def test_a_loss_that_is_kept_back_is_no_fault_and_one_that_is_not_finite_is() -> None:
    assert fault_of(entries(1), expected(1), None) is None
    said = "rejected: training loss is not finite"
    assert fault_of(entries(1), expected(1), math.inf) == said


def server() -> Tensors:
    source = torch.Generator().manual_seed(3)
    return {
        B: torch.randn(4, 2, generator=source),
        A: torch.randn(2, 5, generator=source),
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: [], "it returned list; allowed: a dict of tensors, as the server's"),
        (lambda s: {A: s[A]}, "wrong names (1 missing, 0 unknown); allowed: the server's"),
        (lambda s: {**s, "n": s[A]}, "wrong names (0 missing, 1 unknown); allowed: the server's"),
        (lambda s: {**s, B: None}, f"{B} is not a matrix (a tensor of two dimensions)"),
        (lambda s: {**s, B: torch.zeros(4)}, f"{B} is not a matrix (a tensor of two dimensions)"),
        (lambda s: {**s, B: torch.zeros(4, 3)}, f"wrong shape of {B}: (4, 3), not (4, 2)"),
        (lambda s: {**s, A: torch.zeros(3, 5)}, f"wrong shape of {A}: (3, 5), not (2, 5)"),
        (lambda s: {**s, A: s[A] * math.nan}, f"not finite: {A}"),
    ],
)
@pytest.mark.usefixtures("no_plugins_left")
def test_what_a_rule_returns_is_checked(spoil: Callable[[Tensors], Any], said: str) -> None:
    merging_rule("mine", description="for a test")(lambda old, contributions: spoil(old))
    with pytest.raises(InputError) as caught:
        merge("mine", server(), [])
    assert str(caught.value) == f"merging rule 'mine': {said}"


@pytest.mark.usefixtures("no_plugins_left")
def test_where_clients_restart_only_the_rank_may_differ() -> None:
    returned: Tensors = {A: torch.ones(3, 5, dtype=torch.float64), B: torch.ones(4, 3)}
    merging_rule("mine", description="for a test", restarts=True)(lambda old, given: returned)
    merged = merge("mine", server(), [])
    assert {name: tuple(value.shape) for name, value in merged.items()} == {A: (3, 5), B: (4, 3)}
    assert merged[A].dtype == torch.float32  # the server's
    for name, shape, wanted in ((B, (4, 2), (4, 3)), (B, (5, 3), (4, 3)), (A, (3, 4), (3, 5))):
        whole = dict(returned)
        returned[name] = torch.ones(shape)
        with pytest.raises(InputError, match=rf"wrong shape of {name}: ") as caught:
            merge("mine", server(), [])
        assert str(caught.value).endswith(f"{shape}, not {wanted}")
        returned.update(whole)


@pytest.mark.usefixtures("no_plugins_left")
def test_a_rule_of_ones_own_is_in_the_table_as_it_was_described() -> None:
    def function(old: Tensors, given: object) -> Tensors:
        return old

    made = merging_rule("mine", description="text", source="here", freezes_a=True, restarts=True)
    assert made(function) is function
    rule = MERGING["mine"]
    assert (rule.description, rule.source, rule.function) == ("text", "here", function)
    assert rule.freezes_a
    assert rule.restarts
    assert not rule.coincides
    merging_rule("plain", description="text")(function)
    assert MERGING["plain"].source == "a plugin"
    assert not MERGING["plain"].freezes_a
    assert not MERGING["plain"].restarts


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["aggregation.rule=flora", "training.keep_optimizer=true"],
            "aggregation.rule = 'flora' needs training.keep_optimizer = false: its clients have "
            "no moments of both factors to go on from",
        ),
        (
            ["aggregation.rule=ffa-lora", "training.keep_optimizer=true"],
            "aggregation.rule = 'ffa-lora' needs training.keep_optimizer = false: its clients "
            "have no moments of both factors to go on from",
        ),
        (
            ["aggregation.rule=flexlora", "training.keep_optimizer=true"],
            "training.keep_optimizer = true cannot go with aggregation.rule = 'flexlora', whose "
            "factors begin anew every round; allowed: a rule that averages the factors, such as "
            "fedit",
        ),
        (
            ["aggregation.rule=flora", "model.quantize=int8"],
            "aggregation.rule = 'flora' changes the base weights every round, and weights of "
            "model.quantize = 'int8' cannot hold a small change: leave out model.quantize",
        ),
        (
            ["aggregation.rule=flora", "participation.rule=partial-fednova"],
            "aggregation.rule = 'flora' cannot go with participation.rule = 'partial-fednova': "
            "clients that restart have no common point to normalise their steps from",
        ),
        (
            ["aggregation.rule=flora", "aggregation.normalize_steps=true"],
            "aggregation.rule = 'flora' cannot go with aggregation.normalize_steps = true: "
            "clients that restart have no common point to normalise their steps from",
        ),
        (
            ["aggregation.rule=ffa-lora", "devices.0.lora_rank=2"],
            "aggregation.rule = 'ffa-lora' needs one rank for all: leave out devices.lora_rank",
        ),
    ],
)
def test_what_a_rule_does_not_go_with_is_refused(settings: list[str], said: str) -> None:
    with pytest.raises(InputError) as caught:
        rule_of(load_scenario("tiny", settings))
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "settings",
    [
        ["training.keep_optimizer=true"],
        ["model.quantize=int8"],
        ["participation.rule=partial-fednova"],
        ["aggregation.rule=flora", "planning.knobs=all", "planning.method=exact"],
        ["devices.0.lora_rank=2"],
        ["aggregation.rule=flora", "devices.0.lora_rank=2"],
        ["aggregation.rule=ffa-lora", "model.quantize=int8"],
    ],
)
def test_what_goes_together_is_not_refused(settings: list[str]) -> None:
    scenario = load_scenario("tiny", settings)
    assert rule_of(scenario) is MERGING[scenario.aggregation.rule]


def test_rules_that_restart_are_not_deployed() -> None:
    with pytest.raises(InputError) as caught:
        check_deployable(load_scenario("tiny", ["aggregation.rule=flora"]))
    said = "aggregation.rule = 'flora' runs in simulation only, not on real devices"
    assert str(caught.value) == said
    check_deployable(load_scenario("tiny"))


def test_names_ranks_and_padding() -> None:
    both = {"y.lora_B.weight": torch.zeros(1, 2), "y.lora_A.weight": torch.zeros(2, 1)} | server()
    assert pairs(both) == [(A, B), ("y.lora_A.weight", "y.lora_B.weight")]
    assert rank_of(server()) == 2
    one = leading(server(), 1)
    torch.testing.assert_close(one[A], server()[A][:1])
    torch.testing.assert_close(one[B], server()[B][:, :1])
    wide = padded(one, 3)
    assert (wide[A].shape, wide[B].shape) == ((3, 5), (4, 3))
    assert torch.equal(wide[A][:1], one[A])
    assert torch.equal(wide[B][:, :1], one[B])
    assert not wide[A][1:].any()
    assert not wide[B][:, 1:].any()
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3] = True
    held = units_held(mask, A)
    assert held.tolist() == [[k == 3 for k in range(5)]] * 2
    assert torch.equal(units_held(mask.T, B), held.T)


def test_the_norm_of_the_products_is_over_all_layers() -> None:
    first, second = server(), {name: 2 * value + 1 for name, value in server().items()}
    both = first | {name.replace("x", "y"): value for name, value in second.items()}
    squares = [float((one[B].double() @ one[A].double()).square().sum()) for one in (first, second)]
    assert product_norm(both) == pytest.approx(math.sqrt(sum(squares)))
    assert product_norm({A: torch.zeros(2, 5), B: torch.ones(4, 2)}) == 0


def given(values: Tensors, weight: float, steps: int = 1) -> Contribution:
    held = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
    return Contribution(values, held, weight, steps)


def test_normalised_steps_by_hand() -> None:
    old = {A: torch.zeros(2, 5) + 1.0}
    two, six = given({A: old[A] + 4.0}, 3.0, 2), given({A: old[A] + 6.0}, 1.0, 6)
    two.held[A][0] = False
    first, second = normalised(old, [two, six])
    # On average 3 steps: 4 by 2 steps becomes 6, 6 by 6 steps becomes 3.
    assert first.values[A].tolist() == [[5.0] * 5, [7.0] * 5]  # not held: as it came
    assert second.values[A].tolist() == [[4.0] * 5] * 2
    assert (first.weight, second.weight, first.steps) == (3.0, 1.0, 2)


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 6), (6, 4), (5, 5)])
def test_a_product_with_an_identity_is_the_same_product(outputs: int, inputs: int) -> None:
    source = torch.Generator().manual_seed(5)
    rows, columns = (torch.randn(s, generator=source) for s in ((9, inputs), (outputs, 9)))
    a, b = _with_identity(rows, columns, 5)
    assert (a.shape, b.shape) == ((5, inputs), (outputs, 5))
    torch.testing.assert_close(b @ a, columns @ rows, rtol=1e-4, atol=1e-4)
    assert a.dtype == b.dtype == torch.float32


def test_a_stack_is_no_higher_than_the_model_can_have_ranks() -> None:
    ones = [given(server(), 1.0) for _ in range(3)]
    merged = flora(server(), ones)  # 2 + 3 x 2 ranks, where 4 x 5 matrices have 4
    assert (merged[A].shape, merged[B].shape) == ((4, 5), (4, 4))
    product = server()[B] @ server()[A]
    torch.testing.assert_close(merged[B] @ merged[A], 2 * product, rtol=1e-4, atol=1e-4)
    fresh = {A: server()[A], B: torch.zeros(4, 2)}
    merged = flora(fresh, ones[:2])  # an untrained adapter is not stacked: 2 x 2 ranks
    assert (merged[A].shape, merged[B].shape) == ((4, 5), (4, 4))
    assert torch.equal(merged[A], torch.cat([server()[A]] * 2))


def test_moments_are_not_kept_where_a_plan_changes_ranks() -> None:
    settings = ["training.keep_optimizer=true", 'planning.knobs=["bandwidth","rank"]']
    with pytest.raises(InputError, match="keep_optimizer = true cannot be combined with the knob"):
        load_scenario("tiny", settings)
    load_scenario("tiny", [settings[0], 'planning.knobs=["bandwidth","steps"]'])
